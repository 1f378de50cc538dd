"""Records on disk: bounded, complete, and nearly whole after a kill."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import full_row
from waiting import wait_until

from cnn.common.errors import DataError
from testbed.deploy import record_rotation
from testbed.deploy.record_folder import last_number, record_files, recover
from testbed.deploy.record_rotation import RotatingRecords, Rotation
from testbed.records.record_file import RecordWriter, read_all, read_records

pytestmark = pytest.mark.slow(20)

SUPPORT = Path(__file__).parents[2] / "support"
SOURCE = {"kind": "device", "policy": "p"}


def size_of(folder: Path) -> int:
    sizes = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # renamed in this very moment
            sizes.append(path.stat().st_size)
    return sum(sizes)


def test_what_goes_in_comes_out_in_order_over_many_files(tmp_path: Path) -> None:
    rotation = Rotation(file_bytes=100_000, total_bytes=10**9, flush_s=0.01)
    with RotatingRecords(tmp_path, SOURCE, rotation, {"shadow_action": pa.int64()}) as records:
        for i in range(2000):
            records.write(full_row(frame_id=i), shadow_action=i % 20)
            time.sleep(0.0005 if i % 100 else 0.02)
        wait_until(lambda: records.rows == 2000)  # a busy disk is behind: the end would not wait
    files = record_files(tmp_path)
    assert len(files) >= 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    read = [read_records(path) for path in files]
    ids = np.concatenate([r.numbers("frame_id") for r in read])
    assert ids.tolist() == list(range(2000))
    assert (records.rows, records.dropped) == (2000, 0)
    assert read[0].source == SOURCE
    assert read[-1].table["shadow_action"].to_pylist()[-1] == 1999 % 20


def test_the_folder_never_outgrows_its_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    bound = 200_000
    rotation = Rotation(file_bytes=40_000, total_bytes=bound, flush_s=0.01)
    largest = 0
    with RotatingRecords(tmp_path, SOURCE, rotation) as records:
        for i in range(6000):
            records.write(full_row(frame_id=i))
            if i % 60 == 0:
                time.sleep(0.02)
                largest = max(largest, size_of(tmp_path))
        wait_until(lambda: records.rows == 6000, 300)  # the disk may be busy
    assert 0 < largest <= bound
    assert size_of(tmp_path) <= bound
    first, *_, last = record_files(tmp_path)
    assert read_records(first).numbers("frame_id")[0] > 0
    assert read_records(last).numbers("frame_id")[-1] == 5999


def test_a_folder_too_full_from_before_is_brought_within_its_bound(tmp_path: Path) -> None:
    with RotatingRecords(tmp_path, SOURCE, Rotation(20_000, 3600, 10**9, 0.01)) as records:
        for i in range(2000):
            records.write(full_row(frame_id=i))
            time.sleep(0.0003)
        wait_until(lambda: records.rows == 2000)
    assert size_of(tmp_path) > 60_000
    RotatingRecords(tmp_path, SOURCE, Rotation(5_000, 3600, 50_000, 0.01)).close()
    assert size_of(tmp_path) <= 50_000


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from rows import full_row
from testbed.deploy.record_rotation import RotatingRecords, Rotation
records = RotatingRecords(Path(sys.argv[1]), {"kind": "device"}, Rotation(flush_s=0.1))
for i in range(10**6):
    records.write(full_row(frame_id=i))
    if i % 10 == 0:
        print(i, flush=True)
    time.sleep(0.001)
"""


def test_kill_9_loses_at_most_what_was_not_flushed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(SUPPORT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    written = 0
    for line in process.stdout:
        written = int(line)
        if written >= 1000:
            break
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].split()
    written = int(rest[-1]) if rest else written
    (journal,) = tmp_path.iterdir()
    assert journal.suffix == ".arrows"
    with journal.open("ab") as file:  # and torn in the middle of a batch
        file.write(b"\xff\xff\xff\xff\x10\x01\x00\x00torn")
    (made,) = recover(tmp_path)
    ids = read_records(made).numbers("frame_id")
    assert ids.tolist() == list(range(len(ids)))
    # 0.1 s between flushes is 100 rows of a millisecond; as much again for a busy machine.
    assert len(ids) >= written - 500
    assert list(tmp_path.iterdir()) == [made]


def test_a_journal_without_a_whole_batch_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "records-20260101T000000Z-0000001-000001.arrows").write_bytes(b"\xff\xff")
    (tmp_path / "records-20260101T000000Z-0000001-000000.parquet.part").write_bytes(b"PAR1")
    assert recover(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_finished_files_are_whole_parquet_while_the_device_runs(tmp_path: Path) -> None:
    with RotatingRecords(tmp_path, SOURCE, Rotation(file_s=0.05, flush_s=0.01)) as records:
        until = time.monotonic() + 20
        while len(record_files(tmp_path)) < 3 and time.monotonic() < until:
            records.write(full_row(frame_id=0))
            time.sleep(0.005)
        for path in record_files(tmp_path):
            assert pq.read_metadata(path).num_rows > 0
    assert records.dropped == 0


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="records folder"):
        RotatingRecords(tmp_path / "file", SOURCE)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the system about records, in order; each call still happens."""
    seen: list[str] = []

    def spy(name: str, describe: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(f"{name} {describe(*args)}")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    def opened(descriptor: int) -> str:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        return "folder" if name.is_dir() else name.suffix

    spy("fsync", opened)
    spy("fdatasync", opened)
    spy("replace", lambda a, b: Path(b).suffix)
    spy("unlink", lambda path, **_: Path(path).suffix)
    return seen


def test_the_journal_goes_only_when_the_file_and_its_name_are_on_disk(
    tmp_path: Path, steps: list[str]
) -> None:
    with RotatingRecords(tmp_path, SOURCE, Rotation(flush_s=0.01)) as records:
        records.write(full_row(frame_id=0))
    assert steps[:2] == ["fsync folder", "fdatasync .arrows"]  # the journal's name and rows
    assert steps[-4:] == [
        "fsync .parquet",
        "replace .parquet",
        "fsync folder",
        "unlink .arrows",
    ]


KILLED_AT = """
from pathlib import Path
from testbed.deploy.record_folder import recover

