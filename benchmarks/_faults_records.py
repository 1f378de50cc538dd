"""Records after a power cut, damaged journals, flipped bits in finished files.

The power cut is a copy of the image of an ext4 file system, made while the device that writes
to it is held and nothing was synced for it: what a disk would hold if the power failed then. A
fresh device starts on each copy. Every other damage is done to copies of a real journal or file,
and a process of its own reads them as a device's start does, so that its end is noticed.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from _faults_parts import (
    NotHereError,
    Row,
    RunningDevice,
    mounted,
    need_root,
    readable_rows,
    rows_of,
    say,
    wait_for,
)

from testbed.deploy.record_rotation import RotatingRecords

PERIOD_MS, FLUSH_S = 20.0, 1.0
ADDRESS_SPACE = 8 * 2**30
"""What one reading may ask for: a device has no more."""
_TOLD = 3
"""Failures that a reading process tells of; all are counted."""
_known: set[str] = set()
_failures: list[str] = []


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The whole group."""
    rng = random.Random(seed)
    found: dict[str, Any] = {"rows_lost_after_power_cut_s": None}
    crashes = impossible = 0
    try:
        lost_s, crashed, odd = power_cuts(folder, rng, 1 if quick else 4)
        found["rows_lost_after_power_cut_s"] = lost_s
        crashes, impossible = crashed, odd
    except NotHereError as error:
        say(f"records: no power cut here: {error}")
    journal, parquet, rows = material(folder, 2.0 if quick else 5.0)
    known = {key(row) for row in rows}
    random_n, tails_n, flips_n = (20, 20, 20) if quick else (400, 300, 200)
    for name, source, n, damage in (
        ("random damages of a journal", journal, random_n, damaged),
        ("zeroed tails of a journal", journal, tails_n, zeroed_tail),
        ("flipped bits of a finished file", parquet, flips_n, flipped),
    ):
        cases = [damage(source.read_bytes(), rng) for _ in range(n)]
        crashed, odd, saved = tried(folder / "case", source.name, cases, known)
        crashes += crashed
        impossible += odd
        share = saved / (n * len(rows))
        say(f"records: {n} {name}: {crashed} crashes, {odd} impossible rows, {share:.0%} read")
    found |= {"journals_damaged": random_n + tails_n, "journal_crashes": crashes}
    return found | {"impossible_rows": impossible}


def settings(records: Path, more: str = "", period_ms: float = PERIOD_MS) -> str:
    """A device that computes every frame itself and records it."""
    return (
        f'[bundles]\naction = "e1s1"\n[frames]\nperiod_ms = {period_ms}\nmax_queue_ms = 5000\n'
        f'{more}[records]\nfolder = "{records}"\nflush_s = {FLUSH_S}\nfile_s = 2\n'
    )


def key(row: Row) -> str:
    """All of a row, to compare with; columns in any order."""
    return repr(sorted(row.items()))


def power_cuts(folder: Path, rng: random.Random, n: int) -> tuple[float, int, int]:
    """Seconds of rows lost at most, devices that did not start again, rows never written."""
    need_root("mkfs.ext4")
    image, copies = folder / "disk.img", []
    with image.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(folder / "disk", "-o", "loop", str(image)) as disk:
        with RunningDevice(folder, settings(disk / "rec")) as device:
            if not device.running():
                raise RuntimeError("the device did not start on an ext4 image")
            for i in range(n):
                time.sleep(rng.uniform(2.5, 5))
                copies.append((folder / f"cut{i}.img", *cut(device, image, folder / f"cut{i}.img")))
            device.stop()
        written = {row["frame_id"]: key(row) for row in rows_of(disk / "rec")}
    lost_s, crashes, impossible = 0.0, 0, 0
    for copy, frames, at_s in copies:
        rows = restarted(folder, copy, at_s)
        if rows is None:
            crashes += 1
            rows = []
        found = {row["frame_id"] for row in rows}
        odd = sum(written.get(row["frame_id"]) != key(row) for row in rows)
        impossible += odd + len(rows) - len(found)
        lost = len(set(range(frames)) - found)
        lost_s = max(lost_s, lost * PERIOD_MS / 1e3)
        say(f"records: power cut after {frames} frames: {lost} rows lost, {odd} impossible")
    return lost_s, crashes, impossible


def cut(device: RunningDevice, image: Path, copy: Path) -> tuple[int, float]:
    """Copy the disk as it is at a moment; frames measured before it, and the moment."""
    for _ in range(20):
        frames, at_s = device.frames(), time.monotonic()
        device.process.send_signal(signal.SIGSTOP)
        before = writes(image)
        shutil.copyfile(image, copy)
        still = writes(image) == before
        device.process.send_signal(signal.SIGCONT)
        if still:  # or else the system wrote while the copy was made: no moment's disk
            return frames, at_s
        time.sleep(0.3)
    raise RuntimeError("no copy of the disk without a write meanwhile")


