"""What stands where a command will write, looked at before the work begins.

A command replaces a file only if the file itself proves to be of the kind that the command
writes: by its format's magic and our own metadata in it. An empty file holds nothing that
could be lost and may be replaced by any. Everything else is refused in one line, as is a
place that cannot be written to or has no room.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from cnn.common.errors import DataError
from cnn.common.files import not_written, real
from cnn.common.folders import FolderKind

SOFTWARE: Final = "sliproad"
"""Keyword ``Software`` of our PNG files (PNG specification, tEXt), given to matplotlib."""

ROOM: Final = 1 << 20
"""Bytes that must be free for an output, unless a command knows better."""

_MOST_READ: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a command writes as a file.

    Attributes:
        name: such as ``a frame table``.
        writer: the command, such as ``sliproad cnn table``.
        proves: whether a file's content proves to be of this kind; whatever it raises of a
            file of another kind means no.
    """

    name: str
    writer: str
    proves: Callable[[Path], bool]

    def holds(self, path: Path) -> bool:
        """Whether `path` is a file of this kind."""
        try:
            return self.proves(path)
        except Exception:  # a file of any kind raises whatever its content hits
            return False


def check_file(
    path: Path, kind: FileKind, *, room: int = ROOM, inputs: Sequence[Path] = ()
) -> None:
    """Raise `DataError` unless `path` can be written as a file of `kind`.

    Args:
        path: the output.
        kind: what will be written; a file that is there must be one, too, or empty.
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

    Tried with a file that has no name; a folder that does not exist yet is not made: the
    nearest one above it must be there and take the file.

    Args:
        path: the output, for the message.
        folder: where it will stand.
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
    return FileKind(name, writer, _is_our_picture)


def _is_our_picture(path: Path) -> bool:
    """Chunks as in the PNG specification: length, type, data, checksum."""
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return False
        for kind, data in _chunks(file):
            if kind == b"IDAT":
                return False
            if kind == b"tEXt" and data.startswith(b"Software\0" + SOFTWARE.encode()):
                return True
    return False


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if length > ROOM:
            return
        yield kind, file.read(length)
        file.read(4)


def _whole(path: Path) -> bytes:
    if path.stat().st_size > _MOST_READ:
        raise ValueError("larger than anything we write")
    return path.read_bytes()


def _refused(path: Path, what: str, expected: str) -> DataError:
    return DataError(f"{path} {what}", expected=expected, hint="give another path")
