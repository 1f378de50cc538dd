"""Shared fixtures. Tests on measured data run where SLIPROAD_DATA names their folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from cnn.bundle import Bundle
    from cnn.topology import Topology

# Before anything imports ONNX Runtime, whatever a test imports first (`cnn.ort`).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# A shell starts what it runs in the background deaf to Ctrl-C, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA_VARIABLE = "SLIPROAD_DATA"
DATA_PARTS = ("gtsrb", "traces")

_used_data: set[str] = set()
_skipped_for_data: set[str] = set()


def _data_folder() -> Path | None:
    value = os.environ.get(DATA_VARIABLE)
    return Path(value).resolve() if value else None


def _data_state() -> str:
    folder = _data_folder()
    if folder is None:
        return f"{DATA_VARIABLE} is not set: tests on measured data skip"
    missing = [part for part in DATA_PARTS if not (folder / part).is_dir()]
    if missing:
        return f"{DATA_VARIABLE}={folder} has no {', '.join(missing)}: tests that need it skip"
    return f"{DATA_VARIABLE}={folder}: tests on measured data run"


@pytest.fixture
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The folder of measured data (with ``gtsrb/`` and ``traces/``), or a skip that says why."""
    folder = _data_folder()
    # A property goes with the report, also from another process.
    request.node.user_properties.append((DATA_VARIABLE, str(folder)))
    if folder is None or not folder.is_dir():
        given = "is not set" if folder is None else f"is {folder}, no folder"
        pytest.skip(f"{DATA_VARIABLE} {given}; docs/data.md says what belongs there")
    return folder


@pytest.fixture
def kill_at_every_step() -> Callable[[str, Path], Iterator[int]]:
    """`_kill_at_every_step`: a real process killed before its n-th change to a folder."""
    return _kill_at_every_step


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep matplotlib's cache of a test run away from the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, so that processes that take file after file end together.

    A file's time is the sum of its ``slow(seconds)`` marks; one mark counts once, on however
    many tests it stands. Files of equal time, and the tests of a file, keep their order.
    """
    seconds: dict[Path, dict[int, float]] = {}
    for item in items:
        own = seconds.setdefault(item.path, {})
        own.update((id(mark), mark.args[0]) for mark in item.iter_markers("slow"))
    total = {path: sum(own.values()) for path, own in seconds.items()}
    items.sort(key=lambda item: -total[item.path])


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """``tiny_bundle(topology, n_classes=4)``: a model bundle of that form, weights random.

    The topology may have any blocks, exits, splits and payloads; frames are square. Bundles of
    equal topologies are the same one.
    """
    made: dict[tuple[Topology, int], Bundle] = {}

    def bundle(topology: Topology, n_classes: int = 4) -> Bundle:
        if (topology, n_classes) not in made:
            folder = tmp_path_factory.mktemp("tiny") / "bundle"
            made[topology, n_classes] = _write_tiny_bundle(folder, topology, n_classes)
        return made[topology, n_classes]

    return bundle


_TINY_FEATURES = (4, 4, 4)
"""(C, h, w) of every block's output in a tiny network."""


def _write_tiny_bundle(folder: Path, topology: Topology, n_classes: int) -> Bundle:
    from cnn.bundle import load_bundle, manifest_hash

    size = topology.payload_shape(0)[0] if 0 in topology.splits else 8
    rng = np.random.default_rng(n_classes)
    (folder / "segments").mkdir(parents=True)
    segments = {}
    for name in topology.segments:
        content = _tiny_segment(name, topology, n_classes, size, rng)
        (folder / "segments" / f"{name}.onnx").write_bytes(content)
        segments[name] = {"sha256": hashlib.sha256(content).hexdigest()}
    manifest: dict[str, Any] = {
        "format": 1,
        "config": {"input_size": size, "n_classes": n_classes},
        "topology": topology.to_json(),
        "segments": segments,
        "temperatures": [1.0 + 0.1 * a for a in range(topology.n_actions)],
    }
    manifest["hash"] = manifest_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_bundle(folder)


