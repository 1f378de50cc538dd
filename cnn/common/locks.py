"""One process at a time for each output: a lock that the kernel gives back at death.

``flock(2)`` needs no rights beyond those to write, and no process can leave it behind. A
folder is locked itself; a file, which is replaced when it is finished, by a lock file beside
it (``.NAME.lock``) that goes with the lock.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cnn.common.errors import DataError
from cnn.common.files import make_folder, not_written, real
from cnn.common.temporaries import NO_LOCK

_MOST_NAME: Final = 240
"""Bytes of a file's name that its lock file's has room for."""
_MOST_COMMAND: Final = 100
"""Characters of another process's command line that an error shows."""


class Claim:
    """The sole right to write an output, until `release` or the end of the process.

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
        """Let others have it. A second call does nothing.

        Folders that were made for the lock and are still empty go again.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    @staticmethod
    def _take(path: Path) -> int:
        """Descriptor that holds the lock; `BlockingIOError` names who has it instead."""
        while True:
            descriptor = _opened(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                who = holder(descriptor)
                os.close(descriptor)
                raise BlockingIOError(error.errno, who) from error
            except OSError as error:
                if error.errno not in NO_LOCK:  # a file system without locks protects nobody
                    os.close(descriptor)
                    raise
            with suppress(OSError):
                # The one who had it before may have removed what we opened.
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor
            os.close(descriptor)


def _opened(path: Path) -> int:
    if path.is_dir():
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user's, left by a kill, can be locked all the same. (In a sticky folder the
        # kernel lets nobody, root included, open it with O_CREAT: fs.protected_regular.)
        return os.open(path, os.O_RDONLY)


def holder(descriptor: int) -> str:
    """Who holds the ``flock`` on an open file, such as ``process 12 (sliproad demo)``.

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
