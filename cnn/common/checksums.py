"""Checksums of what training writes, so that damage is told before anything is read from it.

A zip file carries its own: the archive's comment (PKWARE APPNOTE, 4.3.16), which every reader
skips, ends with the SHA-256 of all bytes before it. A checksum tells damage, not intent: whoever
can write the file can write it, too.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_MARK: Final = b"sliproad sha256 "
_HEX: Final = 64
_COMMENT: Final = len(_MARK) + _HEX
_END: Final = b"PK\x05\x06"
_END_BYTES: Final = 22
"""End of central directory, without a comment; its last two bytes are the comment's length."""
_CHUNK: Final = 1 << 20


def file_sha256(path: Path, left_out: int = 0) -> str:
    """SHA-256 of a file, in hexadecimal, but for its last `left_out` bytes.

    Raises:
        OSError: if it cannot be read.
    """
    left = path.stat().st_size - left_out
    found = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            found.update(chunk)
            left -= len(chunk)
    return found.hexdigest()


def seal(path: Path) -> None:
    """Let a finished zip file without a comment carry its checksum.

    Raises:
        OSError: if it cannot be read or written.
        ValueError: if it is no such file.
    """
    with path.open("r+b") as file:
        file.seek(-_END_BYTES, 2)
        end = file.read()
        if not (end.startswith(_END) and end.endswith(b"\0\0")):
            raise ValueError(f"{path} is no zip file without a comment")
        file.seek(-2, 2)
        file.write(struct.pack("<H", _COMMENT) + _MARK)
    digest = file_sha256(path)
    with path.open("ab") as file:
        file.write(digest.encode())


def is_sealed(path: Path) -> bool | None:
    """Whether a file is as `seal` left it; None if it carries no checksum.

    Raises:
        OSError: if it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _COMMENT, 0))
        comment = file.read()
    if len(comment) < _COMMENT or not comment.startswith(_MARK):
        return None
    return file_sha256(path, _HEX).encode() == comment[len(_MARK) :]


def json_sha256(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, in hexadecimal; equal for equal values in any order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
