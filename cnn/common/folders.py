"""Folders that are replaced as a whole: the old or the new one is there after a kill.

A new folder is written beside its final path, synced, and exchanged with the old one in a single
step (``renameat2(2)`` with ``RENAME_EXCHANGE``, Linux 3.15); only then is the old one removed. On a
file system that cannot exchange, two renames do it; `settle` restores the folder after a kill
between them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cnn.common.errors import DataError
from cnn.common.files import (
    leftovers,
    lock_new,
    make_folder,
    not_written,
    real,
    sync,
    temporary_name,
)

_ASIDE: Final = "old"
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_MOST_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of output that a command writes as a whole folder.

    Attributes:
        name: such as ``a model bundle``.
        writer: the command, such as ``sliproad cnn export``.
        files: the files in a folder that are ours (paths relative to it), by its own
            manifest; empty if it has none.
    """

    name: str
    writer: str
    files: Callable[[Path], Collection[str]]

    def foreign(self, folder: Path) -> list[str]:
        """Files (and links) of a folder that are not ours, relative, sorted."""
        found = _files_of(folder)
        return sorted(found - set(self.files(folder))) if found else []

    def check(self, path: Path) -> None:
        """Raise `DataError` if there is a folder that holds anything but our own files."""
        if not path.exists():
            return
        if not path.is_dir():
            raise DataError(
                f"{path} is a file",
                expected=f"a folder for {self.name}",
                hint="give another path",
            )
        if path.is_mount():
            raise DataError(
                f"{path} is a mount point, which cannot be replaced",
                expected=f"a folder for {self.name} below it",
                hint="give a folder in it",
            )
        foreign = self.foreign(path)
        if foreign:
            named = ", ".join(foreign[:_MOST_NAMED]) + (", ..." if foreign[_MOST_NAMED:] else "")
            raise DataError(
                f"{path} holds {named}, which `{self.writer}` did not write",
                expected=f"a new or empty folder, or {self.name} and nothing else in it",
                hint="give another path, or move the files away",
            )


@contextmanager
def replacing_folder(path: Path, kind: FolderKind, keep: Path | None = None) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well.

    If the block raises, the temporary folder is removed and `path` stays as it was. A folder
    that `path` names is replaced only if it holds nothing but files of `kind`; this is checked
    before and after the block.

    Args:
        path: the folder.
        kind: of it and of `keep`.
        keep: new path of the replaced folder, which replaces one that is there; None removes it.

    Raises:
        DataError: if it holds anything else, or cannot be written.
    """
    kind.check(path)
    if keep is not None:
        kind.check(keep)
    target = real(path)
    descriptor = temporary = None
    try:
        make_folder(target.parent)
        settle(target)
        _remove_stale(target, kind)
        temporary, descriptor = _new_folder(target)
        yield temporary
        sync_tree(temporary)
        kind.check(path)
        new, temporary = temporary, None  # from here on its name may be the old folder's
        _put(new, target, kind, None if keep is None else real(keep))
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def settle(path: Path) -> None:
    """Restore the folder that a kill between two renames left beside `path`; else do nothing."""
    target = real(path)
    if target.exists():
        return
    aside = [folder for folder in leftovers(target, _ASIDE) if folder.is_dir()]
    if len(aside) == 1:
        aside[0].rename(target)
        sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on disk, files before the folders they are in."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(where, name))
        sync(Path(where))


def _put(new: Path, target: Path, kind: FolderKind, keep: Path | None) -> None:
    """Move the finished folder to its final path, then keep or remove the one that was there."""
    if not target.exists():
        new.rename(target)
        sync(target.parent)
        return
    old = new
    if not _exchange(new, target):
        old = target.with_name(temporary_name(target, _ASIDE))
        target.rename(old)
        new.rename(target)
    sync(target.parent)
    if keep is None:
        _remove(old, kind)
    else:
        _put(old, keep, kind, None)


def _remove(folder: Path, kind: FolderKind) -> None:
    """Remove our own files of a folder, and the folder if nothing else is in it."""
    ours = sorted(kind.files(folder))
    for name in sorted(ours, key=_manifest_last):
        with suppress(FileNotFoundError, IsADirectoryError):
            (folder / name).unlink()
    for where, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            Path(where).rmdir()


def _manifest_last(name: str) -> tuple[bool, str]:
    """Deeper files first: the file that proves that the folder is ours is at its top."""
    return "/" not in name, name


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; False where that is not supported."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done: int = renameat2(
        _AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number))


def _new_folder(target: Path) -> tuple[Path, int]:
    """A new folder beside `target`, and its locked descriptor."""
    while True:
        path = target.with_name(temporary_name(target))
        try:
            path.mkdir()
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileExistsError, FileNotFoundError):  # or removed as a leftover just now
            continue
        if lock_new(path, descriptor):
            return path, descriptor
        os.close(descriptor)


def _remove_stale(target: Path, kind: FolderKind) -> None:
    """Remove leftovers of killed processes beside `target`."""
    for path in leftovers(target):
        with suppress(OSError), _unused(path):
            shutil.rmtree(path)
    for path in leftovers(target, _ASIDE):
        with suppress(OSError), _unused(path):
            _remove(path, kind)


@contextmanager
def _unused(folder: Path) -> Iterator[None]:
    """Holds a temporary folder that no process writes; `BlockingIOError` if one does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _files_of(folder: Path) -> set[str]:
    """Everything in a folder that is not itself a folder, relative to it."""
    found: set[str] = set()
    for where, folders, names in os.walk(folder):
        links = [n for n in folders if stat.S_ISLNK(Path(where, n).lstat().st_mode)]
        found.update(Path(where, name).relative_to(folder).as_posix() for name in [*names, *links])
    return found
