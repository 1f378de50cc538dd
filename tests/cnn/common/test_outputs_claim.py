"""One process at a time for each output, against a real second process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cnn.common.errors import DataError
from cnn.common.outputs import Claim

HOLDER = """
import sys, time
from pathlib import Path
from cnn.common.outputs import Claim
claim = Claim(Path(sys.argv[1]), folder=sys.argv[2] == "folder")
print("held", flush=True)
sys.stdin.readline()
claim.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path, str], subprocess.Popen[str]]]:
    """Start a process that holds a path."""
    started: list[subprocess.Popen[str]] = []

    def begin(path: Path, kind: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_process_is_refused_and_told_who_holds_it(
    tmp_path: Path, hold: Callable[[Path, str], subprocess.Popen[str]], kind: str
) -> None:
    path = tmp_path / "out"
    other = hold(path, kind)
    with pytest.raises(DataError) as refused:
        Claim(path, folder=kind == "folder")
    assert f"{path} is in use by process {other.pid} (python" in str(refused.value)
    assert "\n" not in str(refused.value)
    Claim(tmp_path / "other", folder=kind == "folder").release()
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "released\n"
    with Claim(path, folder=kind == "folder"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_process_holds_nothing(
    tmp_path: Path, hold: Callable[[Path, str], subprocess.Popen[str]], kind: str
) -> None:
    path = tmp_path / ("out" * 80)
    other = hold(path, kind)
    other.send_signal(signal.SIGKILL)
    other.wait()
    with Claim(path, folder=kind == "folder"):
        pass
    assert not list(tmp_path.glob(".*"))


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path) -> None:
    with (
        Claim(tmp_path / "a"),
        pytest.raises(DataError, match=f"process {os.getpid()}"),
        Claim(tmp_path / "a"),
    ):
        pass


def test_of_many_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    got: list[Claim] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        with contextlib.suppress(DataError):
            got.append(Claim(tmp_path / "a"))

    for _ in range(20):
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        got.pop().release()


def test_a_folder_that_was_there_stays_and_one_that_is_used_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    Claim(tmp_path / "there", folder=True).release()
    with Claim(tmp_path / "new", folder=True):
        (tmp_path / "new" / "row").write_text("x")
    assert {p.name for p in tmp_path.iterdir()} == {"there", "new"}


@pytest.mark.parametrize("folder", [False, True])
def test_a_place_that_cannot_be_made_is_one_clear_error(tmp_path: Path, folder: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="cannot write"):
        Claim(tmp_path / "file" / "out", folder=folder)


def test_another_users_lock_file_left_by_a_kill_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sticky folder, where the kernel refuses O_CREAT on it (fs.protected_regular)."""
    (tmp_path / ".a.lock").write_bytes(b"")
    real = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with (
        Claim(tmp_path / "a"),
        pytest.raises(DataError, match="in use by"),
        Claim(tmp_path / "a"),
    ):
        pass
