"""A device whose disk has no room: started on it, filled under it, restarted on it.

As root the records lie on small file systems, filled by a file: one in memory, where an empty
file and a folder can still be made, and ext4, where not even a folder can. Without root the
system's bound on file sizes of the device's process plays the full disk: it refuses every byte
that would be written (EFBIG instead of ENOSPC).
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from _faults_parts import (
    NotHereError,
    RunningDevice,
    mounted,
    need_root,
    rows_of,
    say,
    wait_for,
)

from testbed.deploy.record_folder import record_files
from testbed.records.record_file import read_records

FULL_S = 2.5
ROWS_AGAIN_S = 10.0


class Disk:
    """Room for records that can be taken away, and given back."""

    def __init__(self, folder: Path, own: bool) -> None:
        self.folder, self._own, self._full = folder, own, False
        self._filler = folder / "filler"

    def fill(self, device: RunningDevice | None = None) -> None:
        """No byte more can be written."""
        self._full = True
        if self._own:
            with self._filler.open("ab", buffering=0) as file:
                for size in (4096, 512, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
        elif device is not None:
            self._bound(device, 0)

    def free(self, device: RunningDevice) -> None:
        """There is room again."""
        self._full = False
        self._filler.unlink(missing_ok=True)
        if not self._own:
            self._bound(device, resource.RLIM_INFINITY)

    def _bound(self, device: RunningDevice, size: int) -> None:
        process = psutil.Process(device.process.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def _start_full(self) -> None:
        size = 0 if self._full else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def device(self, folder: Path) -> RunningDevice:
        """A device that records here."""
        text = (
            '[bundles]\naction = "e1s1"\n[frames]\nperiod_ms = 20\nmax_queue_ms = 5000\n'
            f'[records]\nfolder = "{self.folder / "rec"}"\nflush_s = 0.3\nfile_s = 2\n'
            "file_mb = 0.05\ntotal_mb = 0.6\n"
        )
        return RunningDevice(
            folder, text, None if self._own else self._start_full, piped=not self._own
        )


@contextlib.contextmanager
def small_disk(folder: Path, kind: str) -> Iterator[Disk]:
    """An empty disk: ``tmpfs``, ``ext4``, or ``bound`` (on file sizes, in place of one)."""
    place = folder / "disk"
    if kind == "bound":
        with tempfile.TemporaryDirectory(dir=folder) as plain:
            yield Disk(Path(plain), own=False)
    elif kind == "tmpfs":
        need_root("mount")
        with mounted(place, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
            yield Disk(place, own=True)
    else:
        need_root("mkfs.ext4")
        image = folder / "small.img"
        image.write_bytes(bytes(2 * 2**20))
        # No blocks kept for root, none for a journal of its own.
        make = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image]
        subprocess.run(make, check=True)
        with mounted(place, "-o", "loop", str(image)):
            yield Disk(place, own=True)


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The whole group."""
    parts = {
        "started on a full disk": started_full,
        "filled while it runs": filled,
        "restarted on a full disk": restarted_full,
    }
    plan = [("bound", name) for name in parts]
    if os.geteuid() == 0:
        plan = [("ext4", name) for name in parts] + [("tmpfs", "restarted on a full disk")]
        plan = plan[:1] + plan[-1:] if quick else plan
    wrong = []
    for kind, name in plan:
        try:
            with small_disk(folder, kind) as disk:
                complaints = parts[name](folder, disk)
        except NotHereError as error:
            say(f"disk: {kind} not tried: {error}")
            continue
        say(f"disk: {name} ({kind}): {', '.join(complaints) or 'as it should'}")
        wrong += complaints
    return {"start_on_full_disk": not wrong}


def started_full(folder: Path, disk: Disk) -> list[str]:
    """It starts, decides its frames, and records once there is room."""
    disk.fill()
    with disk.device(folder) as device:
        if not device.running():
            return [f"did not start: {last_line(device)}"]
        time.sleep(FULL_S)
        return after(disk, device)


def filled(folder: Path, disk: Disk) -> list[str]:
    """It goes on while the disk is full, and records again afterwards."""
    with disk.device(folder) as device:
        if not device.running():
            return ["did not start on an empty disk"]
        time.sleep(FULL_S)
        disk.fill(device)
        time.sleep(FULL_S)
        return after(disk, device)


def restarted_full(folder: Path, disk: Disk) -> list[str]:
    """The journal of a killed device outlives a start without room, and is a file later."""
    records = disk.folder / "rec"
    with disk.device(folder) as device:
        if not device.running():
            return ["did not start on an empty disk"]
        wait_for(lambda: any(p.stat().st_size > 20_000 for p in records.glob("*.arrows")), 10)
        device.kill()
    killed_s = time.monotonic()
    if not any(path.stat().st_size for path in records.glob("*.arrows")):
        return ["no rows on disk before the kill"]
    disk.fill()
    with disk.device(folder) as device:
        if not device.running():
            return [f"did not start: {last_line(device)}"]
        time.sleep(FULL_S)
        wrong = after(disk, device)
    with disk.device(folder) as device:  # at the latest the next start makes files of journals
        device.running()
        device.stop()
    sources = [read_records(path).source for path in record_files(records)]
    if all(source["started_monotonic_s"] > killed_s for source in sources):
        wrong.append("the rows from before the kill are gone")
    return wrong


def after(disk: Disk, device: RunningDevice) -> list[str]:
    """Complaints about a device that had no room until now, once it has; it is stopped."""
    wrong = []
    if not device.goes_on():
        wrong.append("no frames while the disk was full")
    disk.free(device)
    at = device.frames()
    folder = disk.folder / "rec"

    def recorded() -> bool:
        return any(row["frame_id"] > at for row in rows_of(folder)) if folder.is_dir() else False

    if wait_for(recorded, ROWS_AGAIN_S, 0.2) is None:
        wrong.append(f"no rows {ROWS_AGAIN_S:g} s after there was room")
    result = device.stop()
    if result["exit_code"] != 0:
        return [*wrong, f"exit code {result['exit_code']}"]
    if not result["rows_dropped"]:
        wrong.append("no row counted as dropped")
    if result["rows_written"] + result["rows_dropped"] != result["frames"]:
        wrong.append(
            f"{result['frames']} frames, but {result['rows_written']} rows written and "
            f"{result['rows_dropped']} dropped"
        )
    return wrong


def last_line(device: RunningDevice) -> str:
    """What it said last."""
    lines = device.log()
    return str(lines[-1]["message"])[:160] if lines else "nothing said"
