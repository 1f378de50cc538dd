"""Readers, cleaning and the split, on files written here and on the measured collection."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn.common.errors import ConfigError, DataError
from testbed.traces.collection import load_traces
from testbed.traces.number_files import mahimahi_trace
from testbed.traces.sample_files import read_series
from testbed.traces.series import Series, answered, cut_at_gaps, generation, resample
from testbed.traces.trace import constant_trace, save_trace
from testbed.traces.trace_files import read_trace
from testbed.traces.trace_kinds import SELECTIONS, TRAIN_GROUPS, in_part, part_of

NAN = float("nan")
HEADER = "trace,time_s,uplink_mbps,downlink_mbps,rtt_ms,rsrp_dbm,sinr_db,speed_mps,tech,power_w\n"


def series(values: list[float], kind: str = "ul", period_s: float = 1.0) -> Series:
    time = period_s * np.arange(len(values), dtype=np.float64)
    return Series("t", "s", kind, "g", "r", "5G", time, np.array(values), period_s)


# Cleaning.


def test_short_gaps_hold_and_long_gaps_cut() -> None:
    held = cut_at_gaps(series([1.0, NAN, NAN, 4.0]))
    assert len(held) == 1
    assert resample(held[0], 1.0).tolist() == [1.0, 1.0, 1.0, 4.0]
    pieces = cut_at_gaps(series([1.0, NAN, NAN, NAN, NAN, 6.0, 7.0]))
    assert [p.values.tolist() for p in pieces] == [[1.0], [6.0, 7.0]]
    assert [p.name for p in pieces] == ["t", "t+5s"]
    assert pieces[1].time_s[0] == 0.0
    assert cut_at_gaps(series([NAN, NAN])) == []


def test_zero_is_an_outage_and_not_a_gap() -> None:
    assert resample(cut_at_gaps(series([5.0, 0.0, 0.0, 0.0, 0.0, 5.0]))[0], 1.0)[1:5].sum() == 0


def test_lost_pings_wait_for_the_next_answer() -> None:
    pings = series([20.0, NAN, NAN, 30.0, NAN, 40.0, NAN], "rtt", 0.5)
    got = answered(pings).values.tolist()
    # 1.0 s and 0.5 s to the next answered ping; the loss at the end is dropped.
    assert got == [20.0, 1030.0, 530.0, 30.0, 540.0, 40.0]
    quick = answered(series([20.0, NAN, 20.0], "rtt", 0.05)).values.tolist()
    assert quick == [20.0, 220.0, 20.0]  # TCP repeats after 200 ms at the earliest
    with pytest.raises(DataError, match="every ping was lost"):
        answered(series([NAN, NAN], "rtt"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=20),
    st.floats(0.05, 2.0),
    st.floats(0.05, 3.0),
)
def test_resampling_keeps_the_integral(values: list[float], old_s: float, new_s: float) -> None:
    one = series(values, period_s=old_s)
    got = resample(one, new_s)
    whole_s = len(got) * new_s
    fine = np.arange(0, whole_s, old_s / 400) + old_s / 800
    # Midpoint sums by hand; where the new samples end beyond the old ones (a series shorter
    # than one period), the old integral is all there is.
    inside = fine[fine < min(whole_s, len(values) * old_s)]
    expected = sum(values[min(int(t / old_s), len(values) - 1)] for t in inside) * old_s / 400
    assert got.sum() * new_s == pytest.approx(expected, rel=2e-2, abs=1.0)


def test_series_refuses_nonsense() -> None:
    with pytest.raises(DataError):
        Series("t", "s", "ul", "g", "r", "5G", np.array([1.0, 0.5]), np.ones(2), 1.0)
    with pytest.raises(DataError):
        series([1.0, -2.0])


def test_generation_names() -> None:
    names = ["5G-SA", "5G-NSA/LTE", "5G-mmWave/LTE", "LTE", "UMTS", "4G/5G"]
    assert [generation(n) for n in names] == ["5G", "5G", "5G", "LTE", "LTE", "5G"]


# The split.


def test_split_is_by_drive_and_unknown_drives_test() -> None:
    assert part_of("sa24-20241101") == "train"
    assert part_of("a-drive-nobody-has-seen") == "test"
    assert in_part("sa24-20241101", "all")
    assert not in_part("sa24-20241101", "test")
    with pytest.raises(ConfigError):
        in_part("sa24-20241101", "validation")


# A collection written here.


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Two LTE uplink drives (one train, one test) and their pings."""
    rows, samples = [], [HEADER]
    for group, kind, values in (
        ("memu22-lte-run01", "ul", ["10"] * 30),
        ("memu22-lte-run02", "ul", ["20"] * 10 + [""] * 5 + ["30"] * 25),
        ("memu22-lte-ping01", "rtt", ["30", "", "40"]),
        ("memu22-lte-ping02", "rtt", ["50"] * 5),
    ):
        name = f"{group}-{kind}"
        rows.append(f"{name},memu22.csv.gz,memu22,{kind},{group},{name},driving,LTE,1.0\n")
        for i, value in enumerate(values):
            up, rtt = (value, "") if kind == "ul" else ("", value)
            samples.append(f"{name},{i},{up},,{rtt},,,,LTE,\n")
    (tmp_path / "traces").mkdir()
    index = "trace,file,set,kind,group,run,mobility,tech,period_s\n" + "".join(rows)
    (tmp_path / "traces" / "index.csv").write_text(index)
    with gzip.open(tmp_path / "traces" / "memu22.csv.gz", "wt") as file:
        file.writelines(samples)
    return tmp_path


