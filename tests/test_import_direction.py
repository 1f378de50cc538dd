"""The packages import one way: cnn <- testbed <- offload_env <- agents.

Read from the source with `ast`, so imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("cnn", "testbed", "offload_env", "agents")
PARTS = (
    "common", "wire", "traces", "link", "records", "meters",
    "policy", "device", "server", "costs", "deploy", "cli",
)  # fmt: skip
"""Folders of `testbed`: each imports from those before it alone."""
BACKWARDS: set[str] = set()
"""What does not keep to that yet."""
TRAINING = {"torch", "stable_baselines3", "sb3_contrib"}

# Every module that may import torch or stable-baselines3; all others run without them.
TRAINING_MODULES = {
    "cnn/network/adapt.py",
    "cnn/network/added_parts.py",
    "cnn/network/augment.py",
    "cnn/network/block_network.py",
    "cnn/network/checked_export.py",
    "cnn/network/weights_file.py",
    "cnn/network/export_bundle.py",
    "cnn/network/vgg.py",
    "cnn/network/fitting.py",
    "cnn/network/onnx_block.py",
    "cnn/network/onnx_in_torch.py",
    "cnn/network/onnx_network.py",
    "cnn/network/torch_device.py",
    "cnn/network/train_network.py",
    "cnn/network/user_network.py",
    "agents/train_checkpoint.py",
    "agents/train_conditioned.py",
    "agents/export_policy.py",
    "agents/sb3_adapter.py",
    "agents/supervisor.py",
    "agents/teacher.py",
    "agents/training.py",
}


def imported_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import, `import_module("...")` included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def against_direction(package: str, source: str) -> list[str]:
    """Imports in `source`, a module of `package`, that point to a package on its right."""
    right = set(ORDER[ORDER.index(package) + 1 :])
    return [
        f"line {line}: {name}"
        for line, name in imported_names(source)
        if name.partition(".")[0] in right
    ]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.slow(2)
@pytest.mark.parametrize("package", ORDER)
def test_no_import_points_to_the_right(package: str) -> None:
    found = modules(package)
    assert found, f"no modules in {package}/"
    wrong = {
        str(path.relative_to(ROOT)): bad
        for path in found
        if (bad := against_direction(package, path.read_text()))
    }
    assert not wrong


def test_parts_of_the_testbed_import_one_way() -> None:
    backwards = set()
    for part in PARTS:
        later = PARTS[PARTS.index(part) + 1 :]
        for path in modules(f"testbed/{part}"):
            for _, name in imported_names(path.read_text()):
                if name.startswith(tuple(f"testbed.{other}." for other in later)):
                    backwards.add(f"{path.relative_to(ROOT)}: {name}")
    assert backwards == BACKWARDS
    folders = {path.parent.name for path in (ROOT / "testbed").glob("*/__init__.py")}
    assert folders == set(PARTS)


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_nothing_from_tests_or_benchmarks(package: str) -> None:
    outside = {"tests", "benchmarks", "examples"}
    for path in modules(package):
        names = {name.partition(".")[0] for _, name in imported_names(path.read_text())}
        assert not names & outside, path


@pytest.mark.slow(1)
def test_only_training_modules_import_torch_or_sb3() -> None:
    importers = {
        str(path.relative_to(ROOT))
        for package in ORDER
        for path in modules(package)
        for _, name in imported_names(path.read_text())
        if name.partition(".")[0] in TRAINING
    }
    assert importers <= TRAINING_MODULES


@pytest.mark.parametrize(
    ("package", "source", "n_wrong"),
    [
        ("cnn", "import testbed.link.emulator", 1),
        ("cnn", "def f():\n    from agents.training import fit", 1),
        ("testbed", "from offload_env import env\nimport cnn", 1),
        ("testbed", "import importlib\nimportlib.import_module('agents.cli')", 1),
        ("offload_env", "from testbed.traces.trace import Trace", 0),
        ("agents", "import cnn, testbed, offload_env", 0),
    ],
)
def test_the_reader_finds_what_it_should(package: str, source: str, n_wrong: int) -> None:
    assert len(against_direction(package, source)) == n_wrong
