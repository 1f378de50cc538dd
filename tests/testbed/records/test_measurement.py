"""Figures that a device can have measured, and what `testbed fit` believes of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cnn.common.errors import SliproadError
from cnn.topology import SHIPPED
from testbed.cli.app import app
from testbed.records.measurement import Measurement, check_header, impossible
from testbed.records.record_file import (
    METADATA_KEY,
    Records,
    RecordWriter,
    measurement_schema,
    read_all,
)

VALUES: dict[str, Any] = {"int64": 1, "double": 1.0, "string": "ok", "bool": True}
ROW = Measurement(**{f.name: VALUES[str(f.type)] for f in measurement_schema()})
KINDS = ("campaign", "device")


def records(kind: str, n: int = 40) -> Records:
    """Rows of every action, as a table in memory that anything can be written into."""
    table = pa.table(
        {
            **{f.name: [getattr(ROW, f.name)] * n for f in measurement_schema()},
            "action": [k % SHIPPED.n_actions for k in range(n)],
            "frame_id": list(range(n)),
            "condition": ["a"] * n,
            "round": [0] * n,
            "warm_up": [False] * n,
        }
    )
    source = {
        "kind": kind,
        "conditions": {"a": {"uplink_mbps": 20.0, "rtt_ms": 0.0}},
        "config": {"meter": "model"},
        "bundle_hash": "ab" * 32,
    }
    return Records(table, source)


def with_value(records: Records, name: str, value: object) -> Records:
    column = [*records.table[name].to_pylist()[1:], value]
    at = records.table.column_names.index(name)
    kind = pa.float64() if isinstance(value, float) else records.table[name].type
    return Records(records.table.set_column(at, name, pa.array(column, kind)), records.source)


def named(records: Records) -> list[str]:
    """Columns with an impossible figure."""
    return [name for name, _ in impossible(records.table, records.topology)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize(
    "name", ["delay_ms", "queue_ms", "head_ms", "encode_ms", "transfer_ms", "energy_mj", "action"]
)
def test_a_figure_that_is_not_finite_is_found_by_name(name: str, value: float) -> None:
    assert named(records("device")) == []
    assert named(with_value(records("device"), name, value)) == [name]


def test_a_figure_that_was_not_measured_is_none_and_allowed_where_a_row_may_lack_it() -> None:
    assert named(with_value(records("device"), "energy_mj", None)) == []
    for name in ("delay_ms", "action"):
        assert named(with_value(records("device"), name, None)) == [name]
    for name, value in (("action", 20), ("action", -1), ("looks", 32)):
        assert named(with_value(records("device"), name, value)) == [name]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_refuses_it_and_writes_nothing(kind: str, tmp_path: Path) -> None:
    bad = with_value(records(kind), "delay_ms", float("nan"))
    table = bad.table.replace_schema_metadata({METADATA_KEY: json.dumps(bad.source)})
    pq.write_table(table, tmp_path / "r.parquet")
    out = tmp_path / "m.json"
    command = ["fit", "--records", str(tmp_path / "r.parquet"), "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, SliproadError)
    assert "delay_ms" in str(result.exception)
    assert not out.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"conditions": {}},
        {"conditions": [1]},
        {"conditions": {"a": {"uplink_mbps": float("nan"), "rtt_ms": 1}}},
        {"conditions": {"a": {"uplink_mbps": 0, "rtt_ms": 1}}},
        {"conditions": {"a": {"uplink_mbps": 1, "rtt_ms": -1}}},
        {"slowdown": float("inf")},
        {"slowdown": "x"},
    ],
)
def test_a_header_with_impossible_figures_is_refused(changed: dict[str, Any]) -> None:
    given = records("campaign")
    check_header(given.table, given.source, "r")
    with pytest.raises(SliproadError, match="header"):
        check_header(given.table, {**given.source, **changed}, "r")


def test_of_many_rows_the_newest_files_are_read_and_a_long_file_is_refused(tmp_path: Path) -> None:
    for k in range(5):
        with RecordWriter(tmp_path / f"{k}.parquet", {"kind": "device", "number": k}) as writer:
            for _ in range(10):
                writer.write(ROW)
    said: list[str] = []
    runs = read_all(tmp_path, said.append, columns=["action", "odd"], max_rows=29)
    assert [run.source["number"] for run in runs] == [3, 4]
    assert [run.table.column_names for run in runs] == [["action"]] * 2
    assert len(said) == 1
    assert "3 oldest files" in said[0]
    assert len(read_all(tmp_path)) == 5
    with pytest.raises(SliproadError, match="of 10 rows"):
        read_all(tmp_path / "0.parquet", max_rows=9)


def test_a_file_that_unpacks_to_far_more_than_its_rows_need_is_refused(tmp_path: Path) -> None:
    given = records("device", 10)
    long = [f"{k}" * 100_000 for k in range(10)]
    at = given.table.column_names.index("reason")
    table = given.table.set_column(at, "reason", pa.array(long))
    pq.write_table(
        table.replace_schema_metadata({METADATA_KEY: json.dumps(given.source)}),
        tmp_path / "r.parquet",
    )
    with pytest.raises(SliproadError, match="MB unpacked"):
        read_all(tmp_path / "r.parquet", max_rows=100)
