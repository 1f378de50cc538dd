"""Sample tables: no row is lost, merged or moved in time without a word."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn.common.errors import ConfigError, DataError
from testbed.traces.collection import load_collection
from testbed.traces.sample_files import read_samples, read_series
from testbed.traces.series import Series, resample_window
from testbed.traces.trace_files import read_trace

HEADER = "trace,time_s,uplink_mbps,rtt_ms,tech"


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "samples.csv"
    path.write_text("\n".join([header, *rows, ""]))
    return path


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 99), min_size=1, max_size=8)),
    st.randoms(),
)
def test_interleaved_traces_keep_all_their_rows(
    tmp_path_factory: pytest.TempPathFactory, traces: dict[str, list[int]], mixed: Random
) -> None:
    traces = {**traces, "z": [1]}
    waiting = {name: list(enumerate(values)) for name, values in traces.items()}
    rows = []
    while waiting:
        name = mixed.choice(sorted(waiting))
        time, value = waiting[name].pop(0)
        rows.append(f"{name},{time},{value},,")
        if not waiting[name]:
            del waiting[name]
    path = table(tmp_path_factory.mktemp("mixed"), *rows)
    found = read_samples(path, "uplink_mbps", "rtt_ms", "no_such_column")
    assert {name: values.tolist() for name, (_, values, *_) in found.items()} == traces
    assert all(np.isnan(found[name][2]).all() and np.isnan(found[name][3]).all() for name in found)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no row under it"),
        (["a,0,1,,", "a,2,1,,", "a,1,1,,"], "line 4: time_s 1 .* trace a"),
        (["a,0,1,,", "a,1,1,,", "a,1,1,,"], "line 4: time_s 1 .* trace a"),
        (["a,0,1,,", "b,0,1,,", "a,0,2,,"], "line 4: time_s 0 .* trace a"),
        (["a,0,1,,", ",1,1,,"], "line 3: nothing in column trace"),
        (["a,,1,,"], "line 2: nothing in column time_s"),
        (["a,0,1,,", "a,1,-3,,"], "line 3: -3 in column uplink_mbps"),
        (["a,0,1,,", "a,1,fast,,"], "line 3: fast in column uplink_mbps"),
        (["a,0,1,,", "a,1,1,"], "line 3: 4 cells"),
        (["a,0,inf,,"], "inf"),
        (["a,0,0,,", "a,1,0,,"], "none above 0"),
    ],
)
def test_rows_that_mean_no_series_are_named(tmp_path: Path, rows: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_trace(table(tmp_path, *rows), rtt_ms=20.0)


def test_a_table_without_a_needed_column_says_which(tmp_path: Path) -> None:
    path = table(tmp_path, "0,1", header="time_s,uplink_mbps")
    with pytest.raises(DataError, match="also trace"):
        read_trace(path, rtt_ms=20.0)
    path = table(tmp_path, "0,1", header="Zeit,Rate")
    with pytest.raises(DataError, match="begins with Zeit,Rate"):
        read_trace(path, rtt_ms=20.0)


def test_a_german_spreadsheet_gives_the_same_trace(tmp_path: Path) -> None:
    rows = [["trace", "time_s", "uplink_mbps", "rtt_ms", "tech"]]
    rows += [["a", f"{0.5 * i:.1f}", f"{7.25 + i:.2f}", f"{20 + i}", "5G"] for i in range(20)]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (tmp_path / "a.csv").write_text(text.getvalue())
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([[c.replace(".", ",") for c in row] for row in rows])
    (tmp_path / "b.csv").write_bytes(text.getvalue().encode("utf-8-sig"))
    (tmp_path / "c.txt").write_bytes(text.getvalue().encode("utf-16"))
    a, b, c = (read_trace(tmp_path / name) for name in ("a.csv", "b.csv", "c.txt"))
    assert a.uplink_mbps.tolist() == b.uplink_mbps.tolist() == c.uplink_mbps.tolist()
    assert a.rtt_ms.tolist() == b.rtt_ms.tolist() == c.rtt_ms.tolist()
    assert a.tech == b.tech == c.tech == "5G"


def test_gaps_and_what_lies_beyond_them_are_counted(tmp_path: Path) -> None:
    rows = [f"a,{t},5,," for t in range(4)]
    rows += [f"a,{t},{'' if t in (12, 13) else 6},," for t in range(10, 40)]
    trace = read_trace(table(tmp_path, *rows), rtt_ms=20.0, period_s=1.0)
    assert trace.name == "a+10s"
    assert trace.uplink_mbps.tolist() == [6.0] * 30
    for words in (
        "2 of 34 rows without a rate",
        "1 gaps held (2 s)",
        "longest of 2 pieces",
        "4 of 32 measured s left out",
        "technology",
        "20 ms set by hand",
    ):
        assert words in trace.source or (words == "technology" and trace.tech == "LTE"), words


def test_a_trace_keeps_its_round_trips_at_their_time(tmp_path: Path) -> None:
    # The uplink starts 10 s after the pings: 20 ms then, 80 ms from 15 s on.
    rows = [f"a,{t},{'5' if t >= 10 else ''},{20 if t < 15 else 80}," for t in range(30)]
    trace = read_trace(table(tmp_path, *rows), period_s=1.0)
    assert trace.rtt_ms.tolist() == [20.0] * 5 + [80.0] * 15
    assert "10 of 30 rows without a rate" in trace.source
    # A lost ping waits for the next answer, and is counted.
    rows = [f"a,{t},5,{'' if t == 3 else 20}," for t in range(6)]
    lost = read_trace(table(tmp_path, *rows), period_s=1.0)
    assert lost.rtt_ms.tolist() == [20, 20, 20, 1020, 20, 20]
    assert "1 of 6 pings lost" in lost.source


def test_a_short_or_uneven_pass_keeps_its_bits(tmp_path: Path) -> None:
    path = table(tmp_path, "a,0,10,,", "a,0.02,30,,")
    trace = read_trace(path, rtt_ms=20.0)  # 40 ms, below the usual period
    assert trace.duration_s == pytest.approx(0.04)
    assert trace.uplink_mbps.mean() == pytest.approx(20.0)
    path = table(tmp_path, "a,0,10,,", "a,0.7,30,,", "a,1.4,0,,")
    trace = read_trace(path, rtt_ms=20.0, period_s=0.2)
    assert trace.duration_s == pytest.approx(2.1)
    assert trace.uplink_mbps.sum() * trace.period_s == pytest.approx(28.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 2.0), st.floats(1, 500)), min_size=1, max_size=8),
    st.floats(-5, 20),
    st.integers(1, 12),
)
def test_a_window_means_what_a_ruler_says(
    steps: list[tuple[float, float]], start_s: float, count: int
) -> None:
    time = np.cumsum([0.0, *(s for s, _ in steps)])[:-1]
    values = np.array([v for _, v in steps])
    got = resample_window(
        Series("t", "s", "rtt", "", "", "", time, values, 1.0), start_s, count, 0.5
    )
    fine = start_s + (np.arange(count * 500) + 0.5) * 0.001
    held = values[np.clip(np.searchsorted(time, fine, "right") - 1, 0, None)]
    assert got == pytest.approx(held.reshape(count, 500).mean(axis=1), abs=500 * 8 / 500)


# The collection.


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Three uplink tests of one LTE drive and its pings, with all that can be left out."""
    uplink = {
        "long": ["10"] * 30 + [""] * 8 + ["20"] * 25,
        "short": ["10"] * 5,
        "dead": ["0"] * 25,
        "empty": [""] * 25,
    }
    pings = {"answered": ["30", "", "40"], "silent": ["", ""]}
    index, rows = ["trace,file,set,kind,group,run,tech,period_s,n"], [HEADER]
    for kind, traces in (("ul", uplink), ("rtt", pings)):
        for name, values in traces.items():
            index.append(
                f"{name},memu22.csv,memu22,{kind},memu22-lte-run02,r,LTE,1.0,{len(values)}"
            )
            for i, value in enumerate(values):
                up, rtt = (value, "") if kind == "ul" else ("", value)
                rows.append(f"{name},{i},{up},{rtt},LTE")
    (tmp_path / "index.csv").write_text("\n".join(index) + "\n")
    (tmp_path / "memu22.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_what_the_collection_leaves_out_is_counted(collection: Path) -> None:
    loaded = load_collection(collection, "highway-lte", period_s=1.0)
    assert [trace.name for trace in loaded.traces] == ["long", "long+38s"]
    assert all("8 of 63 samples of the series missing" in t.source for t in loaded.traces)
    said = "; ".join(loaded.notes)
    for words in (
        "2 traces of 3 uplink series of highway-lte",
        "8 samples are missing",
        "1 long gaps cut",
        "1 pieces shorter than 20 s left out (5.0 s)",
        "1 pieces without any capacity left out (25.0 s)",
        "1 ping series without an answer",
        "3 of 5 pings lost",
    ):
        assert words in said, (words, said)


def test_a_collection_that_lost_rows_is_refused(collection: Path) -> None:
    samples = collection / "memu22.csv"
    samples.write_text("\n".join(samples.read_text().splitlines()[:-3]) + "\n")
    with pytest.raises(DataError, match=r"2 rows of trace answered.*expected 3"):
        read_series(collection, "memu22", "rtt")
    index = collection / "index.csv"
    index.write_text(index.read_text() + index.read_text().splitlines()[1] + "\n")
    with pytest.raises(DataError, match="trace long is listed more than once"):
        read_series(collection, "memu22", "ul")


def test_several_traces_ask_for_a_name(tmp_path: Path) -> None:
    path = table(tmp_path, "a,0,1,20,5G", "b,0,1,20,LTE")
    with pytest.raises(ConfigError, match=r"one of its 2 traces.*a, b.*--trace-name"):
        read_trace(path)
    (tmp_path / "one.up").write_text("1\n")
    with pytest.raises(ConfigError, match="--trace-name a"):
        read_trace(tmp_path / "one.up", name="a", rtt_ms=1.0)
    assert (read_trace(path, name="a").tech, read_trace(path, name="b").tech) == ("5G", "LTE")
