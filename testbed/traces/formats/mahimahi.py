"""Mahimahi packet-delivery files.

Each line is a time in milliseconds at which one 1500-byte packet can leave; the file repeats
after its last line (R. Netravali et al., USENIX ATC 2015; ``traces/README`` of mahimahi).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.common.outside import read_text
from testbed.traces.formats.number_lines import are_whole, numbers_of
from testbed.traces.trace import Trace, n_samples

BITS: Final = 1500 * 8
"""Bits of one delivery opportunity (mahimahi's own queue counts 1504, with 4 of its tunnel)."""

LONGEST_MS: Final = 7 * 24 * 3600 * 1000

_NAMED_SO: Final = re.compile(r"(\.(up|down|trace|mahi|mahimahi)|\d ?[kmg]?bps)$", re.IGNORECASE)
"""How Mahimahi's files are called: ``ATT-LTE-driving.up``, ``12mbps.trace``, ``12mbps``."""
_SURELY_TIMES: Final = 20
"""So many different numbers in rising order are times: rates do not come sorted."""


def read_mahimahi(path: Path, rtt_ms: float, period_s: float = 0.1) -> Trace:
    """A Mahimahi file as a trace with exactly its bits in exactly its length.

    The trace's period is the one nearest below `period_s` of which a pass is a whole number;
    a pass shorter than `period_s` is one constant rate.

    Args:
        path: text file.
        rtt_ms: base round trip, which such files do not hold.
        period_s: longest spacing of the trace, seconds.

    Raises:
        DataError: it is no such file.
    """
    return mahimahi_trace(read_text(path), path, rtt_ms, period_s)


def mahimahi_trace(text: str, path: Path, rtt_ms: float, period_s: float = 0.1) -> Trace:
    """`read_mahimahi` of a text; `path` names the trace."""
    times_ms = _times(text, path)
    pass_ms, period_ms = int(times_ms[-1]), period_s * 1e3
    n_samples(pass_ms / 1e3, period_s, path.name)
    if pass_ms < period_ms:
        counts = np.array([len(times_ms)])
        step_s, bin_ms = math.floor(period_ms / pass_ms + 1e-9) * pass_ms / 1e3, float(pass_ms)
    else:
        bins = math.ceil(pass_ms / period_ms - 1e-9)
        # In whole numbers: a time on a border belongs to the bin that it ends.
        at = np.maximum((times_ms * bins + pass_ms - 1) // pass_ms - 1, 0)
        counts = np.bincount(at, minlength=bins)
        step_s, bin_ms = pass_ms / bins / 1e3, pass_ms / bins
    mean = len(times_ms) * BITS / pass_ms / 1e3
    return Trace(
        uplink_mbps=counts * BITS / bin_ms / 1e3,
        rtt_ms=np.full(len(counts), float(rtt_ms)),
        period_s=step_s,
        name=path.name,
        tech="LTE",
        source=f"measured: mahimahi file {path.name}, packets due: {len(times_ms)} in {pass_ms} ms "
        f"(mean {mean:.4g} Mbit/s), constant round trip {rtt_ms:g} ms by hand",
    )


def may_be_rates(numbers: NDArray[np.float64], name: str) -> bool:
    """Whether rising whole numbers may as well be one rate a line.

    Few different numbers may, unless the file is called as Mahimahi's are.
    """
    named_so = _NAMED_SO.search(name.removesuffix(".gz"))
    return not named_so and len(np.unique(numbers)) < _SURELY_TIMES


def _times(text: str, path: Path) -> NDArray[np.int64]:
    """The times of a Mahimahi file, milliseconds; raises `DataError` if it is none."""
    numbers = numbers_of(text) if are_whole(text) else None
    if numbers is None or numbers.shape[1] != 1:
        wrong = next((n for n, line in enumerate(text.split("\n"), 1) if not _is_time(line)), 0)
        raise DataError(
            f"{path}, line {wrong}: not one whole number",
            expected="a time in milliseconds in each line (a Mahimahi file)",
            hint="check the file, or import it with sliproad testbed traces import",
        )
    times_ms = numbers[:, 0]
    if times_ms[0] < 0 or (np.diff(times_ms) < 0).any() or not times_ms[-1]:
        raise DataError(
            f"{path}: {len(times_ms)} times, not rising from 0 up to a positive end",
            expected="rising times in milliseconds (a Mahimahi file)",
            hint="check the file",
        )
    if times_ms[-1] > LONGEST_MS:
        raise DataError(
            f"{path}: lasts {times_ms[-1] / 3.6e6:.0f} h",
            expected="at most a week",
            hint="check that the times are milliseconds from the start of the trace",
        )
    return times_ms.astype(np.int64)


def _is_time(line: str) -> bool:
    text = line.strip()
    return not text or (text.isascii() and text.isdigit() and len(text) < 18)
