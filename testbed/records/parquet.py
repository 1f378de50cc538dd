"""Records: one Parquet row a frame, with where they come from in the file's metadata.

A file is written row group by row group under a temporary name and renamed at the end,
so that a record file that exists is whole.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import cnn
from cnn.errors import DataError
from testbed.records.measurement import Measurement

FORMAT: Final = 1
METADATA_KEY: Final = b"sliproad"
ROWS_PER_GROUP: Final = 512

_TYPES: Final = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}


def measurement_schema(extra: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """Arrow schema of `Measurement`, in the order of its fields, then `extra` columns."""
    columns = []
    for field in fields(Measurement):
        base = str(field.type).removesuffix(" | None")
        columns.append(pa.field(field.name, _TYPES[base], nullable=str(field.type) != base))
    columns += [pa.field(name, kind, nullable=False) for name, kind in (extra or {}).items()]
    return pa.schema(columns)


def provenance(**more: Any) -> dict[str, Any]:
    """What must be known to repeat a run: machine, versions, time; plus `more`.

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
        **more,
    }


def cpu_model() -> str:
    """The processor's name as the system states it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class RecordWriter:
    """Writes measurements to `path`, which appears when the writer is closed.

    As a context manager it also keeps what was measured before an error or an interrupt;
    without a single row nothing is left behind.

    Args:
        path: the file; an existing one is replaced at the end.
        source: provenance, JSON-able.
        extra: further columns (name to Arrow type), given with every row.

    Raises:
        DataError: if the folder cannot be written to.
    """

    def __init__(
        self, path: Path, source: dict[str, Any], extra: Mapping[str, pa.DataType] | None = None
    ) -> None:
        self.path = path
        self.rows = 0
        self._temporary = path.with_name(path.name + ".part")
        self._schema = measurement_schema(extra).with_metadata({METADATA_KEY: json.dumps(source)})
        self._waiting: list[dict[str, Any]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary, self._schema)
        except OSError as error:
            raise DataError(
                f"records {path}: {error.strerror or error}",
                expected="a file in a folder that can be written to",
                mend="give another path",
            ) from error

    def write(self, row: Measurement, **extra: Any) -> None:
        """Add a row (and the values of the extra columns)."""
        self._waiting.append({f.name: getattr(row, f.name) for f in fields(row)} | extra)
        self.rows += 1
        if len(self._waiting) >= ROWS_PER_GROUP:
            self._flush()

    def close(self, **more: Any) -> None:
        """Write what is left and give the file its name.

        Args:
            more: further provenance, known only now (key ``sliproad.end``).
        """
        self._flush()
        if more:
            self._writer.add_key_value_metadata({"sliproad.end": json.dumps(more)})
        self._writer.close()
        if self.rows:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink()

    def discard(self) -> None:
        """Leave nothing behind: neither the file nor its temporary one."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)

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
            self._writer.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
            self._waiting = []


@dataclass(frozen=True, slots=True)
class Records:
    """A record file in memory.

    Attributes:
        table: columns of `Measurement`, and perhaps more.
        source: provenance.
    """

    table: pa.Table
    source: dict[str, Any]

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
        DataError: if it is missing, damaged, or no record file.
    """
    try:
        table = pq.read_table(path)
        source = json.loads((table.schema.metadata or {})[METADATA_KEY])
        end = (pq.read_metadata(path).metadata or {}).get(b"sliproad.end")
        if end is not None:
            source |= json.loads(end)
        table = _with_later_columns(table)
        missing = {field.name for field in fields(Measurement)} - set(table.column_names)
        if missing:
            raise ValueError(f"no columns {sorted(missing)}")
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"records {path}: {error}",
            expected="a Parquet file written by `sliproad testbed device` or `campaign`",
            mend="measure again, or give another path",
        ) from error
    return Records(table, source)


def read_all(path: Path) -> list[Records]:
    """A record file, or every one of a folder, by name.

    Raises:
        DataError: if there is none, or one is damaged.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(
            f"records {path}",
            expected="a record file, or a folder with .parquet files of a device",
            mend="give what `sliproad testbed device --out` wrote",
        )
    return [read_records(file) for file in files]


def _with_later_columns(table: pa.Table) -> pa.Table:
    """A file from before a column came to `Measurement` reads as if it held the default."""
    for field in fields(Measurement):
        if field.name not in table.column_names and field.default is not MISSING:
            values = pa.array([field.default] * table.num_rows, _TYPES[str(field.type)])
            column = pa.field(field.name, values.type, nullable=False)
            table = table.append_column(column, values)
    return table
