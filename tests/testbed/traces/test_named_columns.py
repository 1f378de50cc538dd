"""Tables whose columns the user names: numbers worked out by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agents.cli import app
from cnn.common.errors import ConfigError, DataError
from testbed.traces.named_columns import columns_of
from testbed.traces.trace import Trace
from testbed.traces.trace_files import ImportOptions, import_trace

TABLE = """when;Throughput [kbit/s];ping;net
2024-05-17T09:30:00Z;1000;30;LTE
2024-05-17T09:30:01Z;2000;;LTE
2024-05-17T09:30:02Z;;40;NR-NSA
2024-05-17T09:30:03Z;4000;31;NR-NSA
2024-05-17T09:30:03Z;4000;31;NR-NSA
2024-05-17T09:30:05Z;5000;31;NR-NSA
"""
COLUMNS = (
    "time_s=when:iso",
    "uplink_mbps=Throughput [kbit/s]:kbps",
    "rtt_ms=ping",
    "tech=net",
)


def imported(folder: Path, text: str, *columns: str, **options: Any) -> Trace:
    path = folder / "drive.csv"
    path.write_text(text)
    return import_trace(path, ImportOptions(columns=columns, **{"period_s": 1.0, **options}))


def test_every_column_with_its_unit_and_every_row_that_was_changed(tmp_path: Path) -> None:
    trace = imported(tmp_path, TABLE, *COLUMNS)
    # The second without a rate holds the one before it, so does the second without a row.
    assert trace.uplink_mbps.tolist() == [1, 2, 2, 4, 4, 5]
    # The lost ping waits 1 s for the next one's 40 ms.
    assert trace.rtt_ms.tolist() == [30, 1040, 40, 31, 31, 31]
    assert trace.tech == "5G"
    for words in (
        "column Throughput [kbit/s] in kbps",
        "1 repeated rows left out (line 6)",
        "1 of 5 rows without a rate (line 4)",
        "2 gaps held (2 s, after lines 3, 5)",
        "1 of 5 pings lost (line 3)",
        "5G in 4 of 6 rows",
    ):
        assert words in trace.source, words


@pytest.mark.parametrize(
    ("column", "rates"),
    [
        ("uplink_mbps=a: b:MBps", [8.0, 16.0]),
        ("uplink_mbps=a: b", [1.0, 2.0]),  # a colon in the name, and no unit
        ("uplink_mbps=a: b:bps", [1e-6, 2e-6]),
    ],
)
def test_a_spacing_instead_of_times(tmp_path: Path, column: str, rates: list[float]) -> None:
    trace = imported(tmp_path, "a: b,x\n1,5\n2,6\n", column, spacing_s=0.5, rtt_ms=9, period_s=0.5)
    assert trace.uplink_mbps.tolist() == pytest.approx(rates)
    assert trace.duration_s == 1.0


@pytest.mark.parametrize(("unit", "factor"), [("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_units_of_time(tmp_path: Path, unit: str, factor: float) -> None:
    start = 1_700_000_000
    rows = "".join(f"{(start + k) * factor:.0f},{k + 1}\n" for k in (0, 2, 1, 3))
    time = f"time_s=t:{unit}"
    trace = imported(tmp_path, f"t,r\n{rows}", time, "uplink_mbps=r", rtt_ms=9)
    assert trace.uplink_mbps.tolist() == [1, 2, 3, 4]
    assert "1 late rows sorted in (line 4)" in trace.source


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (("uplink_mbps=r:parsec",), "WHAT=NAME|neither|expected"),
        (("uplink_mbps=r:kbit",), "unit kbit"),
        (("speed=r",), "speed=r"),
        (("uplink_mbps",), "WHAT=NAME:UNIT"),
        (("time_s=t",), "also the column of the rates"),
        (("uplink_mbps=r", "uplink_mbps=r"), "once"),
        (("uplink_mbps=r",), "neither a column of times"),
    ],
)
def test_columns_that_are_not_clear_are_named(
    tmp_path: Path, columns: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        imported(tmp_path, "t,r\n0,1\n1,2\n", *columns, rtt_ms=9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("t,rate\n0,1\n", "also r"),
        ("t,r\n0,1\n0,2\n", "lines 2 and 3: different rows of one moment"),
        ("t,r\n0,1\n9,2\n1,2\n", "line 4: goes back by 8 s"),
        ("t,r\n0,1\nx,2\n", "line 3: x in column t"),
        ("t,r\n0,-1\n", "-1 in column r"),
        ("t,r\n0,0\n1,0\n", "none above 0"),
    ],
)
def test_tables_that_are_wrong_are_named_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        imported(tmp_path, text, "time_s=t", "uplink_mbps=r", rtt_ms=9)
    with pytest.raises(DataError, match="line 2: 17 May in column t"):
        imported(tmp_path, "t,r\n17 May,1\n", "time_s=t:iso", "uplink_mbps=r", rtt_ms=9)


def test_a_name_that_ends_like_a_unit_of_another_column() -> None:
    assert columns_of(["uplink_mbps=x:mbps", "time_s=a b :ms"])["time_s"].name == "a b"


def test_the_command_says_how(tmp_path: Path) -> None:
    path, out = tmp_path / "drive.csv", tmp_path / "drive.json"
    path.write_text(TABLE)
    call = ["testbed", "traces", "import", str(path), "--out", str(out)]
    with pytest.raises(DataError, match="--column"):
        CliRunner().invoke(app, call, catch_exceptions=False)
    with_columns = [*call, *(word for c in COLUMNS for word in ("--column", c))]
    done = CliRunner().invoke(app, [*with_columns, "--period-s", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["mean_mbps"] == 3.0
