"""Shared fixtures. Tests on measured data run where SLIPROAD_DATA names their folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports ONNX Runtime, whatever a test imports first (`cnn.ort`).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

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
    if folder is None or not folder.is_dir():
        _skipped_for_data.add(request.node.nodeid)
        given = "is not set" if folder is None else f"is {folder}, no folder"
        pytest.skip(f"{DATA_VARIABLE} {given}; docs/data.md says what belongs there")
    _used_data.add(request.node.nodeid)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep matplotlib's cache of a test run away from the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield


def pytest_report_header() -> str:
    """Say at the top whether tests on measured data run."""
    return _data_state()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``root`` where they cannot run."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test that asks for measured data and then skips for a missing part did not run."""
    if report.skipped and report.nodeid in _used_data:
        _used_data.discard(report.nodeid)
        _skipped_for_data.add(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the tests on measured data at the end."""
    terminalreporter.write_line(
        f"on measured data: {len(_used_data)} tests ran, {len(_skipped_for_data)} skipped"
    )
