"""Records: one Parquet row a frame, with provenance in the file's metadata.

A file is written row group by row group under a temporary name, sealed, synced and renamed at the
end, so an existing record file is whole, also after a power cut. Later damage is detected when the
file is read (`testbed.records.seal`), and rows that no device can have measured are not passed
on.

The provenance of another network than the shipped one has its topology, as ``topology``: without
it, the numbers of actions and exits mean nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import cnn
from cnn.common.errors import DataError
from cnn.common.files import Pending, not_written
from cnn.common.outputs import Claim
from cnn.topology import SHIPPED, Topology
from testbed.records import seal
from testbed.records.measurement import Measurement, impossible

FORMAT: Final = 1
METADATA_KEY: Final = b"sliproad"
ROWS_PER_GROUP: Final = 512

_MOST_ROW_BYTES: Final = 2048
"""Bytes of a row in memory; one with the observation has about 500."""
_MOST_NAMED: Final = 5
"""Number of damaged files that a warning names; it counts them all."""

_log = logging.getLogger(__name__)

_TYPES: Final = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}


def measurement_schema(extra: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """Arrow schema of `Measurement`, in the order of its fields, then `extra` columns."""
    columns = []
    for field in fields(Measurement):
        base = str(field.type).removesuffix(" | None")
        columns.append(pa.field(field.name, _TYPES[base], nullable=str(field.type) != base))
    columns += [pa.field(name, kind, nullable=False) for name, kind in (extra or {}).items()]
    return pa.schema(columns)


def provenance(topology: Topology, **more: Any) -> dict[str, Any]:
    """The data needed to repeat a run: machine, versions, time, network; plus `more`.

    The topology of the shipped network is left out, as in files from before there were others.
    ``started_unix_s`` and ``started_monotonic_s`` are one moment on two clocks, so that a
    log with wall-clock stamps can be aligned with the records.
    """
    from cnn.ort import onnxruntime

    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "started_unix_s": time.time(),
        "started_monotonic_s": time.monotonic(),
        "sliproad": cnn.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "command": " ".join(sys.argv),
        **({} if topology == SHIPPED else {"topology": topology.to_json()}),
        **more,
    }


def cpu_model() -> str:
    """The processor's name as stated by the system."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class RecordWriter:
    """Writes measurements to `path`, the file appears when the writer is closed.

    As a context manager it also keeps the rows measured before an error or an interrupt; without
    rows it leaves no file. While it is open, no other writer can be opened on the same path, in
    any process.

    Args:
        path: the file; an existing one is replaced at the end.
        source: provenance, JSON-able, with the topology if it is not the shipped one
            (`provenance`).
        extra: further columns (name to Arrow type), given with every row.

    Raises:
        DataError: if the folder cannot be written to, or another writer has `path` open.
    """

    def __init__(
        self, path: Path, source: dict[str, Any], extra: Mapping[str, pa.DataType] | None = None
    ) -> None:
        self.path = path
        self.rows = 0
        self._schema = measurement_schema(extra).with_metadata({METADATA_KEY: json.dumps(source)})
        self._waiting: list[dict[str, Any]] = []
        self._claim = Claim(path)
        try:
            self._file = Pending(path)
        except BaseException:
            self._claim.release()
            raise
        try:
            self._writer = seal.writer(self._file.temporary, self._schema)
        except OSError as error:
            self._file.discard()
            self._claim.release()
            raise not_written(path, error) from error

    def write(self, row: Measurement, **extra: Any) -> None:
        """Add a row (and the values of the extra columns)."""
        self._waiting.append({f.name: getattr(row, f.name) for f in fields(row)} | extra)
        self.rows += 1
        if len(self._waiting) >= ROWS_PER_GROUP:
            self._flush()

    def close(self, **more: Any) -> None:
        """Write the remaining rows and give the file its name.

        Args:
            more: further provenance, known only at the end (key ``sliproad.end``).

        Raises:
            DataError: if it cannot be written; then no file is left.
        """
        try:
            self._flush()
            if more:
                self._writer.add_key_value_metadata({"sliproad.end": json.dumps(more)})
            self._writer.close()
            if self.rows:
                seal.seal(self._file.temporary)
                self._file.commit()
        except OSError as error:
            raise not_written(self.path, error) from error
        finally:
            self._let_go()

    def discard(self) -> None:
        """Delete the temporary file, and leave no file."""
        with contextlib.suppress(OSError, pa.ArrowException):  # the disk may be full
            self._writer.close()
        self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer.is_open:
            ended = "" if kind is None else f"{kind.__name__}: {error}"
            self.close(ended_early=ended) if ended else self.close()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_pylist(self._waiting, schema=self._schema)
            try:
                self._writer.write_table(table)
            except OSError as error:  # Arrow can do nothing more with such a file
                self.discard()
                raise not_written(self.path, error) from error
            self._waiting = []

    def _let_go(self) -> None:
        """Remove the temporary file if it exists, and release the path."""
        self._writer.is_open = False  # also if closing it failed
        self._file.discard()
        self._claim.release()


