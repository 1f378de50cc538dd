"""Reading the collection of measured series: ``index.csv`` and ``<set>.csv.gz``.

The index has one row a trace; the sample files have one row a sample. What comes out is what
was measured, gaps and lost pings included.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow
import pyarrow.csv

from cnn.errors import DataError
from testbed.traces.series import Floats, Series

COLUMN: Final = {"ul": "uplink_mbps", "rtt": "rtt_ms"}
"""Column of the sample files that holds a kind's values."""


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
