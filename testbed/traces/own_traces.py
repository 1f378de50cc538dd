"""A user's own traces: files of any readable format, or a folder, divided by the user's rule.

A folder with an ``index.csv`` is a collection (`testbed.traces.sample_files`): its traces are the
uplink series of all its sets, and ``file`` in a rule means its groups. Any other folder is all the
files in it and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cnn.common.errors import ConfigError, DataError
from testbed.traces.joined import Collection, join, without_slow_start
from testbed.traces.measured import RoundTrips
from testbed.traces.sample_files import is_collection, read_series
from testbed.traces.series import MAX_HOLD_S, Series
from testbed.traces.split_rule import SplitRule
from testbed.traces.trace import MAX_SAMPLES, Trace
from testbed.traces.trace_files import NoTraceError, traces_in

MAX_FILES: Final = 10_000
_MOST_NAMED: Final = 3
"""Files left out that a note names."""


def load_own(
    paths: Sequence[Path],
    part: str,
    rule: SplitRule,
    *,
    otherwise: RoundTrips,
    period_s: float = 0.1,
) -> Collection:
    """The traces of one part, and what was left out.

    Args:
        paths: files, or one folder. The order of files matters to the rule, not where they lie.
        part: ``train`` or ``test`` by the rule, or ``all``.
        rule: how they are divided; `Trace.source` states it.
        otherwise: round trips of traces without their own.
        period_s: spacing of the traces' samples, seconds.

    Raises:
        ConfigError: the rule does not fit the traces.
        DataError: a file cannot be read, or there is no trace.
    """
    folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
    if folder is not None and is_collection(folder):
        found = _of_collection(folder, part, rule, otherwise, period_s)
    else:
        found = _of_files(paths, folder, part, rule, otherwise, period_s)
    if not found.traces:
        raise DataError(
            f"{paths[0]}: {'; '.join(found.notes)}",
            expected="at least one trace",
            hint="give files of the formats that docs/traces.md names",
        )
    if sum(len(trace.uplink_mbps) for trace in found.traces) > MAX_SAMPLES:
        raise ConfigError(
            f"{len(found.traces)} traces in samples of {period_s:g} s",
            expected=f"at most {MAX_SAMPLES} samples in all",
            hint="give fewer files, or a longer period_s",
        )
    return found


@dataclass(frozen=True, slots=True)
class _Drive:
    """A trace with the unit (file or day) by which the rule divides."""

    trace: Trace
    unit: str


def _of_files(
    paths: Sequence[Path],
    folder: Path | None,
    part: str,
    rule: SplitRule,
    otherwise: RoundTrips,
    period_s: float,
) -> Collection:
    drives: list[_Drive] = []
    left_out: list[str] = []
    silent = 0
    files = list(paths) if folder is None else _files_below(folder)
    for number, path in enumerate(files):
        name = path.name if folder is None else str(path.relative_to(folder))
        try:
            found = traces_in(path, otherwise, period_s)
        except NoTraceError:
            if folder is None:
                raise
            left_out.append(name)
            continue
        silent += not found
        for each in found:
            if rule.by == "day" and part != "all" and not each.day:
                raise _no_day(f"{path}, trace {each.trace.name}")
            unit = each.day if rule.by == "day" else f"{number} {name}"
            drives.append(_Drive(each.trace, unit))
    units = [drive.unit for drive in drives]
    traces, words = _part(drives, units, part, rule)
    some = ", ".join(left_out[:_MOST_NAMED]) + (", ..." if len(left_out) > _MOST_NAMED else "")
    notes = (
        f"{len(traces)} of {len(drives)} traces of {len(files)} files, part {part}",
        words,
        f"{silent} files without any capacity left out" if silent else "",
        f"{len(left_out)} files in no format that is known left out ({some})" if left_out else "",
    )
    return Collection(traces, tuple(note for note in notes if note))


def _files_below(folder: Path) -> list[Path]:
    """All files in a folder and below, hidden ones left out, in the order of their names."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    if not found or len(found) > MAX_FILES:
        raise DataError(
            f"{folder}: {len(found)} files" if folder.is_dir() else f"{folder}: no such folder",
            expected=f"a folder of 1 to {MAX_FILES} trace files",
            hint="check the path",
        )
    return found


