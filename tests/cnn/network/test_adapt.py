"""A network of the user's own becomes a bundle that answers as torch does."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from networks import made_up_cost, scenario_of
from numpy.typing import NDArray
from PIL import Image
from shapes import LAYERS, NAMES, SIDE, TINY, four_shapes, probabilities, runtime_logits
from torch import nn
from typer.testing import CliRunner

from agents.cli import app
from cnn.bundle import Bundle, load_bundle
from cnn.common.errors import ConfigError, DataError, SliproadError
from cnn.data.image_set import SPLICED, ImageSet, load_split
from cnn.frame_table import FrameTable
from cnn.make_frame_table import make_table
from cnn.model_config import NetworkConfig
from cnn.network import weights_file as checkpoint
from cnn.network.adapt import AdaptConfig, adapt
from cnn.network.added_parts import latent_shape, make_decoder, make_encoder, run_counted
from cnn.network.block_network import BlockNetwork, as_channels
from cnn.network.checked_export import MOST_INT8_LOSS, int8_wins
from cnn.network.export_bundle import write_bundle
from cnn.network.user_network import (
    Definition,
    MeasuredBlock,
    add_parts,
    blocks_of,
    channels_of,
    choose_topology,
    measure,
)
from cnn.runtime import SplitRuntime
from cnn.topology import Action
from offload_env.world import build_world

pytestmark = pytest.mark.slow(40)

EXAMPLES = Path(__file__).parents[3] / "examples" / "networks"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> tuple[ImageSet, ImageSet]:
    fit, val = four_shapes(512, 0), four_shapes(128, 1)
    return replace(fit, class_names=NAMES), replace(val, class_names=NAMES)


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> Definition:
    return defined(tmp_path_factory.mktemp("model"), TINY)


def defined(folder: Path, text: str, name: str = "net") -> Definition:
    (folder / "mine.py").write_text(text)
    return Definition.read(f"{folder / 'mine.py'}:{name}")


QUICK = AdaptConfig(
    train=True, epochs=5, bottleneck_epochs=10, batch_size=32, mixed="fp32", threads=1
)


@pytest.fixture(scope="module")
def adapted(
    definition: Definition,
    data: tuple[ImageSet, ImageSet],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Bundle, dict[str, Any]]:
    out = tmp_path_factory.mktemp("adapted")
    card = adapt(definition, *data, QUICK, out, progress=False)
    return load_bundle(out / "bundle"), card


def in_torch(definition: Definition, run: Path, images: NDArray[np.uint8]) -> BlockNetwork:
    """The network of a run's last checkpoint, built anew."""
    module = definition.make(4)
    x = torch.from_numpy(images[:8]).permute(0, 3, 1, 2).float() / 255
    measured = measure(module, x, 4)
    topology, _ = choose_topology(module, measured, SIDE, AdaptConfig().payload)
    net = add_parts(blocks_of(module), measured, NetworkConfig(SIDE, 4), topology, 3)
    net.load_state_dict(checkpoint.load(run / "network.pt")["model"])
    return net.eval()


@torch.no_grad()
def torch_logits(net: BlockNetwork, images: NDArray[np.uint8], a: Action) -> NDArray[np.float32]:
    return net.act(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, a).numpy()


def test_the_bundle_is_the_network_that_was_stated(
    adapted: tuple[Bundle, dict[str, Any]], definition: Definition
) -> None:
    bundle, card = adapted
    assert [a.name for a in bundle.topology.actions] == ["e1s0", "e1s1", "e3s0", "e3s2", "e3s3"]
    assert bundle.config == NetworkConfig(SIDE, 4)
    assert bundle.manifest["class_names"] == list(NAMES)
    assert bundle.manifest["provenance"]["model_sha256"] == definition.sha256
    assert [b["output"] for b in card["blocks"]] == [[8, 12, 12], [16, 6, 6], [4]]
    # 9 * 3 * 8 a pixel of 12 x 12; 9 * 8 * 16 of 6 x 6; 9 * 16 * 24 of 3 x 3, and 24 * 4.
    assert [b["macs"] for b in card["blocks"]] == [31_104, 41_472, 31_200]


