"""Disks that are full, read-only, failing, slow or cut off: the device goes on, and counts."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rows import full_row
from waiting import wait_until

from testbed.deploy import record_rotation
from testbed.deploy.record_folder import record_files
from testbed.deploy.record_rotation import RotatingRecords, Rotation
from testbed.records.record_file import read_records

pytestmark = pytest.mark.slow(9)

SOURCE = {"kind": "device"}
FAST = Rotation(file_bytes=20_000, file_s=3600, total_bytes=10**7, flush_s=0.02)


def send(records: RotatingRecords, first: int, n: int) -> None:
    """Hand over rows, and wait until each is written or counted."""
    settled = records.rows + records.dropped
    for i in range(first, first + n):
        records.write(full_row(frame_id=i))
    wait_until(lambda: records.rows + records.dropped == settled + n)


def ids_of(folder: Path) -> list[float]:
    return [i for path in record_files(folder) for i in read_records(path).numbers("frame_id")]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "mkdir", "fdatasync", "fsync", "replace", "unlink"])
def test_a_call_that_fails_for_a_while_stops_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
    call: str,
) -> None:
    """From before the start; later the disk is well again."""
    failing, real = threading.Event(), getattr(os, call)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if failing.is_set() and threading.current_thread().name == "records":
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fail)
    failing.set()
    folder = tmp_path / "rec"
    with RotatingRecords(folder, SOURCE, FAST) as records:
        for k in range(4):
            send(records, 30 * k, 30)
        failing.clear()
        send(records, 120, 30)
    assert records.rows + records.dropped == 150
    assert {path.suffix for path in folder.iterdir()} == {".parquet"}
    ids = ids_of(folder)
    assert len(ids) == records.rows >= 30
    assert ids == sorted(set(ids))
    said = [r for r in caplog.records if r.getMessage() == "records: rows are not written"]
    assert len(said) <= 1


@contextmanager
def mounted(where: Path, *how: str) -> Iterator[Path]:
    where.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *how, str(where)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.root
def test_a_full_disk_loses_its_oldest_files_first_and_then_counts(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=512k", "tmpfs") as disk:
        with RotatingRecords(disk / "rec", SOURCE, FAST) as records:
            send(records, 0, 3000)  # 1 MB of journals
            assert records.dropped == 0
            first = ids_of(disk / "rec")[0]
            with (disk / "filler").open("wb", buffering=0) as filler:
                try:
                    while filler.write(bytes(512)):
                        pass
                except OSError:
                    pass
            send(records, 3000, 300)
            assert records.dropped == 0
            assert ids_of(disk / "rec")[0] > first
        assert ids_of(disk / "rec")[-1] == 3299
        assert {path.suffix for path in (disk / "rec").iterdir()} == {".parquet"}


@pytest.mark.root
def test_a_read_only_disk_is_no_reason_not_to_start(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "tmpfs") as disk:
        with RotatingRecords(disk / "rec", SOURCE, FAST) as records:
            send(records, 0, 10)
            assert records.dropped == 10
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            send(records, 10, 10)
        assert ids_of(disk / "rec") == list(range(10, 20))


def test_a_disk_that_hangs_delays_no_frame_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, hangs = threading.Event(), threading.Event()

    def hang(descriptor: int) -> None:
        hangs.set()
        free.wait(60)

    monkeypatch.setattr(os, "fdatasync", hang)
    monkeypatch.setattr(record_rotation, "_CLOSE_S", (0.2, 1.0))
    monkeypatch.setattr(record_rotation, "_WAITING_ROWS", 100)
    records = RotatingRecords(tmp_path, SOURCE, FAST)
    records.write(full_row(frame_id=0))
    assert hangs.wait(30)
    for i in range(1, 301):
        records.write(
            full_row(frame_id=i)
        )  # returns: the queue is bounded, and what it does not hold is counted
    assert records.dropped == 200
    records.close()
    assert records.rows + records.dropped == 301
    free.set()
    records._thread.join(30)


@pytest.mark.root
def test_a_power_cut_loses_the_rows_of_the_last_flush_s_alone(tmp_path: Path) -> None:
    """An ext4 image copied without a sync: what the disk would hold at that moment."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    image, cuts = tmp_path / "disk.img", []
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with (
        mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk,
        RotatingRecords(disk / "rec", SOURCE, FAST) as records,
    ):
        for k in range(3):
            send(records, 100 * k, 100)
            copy = tmp_path / f"cut{k}.img"
            shutil.copyfile(image, copy)
            cuts.append((copy, 100 * (k + 1)))
    for copy, on_disk in cuts:
        with mounted(tmp_path / "after", "-o", "loop", str(copy)) as disk:
            RotatingRecords(disk / "rec", SOURCE, FAST).close()
            assert ids_of(disk / "rec") == list(range(on_disk))
            assert {path.suffix for path in (disk / "rec").iterdir()} == {".parquet"}
