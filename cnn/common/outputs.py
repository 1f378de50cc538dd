"""Checks of a command's output paths before the work begins, and locks on them.

A command replaces a file only if the file itself proves to be of the kind that the command writes:
by its format's magic and our own metadata in it. Any command may replace an empty file, because it
holds no data. Everything else is refused in one line, as is a path that cannot be written to or has
no room.

Only one process at a time has an output: `Claim` is a ``flock(2)``. It needs only write permission,
and it ends with its process. A folder is locked itself; a file, which is replaced when it is
finished, by a lock file beside it (``.NAME.lock``) that goes with it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from cnn.common.errors import DataError
from cnn.common.files import NO_LOCK, make_folder, not_written, real
from cnn.common.folders import FolderKind

SOFTWARE: Final = "sliproad"
"""Keyword ``Software`` of our PNG files (PNG specification, tEXt), given to matplotlib."""

ROOM: Final = 1 << 20
"""Bytes that must be free for an output, unless a command knows better."""

_MOST_READ: Final = 256 << 20
_MOST_NAME: Final = 240
"""Bytes of a file's name that fit into the name of its lock file."""
_MOST_COMMAND: Final = 100
"""Characters of another process's command line that an error shows."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of output that a command writes as a file.

    Attributes:
        name: such as ``a frame table``.
        writer: the command, such as ``sliproad cnn table``.
        proves: whether a file's content proves to be of this kind; any exception means no.
    """

    name: str
    writer: str
    proves: Callable[[Path], bool]

    def holds(self, path: Path) -> bool:
        """Whether `path` is a file of this kind."""
        try:
            return self.proves(path)
        except Exception:  # a file of another kind may raise any error
            return False


def check_file(
    path: Path, kind: FileKind, *, room: int = ROOM, inputs: Sequence[Path] = ()
) -> None:
    """Raise `DataError` unless `path` can be written as a file of `kind`.

    Args:
        path: the output.
        kind: what will be written; a file that is there must be of this kind too, or empty.
        room: bytes that must be free.
        inputs: files that the command reads, none of which may be the output.
    """
    target = real(path)
    try:
        found = target.stat()
    except FileNotFoundError:
        check_room(path, target.parent, room)
        return
    except OSError as error:
        raise not_written(path, error) from error
    if stat.S_ISDIR(found.st_mode):
        raise _refused(path, "is a folder", f"a file for {kind.name}")
    if not stat.S_ISREG(found.st_mode):
        raise _refused(path, "is no regular file", f"a file for {kind.name}")
    for given in inputs:
        with suppress(OSError):
            if os.path.samestat(given.stat(), found):
                raise _refused(path, "is also what is read", "an output of its own")
    if not os.access(target, os.W_OK):
        raise _refused(path, "is write-protected", "a file that may be replaced")
    if found.st_size and not kind.holds(target):
        raise DataError(
            f"{path} exists and was not written by `{kind.writer}`",
            expected=f"a new file, or {kind.name} to replace",
            hint="give another path or remove it",
        )
    check_room(path, target.parent, room)


def check_folder(path: Path, files: Mapping[str, FileKind] | None = None, room: int = ROOM) -> None:
    """Raise `DataError` unless files can be written into a folder, made if it is not there.

    Args:
        path: the folder; other files in it stay as they are.
        files: what will be written into it, by name (may hold ``/``).
        room: bytes that must be free.
    """
    target = real(path)
    try:
        is_folder = stat.S_ISDIR(target.stat().st_mode)
    except FileNotFoundError:
        is_folder = True
    except OSError as error:
        raise not_written(path, error) from error
    if not is_folder:
        raise _refused(path, "is a file", "a folder")
    check_room(path, target, room)
    for name, kind in (files or {}).items():
        check_file(path / name, kind, room=0)


def check_whole_folder(path: Path, kind: FolderKind, room: int = ROOM) -> None:
    """Raise `DataError` unless `path` can be written, or replaced, as a whole folder."""
    target = real(path)
    try:
        kind.check(path)
    except OSError as error:
        raise not_written(path, error) from error
    check_room(path, target.parent, room)


def check_room(path: Path, folder: Path, room: int) -> None:
    """Raise `DataError` unless files can be made in `folder`, with `room` bytes for them.

    Tests with a file that has no name. A folder that does not exist yet is not made: the nearest
    existing one above it must take the file.

    Args:
        path: the output, for the message.
        folder: its folder.
        room: bytes.
    """
    names = [real(path).name]
    try:
        while not folder.exists():
            names.append(folder.name)
            folder = folder.parent
        if not folder.is_dir():
            raise _refused(folder, "is a file", f"a folder, to write {path}")
        if max(len(os.fsencode(name)) for name in names) > os.pathconf(folder, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=folder) as file:
            if room:  # quotas and limits count here, which the free space does not show
                os.posix_fallocate(file.fileno(), 0, min(room, ROOM))
        free = os.statvfs(folder)
    except OSError as error:
        raise not_written(path, error) from error
    if free.f_bavail * free.f_frsize < room:
        raise DataError(
            f"cannot write {path}: {free.f_bavail * free.f_frsize / 1e6:.1f} MB are free",
            expected=f"about {room / 1e6:.1f} MB",
            hint="give another path, or make room",
        )


