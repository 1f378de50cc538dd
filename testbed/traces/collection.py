"""Measured traces: series of the collection, uplink joined with round trips.

The collection is a folder that `testbed.traces.sample_files` reads; `load_traces` joins uplink
and round trips into traces of one of the kinds in `testbed.traces.trace_kinds`. They were not
measured at the same time: `Trace.source` names the two series that were joined.
"""

from __future__ import annotations

from pathlib import Path

from cnn.common.errors import DataError
from testbed.traces.joined import (
    MIN_DURATION_S,
    Collection,
    all_lost,
    join,
    without_slow_start,
)
from testbed.traces.measured import RoundTrips
from testbed.traces.sample_files import indexed, read_series
from testbed.traces.series import Series, answered
from testbed.traces.trace import Trace
from testbed.traces.trace_kinds import TRAIN_GROUPS, Selection, in_part, select


def load_traces(
    folder: Path,
    kind: str,
    part: str = "all",
    *,
    period_s: float = 0.1,
    min_duration_s: float = MIN_DURATION_S,
) -> list[Trace]:
    """Measured traces of one kind, uplink joined with round trips (see `SELECTIONS`).

    Round trips come from the uplink's own measuring cycle if the kind requires it (repeated to
    the trace's end), otherwise from series of the same part, the first selected by the trace's
    name. `Trace.source` names them.

    Arguments and errors are those of `load_collection`, which also reports the data left out.
    """
    return load_collection(
        folder, kind, part, period_s=period_s, min_duration_s=min_duration_s
    ).traces


def load_collection(
    folder: Path,
    kind: str,
    part: str = "all",
    *,
    period_s: float = 0.1,
    min_duration_s: float = MIN_DURATION_S,
    otherwise: RoundTrips | None = None,
) -> Collection:
    """Measured traces of one kind (see `load_traces`), and the data left out.

    Sets of the kind may be absent, but not all. With `otherwise`, a folder without the round
    trips that the kind names is not refused: other ones of the same part in it are taken, those of
    the uplink's own measuring cycle first, and `otherwise` where there are none.

    Args:
        folder: the collection, or a folder with ``traces`` in it.
        kind: ``urban-5g``, ``highway-lte`` or ``poor-coverage``.
        part: ``train``, ``test`` or ``all`` (split by drive, `testbed.traces.trace_kinds`).
        period_s: spacing of the traces' samples, seconds.
        min_duration_s: shorter pieces are left out.
        otherwise: round trips where the folder has none; None refuses.

    Raises:
        ConfigError: unknown kind or part.
        DataError: the files are missing or do not match the index.
    """
    selection = select(kind)
    uplinks = uplink_series(folder, selection, part)
    pings = _pings(folder, selection, part, {series.run for series in uplinks})
    own_rtt, note = selection.own_rtt, ""
    if all_lost(pings):
        if otherwise is None:
            raise _no_round_trips(folder, part)
        own_rtt = True
        pings = [s for s in read_series(folder, None, "rtt") if in_part(s.group, part)]
        others = "generated or constant ones" if all_lost(pings) else "others of the folder"
        note = f"no round trips of the sets that {kind} names: {others} are taken"
    found = join(
        uplinks,
        pings,
        f"{kind}, part {part}",
        own_rtt=own_rtt,
        tech=selection.tech,
        period_s=period_s,
        min_duration_s=min_duration_s,
        otherwise=otherwise,
    )
    return Collection(found.traces, (*found.notes, note) if note else found.notes)


def is_split(folder: Path) -> bool:
    """Whether a collection has an uplink drive that the list of training drives names."""
    return any(group in TRAIN_GROUPS for _, group in indexed(folder, "ul"))


def has_kind(folder: Path, kind: str) -> bool:
    """Whether a collection's index names uplink series of the sets and drives of a kind."""
    sources = select(kind).uplink
    return any(
        name == source.set_name and group.startswith(source.groups or "")
        for name, group in indexed(folder, "ul")
        for source in sources
    )


def uplink_series(folder: Path, selection: Selection, part: str) -> list[Series]:
    """Uplink series of a selection and part, less TCP's start; gaps still in them.

    Raises `DataError` if the folder has none of the selection in any part.
    """
    there = {name for name, _ in indexed(folder, "ul")}
    taken = [
        series
        for source in selection.uplink
        if source.set_name in there
        for series in read_series(folder, source.set_name, "ul")
        if source.takes(series)
    ]
    if not taken:
        sets = " and ".join(source.set_name for source in selection.uplink)
        raise DataError(
            f"{folder}: no uplink series that this kind takes of {sets}",
            expected="at least one",
            hint="give a folder with them, or another kind; docs/traces.md names the sets",
        )
    return [without_slow_start(series) for series in taken if in_part(series.group, part)]


def rtt_series(folder: Path, selection: Selection, part: str, runs: set[str]) -> list[Series]:
    """Round-trip series of a selection and part, lost pings answered (`trace_series`).

    With `own_rtt`, only those of the measuring cycles in `runs`.
    """
    pings = _pings(folder, selection, part, runs)
    if all_lost(pings):
        raise _no_round_trips(folder, part)
    return [answered(s) for s in pings if not all_lost([s])]


def _no_round_trips(folder: Path, part: str) -> DataError:
    return DataError(
        f"{folder}: no round-trip series for part {part}",
        expected="at least one",
        hint="get the sets that docs/traces.md names for this kind",
    )


def _pings(folder: Path, selection: Selection, part: str, runs: set[str]) -> list[Series]:
    """`rtt_series` as measured, also series of which every ping was lost; maybe none."""
    there = {name for name, _ in indexed(folder, "rtt")}
    return [
        series
        for source in selection.rtt
        if source.set_name in there
        for series in read_series(folder, source.set_name, "rtt")
        if source.takes(series)
        and in_part(series.group, part)
        and (series.run in runs or not selection.own_rtt)
    ]
