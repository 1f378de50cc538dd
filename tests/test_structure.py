"""The counts of `benchmarks/structure.py` on a small tree that was counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.scripts import BENCHMARKS, benchmark

SCRIPT = BENCHMARKS / "structure.py"

TREE = {
    "cnn/__init__.py": '"""The network."""\n',
    "cnn/topology.py": "ACTIONS = (1, 2)\nSPLITS = [a for a in ACTIONS]\n",
    # A circle that is hidden inside a function.
    "cnn/files.py": """\
import os
from cnn import topology


def write(path, text):
    from cnn.folders import sync

    sync(text.replace("a", "b"))
    os.replace(path, path)
""",
    "cnn/folders.py": """\
def sync(path):
    import cnn.files

    path.rename(cnn.files)
""",
    "testbed/__init__.py": "",
    "testbed/meters/__init__.py": "",
    "testbed/meters/power.py": """\
from ..device.loop import run


def sending_mj(radio, sent_bytes):
    return radio.tx_mw_per_mbps * 8e-6 * sent_bytes
""",
    "testbed/device/__init__.py": "",
    # One loop through the points of a frame, by recursion; one frame after the other is no such.
    "testbed/device/loop.py": """\
from testbed.meters import power


class Loop:
    def run(self, policy, seen, point):
        chosen = policy.decide(seen, point)
        return chosen or self.run(policy, seen, point + 1)


def run(policy, frames):
    return [policy.decide(frame) for frame in frames]


def decide_batch(policy, rows):
    return [policy.decide(row, 0) for row in rows]


def once(policy, seen):
    return policy.decide(seen, 0)
""",
    "offload_env/__init__.py": "",
    "offload_env/power.py": """\
import importlib

import numpy as np
from cnn.topology import ACTIONS

LATER = importlib.import_module("agents.rollout")
NAMES = {i: str(a) for i, a in enumerate(ACTIONS)}
OTHER = [a for a in NAMES]


def leaves_at(axis, bits, cost, rtt_ms):
    at = np.searchsorted(axis, bits - SLACK_BITS)
    return at + (rtt_ms + cost.net_ms), np.searchsorted(axis, bits)
""",
    "agents/__init__.py": "",
    "agents/rollout.py": "import testbed.device.loop\n",
    "tests/conftest.py": """\
import socket
import time


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(condition):
    while not condition():
        time.sleep(0.01)


def pause():
    time.sleep(0.01)
""",
}


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    """The script as a module."""
    return benchmark("structure")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_small_tree_is_counted_as_by_hand(structure: ModuleType, tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--at", str(tree), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        "modules": 13,
        "lines": 54,
        "packages": {
            "cnn": [4, 16],
            "testbed": [5, 24],
            "offload_env": [2, 13],
            "agents": [2, 1],
        },
        "module_circles": [
            "cnn.files <-> cnn.folders",
            "testbed.device.loop <-> testbed.meters.power",
        ],
        "folder_circles": ["testbed.device <-> testbed.meters"],
        "upward_packages": ["offload_env.power -> agents.rollout"],
        "upward_testbed": ["testbed.meters.power -> testbed.device.loop"],
        "double_names": ["power.py"],
        "decision_loops": ["testbed/device/loop.py:5 run", "testbed/device/loop.py:10 run"],
        "staged_loops": ["testbed/device/loop.py:5 run"],
        "atomic_writes": ["cnn/files.py:9", "cnn/folders.py:4"],
        "energy_per_byte": ["testbed/meters/power.py:5"],
        "capacity_inverses": ["offload_env/power.py:12"],
        "exchange_sums": ["offload_env/power.py:13"],
        "action_tables": ["cnn/topology.py:2", "offload_env/power.py:7"],
        "free_ports": ["tests/conftest.py:5 free_port"],
        "waits": ["tests/conftest.py:11 wait_until"],
    }


def test_arcs_are_pairs_of_modules_between_parts(structure: ModuleType, tree: Path) -> None:
    assert structure.flow(tree) == {
        ("testbed.meters", "testbed.device"): 1,
        ("testbed.device", "testbed.meters"): 1,
        ("offload_env", "cnn"): 1,
        ("offload_env", "agents"): 1,
        ("agents", "testbed.device"): 1,
    }


def test_a_circle_may_be_long_and_a_line_is_none(structure: ModuleType) -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"f"}}
    assert structure.circles(graph) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("importer", "imported", "order"),
    [
        ("testbed.wire.client", "offload_env.world", "packages"),
        ("agents.rollout", "cnn.topology", ""),
        ("testbed.decide.task", "testbed.service.config", "testbed"),
        ("testbed.commands.fit", "testbed.costs.fit", ""),
        ("testbed.wire.client", "testbed.traces.trace", ""),
    ],
)
def test_an_arrow_up_is_told_from_one_down(
    structure: ModuleType, importer: str, imported: str, order: str
) -> None:
    assert structure.against_order(importer, imported) == order


@pytest.mark.slow(2)
def test_the_picture_is_the_same_each_time(structure: ModuleType, tree: Path) -> None:
    pytest.importorskip("matplotlib")
    for seed, name in enumerate(("a.svg", "b.svg")):
        command = [sys.executable, str(SCRIPT), "--at", str(tree), "--picture", str(tree / name)]
        root = str(SCRIPT.parents[1])
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": root}
        subprocess.run(command, check=True, env=environment)
    text = (tree / "a.svg").read_text()
    assert text == (tree / "b.svg").read_text()
    assert "<svg" in text
