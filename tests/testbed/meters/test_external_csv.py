"""Instruments' logs against powers whose integral is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cnn.common.errors import DataError
from testbed.meters.external_csv import PowerLog, find_columns, read_power_log, with_external_energy
from testbed.records.measurement import Measurement

HEADER = "time_s,power_mw"


def row(captured_s: float, queue_ms: float = 0.0) -> Measurement:
    return Measurement(
        frame_id=0, track=0, frame_in_track=0, label=None, action=1, exit_used=1,
        captured_s=captured_s, queue_ms=queue_ms, head_ms=1.0, encode_ms=None,
        transfer_ms=None, server_queue_ms=None, server_ms=None, fallback_ms=None,
        delay_ms=2.0, uplink_bytes=0, downlink_bytes=0, prediction=1, confidence=0.5,
        correct=None, compute_mj=1.0, radio_mj=0.0, idle_mj=0.0, energy_mj=1.0,
        energy_source="model:x", status="ok", reason="", uplink_mbps=None, rtt_ms=None,
    )  # fmt: skip


def log_of(tmp_path: Path, text: str | bytes, **settings: float) -> PowerLog:
    path = tmp_path / "log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_power_log(path, **settings)


def lines(*rows: str, header: str = HEADER) -> str:
    return "".join(f"{line}\n" for line in (header, *rows))


def test_frames_are_aligned_by_time(tmp_path: Path) -> None:
    start = 1_000_000.0
    t = np.arange(0, 3, 0.01)
    power_w = 2 + np.sin(t)  # its integral is known
    rows = [f"{start - 5 + s},5.0,{p / 5}" for s, p in zip(t, power_w, strict=True)]
    log = log_of(tmp_path, lines(*rows, header="time_s,voltage_v,current_a"), offset_s=5.0)
    frames = with_external_energy([row(0.5), row(1.0, 200.0), row(2.0)], start, log)

    def joules(a: float, b: float) -> float:
        return 2 * (b - a) + math.cos(a) - math.cos(b)

    assert frames[0].energy_mj == pytest.approx(joules(0.5, 1.2) * 1e3, rel=1e-3)
    assert frames[1].energy_mj == pytest.approx(joules(1.2, 2.0) * 1e3, rel=1e-3)
    assert frames[2].energy_mj is None  # nobody knows when its window ends
    assert frames[0].compute_mj is None
    assert frames[0].energy_source == "csv:log.csv"
    assert log.holes(start, start + 2.5) == []


def test_outside_and_across_gaps() -> None:
    log = PowerLog(np.array([0.0, 0.5, 1.0, 5.0, 5.5]), np.full(5, 1000.0), "x")
    assert log.energy_mj(0.2, 0.9) == pytest.approx(700)
    assert log.energy_mj(0.5, 1.0) == pytest.approx(500)  # up to the gap's edge
    assert log.energy_mj(0.9, 1.5) is None
    assert log.energy_mj(-0.1, 0.5) is None
    assert log.energy_mj(5.2, 5.6) is None
    assert log.holes(-1.0, 6.0) == [(-1.0, 0.0), (1.0, 5.0), (5.5, 6.0)]
    assert log.holes(2.0, 3.0) == [(2.0, 3.0)]
    assert log.holes(0.1, 0.9) == []


@pytest.mark.parametrize("power_mw", [0.0, -5.0])
def test_a_frame_that_spent_nothing_was_not_measured(power_mw: float) -> None:
    log = PowerLog(np.array([0.0, 0.5, 1.0]), np.full(3, power_mw), "x")
    assert log.energy_mj(0.1, 0.9) is None


@pytest.mark.parametrize("cell", ["OL", "---", "", "nan", "inf", "-inf", "#VALUE!", "1,5"])
def test_a_reading_that_is_none_is_a_hole(tmp_path: Path, cell: str) -> None:
    cell = f'"{cell}"' if "," in cell else cell
    log = log_of(tmp_path, lines("0.0,1000", "0.5,1000", f"1.0,{cell}", "1.5,1000", "2.0,1000"))
    assert log.holes(0, 2) == [(0.5, 1.5)]
    assert log.left_out == {"without a power": 1}
    assert log.energy_mj(0.0, 0.5) == pytest.approx(500)
    assert log.energy_mj(1.5, 2.0) == pytest.approx(500)
    assert log.energy_mj(0.4, 0.6) is None


@pytest.mark.parametrize("torn", ["??,1000", "garbage", "1.", "0.7,10000.8,1000", HEADER])
def test_a_row_without_a_time_is_a_hole(tmp_path: Path, torn: str) -> None:
    """Torn off, two rows run together, or the header once more: a logger was restarted."""
    log = log_of(tmp_path, lines("0.0,1000", "0.5,1000", torn, "1.0,1000", "1.5,1000"))
    assert log.holes(0, 1.5) == [(0.5, 1.0)]
    assert log.left_out == {"without a time": 1}
    assert log.energy_mj(1.0, 1.5) == pytest.approx(500)


@pytest.mark.parametrize("end", ["1.5,2", "1.5,", "1.", "1.5,\x00\x00\x00", '1.5,"20'])
def test_a_last_line_that_is_cut_off_is_left_out(tmp_path: Path, end: str) -> None:
    log = log_of(tmp_path, lines("0.5,2000", "1.0,2000") + end)
    assert log.time_s.tolist() == [0.5, 1.0]
    assert log.left_out == {"at the end, cut off": 1}


def test_cut_off_anywhere_the_rest_is_as_it_was(tmp_path: Path) -> None:
    whole = lines(*(f"{t / 4},{1000 + t}" for t in range(10)))
    before = log_of(tmp_path, whole)
    for end in range(len(lines("0.0,1000", "0.25,1001")), len(whole)):
        log = log_of(tmp_path, whole[:end])
        n = len(log.time_s)
        assert log.time_s.tolist() == before.time_s[:n].tolist()
        assert log.power_mw.tolist() == before.power_mw[:n].tolist()
        assert n >= whole[:end].count("\n") - 1


def test_a_log_that_a_power_cut_padded_with_nothing(tmp_path: Path) -> None:
    log = log_of(tmp_path, lines("0.0,1000", "0.5,1000").encode() + bytes(4096))
    assert len(log.time_s) == 2


def test_a_quote_that_does_not_end_takes_one_row(tmp_path: Path) -> None:
    log = log_of(tmp_path, lines("0.0,1000", '0.5,"1000', "1.0,1000", "1.5,1000"))
    assert log.time_s[-1] == 1.5
    assert log.energy_mj(1.0, 1.5) == pytest.approx(500)


def test_a_clock_that_was_set_back_is_not_believed(tmp_path: Path) -> None:
    """Twice from 2 to 4 s: which of the two belongs to a frame there, nobody knows."""
    times = [*np.arange(0, 4.1, 0.5), *np.arange(2, 8.1, 0.5)]
    log = log_of(tmp_path, lines(*(f"{t},1000" for t in times)))
    assert (np.diff(log.time_s) > 0).all()
    (hole,) = log.holes(0, 8)
    assert hole[0] <= 2
    assert hole[1] >= 4
    assert log.energy_mj(0, 1.5) == pytest.approx(1500)
    assert log.energy_mj(5, 8) == pytest.approx(3000)
    assert log.left_out == {"with a time out of order": 4}  # a fifth is the same moment twice


def test_one_wild_time_does_not_take_the_rest(tmp_path: Path) -> None:
    log = log_of(tmp_path, lines("0.0,1000", "0.5,1000", "9e9,1000", "1.0,1000", "1.5,1000"))
    assert log.time_s.tolist() == [0.0, 0.5, 1.0, 1.5]
    assert log.energy_mj(0, 1.5) == pytest.approx(1500)
    assert log.left_out == {"with a time out of order": 1}


def test_rows_of_one_moment_are_averaged(tmp_path: Path) -> None:
    log = log_of(tmp_path, lines("0,1000", "0,3000", "1,2000", "1,2000", "2,2000"))
    assert log.time_s.tolist() == [0, 1, 2]
    assert log.power_mw.tolist() == [2000, 2000, 2000]


@given(
    times=st.lists(st.integers(0, 40), min_size=2, max_size=40),
    bad=st.sets(st.integers(0, 39)),
    window=st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_figure_comes_from_good_rows_alone(
    tmp_path: Path, times: list[int], bad: set[int], window: list[int]
) -> None:
    """Power equals time, so that every energy is known: (b^2 - a^2) / 2."""
    rows = [f"{t},{'OL' if i in bad else t}" for i, t in enumerate(times)]
    start, end = window
    assume(end > start)
    try:
        log = log_of(tmp_path, lines(*rows), max_gap_s=3.0)
    except DataError:
        return
    energy = log.energy_mj(start, end)
    holes = log.holes(start, end)
    assert all(a < b for a, b in holes)
    if energy is None:
        assert holes
        return
    assert not holes
    assert energy == pytest.approx((end**2 - start**2) / 2)
    assert not any(start < times[i] < end for i in bad if i < len(times))
    near = sorted(set(times) | {start, end})
    assert max(np.diff([t for t in near if start <= t <= end])) <= 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        lines(),
        "a,b\n1,2\n",
        lines("1,x", "2,3"),
        lines("2,1", "1,1"),
        lines("1,nan", "2,1"),
        lines("1", "2"),
        lines("1,2,3", "2,2,3"),
        lines("1,2"),
        lines("1,2", "2,2", header="time_s,power"),  # in which unit?
        lines("1,2,3", "2,2,3", header="time_s,Power (W),power_w"),
        lines("1,2", "2,2", header="time_s,voltage_v"),
    ],
)
def test_a_log_without_anything_to_use_is_a_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"log\.csv"):
        log_of(tmp_path, text)


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("time_s,power_mw", "{t},1500"),
        ("unix_s,power_w", "{t},1.5"),
        ("Timestamp,Power (W)", "{t},1.5"),
        ("P [mW],Time [s]", "1500,{t}"),
        ("time_ms,power_uw", "{ms},1500000"),
        ("Time (s),Voltage (V),Current (mA)", "{t},5,300"),
        ("Time (s),Voltage (mV),Current (A)", "{t},5000,0.3"),
        ("time_s,V(V),I(A),Power (mW)", "{t},0,0,1500"),
        ("timestamp,power_w,note", "{iso},1.5,"),
        ("meter 7\n\ntime_s,power_mw", "{t},1500"),
        ("\ufefftime_s,power_mw,", "{t},1500,"),
    ],
)
def test_units_and_forms(tmp_path: Path, header: str, cells: str) -> None:
    start = 1_767_225_600  # 2026-01-01 00:00:00 UTC
    rows = [
        cells.format(t=start + s, ms=(start + s) * 1000, iso=f"2026-01-01T00:00:0{s}+00:00")
        for s in range(3)
    ]
    log = log_of(tmp_path, lines(*rows, header=header))
    assert log.energy_mj(start, start + 2) == pytest.approx(3000)


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("Time (s);Power (µW)", "{t},0;1500000"),
        ("time_s;power_w", "{t};1,5"),
        ("time_s\tvoltage_v\tcurrent_a", "{t}\t5,0\t0,3"),
        ("timestamp;power_w", "{iso};1,5"),
        ("time_s;power_w", "{t}.0;1.5"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-32"])
def test_other_separators_decimal_commas_and_encodings(
    tmp_path: Path, header: str, cells: str, encoding: str
) -> None:
    start = 1_767_225_600
    rows = [cells.format(t=start + s, iso=f"2026-01-01T00:00:0{s}+00:00") for s in range(3)]
    log = log_of(tmp_path, lines(*rows, header=header).encode(encoding))
    assert log.energy_mj(start, start + 2) == pytest.approx(3000)


def test_a_number_with_two_meanings_is_a_hole(tmp_path: Path) -> None:
    """Where commas are decimal, a point may stand between thousands."""
    rows = ("0,0;1000", "0,5;1000", "1,0;1.000", "1,5;1000", "2,0;1000")
    log = log_of(tmp_path, lines(*rows, header="time_s;power_mw"))
    assert log.holes(0, 2) == [(0.5, 1.5)]


@pytest.mark.parametrize("number", ["1.500", "1,500"])
def test_thousands_that_may_be_fractions_are_refused(tmp_path: Path, number: str) -> None:
    text = lines(f"0;{number}", f"1;{number}", header="time_s;power_mw")
    with pytest.raises(DataError, match="fraction or thousands"):
        log_of(tmp_path, text)
    # One clear number tells what the mark means in all of them.
    clear = number[:3]
    log = log_of(tmp_path, lines(f"0;{number}", f"1;{clear}", header="time_s;power_mw"))
    assert log.power_mw.tolist() == [1.5, 1.5]


def test_a_unit_that_cannot_be_read_is_not_guessed() -> None:
    assert find_columns(["time_s", "power_\ufffdw"]) is None


@pytest.mark.parametrize("name", ["energy_mwh", "power_factor", "power", "ch1 power mw", "mw"])
def test_other_columns_are_not_taken_for_power(name: str) -> None:
    assert find_columns(["time_s", name]) is None


@pytest.mark.slow(1)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(alphabet='time_stampower_mw,.0123456789-+:TeE "\n', max_size=200).map(str.encode),
        st.lists(st.tuples(st.floats(), st.floats()), max_size=6).map(
            lambda rows: lines(*(f"{a},{b}" for a, b in rows), header="time_s,power_w").encode()
        ),
    )
)
@example(b"time,power\n6e294,\n-1.79769313486226e308,\n1,1e308\n2,1e308\n2,1e308\n")
def test_any_bytes_are_a_log_or_a_clear_error(tmp_path: Path, data: bytes) -> None:
    try:
        log = log_of(tmp_path, data)
    except DataError:
        return
    assert np.isfinite(log.power_mw).all()
    assert (np.diff(log.time_s) > 0).all()
    for energy in (log.energy_mj(*log.time_s[:2]), log.energy_mj(*log.time_s[[0, -1]])):
        assert energy is None or energy > 0


def test_the_log_keeps_the_other_figures_of_a_frame(tmp_path: Path) -> None:
    log = log_of(tmp_path, lines("0,1000", "1,1000"))
    before = [row(0.0), row(0.5)]
    after = with_external_energy(before, 0.0, log)
    changed = {"compute_mj", "radio_mj", "idle_mj", "energy_mj", "energy_source"}
    for a, b in zip(before, after, strict=True):
        assert replace(b, **{name: getattr(a, name) for name in changed}) == a
