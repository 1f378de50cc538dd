"""Text files that users give, in whatever encoding their programs wrote."""

from __future__ import annotations

import codecs
import re
import zlib
from pathlib import Path
from typing import Final

from cnn.common.errors import DataError

MAX_BYTES: Final = 2 * 1024**3
"""Longer files (unpacked) are refused rather than read into memory."""

_GZIP: Final = b"\x1f\x8b"
_MARKS: Final = (
    # UTF-32's little-endian mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL: Final = re.compile("[\x00-\x08\x0e-\x1f]")
_PROBE_BYTES: Final = 200


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file or of a gzip of it, with ``\\n`` as the only line ending.

    UTF-8, UTF-16 and UTF-32 are told by their byte order mark, UTF-16 also by its zero bytes;
    else UTF-8, and where it is none, Windows-1252.

    Raises:
        DataError: it cannot be read, is empty, longer than `max_bytes`, or no text.
    """
    try:
        data = _bytes(path, max_bytes)
    except (OSError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: {said}", expected="a readable file", hint="check the path, or copy it again"
        ) from error
    try:
        text = decode(data).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: no text ({error.reason} in {error.encoding})",
            expected="a text file",
            hint="save it as UTF-8, or give another file",
        ) from error
    odd = _CONTROL.search(text)
    if odd:
        raise DataError(
            f"{path}: a control character ({ord(odd[0]):#04x}) in line "
            f"{text.count(chr(10), 0, odd.start()) + 1}",
            expected="a text file",
            hint="export it as text, or give another file",
        )
    if not text.strip():
        raise DataError(
            f"{path}: an empty file",
            expected="some text",
            hint="check that the measurement did not fail, or give another file",
        )
    return text


def _bytes(path: Path, max_bytes: int) -> bytes:
    """The file's content, unpacked; at most `max_bytes` of it are ever in memory."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if data.startswith(_GZIP):
        unpacked = bytearray()
        while data and len(unpacked) <= max_bytes:  # a gzip file may have several members
            member = zlib.decompressobj(wbits=31)
            unpacked += member.decompress(data, max_bytes + 1 - len(unpacked))
            if not member.eof and len(unpacked) <= max_bytes:
                raise zlib.error("the packed file is cut off")
            data = member.unused_data.lstrip(b"\0")  # padding is allowed
        data = bytes(unpacked)
    if len(data) > max_bytes:
        raise DataError(
            f"{path}: more than {max_bytes / 1e6:.0f} MB",
            expected="a shorter file",
            hint="cut it into pieces",
        )
    return data


def decode(data: bytes, errors: str = "strict") -> str:
    """`data` as text, without byte order mark: see `read_text`.

    Args:
        data: the whole content of a file.
        errors: what becomes of bytes that mean nothing, as for `bytes.decode`.

    Raises:
        UnicodeDecodeError: with ``strict``, if there are such bytes.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None:
        even, odd = data[:_PROBE_BYTES:2], data[1:_PROBE_BYTES:2]
        if odd and not any(odd) and all(even):
            encoding = "utf-16-le"
        elif odd and not any(even) and all(odd):
            encoding = "utf-16-be"
    if encoding is not None:
        return data.decode(encoding, errors)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors)
