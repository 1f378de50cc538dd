"""Reading the collection of measured series: ``index.csv`` and ``<set>.csv.gz``.

The index has one row a trace, and lists the traces to use; the sample files have one row a sample.
The result is the data as measured, gaps and lost pings included.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cnn.common.csv_table import parse_csv_table, read_csv_table
from cnn.common.errors import DataError
from cnn.common.outside import read_text
from testbed.traces.series import Floats, Series, tech_of_rows
from testbed.traces.split_rule import day_in

COLUMN: Final = {"ul": "uplink_mbps", "rtt": "rtt_ms"}
"""Column of the sample files that holds a kind's values."""

_INDEX_TEXTS: Final = ("trace", "file", "set", "kind", "group", "run", "tech")


@dataclass(frozen=True, slots=True)
class _IndexRow:
    """One trace of the index; `n` is its number of samples, if the index states it."""

    trace: str
    file: str
    set_name: str
    kind: str
    group: str
    run: str
    tech: str
    period_s: float
    n: int | None
    day: str


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
        hint="give the folder that docs/data.md describes",
    )


def is_collection(folder: Path) -> bool:
    """Whether there is an index that `collection_folder` finds."""
    return any((f / "index.csv").is_file() for f in (folder, folder / "traces"))


def indexed(folder: Path, kind: str) -> set[tuple[str, str]]:
    """(set, group) of every series of a kind in a collection's index."""
    rows = _index(collection_folder(folder) / "index.csv")
    return {(row.set_name, row.group) for row in rows if row.kind == kind}


def read_series(folder: Path, set_name: str | None, kind: str) -> list[Series]:
    """All series of one set and kind, in the order of the index.

    Args:
        folder: the collection, or a folder with ``traces`` in it.
        set_name: such as ``sa24``; None takes those of all sets, of which there may be none.
        kind: ``ul`` or ``rtt``.

    Raises:
        DataError: no such set or kind, or the files disagree with the index.
    """
    folder = collection_folder(folder)
    rows = [
        row
        for row in _index(folder / "index.csv")
        if set_name in (None, row.set_name) and row.kind == kind
    ]
    if not rows and set_name is not None:
        raise DataError(
            f"{folder / 'index.csv'}: no {kind} trace of set {set_name}",
            expected="a set and kind that the index lists",
            hint="correct the set's name, or get the set",
        )
    samples: dict[str, dict[str, tuple[Floats, ...]]] = {}
    series = []
    for row in rows:
        if row.file not in samples:
            samples[row.file] = read_samples(folder / row.file, COLUMN[kind])
        time, values = samples[row.file].get(row.trace, (np.empty(0), np.empty(0)))
        # Spreadsheets silently drop rows beyond their last one.
        if len(time) == 0 or row.n not in (None, len(time)):
            raise DataError(
                f"{folder / row.file}: {len(time)} rows of trace {row.trace}",
                expected=f"{'some' if row.n is None else row.n}, as the index says",
                hint="get the collection again",
            )
        series.append(
            Series(
                name=row.trace,
                set_name=row.set_name,
                kind=kind,
                group=row.group,
                run=row.run,
                tech=row.tech,
                time_s=time,
                values=values,
                period_s=row.period_s,
                day=row.day,
            )
        )
    return series


def _index(path: Path) -> list[_IndexRow]:
    """The rows of the index; raises `DataError` if it lists a trace twice."""
    table = read_csv_table(path, needed=(*_INDEX_TEXTS, "period_s"), wanted=["n", "start_utc"])
    (period_s,) = table.numbers("period_s", required=["period_s"], least=0.0)
    n = table.numbers("n")[0] if "n" in table.cells else np.full(len(table), np.nan)
    texts = zip(*(table.texts(column) for column in _INDEX_TEXTS), strict=True)
    starts = table.texts("start_utc") if "start_utc" in table.cells else [""] * len(table)
    rows = [
        _IndexRow(
            trace,
            file,
            set_,
            kind,
            group,
            run,
            tech,
            float(p),
            None if np.isnan(k) else int(k),
            day_in(group, start.partition("T")[0], trace),
        )
        for (trace, file, set_, kind, group, run, tech), p, k, start in zip(
            texts, period_s, n, starts, strict=True
        )
    ]
    repeated = [name for name, times in Counter(r.trace for r in rows).items() if times > 1]
    if repeated:
        raise DataError(
            f"{path}: trace {repeated[0]} is listed more than once",
            expected="one row a trace",
            hint="get the collection again",
        )
    return rows


def read_samples(path: Path, *columns: str) -> dict[str, tuple[Floats, ...]]:
    """Times (s) and columns of every trace in a sample file (.csv or .csv.gz).

    A trace's rows need not be adjacent, but its times must rise.

    Args:
        path: the file.
        columns: the first must exist; other absent ones become NaN.

    Returns:
        Trace -> its times and columns, float64 (n,) each, NaN where a cell is empty.

    Raises:
        DataError: the file is not of this form; names the line.
    """
    return samples_of(read_text(path), path, *columns)


def samples_of(text: str, path: Path, *columns: str) -> dict[str, tuple[Floats, ...]]:
    """`read_samples` of a text; `path` is for messages."""
    needed = ("trace", "time_s", *columns[:1])
    table = parse_csv_table(text, path, needed=needed, wanted=columns[1:])
    there = [column for column in columns if column in table.cells]
    numbers = table.numbers("time_s", *there, required=["time_s"], least=0.0)
    time, values = numbers[0], dict(zip(there, numbers[1:], strict=True))
    coded = table.cells["trace"].combine_chunks().dictionary_encode()
    names, code = coded.dictionary.to_pylist(), np.asarray(coded.indices, dtype=np.int64)
    order = np.argsort(code, kind="stable")
    same_trace = np.diff(code[order]) == 0
    stuck = np.flatnonzero(same_trace & (np.diff(time[order]) <= 0))
    if "" in names:
        row = int(np.flatnonzero(code == names.index(""))[0])
        raise DataError(
            f"{path}, line {table.lines()[row]}: nothing in column trace",
            expected="the name of the row's trace",
            hint="fill the column",
        )
    if len(stuck):
        row = int(order[stuck[0] + 1])
        raise DataError(
            f"{path}, line {table.lines()[row]}: time_s {time[row]:g} does not come after the "
            f"row before it of trace {names[code[row]]}",
            expected="rising times in each trace, each once",
            hint="sort the rows, and give each run a name of its own",
        )
    rows = np.split(order, np.flatnonzero(~same_trace) + 1)
    absent = np.full(len(table), np.nan)
    return {
        str(names[code[own[0]]]): (time[own], *(values.get(c, absent)[own] for c in columns))
        for own in rows
    }


def techs_of(text: str, path: Path) -> dict[str, tuple[str, str]]:
    """Every trace's technology by its rows, and the note of `tech_of_rows`."""
    table = parse_csv_table(text, path, needed=("trace",), wanted=("tech",))
    named: dict[str, list[str]] = {}
    cells = table.texts("tech") if "tech" in table.cells else [""] * len(table)
    for name, tech in zip(table.texts("trace"), cells, strict=True):
        named.setdefault(name, []).append(tech)
    return {name: tech_of_rows(techs) for name, techs in named.items()}
