"""Journals: what is whole comes back, what is damaged never does, and nothing crashes."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import FINISHED

from cnn.topology import SHIPPED
from testbed.deploy import record_folder
from testbed.deploy.journal import Journal, Reading
from testbed.deploy.record_folder import recover
from testbed.records.measurement import only_possible
from testbed.records.record_file import METADATA_KEY, measurement_schema, read_records

NAME = "records-n000000000007-20260101T000000Z.arrows"
SCHEMA = measurement_schema().with_metadata({METADATA_KEY: "{}"})
BATCHES, ROWS = 40, 20


def batch(number: int, **changed: object) -> pa.RecordBatch:
    first = number * ROWS
    rows = [dataclasses.replace(FINISHED, frame_id=i) for i in range(first, first + ROWS)]
    dicts = [dataclasses.asdict(row) | changed for row in rows]
    return pa.RecordBatch.from_pylist(dicts, schema=SCHEMA)


def journal_of(path: Path, batches: int = BATCHES) -> bytes:
    journal = Journal(path, SCHEMA)
    for number in range(batches):
        journal.append(batch(number))
    journal.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return journal_of(tmp_path_factory.mktemp("journal") / NAME)


def ids_of(path: Path) -> list[int]:
    return [i for each in Reading(path) for i in each["frame_id"].to_pylist()]


def test_what_was_appended_comes_back(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / NAME).write_bytes(whole)
    reading = Reading(tmp_path / NAME)
    assert pa.Table.from_batches(reading) == pa.Table.from_batches(map(batch, range(BATCHES)))
    assert not reading.damaged


@pytest.mark.slow(2)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_costs_the_batches_it_hits_and_passes_no_other_rows(
    tmp_path: Path, whole: bytes, data: st.DataObject
) -> None:
    raw, hit = bytearray(whole), set()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        part = data.draw(st.one_of(st.binary(min_size=1, max_size=64), st.just(bytes(4096))))
        part = part[: len(raw) - at]
        hit |= {k for k, byte in enumerate(part, at) if raw[k] != byte}
        raw[at : at + len(part)] = part
    cut = data.draw(st.integers(1, len(raw)))
    path = tmp_path / NAME
    path.write_bytes(raw[:cut])
    found = list(Reading(path))
    numbers = [each["frame_id"][0].as_py() // ROWS for each in found]
    assert numbers == sorted(set(numbers))
    for number, each in zip(numbers, found, strict=True):
        assert each.equals(batch(number))
    if cut == len(raw) and not hit:
        assert len(found) == BATCHES


@pytest.mark.parametrize("at", [0, 100, 60_000])
def test_a_damaged_middle_is_set_aside_and_the_rest_saved(
    tmp_path: Path, whole: bytes, at: int
) -> None:
    """A zeroed block, also at the start, where the first schema was."""
    zeroed = whole[:at] + bytes(4096) + whole[at + 4096 :]
    (tmp_path / NAME).write_bytes(zeroed)
    (made,) = recover(tmp_path)
    kept = read_records(made).numbers("frame_id")
    assert BATCHES * ROWS // 3 < len(kept) < BATCHES * ROWS
    aside = (tmp_path / NAME).with_suffix(".damaged")
    assert aside.read_bytes() == zeroed
    assert sorted(tmp_path.iterdir()) == [aside, made]
    assert recover(tmp_path) == []


def test_a_part_that_a_disk_shows_twice_adds_no_row(tmp_path: Path, whole: bytes) -> None:
    first = len(journal_of(tmp_path / "first", 1))
    twice = whole[:first] + whole[: 3 * first] + whole[first:]
    (tmp_path / NAME).write_bytes(twice)
    assert ids_of(tmp_path / NAME) == list(range(BATCHES * ROWS))


def test_a_torn_tail_is_cut(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / NAME).write_bytes(whole[:-100] + b"\xff" * 100)
    (made,) = recover(tmp_path)
    assert len(read_records(made)) == (BATCHES - 1) * ROWS
    assert list(tmp_path.iterdir()) == [made]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("status", ""), ("status", "great"), ("action", 20), ("action", -1), ("confidence", 1.5),
        ("delay_ms", float("nan")), ("captured_s", float("inf")), ("energy_mj", 1e300),
        ("exit_used", 9), ("uplink_bytes", -1), ("looks", 32),
    ],
)  # fmt: skip
def test_rows_that_no_device_can_have_measured(column: str, value: object) -> None:
    good, bad = batch(0), batch(1, **{column: value})
    assert only_possible(good, SHIPPED).equals(good)
    assert only_possible(bad, SHIPPED).num_rows == 0


def old_journal_of(path: Path, batches: list[pa.RecordBatch]) -> bytes:
    """As versions without checksums wrote it; a killed device left no end of the stream."""
    with path.open("wb") as file:
        stream = pa.ipc.new_stream(file, SCHEMA)
        for each in batches:
            stream.write_batch(each)
        file.flush()
        raw = path.read_bytes()
        stream.close()
    path.write_bytes(raw)
    return raw


@pytest.mark.slow(1)
def test_an_old_journal_is_finished_without_its_torn_tail(tmp_path: Path) -> None:
    raw = old_journal_of(tmp_path / NAME, [batch(n) for n in range(3)])
    (tmp_path / NAME).write_bytes(raw[:-50])
    (made,) = recover(tmp_path)
    assert read_records(made).numbers("frame_id").tolist() == list(range(2 * ROWS))
    assert list(tmp_path.iterdir()) == [made]


@pytest.mark.slow(1)
def test_impossible_rows_of_an_old_journal_are_left_out(tmp_path: Path) -> None:
    old_journal_of(tmp_path / NAME, [batch(0), batch(1, status=""), batch(2)])
    (made,) = recover(tmp_path)
    ids = read_records(made).numbers("frame_id")
    assert ids.tolist() == [*range(ROWS), *range(2 * ROWS, 3 * ROWS)]
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet", ".damaged"}


def test_an_old_journal_that_ends_its_reader_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's reader may die of damaged bytes, by a signal: another process really does."""
    old_journal_of(tmp_path / NAME, [batch(0)])
    real = subprocess.run

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        dying = f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})"
        return real([command[0], "-c", dying], **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(record_folder.subprocess, "run", run)
    assert recover(tmp_path) == []
    assert [path.suffix for path in tmp_path.iterdir()] == [".damaged"]


@pytest.mark.slow(2)
def test_random_damage_of_an_old_journal_ends_no_start(tmp_path: Path) -> None:
    raw = old_journal_of(tmp_path / NAME, [batch(n) for n in range(4)])
    rng = np.random.default_rng(3)
    for _ in range(4):  # a process each
        spoilt = bytearray(raw)
        for at in rng.integers(4, len(raw), 200):
            spoilt[at] ^= 1 << int(rng.integers(8))
        (tmp_path / NAME).write_bytes(spoilt)
        for made in recover(tmp_path):
            assert read_records(made).numbers("frame_id").max() >= 0
        for path in tmp_path.iterdir():
            path.unlink()
