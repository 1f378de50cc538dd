"""The pages on a user's own parts: every command in them runs, in their order, at a small size.

Imports and fits of traces have a test of their own, and so have your device and studies:
`tests/testbed/traces/test_your_traces_page.py`, `tests/test_your_device.py`,
`tests/agents/test_ray_trials.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from networks import THREE_EXITS, made_up_cost, made_up_table
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from agents.cli import app
from cnn.bundle import Bundle, load_bundle
from cnn.common.errors import DataError
from cnn.frame_table import FrameTable
from cnn.imported_table import import_table
from cnn.topology import Topology
from offload_env.scenario import load_scenario
from testbed.policy.policy_file import PolicyBundle
from testbed.records.record_file import read_all, read_records
from testbed.server.server_process import ServerProcess
from testbed.traces.generator import generate_trace
from testbed.traces.trace import save_trace

ROOT = Path(__file__).parents[1]
CLASSES = {"cat": (200, 40, 30), "dog": (30, 40, 200)}
TRAINING = "--epochs 1 --bottleneck-epochs 1 --threads 1 --device cpu"
SMALL = {
    "cnn train": f"{TRAINING} --precision float32 --seed 3",
    "cnn adapt": f"{TRAINING} --mixed-precision fp32 --batch-size 32",
    "testbed device --local-only": "--n-frames 10 --fps 0",
    "agent train": "--steps 1024 --n-envs 16 --hidden 16 --validate-every 512",
    "agent evaluate": "--episodes 2",
}
"""What is added to a command, so that it ends soon."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a page's commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIPROAD_DATA", str(tmp_path / "data"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def commands(text: str) -> list[str]:
    """The command lines of a page's blocks of shell."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    joined = re.sub(r"\\\n\s*", "", "".join(blocks))
    return re.findall(r"^sliproad (.*)$", joined, re.M)


def run(line: str) -> str:
    """A command of a page, without ``sliproad``, at a small size; what it prints."""
    more = next((more for name, more in SMALL.items() if line.startswith(name)), "")
    words = [os.path.expandvars(word) for word in shlex.split(f"{line} {more}")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    if line.startswith("agent new-scenario"):  # short drives, too
        scenario = Path(words[2])
        text = scenario.read_text().replace("[timing]\n", "[timing]\nn_frames = 10\n")
        scenario.write_text(text)
    return done.output


def said_as_json(line: str) -> Any:
    return json.loads(run(f"{line} --json").splitlines()[-1])


def write_images(folder: Path, n: int, seed: int = 0) -> None:
    """`n` images of each class, in plain colours with noise; sizes differ."""
    rng = np.random.default_rng(seed)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for k in range(n):
            pixels = np.clip(rng.normal(colour, 30, (24, 20 + k % 5, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{seed}-{k}.png")


@pytest.mark.slow(60)
def test_your_network(here: Path) -> None:
    (here / "examples").symlink_to(ROOT / "examples")
    write_images(here / "data" / "gtsrb", 60)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, len(CLASSES))]
    net = nn.Sequential(*layers, nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), *end).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(1, 3, 24, 24),), "mine.onnx", dynamo=False)
    lines = commands(page("your-network.md"))
    assert [line.split()[1] for line in lines] == ["adapt", "adapt"]
    for line in lines:
        run(line)
    for name in ("resnet", "mine"):
        bundle = load_bundle(here / "runs" / name / "bundle")
        assert bundle.class_names == tuple(CLASSES)
        assert f"Bundle: {bundle.hash[:12]}" in (here / "runs" / name / "card.md").read_text()
    table = FrameTable.load(here / "runs/resnet/policy-train.npz")
    assert table.topology == load_bundle(here / "runs/resnet/bundle").topology
    # "After an interruption the same command with `--resume` continues."
    run(f"{lines[1]} --resume")


@pytest.mark.slow(60)
def test_your_images(here: Path) -> None:
    write_images(here / "photos", 120)
    write_images(here / "new-photos", 3, seed=1)
    lines = commands(page("your-data.md"))
    assert [" ".join(line.split()[:2]) for line in lines] == [
        "cnn train",
        *("cnn evaluate", "cnn table", "cnn table", "cnn info"),
        *("cnn evaluate", "testbed device"),
    ]
    said = {line: run(line) for line in lines}
    assert "2 classes: cat, dog" in said[lines[4]]
    train, test = (FrameTable.load(here / f"{part}.npz") for part in ("train", "test"))
    for part, table in (("policy-train", train), ("policy-test", test)):
        assert table.n_tracks == len(table) == 36
        assert table.source == f"photos {part}"
    assert np.bincount(np.append(train.label, test.label)).tolist() == [36, 36]
    records = read_records(here / "run.parquet")
    assert len(records) == 10
    assert set(records.numbers("label")) <= {0, 1}

    bundle = load_bundle(here / "runs/photos/bundle")
    assert bundle.class_names == tuple(CLASSES)
    assert bundle.config.n_classes == len(CLASSES)
    assert said_as_json(lines[4])["class_names"] == list(CLASSES)
    assert said_as_json(lines[1])["frames"] == len(train) + len(test)
    split = bundle.manifest["provenance"]["split"]
    assert split["seed"] == 3
    assert split["images"] == {
        "cnn-fit": 151, "cnn-val": 17, "policy-train": 36, "policy-test": 36
    }  # fmt: skip
    # The same again from the checkpoint.
    run("cnn export --checkpoint runs/photos/network.pt --out again --data photos "
        "--precision float32")  # fmt: skip
    again = load_bundle(here / "again")
    assert again.class_names == bundle.class_names
    assert again.temperatures == bundle.temperatures
    assert again.manifest["provenance"]["split"] == split

    # Another set is no test of this network by chance, but by word; its classes go by name.
    evaluate = f"cnn evaluate --data new-photos --bundle {bundle.path}"
    with pytest.raises(DataError, match="not those the network was trained with"):
        run(evaluate)
    shutil.rmtree(here / "new-photos" / "cat")
    assert said_as_json(f"{evaluate} --part all")["frames"] == 3
    (here / "new-photos" / "dog").rename(here / "new-photos" / "fox")
    with pytest.raises(DataError, match="images of class 'fox'"):
        run(f"{evaluate} --part all")


@pytest.mark.slow(20)
def test_your_tables(here: Path) -> None:
    pairs = np.array([(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
    n = 60
    for seed, name in enumerate(("train", "test")):
        rng = np.random.default_rng(seed)
        exit, split = np.tile(pairs, (n, 1)).T
        quality = 0.5 * rng.random(len(exit)) + 0.25 * exit
        columns = {
            "frame": np.repeat(np.arange(n), len(pairs)),
            "track": np.repeat(np.arange(n) // 6, len(pairs)),
            "exit": exit,
            "split": split,
            "confidence": quality,
            "quality": quality,
            "payload_bytes": np.where(split == exit, 0, 3000 - 2000 * split),
        }
        pq.write_table(pa.table(columns), here / f"{name}.parquet")
    made_up_cost(import_table(here / "train.parquet").table.topology).save(here / "cost.json")
    lines = commands(page("your-tables.md"))
    assert len(lines) == 5
    for line in lines:
        said = run(line)
    assert "quality" in said
    assert (here / "runs/mine-test/report.html").exists()


@pytest.mark.slow(30)
def test_your_scenario(here: Path, tiny_bundle: Callable[[Topology], Bundle]) -> None:
    text, bundle = page("your-scenario.md"), tiny_bundle(THREE_EXITS)
    (here / "bundle").symlink_to(bundle.path)
    for seed, name in enumerate(("train", "test")):
        table = replace(made_up_table(THREE_EXITS, seed), bundle_hash=bundle.hash)
        table.save(here / f"{name}.npz")
    made_up_cost(THREE_EXITS).save(here / "pi.json")
    (here / "drives").mkdir()
    for k in range(3):
        rates = generate_trace("urban-5g", k, 30.0, 1.0).uplink_mbps
        rows = "".join(f"d{k},{t},{mbps:.3f}\n" for t, mbps in enumerate(rates))
        (here / "drives" / f"{k}.csv").write_text(f"trace,time_s,uplink_mbps\n{rows}")
    (device,) = re.findall(r"```toml\n(.*?)```", text, re.S)

    lines = commands(text)
    serve = next(line for line in lines if line.startswith("testbed serve"))
    assert shlex.split(serve)[2:] == ["--bundle", "bundle", "--port", "8001"]
    ran = []
    with ServerProcess(Path("bundle")) as server:
        (here / "device.toml").write_text(device.replace("mec.example:8001", server.target))
        for line in lines:
            if line != serve:
                ran.append(run(line))
    assert len(ran) == len(lines) - 1 == 6
    scenario = load_scenario("mine.toml")
    assert (scenario.link.folder, scenario.link.rtt_ms) == ("drives", 35.0)
    assert PolicyBundle.load(here / "mine.policy").topology == THREE_EXITS
    (records,) = read_all(here / "records")
    assert len(records) == 50
    assert records.source["bundle_hash"] == bundle.hash
    assert records.topology == THREE_EXITS


@pytest.mark.slow(40)
def test_your_traces_train_and_judge(here: Path) -> None:
    text = page("your-traces.md")
    for folder, first in (("drives", 0), ("other-drives", 9)):
        (here / folder).mkdir()
        for seed in range(first, first + 3):
            save_trace(generate_trace("highway-lte", seed, 30.0), here / folder / f"{seed}.json")
    (make,) = re.findall(r"`sliproad (agent new-scenario [^`]*)`", text)
    run(make)
    assert load_scenario("tram.toml").link.source == "measured"
    lines = re.findall(r"^sliproad (agent .*)$", text, re.M)
    said = [run(line) for line in lines]
    assert len(said) == 3
    assert "tram: 2 test drives" in said[1]