@dataclass(frozen=True)
class Records:
    """A record file in memory.

    Attributes:
        table: columns of `Measurement`, and perhaps more.
        source: provenance.
    """

    table: pa.Table
    source: dict[str, Any]

    @cached_property
    def topology(self) -> Topology:
        """Of the device's network, as `source` states it; raises `ValueError` if not valid."""
        return Topology.stored_in(self.source)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A numeric column as float64 (N,), nulls as NaN."""
        column = self.table[name].cast(pa.float64())
        return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)

    def texts(self, name: str) -> NDArray[np.str_]:
        """A text column, (N,)."""
        return np.array(self.table[name].to_pylist(), np.str_)

    def rows(self) -> Iterator[Measurement]:
        """The rows, without further columns."""
        names = [field.name for field in fields(Measurement)]
        for row in self.table.select(names).to_pylist():
            yield Measurement(**row)


def read_records(path: Path) -> Records:
    """Read a record file.

    Raises:
        DataError: if it is missing, damaged, not a record file, or has an impossible row.
    """
    try:
        table, metadata = seal.read(path)
        source = json.loads(metadata[METADATA_KEY])
        source |= json.loads(metadata.get(b"sliproad.end", b"{}"))
        table = _with_later_columns(table)
        missing = {field.name for field in fields(Measurement)} - set(table.column_names)
        if missing:
            raise ValueError(f"no columns {', '.join(sorted(missing))}")
        records = Records(table, source)
        for name, rows in impossible(table, records.topology):
            at = int(np.argmax(rows))
            raise ValueError(f"row {at}: impossible {name} {table[name][at].as_py()}")
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"records {path}: {error}",
            expected="a Parquet file written by `sliproad testbed device` or `campaign`",
            hint="measure again, or give another path",
        ) from error
    return records


def read_all(
    path: Path,
    warn: Callable[[str], object] = _log.warning,
    *,
    columns: Sequence[str] | None = None,
    max_rows: int | None = None,
) -> list[Records]:
    """A record file, or all those of a folder in order of name (the device's own order).

    Files of a folder that are empty, damaged or not records are left out, with a warning.

    Args:
        path: file or folder.
        warn: called with one line if files were left out; it counts and names them.
        columns: kept in memory, if a file has them; None keeps all.
        max_rows: maximum number of rows: of a folder, the newest files within it are read; a single
            file with more is refused before it is read.

    Raises:
        DataError: if there is no file, the only one or all of a folder are damaged or too long,
            or those of a folder are of more than one network.
    """
    if not path.is_dir():
        _count(path, max_rows)
        return [_only(read_records(path), columns)]
    files = parquet_files(path)
    if not files:
        raise DataError(
            f"records {path}",
            expected="a record file, or a folder with .parquet files of a device",
            hint="give what `sliproad testbed device --out` wrote",
        )
    runs, damaged, left = [], {}, max_rows
    older: list[Path] = []
    of: dict[str, Topology] = {}
    for k, file in enumerate(reversed(files)):
        try:
            n = _count(file, max_rows)
            if left is not None and n > left:
                older = files[: len(files) - k]
                break
            runs.append(_only(read_records(file), columns))
            of[file.name] = runs[-1].topology
            left = None if left is None else left - n
        except DataError as error:
            damaged[file.name] = _reason(file, error)
    _of_one_network(path, of)
    runs.reverse()
    said = [f"{name} ({why})" for name, why in list(reversed(damaged.items()))[:_MOST_NAMED]]
    text = f"{len(damaged)} of {len(files)} files in {path}: {', '.join(said)}"
    text += ", ..." if len(damaged) > _MOST_NAMED else ""
    if not runs:
        raise DataError(
            f"no usable record file; left out {text}",
            expected="at least one whole record file",
            hint="measure again, or give another folder",
        )
    if damaged:
        warn(f"records left out: {text}")
    if older:
        warn(f"records left out: the {len(older)} oldest files in {path}, beyond {max_rows} rows")
    return runs


def _of_one_network(folder: Path, of: Mapping[str, Topology]) -> None:
    """Raise `DataError` if the files of a folder (by name) have different topologies."""
    newest, topology = next(iter(of.items()), ("", SHIPPED))
    for name, other in of.items():
        if other != topology:
            raise DataError(
                f"records {folder}: {name} of {other}, {newest} of {topology}",
                expected="records of one network",
                hint="put the files of each network into a folder of its own",
            )


def _only(records: Records, columns: Sequence[str] | None) -> Records:
    if columns is None:
        return records
    kept = [name for name in columns if name in records.table.column_names]
    return Records(records.table.select(kept), records.source)


def _count(path: Path, most: int | None) -> int:
    """Rows of a file, by its footer; 0 without a bound, or if reading will report an error.

    Raises:
        DataError: if there are more than `most`, or their unpacked size is out of proportion.
    """
    if most is None:
        return 0
    try:
        n, unpacked = seal.extent(path)
    except (OSError, pa.ArrowException, ValueError):
        return 0
    if n > most or unpacked > most * _MOST_ROW_BYTES:
        raise DataError(
            f"records {path} of {n} rows and {unpacked / 1e6:.0f} MB unpacked",
            expected=f"at most {most} rows, and {most * _MOST_ROW_BYTES / 1e6:.0f} MB",
            hint="give a folder with a device's files, of which the newest are taken, or cut it",
        )
    return n


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder by name, without unfinished ones."""
    return sorted(f for f in folder.glob("*.parquet") if not f.name.startswith("."))


def _reason(path: Path, error: DataError) -> str:
    """Why a file was left out, in a few words."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            return "empty"
    words = " ".join(error.given.removeprefix(f"records {path}: ").split())
    return words if len(words) <= 100 else words[:97] + "..."


def _with_later_columns(table: pa.Table) -> pa.Table:
    """The table with later columns of `Measurement` added, with their defaults."""
    for field in fields(Measurement):
        if field.name not in table.column_names and field.default is not MISSING:
            values = pa.array([field.default] * table.num_rows, _TYPES[str(field.type)])
            column = pa.field(field.name, values.type, nullable=False)
            table = table.append_column(column, values)
    return table
