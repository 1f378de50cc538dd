"""Records of an unlimited run: finished Parquet files in a folder of bounded size.

Rows go to a journal, each batch with a checksum (`testbed.deploy.journal`). A journal that is
large or old enough becomes a Parquet file, written under a temporary name, synced and renamed;
only then is the journal deleted. After a kill or a power cut the next start turns the remaining
journal into such a file, so at most the rows that were not yet flushed are lost.

All of this runs in a separate thread. A slow, full or read-only disk costs records, each counted
once, but never delays a frame, the start or the end. If the disk is full, the oldest finished files
are deleted first. Rows are written again as soon as the disk accepts them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import pyarrow as pa

from cnn.common.errors import DataError
from cnn.common.files import make_folder
from cnn.common.outputs import Claim
from cnn.topology import Topology
from testbed.deploy.journal import Journal
from testbed.deploy.log import event
from testbed.deploy.record_folder import (
    JOURNAL,
    deletable,
    finish,
    journals,
    last_number,
    remove_parts,
    tidy,
)
from testbed.records.measurement import Measurement, only_possible
from testbed.records.record_file import METADATA_KEY, measurement_schema

_WAITING_ROWS: Final = 10_000
"""Rows that may wait for a slow disk: a quarter of an hour at ten frames a second."""
_FLUSH_ROWS: Final = 512
"""Rows that wait in memory at most, however fast they come."""
_ROW_BYTES: Final = 1000
"""Of a row in a journal, at most: with observations some 600."""
_START_S: Final = 5.0
"""Time that a start waits for a disk that hangs."""
_CLOSE_S: Final = (10.0, 60.0)
"""Time that an end waits for a disk that writes nothing, and for a slow one."""
_AGAIN_S: Final = 30.0
"""Pause before a journal that could not be finished is tried again."""

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT}
_LASTING: Final = {
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
    errno.EWOULDBLOCK,  # another device holds it
}
"""Permanent errors of a path: the configuration is wrong."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rotation:
    """Bounds of the records on disk.

    Attributes:
        file_bytes: a journal of this size is finished.
        file_s: or of this age, seconds.
        total_bytes: limit of the whole folder; the oldest finished files are deleted first.
        flush_s: rows are on disk within this time; half of it is left to the disk.
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
        source: provenance, JSON-able, stored with every file; it states the topology if that is
            not the shipped one.
        rotation: bounds.
        extra: further columns (name to Arrow type); a row may leave them out.

    Attributes:
        rows: rows written so far.

    Raises:
        DataError: if `folder` can never be used for records, or another device writes to it. If its
            disk cannot be written to now, that is logged and tried again.
    """

    def __init__(
        self,
        folder: Path,
        source: Mapping[str, Any],
        rotation: Rotation | None = None,
        extra: Mapping[str, pa.DataType] | None = None,
    ) -> None:
        self.folder = folder
        self.rows = 0
        self._handed = self._unheld = self._unwritten = 0
        self._rotation = rotation or Rotation()
        columns = [pa.field(name, kind) for name, kind in (extra or {}).items()]
        schema = pa.schema([*measurement_schema(), *columns])
        self._schema = schema.with_metadata({METADATA_KEY: json.dumps(dict(source))})
        self._topology = Topology.stored_in(source)
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING_ROWS)
        self._claim: Claim | None = None
        self._journal: Journal | None = None
        self._number = 0
        self._failing: set[str] = set()
        self._again_s = 0.0
        self._begun, self._closing = threading.Event(), threading.Event()
        self._refusal: DataError | None = None
        self._thread = threading.Thread(target=self._serve, name="records", daemon=True)
        self._thread.start()
        if not self._begun.wait(_START_S):
            event(_log, logging.WARNING, "the disk hangs: the device starts without it")
        if self._refusal is not None:
            raise self._refusal

    @property
    def dropped(self) -> int:
        """Rows that could not be written, each counted once."""
        return self._unheld + self._unwritten

    def write(self, row: Measurement, **extra: Any) -> None:
        """Hand over a row (and values of the extra columns); never waits."""
        item = {f.name: getattr(row, f.name) for f in fields(row)} | extra
        self._handed += 1
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._unheld += 1

    def close(self) -> None:
        """Write the remaining rows and finish the last file. A second call does nothing.

        It does not wait for a disk that hangs or is too slow: the journal stays for the next start.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)  # wakes the thread
        still_s, most_s = _CLOSE_S
        end_s, rows = time.monotonic() + most_s, -1
        while self._thread.is_alive() and rows < self.rows and time.monotonic() < end_s:
            rows = self.rows
            self._thread.join(still_s)
        hangs = self._thread.is_alive()
        self._unwritten = self._handed - self._unheld - self.rows
        if hangs:
            event(
                _log,
                logging.WARNING,
                "the disk hangs: it is not waited for",
                rows_dropped=self.dropped,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        """The thread: collect rows, flush them, rotate."""
        try:
            self._begin()
        except Exception as error:
            if lasting(error):
                self._refusal = _refusal(self.folder, error)
                return
            self._fails("rows are not written", error)
        finally:
            self._begun.set()
        waiting: list[dict[str, Any]] = []
        every_s = self._rotation.flush_s / 2
        flushed_s = time.monotonic() - every_s  # the first turn runs at once: it looks for journals
        done = False
        while not done:
            left_s = flushed_s + every_s - time.monotonic()
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=max(0.01, left_s))
                waiting += [] if item is None else [item]
            done = self._closing.is_set() and self._queue.empty()
            now_s = time.monotonic()
            if done or now_s - flushed_s >= every_s or len(waiting) >= _FLUSH_ROWS:
                self._turn(waiting, done)
                waiting, flushed_s = [], now_s
        self._let_go()

    def _begin(self) -> None:
        """Take the folder; raises `OSError` or `DataError` if that fails now."""
        make_folder(self.folder)
        claim = Claim(self.folder, folder=True)
        try:
            self._number = max(self._number, last_number(self.folder))
        except BaseException:
            claim.release()
            raise
        self._claim = claim
        self._tried("files are not deleted", partial(remove_parts, self.folder))
        self._tried("files are not deleted", self._tidy)

    def _turn(self, rows: list[dict[str, Any]], last: bool) -> None:
        """Put rows on disk and rotate, in portions that keep a file to its size."""
        most = max(1, min(_FLUSH_ROWS, self._rotation.file_bytes // _ROW_BYTES))
        for at in range(0, len(rows), most) or (0,):
            self._flush(rows[at : at + most])
            done = last and at + most >= len(rows)
            self._tried("journals are not finished", partial(self._rotate, done))

    def _flush(self, rows: list[dict[str, Any]]) -> None:
        """Put rows on disk, or count them as not written."""
        if rows or self._claim is None:
            append = partial(self._append, rows)
            written = self._tried("rows are not written", partial(self._with_room, append)) or 0
            self.rows += written
            self._unwritten += len(rows) - written

    def _append(self, rows: list[dict[str, Any]]) -> int:
        """Rows put on disk: all but impossible ones."""
        if self._claim is None:
            self._begin()
        if not rows:
            return 0
        if self._journal is None:
            self._journal = self._open()
        batch = pa.RecordBatch.from_pylist(rows, schema=self._schema)
        batch = only_possible(batch, self._topology)
        if batch.num_rows < len(rows):
            self._fails("rows are impossible", ValueError(f"{len(rows) - batch.num_rows} of them"))
        try:
            self._journal.append(batch)
        except OSError:
            if not self._journal.is_there():  # the folder, or its disk, was removed
                self._journal = None
                self._let_go()
            raise
        return int(batch.num_rows)

    def _rotate(self, last: bool) -> None:
        """Finish the journal if it is due, otherwise one left behind; at the end all of them."""
        journal, bounds = self._journal, self._rotation
        old = journal is not None and journal.rows and journal.age_s >= bounds.file_s
        if journal is not None and (last or old or journal.bytes >= bounds.file_bytes):
            self._journal, self._again_s = None, 0.0
            journal.close()
        if self._claim is None or (time.monotonic() < self._again_s and not last):
            return
        current = None if self._journal is None else self._journal.path
        left = [path for path in journals(self.folder) if path != current]
        left.sort(key=lambda path: _unfinished(path) in self._failing)
        for path in left if last else left[:1]:
            self._tried(_unfinished(path), partial(self._with_room, partial(finish, path)))
            self._tidy()
        waits = all(_unfinished(path) in self._failing for path in left)
        self._again_s = time.monotonic() + _AGAIN_S if waits else 0.0

    def _open(self) -> Journal:
        self._number += 1
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = f"records-n{self._number:012d}-{stamp}{JOURNAL}"
        return Journal(self.folder / name, self._schema)

    def _tidy(self) -> None:
        """Delete the oldest files until a whole journal and its Parquet file fit as well."""
        tidy(self.folder, self._rotation.total_bytes - 2 * self._rotation.file_bytes)

    def _with_room(self, work: Callable[[], T]) -> T:
        """The result of `work`; the oldest files are deleted while the disk is full."""
        while True:
            try:
                return work()
            except (OSError, DataError) as error:
                oldest = deletable(self.folder)[:1] if _errno(error) in _NO_ROOM else []
                if not oldest:
                    raise
                oldest[0].unlink(missing_ok=True)
                event(_log, logging.WARNING, "records deleted for room", file=oldest[0].name)

    def _tried(self, trouble: str, work: Callable[[], T]) -> T | None:
        """The result of `work`; None if it fails, which is logged once until it works again."""
        try:
            result = work()
        except Exception as error:  # records may be lost, but the writing thread must go on
            self._fails(trouble, error)
            return None
        if trouble in self._failing:
            self._failing.discard(trouble)
            event(_log, logging.INFO, f"records: no longer: {trouble}", rows_dropped=self.dropped)
        return result

    def _fails(self, trouble: str, error: Exception) -> None:
        if trouble not in self._failing:
            self._failing.add(trouble)
            reason = error.strerror if isinstance(error, OSError) else None
            reason = error.given if isinstance(error, DataError) else reason or str(error)
            event(_log, logging.WARNING, f"records: {trouble}", reason=reason)

    def _let_go(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()


def lasting(error: Exception) -> bool:
    """Whether a folder's error is permanent, caused by the configuration."""
    return _errno(error) in _LASTING


def _errno(error: BaseException | None) -> int | None:
    """The system's number of an error, or of what caused it; EINVAL if there is none."""
    if isinstance(error, DataError):
        error = error.__cause__
    return error.errno if isinstance(error, OSError) else errno.EINVAL


def _refusal(folder: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError(
        f"records folder {folder}: {getattr(error, 'strerror', None) or error}",
        expected="a folder that can be written to",
        hint="give another one as records.folder",
    )


def _unfinished(path: Path) -> str:
    return f"{path.name} is not finished"