def change():
    recover(Path(FOLDER))
"""


def test_a_kill_at_any_step_of_a_recovery_loses_nothing(
    tmp_path: Path, kill_at_every_step: Callable[[str, Path], Iterator[int]]
) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "here"
    kept.mkdir()
    command = [sys.executable, "-c", KILLED, str(kept), str(SUPPORT)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    next(line for line in process.stdout if int(line) >= 1000)
    process.kill()
    process.communicate()
    shutil.copytree(kept, tmp_path / "whole")
    (whole,) = recover(tmp_path / "whole")
    expected = read_records(whole).numbers("frame_id").tolist()
    shutil.copytree(kept, folder)
    kills = 0
    for _ in kill_at_every_step(KILLED_AT, folder):
        kills += 1
        RotatingRecords(folder, SOURCE).close()
        (made,) = record_files(folder)
        assert read_records(made).numbers("frame_id").tolist() == expected
        assert list(folder.iterdir()) == [made]
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    assert kills >= 5


def old_file(folder: Path, stamp: str, frames: range) -> Path:
    """A finished file with the name that earlier versions gave it."""
    path = folder / f"records-{stamp}-0004711-000001.parquet"
    with RecordWriter(path, SOURCE) as writer:
        for i in frames:
            writer.write(full_row(frame_id=i))
    return path


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Sets the wall clock that names are made with."""

    def to(moment: datetime) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return moment

        monkeypatch.setattr(record_rotation, "datetime", Clock)

    return to


def test_order_and_retention_do_not_follow_the_clock(
    tmp_path: Path, set_clock: Callable[[datetime], None]
) -> None:
    """Old files first, then by number, whatever the clock said."""
    first = old_file(tmp_path, "20390101T000000Z", range(10))
    second = old_file(tmp_path, "20390101T000001Z", range(10, 20))
    at = datetime(2026, 6, 1, tzinfo=UTC)
    for k in range(4):  # every start finds the clock a year further back
        set_clock(at - timedelta(days=365 * k))
        with RotatingRecords(tmp_path, SOURCE) as records:
            for i in range(20 + 10 * k, 30 + 10 * k):
                records.write(full_row(frame_id=i))
    files = record_files(tmp_path)
    assert files[:2] == [first, second]
    ids = np.concatenate([read_records(path).numbers("frame_id") for path in files])
    assert ids.tolist() == list(range(60))
    by_folder = np.concatenate([r.numbers("frame_id") for r in read_all(tmp_path)])
    assert by_folder.tolist() == list(range(60))

    size = max(path.stat().st_size for path in files)
    RotatingRecords(tmp_path, SOURCE, Rotation(size, 3600, 4 * size + 2 * size)).close()
    assert record_files(tmp_path) == files[-4:]
    assert last_number(tmp_path) == 4


def test_a_clock_that_jumps_back_within_a_run_loses_nothing(
    tmp_path: Path, set_clock: Callable[[datetime], None]
) -> None:
    at = datetime(2026, 6, 1, tzinfo=UTC)
    with RotatingRecords(tmp_path, SOURCE, Rotation(file_bytes=1, flush_s=0.01)) as records:
        for i in range(6):
            set_clock(at - timedelta(hours=i))
            records.write(full_row(frame_id=i))
            time.sleep(0.1)
    ids = [r for path in record_files(tmp_path) for r in read_records(path).numbers("frame_id")]
    assert ids == list(range(6))
    assert len(record_files(tmp_path)) > 1


def test_the_users_own_files_in_the_folder_stay(tmp_path: Path) -> None:
    mine = [
        "records-summary.parquet",
        "records-20260101T000000Z-0000001-000001 (copy).parquet",
        "records-draft.arrows",
        "records-x.parquet.part",
        "notes.txt",
    ]
    for name in mine:
        (tmp_path / name).write_bytes(b"mine" * 1000)
    with RotatingRecords(tmp_path, SOURCE, Rotation(100, 3600, 400, 0.01)) as records:
        for i in range(50):
            records.write(full_row(frame_id=i))
            time.sleep(0.002)
    for name in mine:
        assert (tmp_path / name).read_bytes() == b"mine" * 1000
    assert all(path.name not in mine for path in record_files(tmp_path))


def test_a_second_device_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    """It would take the first one's journal for one that a kill left behind."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(SUPPORT)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        next(line for line in first.stdout if int(line) >= 1000)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(DataError, match=f"{tmp_path} is in use by process {first.pid}"):
            RotatingRecords(tmp_path, SOURCE)
        assert sorted(tmp_path.iterdir()) == before
    finally:
        first.kill()
        first.communicate()
    RotatingRecords(tmp_path, SOURCE).close()
    assert len(record_files(tmp_path)) == 1