def test_it_answers_as_torch_does(
    adapted: tuple[Bundle, dict[str, Any]],
    definition: Definition,
    data: tuple[ImageSet, ImageSet],
) -> None:
    bundle, card = adapted
    images = data[1].images
    net, runtime = in_torch(definition, bundle.path.parent, images), SplitRuntime(bundle)
    worst = 0.0
    for a in bundle.topology.actions:
        t = bundle.temperatures[a.index]
        expected = probabilities(torch_logits(net, images, a), t)
        found = probabilities(runtime_logits(runtime, images, a), t)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        if a.split not in (0, a.exit):  # of the very bytes that are sent, none rounded otherwise
            heads = [runtime.forward(runtime.start(image), 1, a.split) for image in images]
            sent = np.concatenate([runtime.payload(x, a.split) for x in heads])
            with torch.no_grad():
                expected = probabilities(net.act_on(torch.from_numpy(sent), a).numpy(), t)
        worst = max(worst, float(np.abs(found - expected).max()))
    assert card["onnx_max_error"] == pytest.approx(worst, abs=2e-5)


def test_it_learned_and_a_bottleneck_costs_little(
    adapted: tuple[Bundle, dict[str, Any]], data: tuple[ImageSet, ImageSet]
) -> None:
    bundle, card = adapted
    runtime, fresh = SplitRuntime(bundle), four_shapes(128, 2)
    right = {
        a.name: (runtime_logits(runtime, fresh.images, a).argmax(1) == fresh.label).mean()
        for a in bundle.topology.actions
    }
    assert min(right.values()) >= 0.9  # chance is 0.25
    assert right["e3s3"] - right["e3s2"] <= 0.02
    assert card["main_accuracy"] == card["actions"]["e3s3"]["accuracy"]
    gap = card["main_accuracy"] - card["actions"]["e3s2"]["accuracy"]
    assert card["worst_split_gap"] == pytest.approx(gap)