def writes(image: Path) -> list[str]:
    """Counts of the loop device's writes (Linux, Documentation/block/stat.rst)."""
    listed = subprocess.run(["losetup", "-n", "-O", "NAME", "-j", image], capture_output=True)
    name = Path(listed.stdout.decode().split()[0]).name
    return Path(f"/sys/class/block/{name}/stat").read_text().split()[4:9]


def restarted(folder: Path, image: Path, cut_s: float) -> list[Row] | None:
    """Rows from before the cut that are there after a fresh device's start; None if it fails."""
    from testbed.records.record_file import read_all

    with mounted(folder / "after", "-o", "loop", str(image)) as disk:
        with RunningDevice(folder, settings(disk / "rec", "count = 3\n")) as device:
            wait_for(lambda: not device.alive, 30)
            if device.stop()["exit_code"] != 0:
                return None
        runs = read_all(disk / "rec", lambda line: None)
        before = [run for run in runs if run.source.get("started_monotonic_s", 0) < cut_s]
        return [row for run in before for row in run.table.to_pylist()]


def material(folder: Path, seconds: float) -> tuple[Path, Path, list[Row]]:
    """A journal that a killed device left, the file that its recovery makes, and its rows."""
    place = folder / "made"
    text = settings(place, period_ms=5).replace("file_s = 2", "file_s = 3600")
    with RunningDevice(folder, text.replace(f"flush_s = {FLUSH_S}", "flush_s = 0.2")) as device:
        if not device.running():
            raise RuntimeError("the device did not start")
        time.sleep(seconds)
        device.kill()
    (left,) = place.glob("records-*.arrows")
    journal = folder / left.name
    shutil.copyfile(left, journal)
    RotatingRecords(place, {}).close()
    rows = rows_of(place)
    (parquet,) = place.glob("records-*.parquet")
    return journal, parquet, rows


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One random damage: bits, blocks, ends, doubles."""
    at, size = rng.randrange(len(data)), rng.choice((1, 16, 512, 4096))
    part = data[at : at + size]
    match rng.randrange(7):
        case 0:
            return flipped(data, rng, 64)
        case 1:
            return data[:at] + bytes(len(part)) + data[at + size :]
        case 2:
            return data[:at] + rng.randbytes(len(part)) + data[at + size :]
        case 3:
            return data[:at]
        case 4:
            return data[:at] + part + data[at:]
        case 5:
            return data[:at] + data[at + size :]
        case _:
            return data + rng.randbytes(size)


def zeroed_tail(data: bytes, rng: random.Random) -> bytes:
    """A tail that was never written, as after a power cut; often from a block's start."""
    at = rng.randrange(len(data))
    at -= at % 4096 if rng.random() < 0.5 else 0
    return data[:at] + bytes(len(data) - at)


def flipped(data: bytes, rng: random.Random, most: int = 8) -> bytes:
    """Up to `most` flipped bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, most)):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def tried(folder: Path, name: str, cases: list[bytes], known: set[str]) -> tuple[int, int, int]:
    """Crashes, impossible rows and rows read of a file in each state of `cases`."""
    crashes = impossible = saved = 0
    pool: ProcessPoolExecutor | None = None
    for data in cases:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / name).write_bytes(data)
        if pool is None:
            pool = fresh_pool(known)
        try:
            crashed, odd, good = pool.submit(read_as_a_start, folder).result(60)
        except (BrokenProcessPool, TimeoutError):
            end(pool)
            pool, crashed, odd, good = None, True, 0, 0
        crashes += crashed
        impossible += odd
        saved += good
    if pool is not None:
        pool.shutdown()
    return crashes, impossible, saved


def fresh_pool(known: set[str]) -> ProcessPoolExecutor:
    """One process that reads."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=remember, initargs=(known,))


def end(pool: ProcessPoolExecutor) -> None:
    """End a pool whose process may hang."""
    stop: Callable[..., None] = pool.shutdown
    for process in list((pool._processes or {}).values()):
        process.kill()
    stop(wait=True, cancel_futures=True)


def remember(known: set[str]) -> None:
    """In the reading process: what was written, and a bound on memory."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)  # each damaged file is said, hundreds of times
    _known.update(known)


def read_as_a_start(folder: Path) -> tuple[bool, int, int]:
    """Start records in the folder, end them, read all: failed, impossible rows, good rows."""
    from cnn.common.errors import DataError

    try:
        RotatingRecords(folder, {}).close()
    except BaseException as error:  # the device would not start
        return failed("a start", error)
    try:
        rows = readable_rows(folder)
    except DataError:  # nothing there that can be used, and said so
        return False, 0, 0
    except BaseException as error:
        return failed("reading", error)
    keys = [key(row) for row in rows]
    good = len(_known & set(keys))
    return False, len(keys) - good, good


def failed(what: str, error: BaseException) -> tuple[bool, int, int]:
    """The outcome of a failure, said of the first ones."""
    _failures.append(what)
    if len(_failures) <= _TOLD:
        say(f"records: {what} failed: {type(error).__name__}: {str(error)[:120]}")
    return True, 0, 0
