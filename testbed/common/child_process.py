"""Child processes: waiting until they are ready, and ending them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any


def wait_for_file(process: subprocess.Popen[Any], path: Path, timeout_s: float) -> bool:
    """Wait for a file that a child writes when it is ready.

    Returns:
        False if the child has ended, or `timeout_s` has passed, without it.
    """
    until_s = time.monotonic() + timeout_s
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until_s:
            return False
        time.sleep(0.02)
    return True


def wait_for_end(process: subprocess.Popen[Any], grace_s: float) -> None:
    """Close a child's input and wait for its end; kill it if it takes longer than `grace_s`."""
    try:
        process.communicate(timeout=grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
