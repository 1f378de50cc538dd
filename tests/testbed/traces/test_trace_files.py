"""Foreign formats: recognised, read rightly, or refused by name; what is left out is counted."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from agents.cli import app
from cnn.common.errors import ConfigError, DataError
from testbed.traces.recognise import IMPORTABLE
from testbed.traces.trace import Trace
from testbed.traces.trace_files import ImportOptions, import_trace, read_trace

GNET_HEADER = (
    "Timestamp,Longitude,Latitude,Speed,Operatorname,CellID,NetworkMode,RSRP,RSRQ,SNR,CQI,RSSI,"
    "DL_bitrate,UL_bitrate,State,PINGAVG,PINGMIN,PINGMAX,PINGSTDEV,PINGLOSS"
)


def gnet_row(second: int, down: object, up: object, **other: object) -> str:
    cells = {"operator": "A", "mode": "5G", "state": "D", "ping": "-", **other}
    time = f"2019.12.14_10.{second // 60:02d}.{second % 60:02d}"
    return (
        f"{time},-8.5,51.9,3,{cells['operator']},11,{cells['mode']},-95,-13,1.0,-,-,"
        f"{down},{up},{cells['state']},{cells['ping']},-,-,-,-"
    )


def iperf3_interval(start: float, end: float, size: int, **other: Any) -> dict[str, Any]:
    one = {
        "start": start, "end": end, "seconds": end - start, "bytes": size,
        "bits_per_second": 8 * size / (end - start), "omitted": False, "sender": True, **other,
    }  # fmt: skip
    return {"streams": [{"socket": 5, **one, "rtt": 31000}], "sum": one}


def iperf3_test(*intervals: dict[str, Any], **other: Any) -> dict[str, Any]:
    start = {"connected": [], "version": "iperf 3.16", "connecting_to": {"host": "h"}}
    return {"start": start, "intervals": list(intervals), "end": {}, **other}


EXAMPLES = {
    "gnettrack": "\n".join([GNET_HEADER, gnet_row(0, 8000, 500), gnet_row(1, 9000, 700)]),
    "iperf3": json.dumps(iperf3_test(iperf3_interval(0, 1, 125_000))),
    "hsdpa": "1289406399 549 59.85 10.78 125000 1000\n1289406400 1549 59.85 10.78 250000 1000\n",
    "ghent": "1453121790686 39287 51.03 3.73 125000 1000\n1453121791686 40287 51.0 3.7 9 1000\n",
    "pensieve": "0.5\t2.1\n1.0\t2.2\n",
    "rates": "3.5\n2.5\n7\n",
}


def imported(folder: Path, content: str, **options: Any) -> Trace:
    path = folder / "measured.txt"
    path.write_text(content)
    return import_trace(path, ImportOptions(**{"rtt_ms": 40.0, "period_s": 1.0, **options}))


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_foreign_file_is_refused_by_name_and_imported_with_it(tmp_path: Path, name: str) -> None:
    for file in ("a.csv", "a.json", "a", "a.up", "a.log"):
        path = tmp_path / file
        path.write_text(EXAMPLES[name])
        with pytest.raises(DataError) as caught:
            read_trace(path, rtt_ms=40.0)
        assert IMPORTABLE[name] in str(caught.value)
        assert f"--format {name}" in str(caught.value)
    options: dict[str, Any] = {"spacing_s": 1.0, "unit": "mbps"} if name == "rates" else {}
    trace = imported(tmp_path, EXAMPLES[name], format=name, **options)
    assert trace.source.startswith("measured: uplink measured.txt of ")
    assert set(trace.rtt_ms) == {40.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Connecting to host h, port 5201\n[  5] local", "iperf's text output; run it with --json"),
        ("# mahimahi mm-link (uplink) [x] > y\n12 # 1504\n", "a log that mm-link wrote"),
        ("1 2 3\n4 5 6\n", "3 columns of numbers"),
        ('{"a": 1, "b": 2}', "JSON with a, b"),
        ('{"a": ', "broken JSON"),
        ("[1, 2]", "JSON with no keys"),
        ("Zeit;Rate\n1;2\n", "begins with Zeit;Rate"),
        ("-3\n4\n", "one rate a line"),
        ("0 1\n1 2\n2 3\n", "two columns of numbers"),
        ("nan\n1\n", "no format that is known"),
    ],
)
def test_nothing_else_is_taken_for_a_trace(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.trace").write_text(text)
    with pytest.raises(DataError) as caught:
        read_trace(tmp_path / "x.trace", rtt_ms=20.0)
    assert words in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=80)
    | st.text('0123456789. \n-e{}[]":,', max_size=60).map(str.encode)
    | st.sampled_from(sorted(EXAMPLES.values())).flatmap(
        lambda text: st.integers(0, len(text)).map(lambda n: text[:n].encode())
    ),
    st.sampled_from([None, *IMPORTABLE]),
)
def test_any_bytes_are_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, name: str | None
) -> None:
    path = tmp_path_factory.mktemp("junk") / "junk.txt"
    path.write_bytes(junk)
    rates: dict[str, Any] = {"spacing_s": 1.0, "unit": "kbps"} if name == "rates" else {}
    with contextlib.suppress(DataError, ConfigError):
        import_trace(path, ImportOptions(name, 20.0, **rates))
    with contextlib.suppress(DataError, ConfigError):
        read_trace(path, rtt_ms=20.0)


# G-NetTrack.


def test_gnettrack_rates_are_kilobits_of_the_direction_asked_for(tmp_path: Path) -> None:
    rows = [gnet_row(t, 8000 + t, 500 + t, mode="LTE", ping=30 + t) for t in range(5)]
    text = "\n".join([GNET_HEADER, *rows])
    up = imported(tmp_path, text, rtt_ms=None)
    assert up.uplink_mbps.tolist() == pytest.approx([0.5, 0.501, 0.502, 0.503, 0.504])
    assert up.rtt_ms.tolist() == [30, 31, 32, 33, 34]
    assert up.tech == "LTE"
    down = imported(tmp_path, text.replace(",", "\t"), direction="down")
    assert down.uplink_mbps.tolist() == pytest.approx([8.0, 8.001, 8.002, 8.003, 8.004])
    assert "download rates, taken as the uplink's" in down.source
    assert set(down.rtt_ms) == {40.0}


def test_gnettrack_rows_of_one_second_are_merged_and_counted(tmp_path: Path) -> None:
    rows = [
        gnet_row(0, 8000, 100),
        gnet_row(1, 8000, 200),
        gnet_row(1, 8000, 400, mode="LTE"),  # another rate: the mean
        gnet_row(3, 8000, 500),  # late
        gnet_row(2, 8000, 300),
        gnet_row(2, 8000, 300),  # the same again
        gnet_row(4, 8000, "-", state="I"),
        gnet_row(5, 8000, 600),
    ]
    trace = imported(tmp_path, "\n".join([GNET_HEADER, *rows]))
    assert trace.uplink_mbps.tolist() == pytest.approx([0.1, 0.3, 0.3, 0.5, 0.5, 0.6])
    for words in (
        "2 late rows sorted in (lines 6-7)",
        "2 further rows of the same seconds, in 1 of which the rates differ",
        "their mean is taken; lines 4, 7)",
        "1 of 6 rows without a rate (line 8)",
        "1 of 8 rows while idle (State I; line 8)",
        "1 gaps held (1 s, after line 5)",
        "5G in 7 of 8 rows",
    ):
        assert words in trace.source, words
    assert trace.tech == "5G"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([gnet_row(t, 1, 1) for t in (5, 6, 0, 1)], "line 4: goes back by 6 s"),
        ([gnet_row(0, 1, 1), gnet_row(1, 1, 1, operator="B")], "2 operators .A, B."),
        ([gnet_row(0, 1, 1), gnet_row(1, 1, -1)], "line 3: -1 in column UL_bitrate"),
        (["14/12/2019 10:16," + gnet_row(0, 1, 1).partition(",")[2]], "line 2: 14/12/2019 10:16"),
        ([gnet_row(0, 1, "-")], "0 measured rates"),
        ([], "no row under it"),
    ],
)
def test_gnettrack_logs_that_are_unclear_are_named(
    tmp_path: Path, rows: list[str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        imported(tmp_path, "\n".join([GNET_HEADER, *rows]), format="gnettrack")


# iperf3.


def test_iperf3_keeps_the_bits_of_its_intervals(tmp_path: Path) -> None:
    edges = [0.0, 1.000077, 2.00041, 3.0, 3.4]
    sizes = [1_000_000, 2_500_000, 0, 125_000]
    intervals = [iperf3_interval(*e) for e in zip(edges[:-1], edges[1:], sizes, strict=True)]
    test = iperf3_test(iperf3_interval(0, 1, 10**9, omitted=True), *intervals)
    trace = imported(tmp_path, json.dumps(test), period_s=0.1)
    assert trace.duration_s == pytest.approx(3.4)
    assert trace.uplink_mbps.sum() * trace.period_s == pytest.approx(8e-6 * sum(sizes))
    assert "1 omitted intervals left out" in trace.source
    assert "from 31 ms, not used" in trace.source
    with pytest.raises(ConfigError, match=r"idle link.*--rtt-ms"):
        imported(tmp_path, json.dumps(test), rtt_ms=None)


def test_iperf3_directions_are_the_clients(tmp_path: Path) -> None:
    both = iperf3_interval(0, 1, 125_000)
    both["sum_bidir_reverse"] = {**both["sum"], "bytes": 500_000, "sender": False}
    client = iperf3_test(both)
    assert imported(tmp_path, json.dumps(client)).uplink_mbps.tolist() == [1.0]
    assert imported(tmp_path, json.dumps(client), direction="down").uplink_mbps.tolist() == [4.0]
    server = iperf3_test(iperf3_interval(0, 1, 250_000, sender=False))
    server["start"] = {"accepted_connection": {"host": "h"}}
    assert imported(tmp_path, json.dumps(server)).uplink_mbps.tolist() == [2.0]
    reverse = iperf3_test(iperf3_interval(0, 1, 250_000, sender=False))
    with pytest.raises(DataError, match=r"down rates only.*--direction down"):
        imported(tmp_path, json.dumps(reverse))
    old = iperf3_test(iperf3_interval(0, 1, 250_000))  # before versions said who sends
    del old["intervals"][0]["sum"]["sender"]
    old["start"]["test_start"] = {"reverse": 1}
    with pytest.raises(DataError, match="down rates only"):
        imported(tmp_path, json.dumps(old))


def test_iperf3_tests_that_failed_say_so(tmp_path: Path) -> None:
    failed = iperf3_test(error="error - unable to connect to server: No route to host")
    with pytest.raises(DataError, match=r"without intervals.*No route to host"):
        imported(tmp_path, json.dumps(failed))
    cut = iperf3_test(iperf3_interval(0, 1, 125_000), error="interrupt - the client terminated")
    assert "ended early: interrupt" in imported(tmp_path, json.dumps(cut)).source
    whole = json.dumps(iperf3_test(iperf3_interval(0, 1, 125_000)))
    with pytest.raises(DataError, match="cut off or broken"):
        imported(tmp_path, whole[:-30])
    with pytest.raises(DataError, match="2 iperf3 tests"):
        imported(tmp_path, f"{whole}\n{whole}")
    overlapping = iperf3_test(iperf3_interval(0, 1, 1), iperf3_interval(0.5, 1.5, 1))
    with pytest.raises(DataError, match="overlap"):
        imported(tmp_path, json.dumps(overlapping))
    with pytest.raises(DataError, match="without what an interval has"):
        imported(tmp_path, json.dumps(iperf3_test({"sum": {"start": 0}})))
    ended = iperf3_test(iperf3_interval(0, 1, 125_000))
    ended["intervals"].append({"sum": {"start": 1, "end": 1, "bytes": 0, "sender": True}})
    assert imported(tmp_path, json.dumps(ended)).uplink_mbps.tolist() == [1.0]
    # What iperf3 prints for a share of no packets is no JSON, and none of our business.
    nan = whole.replace('"omitted"', '"lost_percent": -nan, "omitted"')
    assert imported(tmp_path, nan).uplink_mbps.tolist() == [1.0]


def test_iperf3_streams_of_events_are_one_test(tmp_path: Path) -> None:
    test = iperf3_test(iperf3_interval(0, 1, 125_000), iperf3_interval(1, 2, 250_000))
    events = [{"event": "start", "data": test["start"]}]
    events += [{"event": "interval", "data": interval} for interval in test["intervals"]]
    text = "\n".join(map(json.dumps, events))
    assert "ended early" in imported(tmp_path, text).source
    trace = imported(tmp_path, text + '\n{"event": "end", "data": {}}\n')
    assert trace.uplink_mbps.tolist() == [1.0, 2.0]
    assert "ended early" not in trace.source


# Logs of bytes, and plain rates.


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(900, 1100), st.integers(0, 10**6)), min_size=1, max_size=20),
    st.sampled_from(["hsdpa", "ghent"]),
    st.sampled_from([0.1, 0.5, 1.0]),
)
def test_byte_logs_keep_bytes_and_length(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int]],
    name: str,
    period_s: float,
) -> None:
    rows = [*rows, (1000, 1)]
    lines, at_ms = [], 0
    for length_ms, size in rows:
        at_ms += length_ms
        time = 1289406399000 + at_ms if name == "ghent" else 1289406399 + at_ms // 1000
        # The two clocks of a row differ by a rounded millisecond.
        lines.append(f"{time} {at_ms} 59.8 10.7 {size} {length_ms + len(lines) % 2:04d}")
    folder = tmp_path_factory.mktemp("log")
    trace = imported(folder, "\n".join(lines), period_s=period_s)
    first_ms = rows[0][0]
    assert trace.duration_s == pytest.approx(at_ms / 1e3)
    assert first_ms > 0
    megabits = 8e-6 * sum(size for _, size in rows)
    assert trace.uplink_mbps.sum() * trace.period_s == pytest.approx(megabits)
    assert "download rates, taken as the uplink's" in trace.source


def test_byte_logs_count_gaps_repeats_and_overlaps(tmp_path: Path) -> None:
    rows = [(1000, 125_000, 1000), (2000, 250_000, 1000), (2000, 250_000, 1000),
            (4000, 375_000, 1000), (4500, 250_000, 1000), (5500, 125_000, 1000)]  # fmt: skip
    text = "\n".join(f"1453121790686 {end} 51 3 {size} {ms}" for end, size, ms in rows)
    trace = imported(tmp_path, text, period_s=0.5)
    assert trace.uplink_mbps.tolist() == [1, 1, 2, 2, 2, 2, 3, 3, 2, 1, 1]
    for words in (
        "1 repeated rows left out (row 3)",
        "1 gaps held (1 s, after row 2)",
        "1 rows begin before the row before them ends (row 5)",
    ):
        assert words in trace.source
    text = "\n".join(f"1453121790686 {end} 51 3 9 1000" for end in (1000, 60_000, 500, 1500))
    with pytest.raises(DataError, match=r"row 3: goes back by 59.5 s"):
        imported(tmp_path, text)
    with pytest.raises(DataError, match="row 2: 9 bytes in 0 ms"):
        imported(tmp_path, "1453121790686 1000 51 3 9 1000\n1453121790686 2000 51 3 9 0\n")
    text = "\n".join(f"1453121790686 1000 51 3 {size} 1000" for size in (8, 9))
    with pytest.raises(DataError, match="two different rows at 1000 ms"):
        imported(tmp_path, text)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.01, 100)), min_size=1, max_size=15))
def test_pensieve_rates_last_until_their_time(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, float]]
) -> None:
    times = np.cumsum([step for step, _ in steps])
    text = "".join(f"{t!r} {r!r}\n" for t, (_, r) in zip(times.tolist(), steps, strict=True))
    trace = imported(tmp_path_factory.mktemp("p"), text, format="pensieve", period_s=0.1)
    assert trace.duration_s == pytest.approx(times[-1])
    megabits = sum(step * rate for step, rate in steps)
    assert trace.uplink_mbps.sum() * trace.period_s == pytest.approx(megabits)
    at_zero = imported(tmp_path_factory.mktemp("p"), f"0 99\n{text}", format="pensieve")
    assert at_zero.uplink_mbps.sum() * at_zero.period_s == pytest.approx(megabits)
    assert "first row, at 0 s" in at_zero.source


@pytest.mark.parametrize(
    ("unit", "mbps"), [("bps", 12e-6), ("kbps", 12e-3), ("mbps", 12), ("kBps", 0.096), ("MBps", 96)]
)
def test_rates_have_the_unit_that_is_said(tmp_path: Path, unit: str, mbps: float) -> None:
    trace = imported(tmp_path, "12\n0\n12\n", format="rates", unit=unit, spacing_s=2.0)
    assert trace.uplink_mbps.tolist() == pytest.approx([mbps, mbps, 0, 0, mbps, mbps])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "rates"}, "spacing not given, unit not given"),
        ({"format": "rates", "spacing_s": 1.0, "unit": "MB"}, "--unit MB"),
        ({"format": "rates", "spacing_s": -1.0, "unit": "mbps"}, "spacing -1"),
        ({"format": "pcap"}, "--format pcap.*gnettrack"),
        ({"format": "mahimahi", "unit": "mbps"}, "--unit with a Mahimahi file"),
        ({"format": "mahimahi", "direction": "up"}, "--direction with"),
        ({"format": "mahimahi", "direction": "sideways"}, "--direction sideways"),
        ({"format": "mahimahi", "tech": "6G"}, "--tech 6G"),
        ({"format": "mahimahi", "rtt_ms": None}, "--rtt-ms"),
        ({"format": "mahimahi", "period_s": 0.0}, "--period-s 0"),
        ({"format": "mahimahi", "rtt_ms": -1.0}, "--rtt-ms -1"),
        ({"format": "mahimahi", "rtt_ms": float("nan")}, "--rtt-ms nan"),
        ({}, "to be told the format"),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        imported(tmp_path, "10\n12\n", **options)


def test_the_command_writes_what_link_reads(tmp_path: Path) -> None:
    source, out = tmp_path / "walk.csv.gz", tmp_path / "walk.json"
    source.write_bytes(gzip.compress(EXAMPLES["gnettrack"].encode()))
    call = ["testbed", "traces", "import", str(source), "--out", str(out), "--rtt-ms", "33"]
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(app, [*call[:4], "--out", str(source)])
    assert isinstance(again.exception, DataError)
    assert source.read_bytes()[:2] == b"\x1f\x8b"
    said = json.loads(done.stdout.splitlines()[-1])
    trace = read_trace(out)
    assert (trace.uplink_mbps.sum() * trace.period_s, trace.rtt_ms[0]) == (pytest.approx(1.2), 33.0)
    assert said["source"] == trace.source
    assert said["duration_s"] == pytest.approx(2.0)
    assert said["mean_mbps"] == pytest.approx(0.6)


def test_times_in_another_unit_are_not_taken_for_years(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at most 10000000 samples"):
        imported(tmp_path, "1\t2\n1e300\t3\n", format="pensieve")
    with pytest.raises(DataError, match="at most 10000000 samples"):
        imported(tmp_path, "1\n500000000\n", format="mahimahi", period_s=1e-9)