def test_the_card_says_it(adapted: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, card = adapted
    text = (bundle.path.parent / "card.md").read_text()
    assert f"Bundle: {bundle.hash[:12]}" in text
    sent = bundle.topology.payload_bytes[bundle.topology.index(3, 2)]
    assert f"| e3s2 | {100 * card['actions']['e3s2']['accuracy']:.2f} |" in text
    assert f"split 2 sends {sent} bytes" in text


def test_its_frame_table_makes_a_world(
    adapted: tuple[Bundle, dict[str, Any]], data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    bundle = adapted[0]
    table = make_table(SplitRuntime(bundle), data[1], "four shapes")
    scenario = scenario_of(bundle.topology, tmp_path)
    cost = replace(made_up_cost(bundle.topology), bundle_hash=bundle.hash)
    world = build_world(scenario, "train", table=table, cost=cost)
    assert world.correct.shape == (128, 5)
    assert world.sent_bytes[0, bundle.topology.index(1, 0)] > SIDE * SIDE * 3


def test_without_train_the_blocks_stay_as_they_are(
    definition: Definition, data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    config = replace(QUICK, train=False, epochs=1, bottleneck_epochs=1)
    adapt(definition, *data, config, tmp_path, progress=False)
    torch.manual_seed(config.seed)
    before = nn.ModuleList(definition.make(4)).state_dict()  # type: ignore[arg-type]
    after = checkpoint.load(tmp_path / "network.pt")["model"]
    assert all(torch.equal(after[f"blocks.{name}"], value) for name, value in before.items())


def test_one_seed_one_bundle_and_resume_changes_nothing(
    definition: Definition, data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    config = replace(QUICK, epochs=1, bottleneck_epochs=1)
    small = data[0].take(np.arange(64)), data[1].take(np.arange(32))

    def run(name: str, config: AdaptConfig = config, resume: bool = False) -> str:
        card = adapt(definition, *small, config, tmp_path / name, resume=resume, progress=False)
        return str(card["hash"])

    first = run("a")
    assert run("b") == first
    assert run("a", resume=True) == first
    assert run("c", replace(config, seed=1)) != first


FORMS = {
    "two blocks, only the frame is sent": (2, (2,), (0,), 3, 16, 2, 0.125),
    "no split at all": (3, (2, 3), (), 3, 16, 5, 0.125),
    "seven exits, one channel, odd sides": (7, (1, 2, 3, 4, 5, 6, 7), (0, 2, 5), 1, 33, 4, 0.125),
    "twelve blocks": (12, (4, 12), (1, 11), 3, 20, 3, 0.125),
    "ten thousand classes": (2, (1, 2), (0, 1), 3, 16, 10_000, 0.125),
    "a bottleneck that narrows nothing": (4, (2, 4), (0, 3), 3, 32, 5, 1.0),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_any_form_is_exported_as_torch_has_it(
    form: tuple[int, tuple[int, ...], tuple[int, ...], int, int, int, float], tmp_path: Path
) -> None:
    n, exits, splits, channels, size, n_classes, payload = form
    text = f"""{LAYERS}
def net(n_classes):
    steps = [2, 1, 2, *[1] * 12][: {n} - 1]
    blocks = [layer(6 if i else {channels}, 6, step) for i, step in enumerate(steps)]
    blocks.append(end(6, n_classes))
    return stating(blocks, exits={exits}, splits={splits})
"""
    torch.manual_seed(0)
    module = defined(tmp_path, text).make(n_classes)
    x = torch.rand(16, 3, size, size)
    assert channels_of(module) == channels
    measured = measure(module, as_channels(x, channels), n_classes)
    topology, _ = choose_topology(module, measured, size, payload)
    assert (topology.exits, topology.splits) == (exits, splits)
    config = NetworkConfig(size, n_classes)
    net = add_parts(blocks_of(module), measured, config, topology, channels)
    lively(net, x)
    runtime = SplitRuntime(write_bundle(net, tmp_path / "bundle", half=False))
    runtime.warm(runs=1)
    frames = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    for a in topology.actions:
        expected = probabilities(torch_logits(net, frames, a), 1.0)
        found = probabilities(runtime_logits(runtime, frames, a), 1.0)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert found.shape == (3, n_classes)


def lively(net: BlockNetwork, x: torch.Tensor) -> None:
    """Statistics of batch norms as after a training."""
    net.train()
    with torch.no_grad():
        for _ in range(10):
            f = net.normalise(x)
            for b, block in enumerate(net.blocks, 1):
                f = block(f)
                if b in net.topology.exits:
                    net.exit_of(b)(f)
                if b in net.cuts:
                    net.through_bottleneck(f, b)
    net.eval()


def test_int8_bundles_keep_the_answers(
    definition: Definition, data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    config = replace(QUICK, epochs=3, bottleneck_epochs=1, precision="int8")
    card = adapt(definition, *data, config, tmp_path, progress=False)
    assert load_bundle(tmp_path / "bundle").manifest["precision"] == "int8"
    assert card["main_accuracy"] >= 0.9
    assert card["weights"] == "int8"
    assert not any("int8" in line for line in card["why"])


@pytest.mark.parametrize(
    ("float32_ms", "int8_ms", "loss", "wins"),
    [
        (2.0, 1.0, 0.0, True),
        (2.0, 1.0, MOST_INT8_LOSS, True),
        (2.0, 1.0, MOST_INT8_LOSS + 1e-9, False),
        (1.0, 2.0, -0.1, False),
        (1.0, 1.0, 0.0, False),
    ],
)
def test_int8_wins_if_it_is_faster_and_as_right(
    float32_ms: float, int8_ms: float, loss: float, wins: bool
) -> None:
    assert int8_wins(float32_ms, int8_ms, loss) is wins


def test_auto_takes_what_it_measured_to_be_better(
    definition: Definition, data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    config = replace(QUICK, bottleneck_epochs=1, precision="auto")
    said: list[str] = []
    card = adapt(definition, *data, config, tmp_path, progress=False, report=said.append)
    (line,) = [line for line in said if "with int8" in line]
    assert line in card["why"]
    with_int8, without, points = map(float, re.findall(r"-?[0-9]+\.[0-9]+", line))
    wins = line.startswith("int8: ")
    if with_int8 != without:  # two digits are said
        assert wins == int8_wins(without, with_int8, points / 100)
    assert load_bundle(tmp_path / "bundle").manifest["precision"] == line.split(":")[0]
    assert (card["weights"] == "int8") is wins
    # A choice by time is not in the bundle's record: only its outcome is.
    assert line not in (tmp_path / "bundle" / "manifest.json").read_text()


# --- What is chosen where nothing is stated -----------------------------------------------------


def made_of(*blocks: tuple[tuple[int, ...], int]) -> list[MeasuredBlock]:
    return [MeasuredBlock(features, macs, 0, True) for features, macs in blocks]


def test_exits_lie_a_tenth_apart_and_splits_send_ever_less() -> None:
    measured = made_of(
        ((16, 32, 32), 5), ((16, 32, 32), 35), ((32, 16, 16), 5), ((64, 8, 8), 50), ((10,), 5)
    )
    topology, why = choose_topology(nn.Module(), measured, 32, 0.125)
    # Passed: 5, 40, 45, 95 of 100. Behind 1 too little has passed; between 2 and 3 lie 5; behind 4
    # too little is left.
    assert topology.exits == (2, 5)
    # An eighth of 16,384 is more than half of the frame's 3,072 bytes: 1,536; then 1,024 and 512.
    assert topology.splits == (0, 1, 3, 4)
    assert topology.payload_shapes == ((32, 32, 3), (6, 16, 16), (16, 8, 8), (32, 4, 4))
    assert any("split 4 sends 512 bytes" in line and "1/8" in line for line in why)


@pytest.mark.parametrize(
    ("features", "frame_bytes", "share", "expected"),
    [
        ((64, 56, 56), 150_528, 0.125, (32, 28, 28)),  # 200,704 / 8 = 25,088 = 32 * 28 * 28
        ((64, 56, 56), 150_528, 1.0, (96, 28, 28)),  # half of the frame: 75,264 = 96 * 28 * 28
        ((100, 7, 7), 3_072, 0.125, (12, 7, 7)),  # 612.5 / 49 = 12.5; a side of 7 stays
        ((8, 17, 9), 3_072, 0.125, (3, 9, 5)),  # 153 / 45 = 3.4
        ((4, 8, 8), 3_072, 1e-3, (1, 4, 4)),  # never less than a channel
        ((24, 8, 8), 3_072, 1.0, (24, 8, 8)),  # half of the frame, as it is
        ((25, 8, 8), 3_072, 1.0, (96, 4, 4)),  # 1,600 are more than half
    ],
)
def test_the_latent_is_a_share_of_the_output(
    features: tuple[int, int, int], frame_bytes: int, share: float, expected: tuple[int, int, int]
) -> None:
    assert latent_shape(features, frame_bytes, share) == expected


def test_a_bottleneck_that_narrows_nothing_loses_a_rounding_at_most() -> None:
    torch.manual_seed(0)
    shape, spread = (3, 4, 4), torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1)
    encoder = make_encoder(shape, shape).train()
    decoder = make_decoder(shape, shape, False, encoder)
    both = nn.ModuleList([encoder, decoder])
    assert list(both.parameters()) == list(encoder.parameters())  # one set of numbers
    for _ in range(100):
        encoder(torch.randn(64, *shape) * spread + 7 * spread)
    pair = copy.deepcopy(nn.ModuleList([encoder, decoder])).eval()
    encoder.norm.weight.data.zero_()  # a copy has weights of its own
    x = torch.randn(64, *shape) * spread + 7 * spread
    sent = (pair[0](x) * 255).round() / 255
    assert 0 <= sent.min() < sent.max() <= 1
    inside = ((x / spread - 7).abs() < 3.5).float()
    wrong = (pair[1](sent) - x).abs() / spread * inside
    assert 0 < wrong.max() < 0.6 * 8 / 255  # half a level of a range of eight spreads
    rectified = make_decoder(shape, shape, True, pair[0]).eval()
    assert rectified(-torch.ones(1, *shape)).max() == 0


def test_an_exit_costs_a_quarter_of_the_blocks_before_it_at_most() -> None:
    features = (32, 16, 16)
    measured = made_of((features, 4_000_000), ((10,), 4_000_000))
    topology, _ = choose_topology(nn.Module(), measured, 32, 0.125)
    config = NetworkConfig(32, 10)
    net = add_parts([nn.Identity(), nn.Identity()], measured, config, topology, 3)
    macs = run_counted(net.exit_of(1), torch.zeros(1, *features))[1]
    assert 500_000 < macs <= 1_000_000


# --- What does not fit says so in one line ------------------------------------------------------

BAD = {
    "no blocks": ("class Net(nn.Module): pass\ndef net(): return Net()", "states no blocks"),
    "one block": ("def net(): return stating([end(3, 4)])", "in 1 block;"),
    "thirteen blocks": (
        "def net(): return stating([layer(3, 3, 1)] * 12 + [end(3, 4)])",
        "in 13 blocks",
    ),
    "an exit beyond": (
        "def net(): return stating([layer(3, 8, 2), end(8, 4)], exits=(1, 3))",
        "exits [1, 3]",
    ),
    "no main exit": ("def net(): return stating([layer(3, 8, 2), end(8, 4)], exits=(1,))", "exits"),
    "exits that are modules": (
        "def net(): return stating([layer(3, 8, 2), end(8, 4)], exits='all')",
        "exits str",
    ),
    "a split behind the last block": (
        "def net(): return stating([layer(3, 8, 2), end(8, 4)], splits=(0, 2))",
        "splits [0, 2]",
    ),
    "a split of a vector": (
        "def net(): return stating([end(3, 8), nn.Linear(8, 4)], splits=(1,))",
        "a split behind block 1, whose output is [8]",
    ),
    "other classes": ("def net(): return stating([layer(3, 8, 2), end(8, 5)])", "output (B, 5)"),
    "a map of answers": (
        "def net(): return stating([layer(3, 8, 2), layer(8, 4, 2)])",
        "output (B, 4, 6, 6)",
    ),
    "two outputs": (
        "class Two(nn.Module):\n    def forward(self, x): return x, x\n"
        "def net(): return stating([Two(), end(3, 4)])",
        "block 1 gives tuple",
    ),
    "blocks that do not fit": (
        "def net(): return stating([layer(3, 8, 2), layer(9, 4, 2)])",
        "block 2 on input of shape [8, 8, 12, 12]",
    ),
    "not all of its blocks": (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.blocks = nn.ModuleList([layer(3, 8, 2), end(8, 4)])\n"
        "    def forward(self, x): return self.blocks[1](self.blocks[0](x)) * 2 + 1\n"
        "net = Net",
        "something else than the network's own forward",
    ),
    "four channels": ("def net(): return stating([layer(4, 8, 2), end(8, 4)])", "4 channels"),
    "a function that fails": ("def net(): return 1 / 0", "division by zero"),
    "no module": ("def net(): return 3", "gives int"),
    "a file that fails": ("import no_such_module", "no_such_module"),
    "no such function": ("", "no function 'net'"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_a_definition_that_does_not_fit_is_one_clear_line(
    case: tuple[str, str], data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    text, said = case
    with pytest.raises(ConfigError) as raised:
        adapt(defined(tmp_path, LAYERS + text), *data, QUICK, tmp_path / "run", progress=False)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["absent.py:net", "mine.py", "mine.py:", "net", ""])
def test_a_name_that_names_nothing_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TINY)
    with pytest.raises(ConfigError, match=r"FILE\.py:NAME"):
        Definition.read(name)


def test_images_that_do_not_fit_are_refused(
    definition: Definition, data: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    fit, val = data
    unknown = replace(val, label=val.label - 1)
    cases: list[tuple[ImageSet, ImageSet, tuple[str, ...]]] = [
        (fit.take(np.arange(8)), val, ()),
        (fit, val.take(np.arange(0)), ()),
        (fit, unknown, ()),
        (fit, val, NAMES[:3]),
    ]
    for a, b, names in cases:
        named = replace(a, class_names=names)
        with pytest.raises(DataError):
            adapt(definition, named, b, QUICK, tmp_path / "run", progress=False)
    one = (replace(part, label=part.label * 0, class_names=()) for part in data)
    with pytest.raises(SliproadError, match="1 classes"):
        adapt(definition, *one, QUICK, tmp_path / "run", progress=False)


# --- The command and the examples -----------------------------------------------------------------


def write_packed(path: Path, fit: ImageSet, val: ImageSet, unseen: ImageSet) -> None:
    """As tracks of the official training set, in the packed form of docs/data.md."""
    rows: list[dict[str, Any]] = []
    for part, data in (("cnn-fit", fit), ("cnn-val", val), ("policy-train", unseen)):
        names = [name for name in load_split()[part] if name not in SPLICED]  # type: ignore[index]
        free = {c: [n for n in names if n.startswith(f"{c}/")] for c in range(4)}
        for track in np.unique(data.track):
            one = data.take(data.track == track)
            label, number = map(int, free[int(one.label[0])].pop().split("/"))
            for frame, image in enumerate(one.images):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG")
                row = {"image": file.getvalue(), "label": label, "track": number}
                rows.append({**row, "frame": frame, "width": SIDE, "height": SIDE})
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TINY)
    (tmp_path / "gtsrb").mkdir()
    write_packed(
        tmp_path / "gtsrb" / "train.parquet",
        *(
            four_shapes(n, seed, tracks)
            for n, seed, tracks in ((96, 0, 30), (48, 1, 12), (24, 2, 6))
        ),
    )
    options = "--epochs 1 --bottleneck-epochs 1 --batch-size 32 --threads 1 --seed 3 --json"
    line = f"cnn adapt --model mine.py:net --data gtsrb --out run {options}"
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 0, done.output
    card = json.loads(done.stdout)  # and nothing else
    assert card["hash"] == load_bundle(tmp_path / "run" / "bundle").hash
    assert card["onnx_max_error"] <= 1e-3
    assert (tmp_path / card["card"]).read_text().startswith("# Network card: mine.py:net")
    assert card["why"][0] in done.stderr
    n = load_bundle(tmp_path / "run" / "bundle").topology.n_blocks
    assert {f"block{b}" for b in range(1, n + 1)} <= set(card["ms"])
    assert all(0 < value < 10_000 for value in card["ms"].values())
    assert card["tables"] == ["run/policy-train.npz"]
    train = FrameTable.load(tmp_path / "run" / "policy-train.npz")
    assert train.bundle_hash == card["hash"]
    assert "no frame table run/policy-test.npz" in done.stderr  # the set has no such part
    again = CliRunner().invoke(app, f"{line} --resume".split())
    assert json.loads(again.stdout.splitlines()[-1])["hash"] == card["hash"]


@pytest.mark.parametrize(
    ("name", "blocks", "exits"),
    [
        ("resnet.py:resnet20", 6, 6),
        ("resnet.py:resnet9", 7, 3),
        ("mobilenet.py:mobilenet", 8, 7),
        ("plain.py:plain", 3, 3),
    ],
)
def test_the_examples_are_networks_that_can_be_adapted(name: str, blocks: int, exits: int) -> None:
    module = Definition.read(str(EXAMPLES / name)).make(43)
    measured = measure(module, torch.rand(4, 3, 32, 32), 43)
    topology, _ = choose_topology(module, measured, 32, 0.125)
    assert (topology.n_blocks, topology.n_exits) == (blocks, exits)
    sent = [int(np.prod(shape)) for shape in topology.payload_shapes]
    assert sent[0] == max(sent)
    net = add_parts(blocks_of(module), measured, NetworkConfig(32, 43), topology, 3)
    assert [z.shape for z in net.eval()(torch.rand(2, 3, 32, 32))] == [(2, 43)] * topology.n_exits
