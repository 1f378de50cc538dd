"""Temporary names: unique, told from anybody else's, and locked while they are in use.

A temporary file or folder is locked (``flock(2)``) while it is written. One that a killed
process left behind is not, which is how the next writer of the same target knows that it may
remove it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_MOST_NAME_BYTES: Final = 255
"""NAME_MAX of the usual file systems."""

NO_LOCK: Final = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS}
"""What file systems answer that have no ``flock``."""


def temporary_name(target: Path, ending: str = "part") -> str:
    """A unique hidden name for what becomes `target`; keeps the ending of its name."""
    stem, suffix = _halves(target)
    return f".{stem}.{secrets.token_hex(4)}.{ending}{suffix}"


def leftovers(target: Path, ending: str = "part") -> list[Path]:
    """What stands beside `target` under a `temporary_name` of it, in use or not."""
    stem, suffix = _halves(target)
    named = re.compile(
        rf"\.{re.escape(stem)}\.[0-9a-f]{{8}}\.{re.escape(ending)}{re.escape(suffix)}"
    )
    try:
        return sorted(p for p in target.parent.iterdir() if named.fullmatch(p.name))
    except OSError:  # a folder that may be written to, but not read
        return []


def remove_stale(target: Path) -> None:
    """Remove temporary files of `target` that nobody writes any more."""
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
    """Mark a new temporary as in use; False if somebody took it for a leftover just before."""
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