def _tiny_segment(
    name: str, topology: Topology, n_classes: int, size: int, rng: np.random.Generator
) -> bytes:
    """One segment, ``x`` -> ``y``: flattened, one random matrix, a non-linearity, reshaped."""
    from onnx import TensorProto, helper, numpy_helper

    kind, at = name.rstrip("0123456789"), int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
    inside, outside = TensorProto.FLOAT, TensorProto.FLOAT
    shape_in, shape_out, last = _TINY_FEATURES, _TINY_FEATURES, ["Relu"]
    if name == "block1":
        inside, shape_in = TensorProto.UINT8, (size, size, 3)
    elif kind == "dec":
        inside, shape_in = TensorProto.UINT8, topology.payload_shape(at)
    elif kind == "enc":
        outside, shape_out = TensorProto.UINT8, topology.payload_shape(at)
        last = ["Sigmoid", "Scale", "Round", "ToByte"]
    elif kind == "exit":
        shape_out, last = (n_classes,), ["Identity"]
    n_in, n_out = math.prod(shape_in), math.prod(shape_out)
    scale = (0.01 if inside == TensorProto.UINT8 else 1.0) / math.sqrt(n_in)
    constants = {
        "matrix": (rng.normal(0, scale, (n_in, n_out)) * 3).astype(np.float32),
        "levels": np.array(255, np.float32),
        "shape": np.array([-1, *shape_out]),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["0"]),
    ]
    for i, step in enumerate(last):
        steps: dict[str, tuple[str, list[str], dict[str, Any]]] = {
            "Scale": ("Mul", ["levels"], {}),
            "ToByte": ("Cast", [], {"to": TensorProto.UINT8}),
        }
        operator, more, attributes = steps.get(step, (step, [], {}))
        nodes.append(helper.make_node(operator, [str(i), *more], [str(i + 1)], **attributes))
    nodes.append(helper.make_node("Reshape", [str(len(last)), "shape"], ["y"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", inside, ["batch", *shape_in])],
        [helper.make_tensor_value_info("y", outside, ["batch", *shape_out])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


def pytest_report_header() -> str:
    """Say at the top whether tests on measured data run."""
    return _data_state()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``root`` where they cannot run."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count a test that asked for measured data: it ran, or skipped for want of them."""
    if any(name == DATA_VARIABLE for name, _ in report.user_properties):
        if report.skipped:
            _used_data.discard(report.nodeid)
            _skipped_for_data.add(report.nodeid)
        elif report.nodeid not in _skipped_for_data:
            _used_data.add(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests on measured data at the end."""
    terminalreporter.write_line(
        f"on measured data: {len(_used_data)} tests ran, {len(_skipped_for_data)} skipped"
    )


_FORKING = """
import os, signal, sys
FOLDER = sys.argv[1]
{program}
CHANGES = {{"os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "open"}}
left = None

def hook(event, arguments):
    global left
    if left is None or event not in CHANGES:
        return
    paths = [a for a in arguments if isinstance(a, (str, os.PathLike))]
    if any(str(path).startswith(FOLDER) for path in paths):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

sys.addaudithook(hook)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        left = int(line)
        change()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
"""


def _kill_at_every_step(program: str, folder: Path, most: int = 400) -> Iterator[int]:
    """Let `program`'s function ``change`` run, killed one step later each time, until it ends.

    An audit hook (PEP 578) sees what a process asks of the file system, also from within a
    library, and counts what happens below one folder. One parent process imports what is
    needed and forks a child for each kill, so that a hundred kills cost no hundred imports.

    Args:
        program: Python text that defines ``change()``; ``FOLDER`` is `folder`.
        folder: what is watched; the caller prepares it anew for each turn.
        most: steps after which something is wrong.

    Yields:
        After each kill, the number of steps that had happened.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", _FORKING.format(program=program), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    try:
        for step in range(most):
            parent.stdin.write(f"{step}\n")
            parent.stdin.flush()
            status = parent.stdout.readline().strip()
            if status == "0":
                return
            assert status == "-9", f"the change ended with {status}"
            yield step
        raise AssertionError(f"not done after {most} steps")
    finally:
        parent.kill()
        parent.communicate()
