"""Records of a device that never ends: finished Parquet files in a folder of bounded size.

Rows go to a journal, an Arrow IPC stream that can be read up to wherever it was cut off. A
journal that is large or old enough becomes a Parquet file, written under a temporary name,
synced and renamed; only then is the journal deleted. After a kill or a power cut the next start
turns the journal that was left behind into such a file, so at most the rows are lost that were
not yet flushed. All of this happens in a thread of its own: a slow or full disk costs records,
counted, but never delays a frame.

Files are numbered in the order in which they were begun. That order, not the clock's, says
which is the oldest: a device's clock may be set back while it runs, or be wrong at the start.
Only files with exactly such a name are ever deleted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from cnn.errors import DataError
from cnn.files import make_folder, replacing, sync
from cnn.locks import Claim
from testbed.records.measurement import Measurement
from testbed.records.parquet import METADATA_KEY, measurement_schema

JOURNAL: Final = ".arrows"
FINISHED: Final = ".parquet"
_NAME: Final = re.compile(r"records-(?:n(\d{12})-\d{8}T\d{6}Z|\d{8}T\d{6}Z-\d{7,}-\d{6,})")
"""Stem of a file: its number and the time of its beginning; of older versions' files: time,
process and a number in it. Sorted by name, those come first, and the others in their order."""
_OLD_PART: Final = f"{FINISHED}.part"
"""Ending of older versions' temporary files."""
_WAITING_ROWS: Final = 10_000
"""Rows that may wait for a slow disk: a quarter of an hour at ten frames a second."""
_FLUSH_ROWS: Final = 512
"""Rows that wait in memory at most, however fast they come."""
_GROUP_ROWS: Final = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Bounds of the records on disk.

    Attributes:
        file_bytes: a journal of this size is finished.
        file_s: or of this age, seconds.
        total_bytes: all files of the folder together; the oldest finished ones go first.
        flush_s: rows wait in memory at most so long.
    """

    file_bytes: int = 8_000_000
    file_s: float = 3600.0
    total_bytes: int = 512_000_000
    flush_s: float = 5.0


class RotatingRecords:
    """Writes measurements into `folder`; close it, or use it as a context manager.

    Args:
        folder: made if it does not exist; locked until the end, so that a second device
            cannot write to it.
        source: provenance, JSON-able, stored with every file.
        rotation: bounds.
        extra: further columns (name to Arrow type); a row may leave them out.

    Raises:
        DataError: if the folder cannot be written to, or another device writes to it.
    """

    def __init__(
        self,
        folder: Path,
        source: Mapping[str, Any],
        rotation: Rotation | None = None,
        extra: Mapping[str, pa.DataType] | None = None,
    ) -> None:
        self.folder = folder
        self.rows = self.dropped = 0
        self._rotation = rotation or Rotation()
        columns = [pa.field(name, kind) for name, kind in (extra or {}).items()]
        schema = pa.schema([*measurement_schema(), *columns])
        self._schema = schema.with_metadata({METADATA_KEY: json.dumps(dict(source))})
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING_ROWS)
        self._journal: _Journal | None = None
        with contextlib.ExitStack() as undo:
            try:
                make_folder(folder)
                self._claim = undo.enter_context(Claim(folder, folder=True))
                recover(folder)
                self._number = last_number(folder)
                self._tidy()
                self._journal = self._open()
            except OSError as error:
                raise DataError(
                    f"records folder {folder}: {error.strerror or error}",
                    expected="a folder that can be written to",
                    mend="give another one as records.folder",
                ) from error
            undo.pop_all()
        self._thread = threading.Thread(target=self._serve, name="records", daemon=True)
        self._thread.start()

    def write(self, row: Measurement, **extra: Any) -> None:
        """Hand over a row (and values of the extra columns); never waits."""
        item = {f.name: getattr(row, f.name) for f in fields(row)} | extra
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is left and finish the last file. A second call does nothing."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._claim.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _serve(self) -> None:
        """The thread: collect rows, flush them, rotate."""
        waiting: list[dict[str, Any]] = []
        flushed_s = time.monotonic()
        done = False
        while not done:
            left_s = flushed_s + self._rotation.flush_s - time.monotonic()
            try:
                item = self._queue.get(timeout=max(0.01, left_s))
            except queue.Empty:
                item = {}
            done = item is None
            if item:
                waiting.append(item)
            now_s = time.monotonic()
            if done or now_s - flushed_s >= self._rotation.flush_s or len(waiting) >= _FLUSH_ROWS:
                self._write(waiting, done)
                waiting, flushed_s = [], now_s

    def _write(self, rows: list[dict[str, Any]], last: bool) -> None:
        """Append rows and rotate if it is time; a disk that fails costs these rows."""
        try:
            if self._journal is None:
                self._journal = self._open()
            if rows:
                self._journal.append(pa.RecordBatch.from_pylist(rows, schema=self._schema))
                self.rows += len(rows)
            due = self._journal.bytes >= self._rotation.file_bytes
            if last or due or (self._journal.rows and self._journal.age_s >= self._rotation.file_s):
                journal, self._journal = self._journal, None
                journal.close()
                finish(journal.path)
                self._tidy()
        except Exception as error:  # records may be lost, but never the thread that keeps them
            self.dropped += len(rows)
            self._journal = None
            _log.error("records: %s; %d rows lost", error, len(rows))

    def _open(self) -> _Journal:
        self._number += 1
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = f"records-n{self._number:012d}-{stamp}{JOURNAL}"
        return _Journal(self.folder / name, self._schema)

    def _tidy(self) -> None:
        """Delete the oldest files until a whole journal and its Parquet file fit as well."""
        files = record_files(self.folder)
        sizes = {path: path.stat().st_size for path in files}
        total = sum(sizes.values()) + 2 * self._rotation.file_bytes
        for path in files:
            if total <= self._rotation.total_bytes:
                break
            path.unlink(missing_ok=True)
            total -= sizes[path]


class _Journal:
    """An Arrow IPC stream that is on disk after every `append`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._began_s = time.monotonic()
        self._file = path.open("xb")
        self._stream = pa.ipc.new_stream(self._file, schema)
        sync(path.parent)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self._file.tell()

    @property
    def age_s(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self._began_s

    def append(self, batch: pa.RecordBatch) -> None:
        """Write a batch through to the disk."""
        self._stream.write_batch(batch)
        self._file.flush()
        os.fdatasync(self._file.fileno())
        self.rows += batch.num_rows

    def close(self) -> None:
        """End the stream."""
        self._stream.close()
        self._file.close()


def record_files(folder: Path) -> list[Path]:
    """Finished record files of a folder, oldest first; each is an ordinary record file."""
    return _named(folder, FINISHED)


def last_number(folder: Path) -> int:
    """Number of the newest file of a folder, finished or not; 0 if none has one."""
    names = [_NAME.fullmatch(p.stem) for end in (FINISHED, JOURNAL) for p in _named(folder, end)]
    return max((int(name[1]) for name in names if name and name[1]), default=0)


def recover(folder: Path) -> list[Path]:
    """Finish the journals that a killed device left behind; the files made of them."""
    for part in _named(folder, _OLD_PART):
        part.unlink(missing_ok=True)
    made = [finish(path) for path in _named(folder, JOURNAL)]
    return [path for path in made if path is not None]


def _named(folder: Path, ending: str) -> list[Path]:
    """Our own files of a folder with one ending, oldest first."""
    files = folder.glob(f"records-*{ending}")
    return sorted(p for p in files if _NAME.fullmatch(p.name.removesuffix(ending)))


def finish(journal: Path) -> Path | None:
    """Turn a journal into a Parquet file beside it; None if it holds no whole batch.

    The journal is deleted when the file and its name are on disk, not before.
    """
    final = journal.with_suffix(FINISHED)
    tables = _tables(journal)
    first = next(tables, None)
    if first is not None:
        with replacing(final) as part, pq.ParquetWriter(part, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
    journal.unlink()
    return None if first is None else final


def _tables(journal: Path) -> Iterator[pa.Table]:
    """The whole batches of a journal, `_GROUP_ROWS` or so at a time."""
    batches: list[pa.RecordBatch] = []
    for batch in _batches(journal):
        batches.append(batch)
        if sum(b.num_rows for b in batches) >= _GROUP_ROWS:
            yield pa.Table.from_batches(batches)
            batches = []
    if batches:
        yield pa.Table.from_batches(batches)


def _batches(journal: Path) -> Iterator[pa.RecordBatch]:
    with journal.open("rb") as file:
        try:
            yield from pa.ipc.open_stream(file)
        except (pa.ArrowException, EOFError, OSError):
            return  # cut off here: what came before is whole
