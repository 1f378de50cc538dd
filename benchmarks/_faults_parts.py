"""What the fault round and the soak test share: a device process, and small disks."""

from __future__ import annotations

import contextlib
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

from testbed.records.parquet import read_all, read_records
from testbed.service.record_rotation import record_files

ROOT = Path(__file__).parents[1]
WAIT_S = 30.0
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
    """

    def __init__(
        self, folder: Path, text: str, preexec: Callable[[], object] | None = None
    ) -> None:
        n = len(list(folder.glob("device*.toml")))
        path, self.log_path = folder / f"device{n}.toml", folder / f"device{n}.log"
        path.write_text(text + '\n[metrics]\nport = 0\n[log]\nformat = "json"\nevery_s = 0\n')
        command = [sys.executable, "-m", "testbed", "device", "--config", str(path), "--json"]
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                # A pipe: a full disk or a bound on file sizes must not reach the log.
                stderr=subprocess.PIPE if preexec else log,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                preexec_fn=preexec,
            )
        if preexec:
            self._drain()
        self.metrics_port = 0

    def _drain(self) -> None:
        """Let another process write the log that this one would have written."""
        assert self.process.stderr is not None
        with self.log_path.open("wb") as log:
            self._tee = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=log)
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
        try:
            stdout = self.process.communicate(timeout=WAIT_S)[0]
        except subprocess.TimeoutExpired:
            self.kill()
            stdout = ""
        told = json.loads(stdout.splitlines()[-1]) if stdout.strip() else {}
        return {**told, "exit_code": self.process.returncode}

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()

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
            if subprocess.run(["umount", *options, str(where)], capture_output=True).returncode == 0:
                break


def unmount_below(folder: Path) -> None:
    """Unmount whatever a group that was stopped left mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines()[::-1]:
        where = line.split()[1]
        if Path(where).is_relative_to(folder):
            subprocess.run(["umount", "-l", where], capture_output=True)
