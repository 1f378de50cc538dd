"""Reading the collection of measured traces (CSV), and joining uplink with round trips.

The collection is a folder with ``index.csv`` (one row a trace) and ``<set>.csv.gz`` (samples);
`read_series` reads what was measured, `load_traces` joins uplink and round trips into traces
of one of the kinds in `SELECTIONS`. Nobody measured both at one moment: `Trace.source` names
the two series that were joined.
"""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow
import pyarrow.csv

from cnn.errors import ConfigError, DataError
from testbed.traces.series import (
    Floats,
    Series,
    answered,
    cut_at_gaps,
    resample,
    tile,
    without_start,
)
from testbed.traces.split import in_part
from testbed.traces.trace import Trace

COLUMN: Final = {"ul": "uplink_mbps", "rtt": "rtt_ms"}
"""Column of the sample files that holds a kind's values."""

SLOW_START_S: Final = {"sa24": 2.0}
"""Seconds at the start of a set's uplink tests in which TCP had not yet filled the link."""

MIN_DURATION_S: Final = 20.0
"""Shorter uplink pieces are left out. The shortest tests that a stall ended lasted 20 s."""


@dataclass(frozen=True, slots=True)
class Source:
    """Series of one set that a kind of trace takes.

    Attributes:
        set_name: set of the collection.
        groups: beginnings of the groups (drives) taken; empty takes all.
        mean_from: least mean of the trace (Mbit/s), inclusive.
        mean_below: mean of the trace stays below this.
    """

    set_name: str
    groups: tuple[str, ...] = ()
    mean_from: float = 0.0
    mean_below: float = float("inf")

    def takes(self, series: Series) -> bool:
        """Whether this source wants `series`."""
        if self.groups and not series.group.startswith(self.groups):
            return False
        if series.kind != "ul":
            return True
        return self.mean_from <= float(np.nanmean(series.values)) < self.mean_below


@dataclass(frozen=True, slots=True)
class Selection:
    """What one kind of trace is made of.

    Attributes:
        uplink: where capacities come from.
        rtt: where round trips come from.
        own_rtt: take the pings of the uplink test's own cycle where there are any.
        tech: technology the trace states (the sources do not know it per second).
    """

    uplink: tuple[Source, ...]
    rtt: tuple[Source, ...]
    own_rtt: bool
    tech: str


SELECTIONS: Final[dict[str, Selection]] = {
    "urban-5g": Selection(
        uplink=(Source("sa24", mean_from=20.0), Source("memu22", ("memu22-5g",))),
        rtt=(Source("cicv5g", ("cicv5g-urban", "cicv5g-w2s")),),
        own_rtt=False,
        tech="5G",
    ),
    "highway-lte": Selection(
        uplink=(Source("memu22", ("memu22-lte",)),),
        rtt=(Source("memu22", ("memu22-lte",)),),
        own_rtt=False,
        tech="LTE",
    ),
    "poor-coverage": Selection(
        uplink=(Source("sa24", mean_below=10.0), Source("mahimahi", mean_below=10.0)),
        rtt=(Source("sa24"),),
        own_rtt=True,
        tech="LTE",
    ),
}
"""Kinds of measured traces. The 20 and 10 Mbit/s borders on a trace's own mean stand in for
the coverage, which sa24 does not state."""


def collection_folder(folder: Path) -> Path:
    """The folder that holds ``index.csv``: `folder` itself or its ``traces``.

    Raises `DataError` if neither does.
    """
    for candidate in (folder, folder / "traces"):
        if (candidate / "index.csv").is_file():
            return candidate
    raise DataError(
        f"{folder}: no index.csv in it nor in its folder traces",
        expected="the trace collection (index.csv and <set>.csv.gz)",
        mend="give the folder that docs/data.md describes",
    )


def read_series(folder: Path, set_name: str, kind: str) -> list[Series]:
    """All series of one set and kind, in the order of the index.

    Args:
        folder: the collection, or a folder with ``traces`` in it.
        set_name: such as ``sa24``.
        kind: ``ul`` or ``rtt``.

    Raises:
        DataError: no such set or kind, or the files disagree with the index.
    """
    folder = collection_folder(folder)
    with (folder / "index.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["set"] == set_name and r["kind"] == kind]
    if not rows:
        raise DataError(
            f"{folder / 'index.csv'}: no {kind} trace of set {set_name}",
            expected="a set and kind that the index lists",
            mend="correct the set's name, or get the set",
        )
    samples: dict[str, dict[str, tuple[Floats, Floats]]] = {}
    series = []
    for row in rows:
        name = row["file"]
        if name not in samples:
            samples[name] = read_columns(folder / name, COLUMN[kind])
        try:
            time, values = samples[name][row["trace"]]
        except KeyError as error:
            raise DataError(
                f"{folder / name}: trace {row['trace']} of the index is not in it",
                expected="every trace of the index",
                mend="get the collection again",
            ) from error
        series.append(
            Series(
                name=row["trace"],
                set_name=set_name,
                kind=kind,
                group=row["group"],
                run=row["run"],
                tech=row["tech"],
                time_s=time,
                values=values,
                period_s=float(row["period_s"]),
            )
        )
    return series


def read_columns(path: Path, column: str) -> dict[str, tuple[Floats, Floats]]:
    """Times (s) and one column of every trace in a sample file (.csv or .csv.gz).

    Empty cells become NaN. Raises `DataError` if the file cannot be read so.
    """
    try:
        table = pyarrow.csv.read_csv(
            path,
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=["trace", "time_s", column],
                column_types={
                    "trace": pyarrow.string(),
                    "time_s": pyarrow.float64(),
                    column: pyarrow.float64(),
                },
            ),
        )
    except (OSError, pyarrow.ArrowInvalid, pyarrow.ArrowKeyError) as error:
        raise DataError(
            f"{path}: {str(error).splitlines()[0]}",
            expected=f"a CSV file with the columns trace, time_s and {column}",
            mend="check the file",
        ) from error
    names = np.asarray(table["trace"].to_numpy(zero_copy_only=False), dtype=str)
    time: Floats = np.asarray(table["time_s"].to_numpy(), dtype=np.float64)
    values: Floats = np.asarray(table[column].to_numpy(), dtype=np.float64)
    border = np.flatnonzero(names[1:] != names[:-1]) + 1
    starts: list[int] = [0, *border.tolist()] if len(names) else []
    ends = [*starts[1:], len(names)]
    return {
        str(names[first]): (time[first:end], values[first:end])
        for first, end in zip(starts, ends, strict=True)
    }


