"""A device's folder of records: its files, their order, and the recovery of journals.

Files are numbered in the order in which they were begun. That order, not the clock, decides
which is the oldest: a device's clock may be set back while it runs, or be wrong at the start.
Only files with exactly such a name are ever deleted.

Journals of older versions are Arrow streams without checksums. Arrow's reader may end its process
on damaged bytes, or ask for any amount of memory, so another process (this module as a program)
reads them, with limits on time and memory, and writes the Parquet file. It stops at the first batch
that Arrow refuses, and leaves impossible rows out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from cnn.common.errors import DataError
from cnn.common.files import Pending, sync
from cnn.topology import SHIPPED
from testbed.deploy.journal import Reading, UnreadableError, is_arrow_stream
from testbed.records import seal
from testbed.records.measurement import only_possible
from testbed.records.record_file import read_records

JOURNAL: Final = ".arrows"
FINISHED: Final = ".parquet"
SET_ASIDE: Final = ".damaged"
"""Ending of a journal whose damage is more than a torn tail; retention deletes it first."""
_NAME: Final = re.compile(r"records-(?:n(\d{12})-\d{8}T\d{6}Z|\d{8}T\d{6}Z-\d{7,}-\d{6,})")
"""Stem of a file: its number and its start time; in older versions: time, process and a number
within it. Sorted by name, the older ones come first, and the others in their order."""
_OLD_PART: Final = f"{FINISHED}.part"
"""Ending of older versions' temporary files."""
_PART: Final = re.compile(rf"\.{_NAME.pattern}\.[0-9a-f]{{8}}\.part\{FINISHED}")
"""Name of a temporary file of `finish` (`cnn.common.files`)."""
_GROUP_ROWS: Final = 4096
_OLD_LIMIT_S: Final = 300.0
"""Time limit of the process that reads an old journal."""
_OLD_MEMORY: Final = 4 << 30
"""Address space of that process, bytes; the libraries take 1 GB of it."""

_log = logging.getLogger(__name__)


def record_files(folder: Path) -> list[Path]:
    """Finished record files of a folder, oldest first; each is an ordinary record file."""
    return _named(folder, FINISHED)


def journals(folder: Path) -> list[Path]:
    """Journals of a folder, oldest first."""
    return _named(folder, JOURNAL)


def deletable(folder: Path) -> list[Path]:
    """The files that retention may delete, in its order."""
    return [*_named(folder, SET_ASIDE), *record_files(folder)]


def last_number(folder: Path) -> int:
    """Number of the newest file of a folder, finished or not; 0 if none has one."""
    paths = [path for end in (FINISHED, JOURNAL, SET_ASIDE) for path in _named(folder, end)]
    names = [_NAME.fullmatch(path.stem) for path in paths]
    return max((int(name[1]) for name in names if name and name[1]), default=0)


