"""Files that are whole on disk or not there: the only way that this project writes files.

The order survives power cuts (``rename(2)``): write beside the target under a unique name, fsync
the data, rename, fsync the folder. Only then may the replaced file be deleted.

A temporary file or folder is locked (``flock(2)``) while it is written. One that a killed process
left behind is not locked, so the next writer of the same target may remove it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cnn.common.errors import DataError

_MOST_NAME_BYTES: Final = 255
"""NAME_MAX of the usual file systems."""

NO_LOCK: Final = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS}
"""Errors of file systems without ``flock``."""
_NO_SYNC: Final = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""Errors of file systems that cannot sync a folder (SMB, some FUSE and network ones)."""
_NO_LINK: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of file systems without hard links (FAT, some FUSE ones)."""


def temporary_name(target: Path, ending: str = "part") -> str:
    """A unique hidden name for a file that becomes `target`; keeps the ending of its name."""
    stem, suffix = _halves(target)
    return f".{stem}.{secrets.token_hex(4)}.{ending}{suffix}"


def leftovers(target: Path, ending: str = "part") -> list[Path]:
    """Temporary files beside `target` (`temporary_name`), in use or not."""
    stem, suffix = _halves(target)
    named = re.compile(
        rf"\.{re.escape(stem)}\.[0-9a-f]{{8}}\.{re.escape(ending)}{re.escape(suffix)}"
    )
    try:
        return sorted(p for p in target.parent.iterdir() if named.fullmatch(p.name))
    except OSError:  # a folder that may be written to, but not read
        return []


def remove_stale(target: Path) -> None:
    """Remove temporary files of `target` that no process writes any more."""
    for path in leftovers(target):
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    path.unlink()
            finally:
                os.close(descriptor)


def lock_new(path: Path, descriptor: int) -> bool:
    """Mark a new temporary as in use; False if another process has just removed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCK:
            raise
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _halves(target: Path) -> tuple[str, str]:
    """Stem, short enough for a temporary name, and ending of a file's name."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= 16 else ""
    stem = os.fsencode(target.name.removesuffix(suffix))
    room = _MOST_NAME_BYTES - len(os.fsencode(suffix)) - len("..01234567.part")
    return os.fsdecode(stem[:room]), suffix


class Pending:
    """A file that is being written under a temporary name in its own folder.

    A symbolic link is followed: its target is replaced, the link stays.

    Args:
        path: its final path; its folder is made if it does not exist.
        mode: permissions of a new file, less the process's mask; the permissions of a replaced file
            are kept.

    Raises:
        DataError: if the folder cannot be written to, or `path` is no regular file.
    """

    def __init__(self, path: Path, mode: int = 0o666) -> None:
        self.path = path
        self._target = real(path)
        self._lock: int | None = None
        self._moved = False
        try:
            old = _status(self._target)
            if old is not None and not stat.S_ISREG(old.st_mode):
                what = "is a folder" if stat.S_ISDIR(old.st_mode) else "is no regular file"
                raise OSError(errno.EINVAL, f"it {what}")
            make_folder(self._target.parent)
            remove_stale(self._target)
            self.temporary, self._lock = _new_temporary(self._target, mode)
            if old is not None:
                with suppress(PermissionError):  # a file system without permissions (FAT)
                    self.temporary.chmod(stat.S_IMODE(old.st_mode))
        except OSError as error:
            self.discard()
            raise not_written(path, error) from error

    def commit(self) -> None:
        """Move the file to its final path: fsync, rename, fsync of the folder.

        Raises:
            DataError: if that fails; the temporary file is removed, the old one stays.
        """
        try:
            sync(self.temporary)
            self._move()
            self._sync_folder()
        except OSError as error:
            raise not_written(self.path, error) from error
        finally:
            self.discard()

    def commit_new(self) -> bool:
        """`commit`, but never in place of a file that exists: False, and nothing has changed."""
        try:
            sync(self.temporary)
            try:
                os.link(self.temporary, self._target)  # unlike a rename, it never replaces
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                os.close(os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                self._move()  # replaces our own empty file
            self._sync_folder()
        except FileExistsError:
            return False
        except OSError as error:
            raise not_written(self.path, error) from error
        finally:
            self.discard()
        return True

    def discard(self) -> None:
        """Remove the temporary file, if it is still there."""
        if self._lock is None:
            return
        if not self._moved:
            with suppress(OSError):
                self.temporary.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _move(self) -> None:
        self.temporary.replace(self._target)
        self._moved = True

    def _sync_folder(self) -> None:
        # Whoever waited for the file may have taken it already, and removed its folder.
        with suppress(FileNotFoundError):
            sync(self._target.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in `path`'s folder that becomes `path` when the block ends well.

    The temporary name is unique and keeps the ending of `path`. If the block raises,
    the temporary file is removed and `path` stays as it was.

    Raises:
        DataError: if the folder or the file cannot be written.
    """
    pending = Pending(path)
    try:
        yield pending.temporary
        pending.commit()
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        pending.discard()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; raises `DataError` if it cannot be."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data`, whole or not at all; raises `DataError` if it cannot be."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_new(path: Path, data: bytes, mode: int = 0o666) -> bool:
    """Write a file that does not exist yet; False if it does, which is left as it is.

    Args:
        path: the file.
        data: its content.
        mode: its permissions, less the process's mask.

    Raises:
        DataError: if it cannot be written.
    """
    pending = Pending(path, mode)
    try:
        pending.temporary.write_bytes(data)
        return pending.commit_new()
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        pending.discard()


def make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it, so that a power cut does not lose them.

    Returns:
        Those that did not exist, from the top.

    Raises:
        OSError: if that is impossible.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    missing.reverse()
    for folder in missing:
        try:
            folder.mkdir()
        except FileExistsError:
            if not folder.is_dir():  # unless another process has just made it
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        sync(folder.parent)
    return missing


def sync(path: Path) -> None:
    """Wait until a file's data, or a folder's entries, are on disk.

    Where the file system has no such thing for folders, or the folder may be written to but
    not read, there is nothing to wait for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def real(path: Path) -> Path:
    """`path` with every symbolic link followed, also one to a path that does not exist yet.

    Raises:
        DataError: if it holds a null byte, as only a configuration file's can.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise not_written(path, OSError(errno.EINVAL, str(error))) from error


def not_written(path: Path, error: OSError) -> DataError:
    """The error for an output that the system refuses."""
    return DataError(
        f"cannot write {path}: {error.strerror or error}",
        expected="a folder that can be written to, with room for it",
        hint="give another path, or make room",
    )


def _new_temporary(target: Path, mode: int) -> tuple[Path, int]:
    """A new file beside `target`, and its locked descriptor."""
    while True:
        path = target.with_name(temporary_name(target))
        try:
            # Made by the kernel with the process's own mask, which cannot be read safely.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            continue
        try:
            if lock_new(path, descriptor):
                return path, descriptor
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        os.close(descriptor)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
