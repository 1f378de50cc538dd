"""An int8 bundle answers like the float32 bundle it was made from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cnn.bundle import Bundle
from cnn.make_frame_table import action_logits
from cnn.model_config import ModelConfig
from cnn.network.export_bundle import write_bundle
from cnn.network.vgg import MultiExitVGG
from cnn.render.rendered_tracks import render_set
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED

SMALL = ModelConfig(width=0.25, input_size=32, latent_channels=(2, 4, 4, 8))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle, np.ndarray]:
    folder = tmp_path_factory.mktemp("bundles")
    images = render_set(8, 0, 32, 8).images
    torch.manual_seed(0)
    net = MultiExitVGG(SMALL).train()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():  # batch-norm statistics of real frames
        for _ in range(20):
            net(x)
            for s in range(1, 5):
                net.through_bottleneck(net.features(x, 1, s), s)
    net.eval()
    plain = write_bundle(net, folder / "float32")
    return plain, write_bundle(net, folder / "int8", int8_images=images), images


@pytest.mark.slow(8)
def test_logits_stay_close(bundles: tuple[Bundle, Bundle, np.ndarray]) -> None:
    plain, int8, images = bundles
    expected = action_logits(SplitRuntime(plain), images)
    found = action_logits(SplitRuntime(int8), images)
    for key, logits in expected.items():
        correlation = np.corrcoef(logits.ravel(), found[key].ravel())[0, 1]
        assert correlation > 0.97, f"exit, split {key}"


def test_it_says_so_and_is_smaller(bundles: tuple[Bundle, Bundle, np.ndarray]) -> None:
    plain, int8, _ = bundles
    assert (plain.manifest["precision"], int8.manifest["precision"]) == ("float32", "int8")
    assert plain.hash != int8.hash

    def size(path: Path) -> int:
        return sum(f.stat().st_size for f in path.glob("segments/block*.onnx"))

    assert size(int8.path) < 0.75 * size(plain.path)


def test_wire_and_answers_keep_their_form(bundles: tuple[Bundle, Bundle, np.ndarray]) -> None:
    runtime, frame = SplitRuntime(bundles[1]), bundles[2][0]
    for a in SHIPPED.actions:
        x = runtime.forward(runtime.start(frame), 1, a.split)
        if not a.is_local:
            payload = runtime.payload(x, a.split)
            assert payload.dtype == np.uint8
            assert payload.nbytes == SMALL.payload_bytes(a.exit, a.split)
        prediction, confidence = runtime.act(frame, a)
        assert 0 <= prediction < 43
        assert 0 < confidence <= 1
