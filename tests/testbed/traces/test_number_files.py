"""Mahimahi files: the bits and the length of a pass are kept, whatever its length."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cnn.common.errors import ConfigError, DataError
from testbed.traces.number_files import mahimahi_trace
from testbed.traces.trace_files import read_trace

PACKET_BITS = 1500 * 8


def lines(times_ms: list[int]) -> str:
    return "".join(f"{t}\n" for t in times_ms)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=60).map(sorted).filter(lambda t: t[-1] > 0),
    st.sampled_from([0.1, 0.5, 0.033, 0.001, 1.0]),
)
@example([1], 0.1)
@example([99], 0.1)
@example([100], 0.1)
@example([101], 0.1)
@example([0, 0, 1], 0.0005)
def test_every_bin_border_has_passed_the_packets_due_by_then(
    times_ms: list[int], period_s: float
) -> None:
    trace = mahimahi_trace(lines(times_ms), Path("x.up"), 20.0, period_s)
    pass_ms = times_ms[-1]
    assert trace.period_s <= period_s * (1 + 1e-9)
    passes = trace.duration_s * 1e3 / pass_ms
    assert passes == pytest.approx(round(passes))
    # Whole bits in a whole number of passes, and so the file's own mean.
    assert trace.uplink_mbps.sum() * trace.period_s * 1e6 == pytest.approx(
        len(times_ms) * PACKET_BITS * round(passes)
    )
    assert trace.uplink_mbps.mean() == pytest.approx(len(times_ms) * PACKET_BITS / pass_ms / 1e3)
    if round(passes) == 1:
        passed_bits = 0.0
        for i, mbps in enumerate(trace.uplink_mbps):
            passed_bits += mbps * trace.period_s * 1e6
            # In whole numbers: border i + 1 of n lies at (i + 1) * pass / n.
            due = sum(t * len(trace.uplink_mbps) <= (i + 1) * pass_ms for t in times_ms)
            assert passed_bits == pytest.approx(due * PACKET_BITS, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "times_ms", "mbps"),
    [
        ("12mbps", [1], 12.0),
        ("48mbps.trace", [1, 1, 1, 1], 48.0),
        ("const.1.5Mbps.gz", [8], 1.5),
        ("5mbps.trace", [3, 5, 8, 10, 12], 5.0),
        ("slow.up", [*range(10, 151, 10)], 1.2),
        ("half.down", [2], 6.0),
        ("minute.up", [*range(5, 60_001, 5)], 2.4),
    ],
)
def test_rates_that_files_are_named_after(
    tmp_path: Path, name: str, times_ms: list[int], mbps: float
) -> None:
    content = lines(times_ms).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    trace = read_trace(tmp_path / name, rtt_ms=20.0)
    assert trace.uplink_mbps.mean() == pytest.approx(mbps)
    assert f"{mbps:.4g} Mbit/s" in trace.source


def test_windows_line_ends_and_marks_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.up").write_bytes(b"\xef\xbb\xbf1\r\n3\r\n")
    assert read_trace(tmp_path / "a.up", rtt_ms=1.0).uplink_mbps.mean() == 8.0


@pytest.mark.parametrize(
    "text", ["x\n", "5\n3\n", "-1\n4\n", "0\n", "99999999999999999999\n", "1 2\n3 4\n", "1.5\n2\n"]
)
def test_what_mahimahi_would_not_run_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError):
        mahimahi_trace(text, tmp_path / "a.up", 20.0)


def test_few_rising_numbers_may_be_rates_unless_named_as_times(tmp_path: Path) -> None:
    for name in ("rates.txt", "log.csv", "x.log", "rate_per_second", "rates.mbps.txt"):
        (tmp_path / name).write_text("10\n10\n10\n12\n")
        with pytest.raises(DataError, match=r"Mahimahi.*or one rate a line.*--format"):
            read_trace(tmp_path / name, rtt_ms=20.0)
    # So many rising times are no rates.
    (tmp_path / "long.txt").write_text(lines([*range(7, 1000, 7)]))
    assert read_trace(tmp_path / "long.txt", rtt_ms=20.0).uplink_mbps.mean() == pytest.approx(
        12 / 7
    )
    # Falling or broken numbers are no times, whatever the file is called.
    for text in ("12\n10\n11\n", "1.5\n2.5\n", "10.0\n10.0\n12.0\n"):
        (tmp_path / "cell.trace").write_text(text)
        with pytest.raises(DataError, match=r"one rate a line.*--format rates"):
            read_trace(tmp_path / "cell.trace", rtt_ms=20.0)


def test_a_round_trip_must_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.up").write_text("1\n")
    with pytest.raises(ConfigError, match="--rtt-ms"):
        read_trace(tmp_path / "a.up")
