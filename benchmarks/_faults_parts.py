"""What the fault round and the soak test share: a device process, and small disks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from testbed.deploy.record_folder import record_files
from testbed.records.record_file import read_all, read_records

ROOT = Path(__file__).parents[1]
WAIT_S = 180.0
PIPE_BYTES = 4096
"""The smallest pipe there is: a reader that stalls is felt after some ten lines."""
Row = dict[str, Any]


class NotHereError(Exception):
    """This machine lacks what a fault needs (root, loop devices, a program)."""


def say(text: str) -> None:
    """A progress line on standard error."""
    print(text, file=sys.stderr, flush=True)


def wait_for(done: Callable[[], bool], limit_s: float, every_s: float = 0.03) -> float | None:
    """Seconds until `done`; None if it was not within `limit_s`."""
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < limit_s:
        if done():
            return passed_s
        time.sleep(every_s)
    return None


class RunningDevice:
    """`sliproad testbed device --config` as a process, its JSON log in a file.

    Args:
        folder: receives the configuration and the log.
        text: the TOML file without [log] and [metrics].
        preexec: called in the child before it starts.
        log: further keys of [log].
        piped: its standard error is a small pipe that another process empties into the log, as a
            journal does: a full disk does not reach it, but a reader that stalls does.
    """

    def __init__(
        self,
        folder: Path,
        text: str,
        preexec: Callable[[], object] | None = None,
        *,
        log: str = "every_s = 0\n",
        piped: bool = False,
    ) -> None:
        n = len(list(folder.glob("device*.toml")))
        path, self.log_path = folder / f"device{n}.toml", folder / f"device{n}.log"
        path.write_text(text + f'\n[metrics]\nport = 0\n[log]\nformat = "json"\n{log}')
        command = [sys.executable, "-m", "testbed", "device", "--config", str(path), "--json"]
        self.metrics_port = 0
        self.reader: subprocess.Popen[bytes] | None = None
        with self.log_path.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if piped else file,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                preexec_fn=preexec,
            )
            if self.process.stderr is not None:
                fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                self.reader = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=file)
                self.process.stderr.close()
                self.process.stderr = None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def log(self) -> list[dict[str, Any]]:
        """The whole lines of its log."""
        text = self.log_path.read_text(errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def logged(self, message: str, since: int = 0) -> list[dict[str, Any]]:
        """Lines with that message from line number `since` on."""
        return [line for line in self.log()[since:] if line["message"] == message]

    def running(self, limit_s: float = WAIT_S) -> bool:
        """Wait for its first frames; False if it ended before or took too long."""
        ready = wait_for(lambda: not self.alive or self.frames() > 2, limit_s, 0.05)
        return ready is not None and self.alive

    def frames(self, status: str | None = None) -> int:
        """Frames measured so far, by its metrics; 0 where it does not answer."""
        if not self.metrics_port:
            told = self.logged("metrics")
            if not told:
                return 0
            self.metrics_port = int(told[0]["port"])
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=2) as page:
                text = page.read().decode()
        except OSError:
            return 0
        found = re.findall(
            r'^sliproad_device_frames_total\{status="(\w+)"\} ([0-9.e+]+)$', text, re.M
        )
        return int(sum(float(n) for name, n in found if status in (None, name)))

    def goes_on(self, frames: int = 3, status: str | None = None, limit_s: float = 5.0) -> bool:
        """Whether so many more frames (of a status) are measured within `limit_s`."""
        before = self.frames(status)
        return wait_for(lambda: self.frames(status) >= before + frames, limit_s) is not None

    def stop(self) -> dict[str, Any]:
        """SIGTERM; what it printed, with its exit code as ``exit_code``."""
        if self.alive:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
        self._let_reader_go()
        try:
            stdout = self.process.communicate(timeout=WAIT_S)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            stdout = ""
        if self.reader is not None:
            self.reader.wait(WAIT_S)
        told = json.loads(stdout.splitlines()[-1]) if stdout.strip() else {}
        return {**told, "exit_code": self.process.returncode}

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()
        self._let_reader_go()

    def _let_reader_go(self) -> None:
        """Whoever empties its standard error may go on, and ends when it does."""
        if self.reader is not None and self.reader.poll() is None:
            self.reader.send_signal(signal.SIGCONT)

    def __enter__(self) -> RunningDevice:
        return self

    def __exit__(self, *_: object) -> None:
        if self.alive:
            self.kill()


def rows_of(folder: Path) -> list[Row]:
    """Every row of a folder's finished files that can be read, oldest first."""
    rows: list[Row] = []
    for path in record_files(folder):
        rows += read_records(path).table.to_pylist()
    return rows


def readable_rows(folder: Path) -> list[Row]:
    """The same as somebody reads it who gives the folder: what is damaged is left out."""
    runs = read_all(folder, lambda line: None)
    return [row for run in runs for row in run.table.to_pylist()]


def frames_lost(frames: int, rows: list[Row]) -> int:
    """Frames captured that have no row, or a row that is neither answered nor skipped."""
    whole = {r["frame_id"] for r in rows if r["prediction"] is not None or r["status"] == "skipped"}
    return frames - len(whole & set(range(frames)))


def need_root(program: str) -> None:
    """Raise `NotHereError` unless this process may mount, and has that program."""
    if os.geteuid() != 0:
        raise NotHereError("needs root to mount a file system")
    if subprocess.run(["which", program], capture_output=True).returncode:
        raise NotHereError(f"needs the program {program}")


@contextlib.contextmanager
def mounted(where: Path, *arguments: str) -> Iterator[Path]:
    """A file system mounted at `where` for as long as the context lasts."""
    where.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(where)], capture_output=True, text=True)
    if done.returncode:
        raise NotHereError(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield where
    finally:
        for options in ([], ["-l"]):
            if (
                subprocess.run(["umount", *options, str(where)], capture_output=True).returncode
                == 0
            ):
                break


def unmount_below(folder: Path) -> None:
    """Unmount whatever a group that was stopped left mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines()[::-1]:
        where = line.split()[1]
        if Path(where).is_relative_to(folder):
            subprocess.run(["umount", "-l", where], capture_output=True)
