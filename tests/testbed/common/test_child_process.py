"""Children that are ready, that end, and that will not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from testbed.common.child_process import wait_for_end, wait_for_file

STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, text=True
    )


def test_a_child_that_will_not_end_is_killed(tmp_path: Path) -> None:
    child = python(STUBBORN, str(tmp_path / "ready"))
    assert wait_for_file(child, tmp_path / "ready", 60)
    child.terminate()
    wait_for_end(child, 0.1)
    assert child.returncode == -9


def test_a_child_whose_input_ends_may_end_by_itself(tmp_path: Path) -> None:
    child = python("import sys; sys.stdin.read(); sys.exit(3)")
    wait_for_end(child, 60)
    wait_for_end(child, 60)
    assert child.returncode == 3


def test_a_child_that_ends_early_never_gets_ready(tmp_path: Path) -> None:
    child = python("pass")
    assert not wait_for_file(child, tmp_path / "ready", 60)
    child.communicate()
