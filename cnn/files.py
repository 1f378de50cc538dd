"""Files that are whole on disk or not there: the one way in which anything is written.

The order is that of ``rename(2)`` users who survive power cuts: write beside the target
under a unique name, fsync the data, rename, fsync the folder. Only then may what the new
file replaces be deleted.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cnn.errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in `path`'s folder that becomes `path` when the block ends well.

    The temporary name is unique and keeps the ending of `path`. If the block raises,
    the temporary file is removed and `path` stays as it was.

    Raises:
        DataError: if the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(f".part{path.suffix}", f".{path.stem}.", path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    temporary = Path(name)
    try:
        os.close(handle)
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; raises `DataError` if it cannot be."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data`, whole or not at all; raises `DataError` if it cannot be."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sync(path: Path) -> None:
    """Wait until a file's data, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's file mode mask (reading it means setting it)."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _not_written(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write {path}: {error.strerror or error}",
        expected="a writable folder with room for the file",
        mend="give another path, or make room",
    )