def recover(folder: Path) -> list[Path]:
    """Finish the journals that a killed device left behind; returns the new files."""
    remove_parts(folder)
    made = [finish(path) for path in journals(folder)]
    return [path for path in made if path is not None]


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed device left behind."""
    hidden = [path for path in folder.glob(".records-*") if _PART.fullmatch(path.name)]
    for part in [*hidden, *_named(folder, _OLD_PART)]:
        part.unlink(missing_ok=True)


def tidy(folder: Path, bound: int) -> None:
    """Delete the oldest files until they have at most `bound` bytes in total."""
    sizes: dict[Path, int] = {}
    for path in [*deletable(folder), *journals(folder)]:
        with contextlib.suppress(FileNotFoundError):  # the user may delete some, too
            sizes[path] = path.stat().st_size
    total = sum(sizes.values())
    for path in deletable(folder):
        if total <= bound:
            break
        path.unlink(missing_ok=True)
        total -= sizes.get(path, 0)


def finish(journal: Path) -> Path | None:
    """Turn a journal into a Parquet file beside it; None if it holds no whole batch.

    The journal is deleted only after the file and its name are on disk. A torn tail is cut. If a
    journal has more damage, its whole batches are saved, and the journal is set aside.

    Raises:
        OSError, DataError: if the file cannot be written; the journal stays.
    """
    final = journal.with_suffix(FINISHED)
    if final.exists():
        with contextlib.suppress(DataError):
            read_records(final)  # made before a kill; only deleting the journal was missing
            journal.unlink()
            return final
    if journal.stat().st_size == 0:
        journal.unlink()
        return None
    pending = Pending(final)
    try:
        rows, damaged = _saved(journal, pending.temporary)
        if rows:
            pending.commit()
    except UnreadableError as error:
        rows, damaged = 0, str(error.__cause__ or error)
    finally:
        pending.discard()
    if damaged:
        _log.warning("records: %s set aside: %s; %d rows saved", journal.name, damaged, rows)
        journal.rename(journal.with_suffix(SET_ASIDE))
        sync(journal.parent)
    else:
        journal.unlink()
    return final if rows else None


def write_parquet(batches: Iterable[pa.RecordBatch], path: Path) -> int:
    """Write batches to a sealed Parquet file; returns the rows, 0 without a file.

    Raises:
        OSError: if it cannot be written.
    """
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.RecordBatch] = []
    rows = 0
    try:
        for batch in batches:
            waiting.append(batch)
            rows += batch.num_rows
            if sum(each.num_rows for each in waiting) >= _GROUP_ROWS:
                writer = writer or seal.writer(path, batch.schema)
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if rows:
            writer = writer or seal.writer(path, waiting[0].schema)
            writer.write_table(pa.Table.from_batches(waiting, writer.schema))
    finally:
        if writer is not None:
            try:
                writer.close()
            finally:
                writer.is_open = False  # otherwise it is closed again when it is garbage-collected
    if rows:
        seal.seal(path)
    return rows


def _saved(journal: Path, part: Path) -> tuple[int, str]:
    """Rows written to `part`, and the reason to set the journal aside (empty: none)."""
    if is_arrow_stream(journal):
        rows, left_out = _converted(journal, part)
        return rows, f"{left_out} impossible rows" if left_out else ""
    reading = Reading(journal)
    rows = write_parquet(reading, part)
    return rows, "damaged within" if reading.damaged else ""


def _named(folder: Path, ending: str) -> list[Path]:
    """Our own files of a folder with one ending, oldest first."""
    files = folder.glob(f"records-*{ending}")
    return sorted(p for p in files if _NAME.fullmatch(p.name.removesuffix(ending)))


def _converted(journal: Path, target: Path) -> tuple[int, int]:
    """Write the possible rows of an old journal to `target`, a finished Parquet file.

    Returns:
        Rows written (0: there is no file), and impossible rows left out.

    Raises:
        OSError: if the target cannot be written.
        UnreadableError: if the process that read it crashed, or took too long.
    """
    command = [sys.executable, "-m", __name__, str(journal), str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_OLD_LIMIT_S)
        told = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise UnreadableError from error
    if told["errno"]:
        raise OSError(told["errno"], told["reason"])
    return told["rows"], told["left_out"]


def _old_batches(journal: Path) -> Iterator[pa.RecordBatch]:
    with journal.open("rb") as file:
        try:
            for batch in pa.ipc.open_stream(file):
                batch.validate(full=True)
                yield batch
        except (pa.ArrowException, EOFError, OSError, MemoryError):
            return  # truncated or damaged here


def _main() -> None:
    """The process that reads an old journal; it prints what `_converted` reads."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_OLD_MEMORY, _OLD_MEMORY))
    journal, target = map(Path, sys.argv[1:])
    left_out = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal left_out
        for batch in _old_batches(journal):
            rows = only_possible(batch, SHIPPED)  # the only network of that time
            left_out += batch.num_rows - rows.num_rows
            yield rows

    told = {"errno": 0, "reason": "", "rows": 0, "left_out": 0}
    try:
        told |= {"rows": write_parquet(batches(), target), "left_out": left_out}
    except OSError as error:
        told |= {"errno": error.errno or 5, "reason": error.strerror or str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    _main()
