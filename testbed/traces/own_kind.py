"""A kind of trace fitted to a user's own traces (`sliproad testbed traces fit`)."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

import cnn
from cnn.common.errors import ConfigError, DataError
from cnn.common.files import write_text
from testbed.traces.generator import KINDS, TraceModel, generate
from testbed.traces.generator_fit import OUTAGE_MBPS, fit_model, label
from testbed.traces.measured import constant_rtt
from testbed.traces.series import Floats, Series, resample
from testbed.traces.trace import Trace
from testbed.traces.trace_files import FileTrace, traces_in

MAX_LEVELS: Final = 12
_CHECKED: Final = 50
"""Generated traces of 120 s that `fit_line` looks at."""


def fit_files(
    files: Sequence[Path],
    name: str,
    *,
    step_s: float = 0.5,
    n_levels: int = 6,
    rtt_ms: float | None = None,
    tech: str | None = None,
) -> TraceModel:
    """The generator's parameters for the traces in files.

    Round trips are fitted to the traces that have their own; the others count for the capacity.

    Args:
        files: of any format that `testbed.traces.trace_files.traces_in` reads.
        name: of the kind.
        step_s: spacing of the fit, seconds: that of the measurement, which is not in every file.
        n_levels: most levels of the capacity, 2 to `MAX_LEVELS`; fewer where it has no more.
        rtt_ms: constant round trip if no trace has its own.
        tech: ``5G`` or ``LTE``; None takes that of most of the traces' time.

    Raises:
        ConfigError: a setting is out of range, or no trace has round trips.
        DataError: a file cannot be read, or its capacity does not vary.
    """
    if (
        not 0.01 <= step_s <= 60
        or not 2 <= n_levels <= MAX_LEVELS
        or tech not in (None, "5G", "LTE")
    ):
        raise ConfigError(
            f"--step-s {step_s:g}, --levels {n_levels}, --tech {tech or 'as measured'}",
            expected=f"0.01 to 60 seconds, 2 to {MAX_LEVELS} levels, 5G or LTE",
            hint="correct them",
        )
    if name in KINDS:
        raise ConfigError(
            f"a kind called {name}",
            expected="another name than those shipped",
            hint="give --out another name",
        )
    found = [each for path in files for each in traces_in(path, constant_rtt(0.0), step_s)]
    if not found:
        raise DataError(
            f"{len(files)} files without any capacity", expected="some", hint="give others"
        )
    capacities = [_spaced(each.trace, each.trace.uplink_mbps, step_s) for each in found]
    return fit_model(
        name,
        tech or _tech(found),
        capacities,
        step_s,
        _rtts(found, step_s, rtt_ms),
        step_s,
        _levels(capacities, step_s, n_levels),
        _provenance(files, found, np.concatenate(capacities)),
    )


def save_kind(model: TraceModel, path: Path) -> None:
    """Write a kind's file, whole or not at all; raises `DataError` if that fails."""
    write_text(path, json.dumps({"models": [model.to_json()]}) + "\n")


def fit_line(model: TraceModel) -> str:
    """What was fitted and what the kind generates, in one line."""
    made = np.concatenate(
        [generate(model, seed, 120.0, model.step_s).uplink_mbps for seed in range(_CHECKED)]
    )
    measured = model.provenance
    return (
        f"measured: {measured['uplink_hours']} h, mean {measured['mean_mbps']:.4g} Mbit/s, "
        f"{100 * measured['outage_share']:.3g} % outage; generated: mean {made.mean():.4g} Mbit/s, "
        f"{100 * (made < OUTAGE_MBPS).mean():.3g} % outage"
    )


def _spaced(trace: Trace, values: Floats, step_s: float) -> Floats:
    """Means over steps of the fit."""
    time = trace.period_s * np.arange(len(values), dtype=np.float64)
    return resample(Series("", "", "ul", "", "", "", time, values, trace.period_s), step_s)


def _rtts(found: list[FileTrace], step_s: float, rtt_ms: float | None) -> list[Floats]:
    own = [_spaced(each.trace, each.trace.rtt_ms, step_s) for each in found if each.own_rtt]
    if own:
        return own
    if rtt_ms is None:
        raise ConfigError(
            f"{len(found)} traces without round trips",
            expected="round trips, or a constant one",
            hint="give --rtt-ms",
        )
    return [np.full(2, float(rtt_ms))]


def _tech(found: list[FileTrace]) -> str:
    seconds: Counter[str] = Counter()
    for each in found:
        seconds[each.trace.tech] += round(each.trace.duration_s * 1e3)
    return seconds.most_common(1)[0][0]


def _levels(capacities: list[Floats], step_s: float, most: int) -> int:
    """The largest number of levels up to `most` of which none is empty."""
    for n_levels in range(most, 1, -1):
        labelled = label(capacities, step_s, n_levels)
        used = {int(k) for one in labelled for k in np.unique(one.level[~one.out])}
        if len(used) == n_levels:
            return n_levels
    seconds = sum(map(len, capacities)) * step_s
    raise DataError(
        f"{seconds:.4g} s of capacity that hardly varies",
        expected="at least two levels",
        hint="give longer traces, or a smaller --step-s",
    )


def _provenance(files: Sequence[Path], found: list[FileTrace], capacity: Floats) -> dict[str, Any]:
    return {
        "command": "sliproad testbed traces fit",
        "version": cnn.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "files": [path.name for path in files],
        "traces": [each.trace.name for each in found],
        "own_round_trips": sum(each.own_rtt for each in found),
        "mean_mbps": round(float(capacity.mean()), 6),
        "outage_share": round(float((capacity < OUTAGE_MBPS).mean()), 6),
    }