def test_load_traces_joins_and_splits(collection: Path) -> None:
    train = load_traces(collection, "highway-lte", "train", period_s=0.5)
    assert [t.name for t in train] == ["memu22-lte-run01-ul"]
    assert train[0].uplink_mbps.tolist() == [10.0] * 60
    assert "memu22-lte-ping01-rtt" in train[0].source
    assert "another place and time" in train[0].source
    # 30 ms, a loss of 1 s before 40 ms, 40 ms, repeated to the end.
    assert train[0].rtt_ms[:6].tolist() == [30.0, 30.0, 1040.0, 1040.0, 40.0, 40.0]
    assert len(train[0].rtt_ms) == 60
    test = load_traces(collection, "highway-lte", "test", period_s=1.0)
    # The piece before the gap is too short; the one after it stands alone.
    assert [t.name for t in test] == ["memu22-lte-run02-ul+15s"]
    assert set(test[0].rtt_ms) == {50.0}
    assert len(load_traces(collection, "highway-lte", min_duration_s=5.0)) == 3


def test_missing_things_are_named(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="urban-5g, highway-lte, poor-coverage"):
        load_traces(collection, "rural")
    with pytest.raises(DataError, match=r"no index\.csv"):
        load_traces(tmp_path / "nowhere", "highway-lte")
    with pytest.raises(DataError, match="sa24"):
        load_traces(collection, "urban-5g")
    (collection / "traces" / "memu22.csv.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"memu22\.csv\.gz"):
        load_traces(collection, "highway-lte")


# Single files.


def test_mahimahi_counts_opportunities(tmp_path: Path) -> None:
    path = tmp_path / "link.up"
    path.write_text("0\n50\n100\n100\n101\n350\n")
    trace = mahimahi_trace(path.read_text(), path, rtt_ms=60.0)
    # 12 kbit an opportunity in four bins of 87.5 ms: 0 and 50; 100, 100 and 101; none; 350.
    assert trace.period_s == 0.0875
    bits = trace.uplink_mbps * 1e6 * trace.period_s
    assert bits.tolist() == pytest.approx([24e3, 36e3, 0.0, 12e3])
    assert trace.rtt_ms.tolist() == [60.0] * 4
    for bad in ("", "x\n", "5\n3\n", "-1\n4\n", "0\n", "99999999999999999999\n"):
        path.write_text(bad)
        with pytest.raises(DataError):
            mahimahi_trace(path.read_text(), path, 60.0)


@pytest.mark.slow(1)
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_trace_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    for name in ("a.json", "b.up", "c.csv", "d.csv.gz"):
        (folder / name).write_bytes(junk)
        with contextlib.suppress(DataError, ConfigError):
            read_trace(folder / name, rtt_ms=20.0)


def test_read_trace_by_file_type(tmp_path: Path, collection: Path) -> None:
    save_trace(constant_trace(7.0, 30.0), tmp_path / "a.json")
    assert read_trace(tmp_path / "a.json").uplink_mbps.tolist() == [7.0]
    assert read_trace(tmp_path / "a.json", rtt_ms=5.0).rtt_ms.tolist() == [5.0]
    (tmp_path / "b.up").write_text("1\n2\n")
    with pytest.raises(ConfigError, match="--rtt-ms"):
        read_trace(tmp_path / "b.up")
    file = collection / "traces" / "memu22.csv.gz"
    with pytest.raises(ConfigError, match="--trace-name"):
        read_trace(file, rtt_ms=20.0)
    with pytest.raises(ConfigError, match="--rtt-ms"):
        read_trace(file, name="memu22-lte-run01-ul")
    trace = read_trace(file, name="memu22-lte-run01-ul", rtt_ms=20.0, period_s=1.0)
    assert trace.uplink_mbps.tolist() == [10.0] * 30
    (tmp_path / "own.csv").write_text(
        HEADER + "a,0,5,,20,,,,5G,\na,1,6,,21,,,,5G,\na,2,7,,22,,,,5G,\n"
    )
    own = read_trace(tmp_path / "own.csv", period_s=1.0)
    assert (own.uplink_mbps.tolist(), own.rtt_ms.tolist()) == ([5, 6, 7], [20, 21, 22])
    (tmp_path / "broken.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError):
        read_trace(tmp_path / "broken.json")


# The measured collection, where it is.


@pytest.mark.slow(12)
def test_measured_traces_are_sane_and_parts_disjoint(data_dir: Path) -> None:
    for kind in SELECTIONS:
        train = load_traces(data_dir, kind, "train")
        test = load_traces(data_dir, kind, "test")
        assert train
        assert test
        assert not {t.name.split("+")[0] for t in train} & {t.name.split("+")[0] for t in test}
        assert len(load_traces(data_dir, kind, "all")) == len(train) + len(test)
        for trace in train + test:
            assert trace.source.startswith("measured: uplink ")
            assert trace.duration_s >= 20.0 - 1e-6
            assert trace.uplink_mbps.max() < 300
    groups = {s.group for name in ("sa24", "memu22") for s in read_series(data_dir, name, "ul")}
    assert groups & TRAIN_GROUPS
    assert groups - TRAIN_GROUPS


def test_measured_uplink_keeps_its_mean(data_dir: Path) -> None:
    by_name = {s.name: s for s in read_series(data_dir, "memu22", "ul")}
    for trace in load_traces(data_dir, "highway-lte", "all", period_s=0.1):
        published = np.nanmean(by_name[trace.name.split("+")[0]].values)
        assert trace.uplink_mbps.mean() == pytest.approx(published, rel=0.01)
