"""Records on disk: bounded, complete, and nearly whole after a kill."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cnn.errors import DataError
from testbed.records.measurement import Measurement
from testbed.records.parquet import measurement_schema, read_records
from testbed.service.record_rotation import RotatingRecords, Rotation, record_files, recover

VALUES = {"int64": 1, "double": 2.0, "string": "x", "bool": True}
SOURCE = {"kind": "device", "policy": "p"}


def row(number: int) -> Measurement:
    values = {f.name: VALUES[str(f.type)] for f in measurement_schema()}
    return Measurement(**values | {"frame_id": number})  # type: ignore[arg-type]


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
            records.write(row(i), shadow_action=i % 20)
            time.sleep(0.0005 if i % 100 else 0.02)
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
            records.write(row(i))
            if i % 60 == 0:
                time.sleep(0.02)
                largest = max(largest, size_of(tmp_path))
    assert 0 < largest <= bound
    assert size_of(tmp_path) <= bound
    first, *_, last = record_files(tmp_path)
    assert read_records(first).numbers("frame_id")[0] > 0
    assert read_records(last).numbers("frame_id")[-1] == 5999


def test_a_folder_too_full_from_before_is_brought_within_its_bound(tmp_path: Path) -> None:
    with RotatingRecords(tmp_path, SOURCE, Rotation(20_000, 3600, 10**9, 0.01)) as records:
        for i in range(2000):
            records.write(row(i))
            time.sleep(0.0003)
    assert size_of(tmp_path) > 60_000
    RotatingRecords(tmp_path, SOURCE, Rotation(5_000, 3600, 50_000, 0.01)).close()
    assert size_of(tmp_path) <= 50_000


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_record_rotation import RotatingRecords, Rotation, SOURCE, row
records = RotatingRecords(Path(sys.argv[1]), SOURCE, Rotation(flush_s=0.1))
for i in range(10**6):
    records.write(row(i))
    if i % 10 == 0:
        print(i, flush=True)
    time.sleep(0.001)
"""


def test_kill_9_loses_at_most_what_was_not_flushed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
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
            records.write(row(0))
            time.sleep(0.005)
        for path in record_files(tmp_path):
            assert pq.read_metadata(path).num_rows > 0
    assert records.dropped == 0


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="records folder"):
        RotatingRecords(tmp_path / "file", SOURCE)