def _part(
    drives: list[_Drive], units: list[str], part: str, rule: SplitRule
) -> tuple[list[Trace], str]:
    """The traces of one part, and the rule in words."""
    if part == "all" or not drives:
        return [drive.trace for drive in drives], ""
    if rule.by == "fraction":
        words = rule.words()
        cut = [_cut(drive.trace, part, rule) for drive in drives]
        return [_saying(trace, part, words) for trace in cut if trace is not None], words
    if rule.by == "day":
        units = sorted(units)
    training = rule.training(units)
    words = rule.words(len(training), len(set(units)))
    return [
        _saying(drive.trace, part, words)
        for drive in drives
        if (drive.unit in training) == (part == "train")
    ], words


def _cut(trace: Trace, part: str, rule: SplitRule) -> Trace | None:
    """The first or the last samples of a trace; None if they are one outage, or too few."""
    n = len(trace.uplink_mbps)
    if n < 2:
        return None
    first = rule.samples(n)
    kept = slice(first) if part == "train" else slice(first, n)
    if trace.uplink_mbps[kept].max() == 0:
        return None
    name = trace.name if part == "train" else f"{trace.name}+{first * trace.period_s:.0f}s"
    return replace(trace, uplink_mbps=trace.uplink_mbps[kept], rtt_ms=trace.rtt_ms[kept], name=name)


def _saying(trace: Trace, part: str, words: str) -> Trace:
    return replace(trace, source=f"{trace.source}; {part} part, {words}")


def _of_collection(
    folder: Path, part: str, rule: SplitRule, otherwise: RoundTrips, period_s: float
) -> Collection:
    """Traces of every uplink series, with round trips of the same part."""
    uplinks = [without_slow_start(series) for series in read_series(folder, None, "ul")]
    pings = read_series(folder, None, "rtt")
    words = ""
    if part != "all" and rule.by != "fraction":
        units = _units(uplinks, rule)
        training = rule.training(units)
        words = rule.words(len(training), len(set(units)))
        # Groups or days of pings alone are divided by the same rule, if there are two.
        alone = sorted({_unit(series, rule) for series in pings} - set(units) - {""})
        both = training | (rule.training(alone) if len(alone) > 1 else frozenset(alone))
        uplinks, pings = (
            [s for s in every if (unit := _unit(s, rule)) and (unit in both) == (part == "train")]
            for every in (uplinks, pings)
        )
    found = join(
        uplinks,
        pings,
        f"all sets, part {part}",
        own_rtt=True,
        period_s=period_s,
        min_duration_s=MAX_HOLD_S,
        otherwise=otherwise,
    )
    traces = found.traces
    if part != "all" and rule.by == "fraction":
        traces, words = _part([_Drive(trace, "") for trace in traces], [], part, rule)
        words += f" ({len(traces)} of {len(found.traces)} have capacity in this part)"
    elif words:
        traces = [_saying(trace, part, words) for trace in traces]
    return Collection(traces, (*found.notes, words) if words else found.notes)


def _units(uplinks: list[Series], rule: SplitRule) -> list[str]:
    """What the rule divides, in the order of the names."""
    for series in uplinks:
        if not _unit(series, rule):
            raise _no_day(series.name)
    return sorted(_unit(series, rule) for series in uplinks)


def _unit(series: Series, rule: SplitRule) -> str:
    return series.day if rule.by == "day" else series.group or series.name


def _no_day(what: str) -> ConfigError:
    return ConfigError(
        f"{what}: no date in it or in its name",
        expected="dates such as 2024-11-05, to split by day",
        hint="rename the file, or give another split in the scenario's [link]",
    )
