"""The exported network against torch, and every split against the whole."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cnn.bundle import Bundle
from cnn.common.errors import BundleError, DataError
from cnn.model_config import ModelConfig
from cnn.network.export_bundle import fold_batch_norm, half_weights, write_bundle
from cnn.network.vgg import MultiExitVGG
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Action

SMALL = ModelConfig(width=0.25, input_size=32, latent_channels=(2, 4, 4, 8))


@pytest.fixture(scope="module")
def net() -> MultiExitVGG:
    """A small network with lively batch-norm statistics and half-precision weights."""
    torch.manual_seed(3)
    net = MultiExitVGG(SMALL)
    net.train()
    with torch.no_grad():
        for _ in range(3):
            x = torch.rand(16, 3, 32, 32)
            net(x)
            for s in range(1, 5):
                net.through_bottleneck(net.features(x, 1, s), s)
    net.eval()
    for group in (net.blocks, net.exits, net.encoders, net.decoders):
        for i, layers in enumerate(group):
            group[i] = fold_batch_norm(layers)
    half_weights(net)
    return net


@pytest.fixture(scope="module")
def bundle(net: MultiExitVGG, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    temperatures = tuple(0.5 + 0.1 * a.index for a in SHIPPED.actions)
    return write_bundle(net, tmp_path_factory.mktemp("bundle") / "b", temperatures)


@pytest.mark.parametrize("weight", [7e4, float("nan"), float("-inf")])
def test_a_weight_that_float16_cannot_hold_makes_no_bundle(weight: float) -> None:
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0, 1] = weight
    with pytest.raises(BundleError, match=f"{weight:g}"):
        half_weights(layer)


def random_frames(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.mark.slow(2)
@pytest.mark.parametrize("action", SHIPPED.actions, ids=lambda a: a.name)
def test_export_equals_torch(net: MultiExitVGG, bundle: Bundle, action: Action) -> None:
    runtime = SplitRuntime(bundle)
    frames = random_frames(8)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = net.act(x, action).numpy()
    y = runtime.forward(frames, 1, action.split)
    if action.split < action.exit:
        y = runtime.received(runtime.payload(y, action.split), action.split)
        y = runtime.forward(y, action.split + 1, action.exit)
    found = runtime.logits(y, action.exit)
    # Across runtimes a latent may round to the neighbouring level, which moves logits a
    # little; without a bottleneck only summation order differs.
    has_bottleneck = 0 < action.split < action.exit
    tolerance = 0.05 if has_bottleneck else 1e-3
    assert np.abs(found - expected).max() <= tolerance * (1 + np.abs(expected).max())


@pytest.mark.parametrize("action", SHIPPED.actions, ids=lambda a: a.name)
def test_head_wire_tail_equals_whole(bundle: Bundle, action: Action) -> None:
    """Bit for bit in one runtime: device and server parts give what one process gives."""
    device, server = SplitRuntime(bundle), SplitRuntime(bundle)
    for frame in random_frames(3):
        whole = SplitRuntime(bundle).act(frame, action)
        x = device.forward(device.start(frame), 1, action.split)
        if action.is_local:
            parts = device.answer(x, action.exit, action.split)
        else:
            wire = device.payload(x, action.split).tobytes()
            assert len(wire) == SMALL.payload_bytes(action.exit, action.split)
            shape = (1, *server.wire_shape(action.split))
            received = np.frombuffer(wire, np.uint8).reshape(shape)
            p, c = server.tail(received, action.exit, action.split)
            parts = (int(p[0]), float(c[0]))
        assert parts == whole


@pytest.mark.parametrize("exit", range(1, 6))
def test_full_offload_equals_fully_local(bundle: Bundle, exit: int) -> None:
    runtime = SplitRuntime(bundle)
    x = random_frames(1)
    local = runtime.logits(runtime.forward(x, 1, exit), exit)
    remote = runtime.logits(runtime.forward(runtime.received(x, 0), 1, exit), exit)
    np.testing.assert_array_equal(local, remote)


def test_finishing_from_where_it_stands_equals_local(bundle: Bundle) -> None:
    runtime = SplitRuntime(bundle)
    x = random_frames(1)
    for split in range(6):
        points = runtime.forward(x, 1, split)
        finished = runtime.logits(runtime.forward(points, split + 1, 5), 5)
        np.testing.assert_array_equal(finished, runtime.logits(runtime.forward(x, 1, 5), 5))


def test_calibrated_confidence_is_the_softmax_at_the_action_temperature(bundle: Bundle) -> None:
    runtime = SplitRuntime(bundle)
    logits = np.random.default_rng(0).normal(0, 5, (6, 43)).astype(np.float32)
    for a in SHIPPED.actions:
        p, c = runtime.calibrated(logits, a.exit, a.split)
        scaled = torch.from_numpy(logits) / bundle.temperatures[a.index]
        expected = torch.softmax(scaled, 1).max(1)
        np.testing.assert_array_equal(p, expected.indices.numpy())
        np.testing.assert_allclose(c, expected.values.numpy(), rtol=1e-5)


def test_batches_answer_like_single_frames(bundle: Bundle) -> None:
    runtime = SplitRuntime(bundle)
    frames = random_frames(5)
    payloads = runtime.payload(runtime.forward(frames, 1, 2), 2)
    p, c = runtime.tail(payloads, 4, 2)
    for i in range(5):
        one_p, one_c = runtime.tail(payloads[i : i + 1], 4, 2)
        assert one_p[0] == p[i]
        assert one_c[0] == pytest.approx(c[i], abs=1e-5)


@pytest.mark.parametrize("frame", [np.zeros((32, 32), np.uint8), np.zeros((32, 32, 3), np.float32)])
def test_a_frame_of_another_form_is_refused(bundle: Bundle, frame: np.ndarray) -> None:
    with pytest.raises(DataError, match="expected uint8"):
        SplitRuntime(bundle).start(frame)


def test_weights_lie_in_one_segment_only(bundle: Bundle) -> None:
    import onnx

    seen: set[bytes] = set()
    for file in sorted(Path(bundle.path).glob("segments/*.onnx")):
        for tensor in onnx.load(file).graph.initializer:
            data = tensor.raw_data
            if len(data) > 256:
                assert data not in seen, f"{tensor.name} of {file.name} is stored twice"
                seen.add(data)