def json_kind(name: str, writer: str, *keys: str) -> FileKind:
    """A JSON object that has all of `keys`."""

    def proves(path: Path) -> bool:
        content = json.loads(_whole(path))
        return isinstance(content, dict) and set(keys) <= content.keys()

    return FileKind(name, writer, proves)


def text_kind(name: str, writer: str, *starts: str) -> FileKind:
    """A text file that begins with one of `starts`."""

    def proves(path: Path) -> bool:
        with path.open("rb") as file:
            head = file.read(max(map(len, starts)))
        return head.startswith(tuple(start.encode() for start in starts))

    return FileKind(name, writer, proves)


def npz_kind(name: str, writer: str, member: str, *keys: str) -> FileKind:
    """A numpy archive whose array `member` is the text of a JSON object with all of `keys`."""

    def proves(path: Path) -> bool:
        import numpy as np

        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(f"{member}.npy").file_size > ROOM:
                return False
        with np.load(path, allow_pickle=False) as arrays:
            content: Any = json.loads(arrays[member].tobytes())
        return isinstance(content, dict) and set(keys) <= content.keys()

    return FileKind(name, writer, proves)


def picture_kind(name: str, writer: str) -> FileKind:
    """A PNG file that names us as the software that made it."""

    def proves(path: Path) -> bool:
        from PIL import Image

        with Image.open(path, formats=("PNG",)) as image:
            return str(image.info.get("Software", "")).startswith(SOFTWARE)

    return FileKind(name, writer, proves)


def _whole(path: Path) -> bytes:
    if path.stat().st_size > _MOST_READ:
        raise ValueError("larger than anything we write")
    return path.read_bytes()


def _refused(path: Path, what: str, expected: str) -> DataError:
    return DataError(f"{path} {what}", expected=expected, hint="give another path")


class Claim:
    """An exclusive lock on an output, until `release` or the end of the process.

    Args:
        path: a file, which need not exist, or a folder.
        folder: whether it is a folder, which is then made if it does not exist.

    Raises:
        DataError: if another process (or another part of this one) holds it, which the message
            names, or the lock cannot be made.
    """

    def __init__(self, path: Path, *, folder: bool = False) -> None:
        self.path = path
        target = real(path)
        name = os.fsdecode(os.fsencode(target.name)[:_MOST_NAME])
        self._file = None if folder else target.with_name(f".{name}.lock")
        try:
            self._made = make_folder(target if folder else target.parent)
            self._descriptor: int | None = self._take(self._file or target)
        except BlockingIOError as error:
            raise DataError(
                f"{path} is in use by {error.strerror}",
                expected="an output that no other process writes at the same time",
                hint="wait until that process has ended, or give another path",
            ) from error
        except OSError as error:
            raise not_written(path, error) from error

    def release(self) -> None:
        """Release the lock. A second call does nothing.

        Folders that were made for the lock and are still empty are removed.
        """
        if self._descriptor is None:
            return
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)
        with suppress(OSError):
            for folder in reversed(self._made):
                folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    @staticmethod
    def _take(path: Path) -> int:
        """Descriptor that holds the lock; `BlockingIOError` names the other process that has it."""
        while True:
            descriptor = _opened(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                who = holder(descriptor)
                os.close(descriptor)
                raise BlockingIOError(error.errno, who) from error
            except OSError as error:
                if error.errno not in NO_LOCK:  # a file system without locks gives no protection
                    os.close(descriptor)
                    raise
            with suppress(OSError):
                # The previous holder may have removed the file that we opened.
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor
            os.close(descriptor)


def _opened(path: Path) -> int:
    if path.is_dir():
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's lock file, left by a kill, can still be locked. (In a sticky folder the
        # kernel refuses to open it with O_CREAT, even for root: fs.protected_regular.)
        return os.open(path, os.O_RDONLY)


def holder(descriptor: int) -> str:
    """The process that holds the ``flock`` on an open file, such as ``process 12 (sliproad demo)``.

    Read from ``/proc/locks`` (proc(5)); another user's or another container's process may be
    ``another process`` alone.
    """
    inode = os.fstat(descriptor).st_ino
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        # 1: FLOCK ADVISORY WRITE 1234 fd:00:5678 0 EOF (a waiting one has -> after the number)
        if len(words) < 6 or words[1] != "FLOCK" or not words[4].isdigit():
            continue
        if words[5].rpartition(":")[2] == str(inode) and int(words[4]) > 0:
            return f"process {words[4]}{_command(int(words[4]))}"
    return "another process"


def _command(pid: int) -> str:
    """The command line of a process, in brackets; empty if it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    words = [Path(words[0]).name, *words[1:]] if words[0] else []
    text = " ".join(" ".join(words).split())
    if not text:
        return ""
    return f" ({text[: _MOST_COMMAND - 3]}...)" if len(text) > _MOST_COMMAND else f" ({text})"
