"""The journal: rows on disk before they become a Parquet file.

A journal is a sequence of frames: a mark, kind, number, length, CRC-32, then one Arrow IPC message
(a schema or a record batch). Batches are numbered, so that a batch which the disk shows twice adds
no row. Messages with a wrong checksum are never passed to Arrow: its reader ends the process on
some damaged bytes. After a damaged place the reader searches for the next mark. The schema is
repeated at intervals, so damage costs only the batches that it hits.

Why not SQLite, which is common on embedded devices: its journal would also cut a torn tail, but its
pages have no checksums (a flipped bit reads as another row), one damaged inner page hides the rows
below it, and opening a database after a power cut needs room on the disk. Each batch would need
its own checksum there, too.

Older versions wrote a plain Arrow stream with the same ending; `testbed.deploy.record_folder`
reads those.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow as pa

from cnn.common.files import sync

_MARK: Final = b"\x8bSLIPROW"
_HEAD: Final = struct.Struct("<8sBIII")
"""Mark, kind, number, bytes of the message, CRC-32 of these three and the message."""
_SCHEMA, _BATCH = 1, 2
_SCHEMA_EVERY: Final = 1 << 17
"""Bytes after which the schema (about 5 kB) is written again."""
_BLOCK: Final = 1 << 20
_ARROW_STREAM: Final = b"\xff\xff\xff\xff"
"""First bytes of an Arrow stream."""


class UnreadableError(Exception):
    """A journal that cannot be read: the disk, or the reading process, failed."""


class Journal:
    """A new journal; it is on disk after every `append`.

    Args:
        path: the file, which must not exist.
        schema: of every batch.

    Raises:
        OSError: if it cannot be made.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = self.bytes = 0
        self._began_s = time.monotonic()
        self._schema = _frame(_SCHEMA, 0, schema.serialize())
        self._batches = 0
        self._schema_due = 0
        self._file = path.open("xb", buffering=0)
        try:
            sync(path.parent)
        except OSError:
            self.close()
            raise

    @property
    def age_s(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self._began_s

    def append(self, batch: pa.RecordBatch) -> None:
        """Write a batch and sync it; after an `OSError` the journal is unchanged."""
        due = self.bytes >= self._schema_due
        data = (self._schema if due else b"") + _frame(_BATCH, self._batches + 1, batch.serialize())
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
            os.fdatasync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self.bytes)
            with contextlib.suppress(OSError):
                self._file.seek(self.bytes)
            raise
        if due:
            self._schema_due = self.bytes + _SCHEMA_EVERY
        self._batches += 1
        self.bytes += len(data)
        self.rows += batch.num_rows

    def is_there(self) -> bool:
        """Whether its name still leads to it: its disk may have been removed."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file; a journal without rows is deleted."""
        self._file.close()
        if not self.rows:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


class Reading:
    """The whole batches of a journal, one at a time.

    Attributes:
        damaged: whether a damaged place with whole batches after it was found so far.
    """

    def __init__(self, path: Path) -> None:
        self.damaged = False
        self._path = path

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """The batches, in order; raises `UnreadableError` if the disk fails."""
        try:
            with self._path.open("rb") as file:
                schema = next((m for kind, _, m in self._frames(file) if kind == _SCHEMA), None)
                if schema is None:
                    return
                known = pa.ipc.read_schema(pa.py_buffer(schema))
                last = 0
                for kind, number, message in self._frames(file):
                    if kind == _BATCH and number > last:
                        last = number
                        yield pa.ipc.read_record_batch(pa.py_buffer(message), known)
        except OSError as error:
            raise UnreadableError from error

    def _frames(self, file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
        at, cut = 0, False
        size = os.fstat(file.fileno()).st_size
        while at < size:
            file.seek(at)
            found = _message(file, size - at)
            if found is None:
                cut, at = True, _next_mark(file, at + 1, size)
                continue
            self.damaged |= cut
            yield found
            at += _HEAD.size + len(found[2])


def is_arrow_stream(path: Path) -> bool:
    """Whether a journal is from an older version; raises `UnreadableError` if the disk fails."""
    try:
        with path.open("rb") as file:
            return file.read(len(_ARROW_STREAM)) == _ARROW_STREAM
    except OSError as error:
        raise UnreadableError from error


def _frame(kind: int, number: int, message: pa.Buffer) -> bytes:
    data = bytes(message)
    return _HEAD.pack(_MARK, kind, number, len(data), _crc(kind, number, data)) + data


def _crc(kind: int, number: int, message: bytes) -> int:
    return zlib.crc32(message, zlib.crc32(struct.pack("<BII", kind, number, len(message))))


def _message(file: BinaryIO, left: int) -> tuple[int, int, bytes] | None:
    """Kind, number and message of the frame that begins here; None if there is no whole one."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    mark, kind, number, length, crc = _HEAD.unpack(head)
    if mark != _MARK or length > left - _HEAD.size:
        return None
    message = file.read(length)
    whole = len(message) == length and crc == _crc(kind, number, message)
    return (kind, number, message) if whole else None


def _next_mark(file: BinaryIO, at: int, size: int) -> int:
    """Position of the next mark from `at` on; `size` if there is none."""
    while at < size:
        file.seek(at)
        block = file.read(_BLOCK)
        found = block.find(_MARK)
        if found >= 0:
            return at + found
        if len(block) < len(_MARK):
            return size
        at += len(block) - len(_MARK) + 1
    return size
