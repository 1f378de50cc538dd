"""Record files: what goes in comes out, nulls stay nulls, nothing half-written."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import FINISHED

from cnn.common.errors import DataError
from cnn.topology import SHIPPED
from testbed.records.measurement import Measurement
from testbed.records.record_file import (
    ROWS_PER_GROUP,
    RecordWriter,
    provenance,
    read_all,
    read_records,
)


def test_rows_and_provenance_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.parquet"
    rows = [dataclasses.replace(FINISHED, frame_id=i) for i in range(ROWS_PER_GROUP + 5)]
    rows[7] = dataclasses.replace(
        FINISHED, frame_id=7, prediction=None, confidence=None, status="skipped", energy_mj=None
    )
    with RecordWriter(path, provenance(SHIPPED, slowdown=8.0)) as writer:
        for row in rows:
            writer.write(row)
            assert not path.exists()
    records = read_records(path)
    assert list(records.rows()) == rows
    assert records.source["slowdown"] == 8.0
    assert {"cpu", "python", "onnxruntime", "sliproad", "created"} <= records.source.keys()
    assert np.isnan(records.numbers("prediction")[7])
    assert np.isnan(records.numbers("energy_mj")[7])
    assert [p.name for p in path.parent.iterdir()] == ["run.parquet"]


def test_a_file_from_before_probes_were_counted_still_reads(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    with RecordWriter(path, {}) as writer:
        writer.write(FINISHED)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["probes", "probe_bytes", "looks"]), path)
    assert list(read_records(path).rows()) == [FINISHED]
    pq.write_table(table.drop_columns(["label"]), path)
    with pytest.raises(DataError, match="label"):
        read_records(path)


def test_the_schema_is_that_of_measurement(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    with RecordWriter(path, {}) as writer:
        writer.write(FINISHED)
    schema = pq.read_schema(path)
    assert schema.names == [field.name for field in dataclasses.fields(Measurement)]
    assert schema.field("encode_ms").nullable
    assert not schema.field("delay_ms").nullable
    assert schema.field("correct").type == pa.bool_()


def test_what_was_measured_before_an_error_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    interrupt = KeyboardInterrupt()
    writer = RecordWriter(path, {})
    writer.write(FINISHED)
    writer.__exit__(KeyboardInterrupt, interrupt, None)
    records = read_records(path)
    assert len(records) == 1
    assert "KeyboardInterrupt" in records.source["ended_early"]


def test_without_rows_nothing_is_left(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "run.parquet", {}):
        pass
    with pytest.raises(ValueError), RecordWriter(tmp_path / "other.parquet", {}):
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "run.parquet", {})
    writer.write(FINISHED)
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_extra_columns(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    with RecordWriter(path, {}, {"condition": pa.string()}) as writer:
        writer.write(FINISHED, condition="a")
        writer.write(FINISHED, condition="b")
    records = read_records(path)
    assert records.texts("condition").tolist() == ["a", "b"]
    assert list(records.rows()) == [FINISHED, FINISHED]


@pytest.mark.parametrize("content", [b"", b"PAR1 no", None])
def test_a_file_that_is_none_is_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"run\.parquet"):
        read_records(path)


def test_another_parquet_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "run.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match="testbed device"):
        read_records(path)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="written to"):
        RecordWriter(tmp_path / "file" / "run.parquet", {})


@pytest.mark.slow(2)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_is_read_or_a_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "run.parquet"
    with RecordWriter(path, {"a": 1}) as writer:
        writer.write(FINISHED)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    with contextlib.suppress(DataError):
        read_records(path)


def test_a_record_file_is_synced_then_renamed_then_its_folder_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        there = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append("fsync folder" if there == tmp_path else "fsync file")
        real_fsync(descriptor)

    def replace(a: Any, b: Any) -> None:
        assert pq.read_metadata(a).num_rows == 1  # whole before it has its name
        seen.append(f"replace {Path(b).name}")
        real_replace(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with RecordWriter(tmp_path / "run.parquet", {}) as writer:
        writer.write(FINISHED)
    assert seen == ["fsync file", "replace run.parquet", "fsync folder"]


def test_a_second_writer_of_the_same_file_is_refused_and_the_first_one_s_rows_stay(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.parquet"
    with RecordWriter(path, {}) as writer:
        writer.write(FINISHED)
        with pytest.raises(DataError, match=f"{path} is in use by process {os.getpid()}"):
            RecordWriter(path, {})
        with RecordWriter(tmp_path / "other.parquet", {}) as other:
            other.write(FINISHED)
    assert len(read_records(path)) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"run.parquet", "other.parquet"}


def folder_of(path: Path, good: int) -> Path:
    """A folder with some good record files and one of each kind of bad one."""
    for i in range(good):
        with RecordWriter(path / f"c{i}.parquet", {"n": i}) as writer:
            writer.write(dataclasses.replace(FINISHED, frame_id=i))
    path.mkdir(exist_ok=True)
    with RecordWriter(path / "whole", {}) as writer:
        for _ in range(2000):
            writer.write(FINISHED)
    whole = (path / "whole").read_bytes()
    (path / "whole").unlink()
    (path / "a-empty.parquet").write_bytes(b"")
    (path / "b-cut.parquet").write_bytes(whole[: len(whole) // 2])
    (path / "d-text.parquet").write_text("dear diary")
    (path / "e-zeros.parquet").write_bytes(bytes(4096))
    (path / "f-holed.parquet").write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    pq.write_table(pa.table({"x": [1]}), path / "g-other.parquet")
    (path / ".c9.0123abcd.part.parquet").write_bytes(whole[:100])  # still being written
    (path / "notes.txt").write_text("mine")
    return path


def test_bad_files_of_a_folder_are_left_out_counted_and_named(tmp_path: Path) -> None:
    folder, said = folder_of(tmp_path / "rec", good=3), []
    runs = read_all(folder, said.append)
    assert [r.source["n"] for r in runs] == [0, 1, 2]
    (line,) = said
    assert f"6 of 9 files in {folder}: a-empty.parquet (empty), b-cut.parquet (" in line
    assert "part.parquet" not in line
    assert "\n" not in line
    assert line.endswith(", ...")  # it names five


def test_a_folder_of_bad_files_alone_is_an_error_and_so_is_one_bad_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "rec", good=0)
    with pytest.raises(DataError, match="no usable record file; left out 6 of 6"):
        read_all(folder)
    with pytest.raises(DataError, match="a-empty"):
        read_all(folder / "a-empty.parquet")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"folder with \.parquet files"):
        read_all(tmp_path / "none")


def test_a_folder_without_bad_files_is_read_in_silence(tmp_path: Path) -> None:
    for i in range(2):
        with RecordWriter(tmp_path / f"{i}.parquet", {}) as writer:
            writer.write(FINISHED)
    said: list[str] = []
    assert len(read_all(tmp_path, said.append)) == 2
    assert said == []


@pytest.mark.slow(1)
def test_a_disk_that_fills_up_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own, whose files may have 64 kB."""
    program = (
        "import dataclasses, random, resource, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from rows import FINISHED\n"
        "from cnn.common.errors import DataError\n"
        "from testbed.records.record_file import RecordWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n"
        "    with RecordWriter(Path(sys.argv[1]), {}) as writer:\n"
        "        for i in range(20_000):\n"
        "            writer.write(dataclasses.replace(FINISHED, delay_ms=random.random()))\n"
        "except DataError as error:\n    print(error.given)\n"
    )
    path = tmp_path / "run.parquet"
    support = Path(__file__).parents[2] / "support"
    command = [sys.executable, "-W", "error", "-c", program, str(path), str(support)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"cannot write {path}: "), done.stderr
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
