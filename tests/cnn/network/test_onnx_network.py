"""A network that is given as ONNX alone keeps its answers, and gets exits and bottlenecks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from shapes import SIDE, TINY, four_shapes, runtime_logits
from torch import nn

from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError
from cnn.network.adapt import AdaptConfig, adapt
from cnn.network.onnx_block import OnnxBlock
from cnn.network.onnx_network import onnx_definition
from cnn.network.user_network import Definition, measure
from cnn.ort import onnxruntime as ort
from cnn.runtime import SplitRuntime

pytestmark = pytest.mark.slow(20)

MEAN, STD = (0.4, 0.3, 0.5), (0.2, 0.3, 0.1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, trained on normalised images, as ONNX for one image, a softmax at its end."""
    folder = tmp_path_factory.mktemp("onnx")
    (folder / "mine.py").write_text(TINY)
    torch.manual_seed(0)
    net = Definition.read(f"{folder / 'mine.py'}:net").make(4)
    data = four_shapes(512, 0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(60):
        rows = np.arange(step * 32, step * 32 + 32) % 512
        loss = F.cross_entropy(
            net(normal(data.images[rows])), torch.from_numpy(data.label[rows]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net = nn.Sequential(*net, nn.Softmax(1)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(1, 3, SIDE, SIDE),), str(folder / "net.onnx"), dynamo=False,
            input_names=["image"], output_names=["answer"],
        )  # fmt: skip
    return folder / "net.onnx"


@pytest.fixture(scope="module")
def cuts(file: Path) -> tuple[str, ...]:
    """Outputs of the first two blocks."""
    return tuple(n.output[0] for n in onnx.load(file).graph.node if n.op_type == "Relu")[:2]


def normal(images: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def test_it_keeps_its_answers_and_gets_exits_and_bottlenecks(
    file: Path, cuts: tuple[str, ...], tmp_path: Path
) -> None:
    definition = onnx_definition(file, cuts, mean=MEAN, std=STD)
    config = AdaptConfig(epochs=4, bottleneck_epochs=8, batch_size=32, mixed="fp32", threads=1)
    card = adapt(
        definition, four_shapes(512, 0), four_shapes(128, 1), config, tmp_path, progress=False
    )
    bundle, fresh = load_bundle(tmp_path / "bundle"), four_shapes(64, 2)
    topology, runtime = bundle.topology, SplitRuntime(bundle)
    runtime.warm(runs=1)
    assert topology.n_blocks == 3
    right = {}
    for a in topology.actions:
        logits = runtime_logits(runtime, fresh.images, a)
        right[a.name] = (logits.argmax(1) == fresh.label).mean()
    assert min(right.values()) >= 0.9
    assert card["onnx_max_error"] <= 1e-3
    # The main exit is the file's own answer, before its softmax.
    whole = ort.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    expected = [whole.run(None, {"image": x[None]})[0][0] for x in normal(fresh.images).numpy()]
    found = runtime_logits(runtime, fresh.images, topology.actions[topology.main])
    np.testing.assert_allclose(
        np.exp(found) / np.exp(found).sum(1, keepdims=True), expected, atol=1e-4
    )


def test_blocks_are_measured_as_torch_measures_them(file: Path, cuts: tuple[str, ...]) -> None:
    blocks = measure(onnx_definition(file, cuts).make(4), torch.rand(4, 3, SIDE, SIDE), 4)
    assert [b.features for b in blocks] == [(8, 12, 12), (16, 6, 6), (4,)]
    assert [b.macs for b in blocks] == [31_104, 41_472, 31_200]


def test_what_does_not_fit_is_one_clear_line(
    file: Path, cuts: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "broken.onnx").write_bytes(file.read_bytes()[:1000])
    cases = [
        (lambda: onnx_definition(file, ("nothing",)), "no tensor 'nothing'"),
        (lambda: onnx_definition(file, cuts[::-1]), "a cut between"),
        (lambda: onnx_definition(tmp_path / "broken.onnx", cuts), "no ONNX file"),
        (lambda: onnx_definition(tmp_path / "absent.onnx", cuts), "absent.onnx"),
        (lambda: onnx_definition(file, cuts, mean=(0.5,), std=(0.5,)), "--mean"),
        (lambda: onnx_definition(file, cuts, input_size=99), "--input-size 99"),
        (
            lambda: adapt(
                onnx_definition(file, cuts), four_shapes(64, 0), four_shapes(64, 1),
                AdaptConfig(train=True, batch_size=32), tmp_path / "run", progress=False,
            ),
            "--train with a network given as ONNX",
        ),
    ]  # fmt: skip
    for attempt, said in cases:
        with pytest.raises(ConfigError) as raised:
            attempt()
        assert said in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_cut_that_a_path_passes_by_is_refused(tmp_path: Path) -> None:
    """As within a residual block: a + b needs what was before the cut."""
    image = [1, 3, 8, 8]
    nodes = [
        helper.make_node("Relu", ["image"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["answer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "residual.onnx")
    with pytest.raises(ConfigError, match="a cut between 'b' and 'answer'"):
        onnx_definition(tmp_path / "residual.onnx", ("b",))
    whole = onnx_definition(tmp_path / "residual.onnx", ("a", "c")).make()
    assert len(list(whole.children())) == 3


def test_proposed_cuts_are_the_narrowest_of_their_tenth(
    file: Path, cuts: tuple[str, ...], tmp_path: Path
) -> None:
    # 31,104 of 103,776 are done behind the first layer, in the third tenth, and 72,576 behind the
    # second, in the seventh; the convolution of each gives as many numbers as its Relu.
    definition = onnx_definition(file, ())
    assert definition.name.endswith(f"cut at {', '.join(cuts)}")
    assert [line.split(":")[1] for line in definition.why] == [
        " 1,152 numbers, 30 % of the multiply-accumulates; the fewest in their tenth",
        " 576 numbers, 70 % of the multiply-accumulates; the fewest in their tenth",
    ]


OPERATIONS = {
    "padding": nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, groups=3), nn.MaxPool2d(3, 2, 1)),
    "dilation": nn.Sequential(nn.Conv2d(3, 6, 3, dilation=2), nn.AvgPool2d(2), nn.Hardswish()),
    "clipped": nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Hardsigmoid(), nn.LeakyReLU(0.2)),
    "means": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 6), nn.Sigmoid()),
}


@pytest.mark.parametrize("module", OPERATIONS.values(), ids=OPERATIONS)
def test_a_gradient_passes_as_through_the_module_itself(module: nn.Module, tmp_path: Path) -> None:
    example, path = torch.rand(1, 3, 12, 12), tmp_path / "part.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (example,), str(path), dynamo=False,
            input_names=["x"], output_names=["y"],
        )  # fmt: skip
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    block = OnnxBlock(model)
    assert block.has_gradient
    found, expected = (example.clone().requires_grad_() for _ in range(2))
    block(found).square().sum().backward()
    module(expected).square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_an_operator_that_torch_is_not_told_of_has_no_gradient() -> None:
    graph = helper.make_graph(
        [helper.make_node("Erf", ["x"], ["y"])],
        "unusual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 4, 4])],
    )
    opset = [helper.make_opsetid("", 17)]
    block = OnnxBlock(helper.make_model(graph, opset_imports=opset, ir_version=8))
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(block(x), torch.erf(x))
    assert not block.has_gradient
