"""A MEC server as a child process, and the scheduling of a server by the system."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from cnn.common.errors import RemoteError
from testbed.common.child_process import wait_for_end, wait_for_file

START_S: Final = 60.0
STOP_S: Final = 10.0


class ServerProcess:
    """``python -m testbed serve`` with its own process, ended when the context is left.

    It shares this machine's processors with the device that it serves, and so keeps the
    system's usual scheduling (see `prefer_throughput`) unless `options` say otherwise.

    Args:
        bundle: model bundle folder; None is the shipped one.
        port: TCP port; 0 takes any free one.
        options: further command-line options of ``serve``.
    """

    def __init__(
        self, bundle: Path | None = None, port: int = 0, options: tuple[str, ...] = ()
    ) -> None:
        self.port = port
        self._bundle, self._options = bundle, options
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None if it is not running."""
        return self._process.pid if self._process else None

    @property
    def target(self) -> str:
        """``host:port`` of the running server."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it and wait until it listens; a later start uses the same port.

        Raises:
            RemoteError: if it ended or did not listen within a minute.
        """
        with tempfile.TemporaryDirectory() as folder:
            port_file = Path(folder) / "port"
            command = [sys.executable, "-m", "testbed", "serve", "--port", str(self.port)]
            command += ["--port-file", str(port_file), "--no-batch-scheduling"]
            command += self._options
            if self._bundle is not None:
                command += ["--bundle", str(self._bundle)]
            self._process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            if not wait_for_file(self._process, port_file, START_S):
                raise self._failed(self._process)
            self.port = int(port_file.read_text())
        return self

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would."""
        self._end(subprocess.Popen.kill)

    def stop(self) -> None:
        """Let it drain and end (SIGTERM)."""
        self._end(subprocess.Popen.terminate)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self, ask: Callable[[subprocess.Popen[str]], None]) -> None:
        if self._process is not None:
            ask(self._process)
            wait_for_end(self._process, STOP_S)
            self._process = None

    def _failed(self, process: subprocess.Popen[str]) -> RemoteError:
        process.kill()
        said = " ".join((process.communicate()[1] or "nothing").split())[-300:]
        self._process = None
        return RemoteError(
            f"the server process did not start: {said}",
            expected=f"a server that listens within {START_S:g} s",
            hint="start one by hand with `sliproad testbed serve` and read its output",
        )


def prefer_throughput() -> str:
    """Ask the system not to interrupt a computing thread for every message; returns the result.

    ``batch`` (Linux's SCHED_BATCH, sched(7); it needs no privilege): if every processor is busy, a
    thread of this process that wakes up waits for its turn instead of interrupting. It applies to
    the existing threads and those that they start. A server with a free processor sees no
    difference. If the system has no such policy, or an administrator chose one, nothing changes:
    ``normal`` or ``as given``.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return "normal"
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return "as given"
    try:
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread that just ended
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        return "normal"
    return "batch"
