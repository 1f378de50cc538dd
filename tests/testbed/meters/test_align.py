"""``sliproad testbed align`` with a log that has holes: used, and its holes reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cnn.common.errors import DataError
from testbed.cli.app import app
from testbed.records.measurement import Measurement
from testbed.records.record_file import RecordWriter, read_records

START = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC


def frame(number: int) -> Measurement:
    """One frame a second."""
    return Measurement(
        frame_id=number, track=0, frame_in_track=0, label=None, action=1, exit_used=1,
        captured_s=float(number), queue_ms=0.0, head_ms=1.0, encode_ms=None, transfer_ms=None,
        server_queue_ms=None, server_ms=None, fallback_ms=None, delay_ms=2.0, uplink_bytes=0,
        downlink_bytes=0, prediction=1, confidence=0.5, correct=None, compute_mj=1.0, radio_mj=0.0,
        idle_mj=0.0, energy_mj=1.0, energy_source="model:x", status="ok", reason="",
        uplink_mbps=None, rtt_ms=None,
    )  # fmt: skip


def align(folder: Path, rows: list[str], *more: str, end: str = "") -> Result:
    records, log = folder / "run.parquet", folder / "log.csv"
    with RecordWriter(records, {"kind": "device", "first_capture_unix_s": START}) as writer:
        for number in range(11):
            writer.write(frame(number))
    log.write_text("".join(f"{line}\n" for line in ["time_s,power_w", *rows]) + end)
    command = ["align", "--records", str(records), "--log", str(log), *more]
    return CliRunner().invoke(app, [*command, "--out", str(folder / "aligned.parquet"), "--json"])


def told(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def log_rows(seconds: np.ndarray) -> list[str]:
    return [f"{START + s:.2f},2.0" for s in seconds]


def test_a_whole_log(tmp_path: Path) -> None:
    result = align(tmp_path, log_rows(np.arange(-1, 12, 0.25)))
    assert told(result)["with_energy"] == 10
    assert (told(result)["holes"], told(result)["hole_s"]) == (0, 0)
    assert "holes of the log" not in result.stdout


def test_holes_are_counted_and_the_rest_is_used(tmp_path: Path) -> None:
    """An overload at 2.5 s, nothing from 5 to 7.5 s, and cut off at 9.5 s."""
    rows = log_rows(np.arange(-1, 5.1, 0.25)) + log_rows(np.arange(7.5, 9.6, 0.25))
    rows[14] = rows[14].replace("2.0", "OL")
    result = align(tmp_path, rows, end=f"{START + 9.75:.2f},0.")
    found = told(result)
    energies = read_records(tmp_path / "aligned.parquet").numbers("energy_mj")
    empty = [2, 5, 6, 7, 9, 10]
    assert np.flatnonzero(np.isnan(energies)).tolist() == empty
    np.testing.assert_allclose(np.delete(energies, empty), 2000)
    assert found["with_energy"] == 5
    assert found["holes"] == 3
    assert found["hole_s"] == pytest.approx(0.5 + 2.5 + 0.5)
    assert found["rows_left_out"] == {"without a power": 1, "at the end, cut off": 1}
    assert "holes of the log during the run: 3, 3.500 s in all" in result.stdout
    source = read_records(tmp_path / "aligned.parquet").source
    assert source["power_log_holes"] == 3


def test_a_log_of_another_time_says_which(tmp_path: Path) -> None:
    result = align(tmp_path, log_rows(np.arange(3599, 3612, 0.25)))
    assert isinstance(result.exception, DataError)
    assert "2026-01-01 00:59:59 UTC" in result.exception.given
    assert "2026-01-01 00:00:00 UTC" in result.exception.given
    again = align(tmp_path, log_rows(np.arange(3599, 3612, 0.25)), "--offset-s", "-3600")
    assert told(again)["with_energy"] == 10