def load_traces(
    folder: Path,
    kind: str,
    part: str = "all",
    *,
    period_s: float = 0.1,
    min_duration_s: float = MIN_DURATION_S,
) -> list[Trace]:
    """Measured traces of one kind, uplink joined with round trips (see `SELECTIONS`).

    Round trips come from the uplink's own measuring cycle where the kind says so (repeated
    to the trace's end), else from series of the same part, the first picked by the trace's
    name. `Trace.source` says which.

    Args:
        folder: the collection, or a folder with ``traces`` in it.
        kind: ``urban-5g``, ``highway-lte`` or ``poor-coverage``.
        part: ``train``, ``test`` or ``all`` (split by drive, `testbed.traces.split`).
        period_s: spacing of the traces' samples, seconds.
        min_duration_s: shorter pieces are left out.

    Raises:
        ConfigError: unknown kind or part.
        DataError: the files are missing or not as the index says.
    """
    selection = select(kind)
    uplinks = uplink_series(folder, selection, part)
    pool = rtt_series(folder, selection, part, {series.run for series in uplinks})
    traces = []
    for series in uplinks:
        for piece in cut_at_gaps(series):
            capacity = resample(piece, period_s)
            if len(capacity) * period_s < min_duration_s or capacity.max() == 0:
                continue
            rtt, origin = _round_trips(piece, pool, selection.own_rtt, len(capacity), period_s)
            traces.append(
                Trace(
                    uplink_mbps=capacity,
                    rtt_ms=rtt,
                    period_s=period_s,
                    name=piece.name,
                    tech=selection.tech,
                    source=f"measured: uplink {piece.name}, {origin}",
                )
            )
    return traces


def select(kind: str) -> Selection:
    """The selection of a kind; raises `ConfigError` for an unknown one."""
    if kind not in SELECTIONS:
        raise ConfigError(
            f"trace kind {kind!r}",
            expected=f"one of {', '.join(SELECTIONS)}",
            mend="correct the kind",
        )
    return SELECTIONS[kind]


def uplink_series(folder: Path, selection: Selection, part: str) -> list[Series]:
    """Uplink series of a selection and part, less TCP's start; gaps still in them."""
    return [
        without_start(series, SLOW_START_S.get(series.set_name, 0.0))
        for source in selection.uplink
        for series in read_series(folder, source.set_name, "ul")
        if source.takes(series) and in_part(series.group, part)
    ]


def rtt_series(folder: Path, selection: Selection, part: str, runs: set[str]) -> list[Series]:
    """Round-trip series of a selection and part, lost pings answered (`trace_series`).

    With `own_rtt`, only those of the measuring cycles in `runs`.
    """
    found = [
        answered(series)
        for source in selection.rtt
        for series in read_series(folder, source.set_name, "rtt")
        if source.takes(series)
        and in_part(series.group, part)
        and np.isfinite(series.values).any()
        and (series.run in runs or not selection.own_rtt)
    ]
    if not found:
        raise DataError(
            f"{folder}: no round-trip series for part {part}",
            expected="at least one",
            mend="get the sets that docs/traces.md names for this kind",
        )
    return found


def _round_trips(
    uplink: Series, pool: list[Series], own: bool, count: int, period_s: float
) -> tuple[Floats, str]:
    """Round trips for `count` samples of an uplink piece, and where they come from.

    Its own cycle's pings, repeated, if `own` and there are any; else the series of the pool
    that the uplink's name picks and as many after it as the piece is long.
    """
    if own:
        for series in pool:
            if series.run == uplink.run:
                rtt = tile(resample(series, period_s), count)
                return rtt, f"rtt {series.name} (same cycle, minutes later)"
    first = zlib.crc32(uplink.name.encode()) % len(pool)
    parts: list[Floats] = []
    while sum(map(len, parts)) < count:
        parts.append(resample(pool[(first + len(parts)) % len(pool)], period_s))
    origin = f"rtt {pool[first].name} (another place and time)"
    if len(parts) > 1:
        origin = f"rtt {pool[first].name} and {len(parts) - 1} after it (another place and time)"
    return np.concatenate(parts)[:count], origin
