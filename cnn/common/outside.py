"""Untrusted files: read with a bound, and refused in one line whatever is wrong with them.

A damaged or hostile file can make its reader raise many errors: of zip, zlib, JSON, numpy, ONNX
Runtime and Arrow, of recursion, memory and overflow. A list of them is never complete, so
`refusing` takes them all. It cannot undo exhausted memory or an endless wait, so these are
prevented before: `file_bytes` reads regular files up to a bound, `npz_arrays` unpacks no more than
an archive may hold, `read_text` decodes any encoding that programs write. `seal` adds a checksum to
the comment of our zip files (PKWARE APPNOTE, 4.3.16), which detects damage, not malice.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, SliproadError

MAX_JSON_BYTES: Final = 4 * 2**20
"""A manifest of a bundle or policy has about 10 KB, a cost model 5 KB."""
MAX_MEMBERS: Final = 256
"""Arrays of an archive; the largest of ours has 16."""
_ARRAY_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\.npy")
_PACKING: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Numpy's methods. Python unpacks the other methods in pieces of any size."""
_MOST_SAID: Final = 300

MAX_BYTES: Final = 2 * 1024**3
"""Longer texts (unpacked) are refused rather than read into memory."""
_GZIP: Final = b"\x1f\x8b"
_ENCODINGS: Final = (
    # UTF-32's little-endian mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL: Final = re.compile("[\x00-\x08\x0e-\x1f]")
_PROBE_BYTES: Final = 200

_SEAL: Final = b"sliproad sha256 "
_HEX: Final = 64
_COMMENT: Final = len(_SEAL) + _HEX
_ZIP_END: Final = b"PK\x05\x06"
_ZIP_END_BYTES: Final = 22
"""End of central directory, without a comment; its last two bytes are the comment's length."""
_CHUNK: Final = 1 << 20


@contextmanager
def refusing(kind: type[SliproadError], what: str, *, expected: str, hint: str) -> Iterator[None]:
    """Turn any error of reading a file into one of `kind`, whose message is one line.

    Args:
        kind: class of the error.
        what: name of the input, such as ``policy file a.policy``.
        expected: correct input.
        hint: how to fix it.

    Raises:
        SliproadError: one raised inside passes unchanged.
    """
    try:
        yield
    except SliproadError:
        raise
    except Exception as error:
        raise kind(f"{what}: {said(error)}", expected=expected, hint=hint) from error


def said(error: BaseException) -> str:
    """An error's message, in one line of bounded length."""
    if isinstance(error, SliproadError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, RecursionError):
        text = "nested too deep"
    elif isinstance(error, MemoryError):
        text = "more than fits into memory"
    elif isinstance(error, KeyError):
        text = f"no {error.args[0]!r}" if error.args else "a key is missing"
    else:
        text = str(error) or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= _MOST_SAID else f"{text[: _MOST_SAID - 3]}..."


def file_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is longer, or no regular file (reading a pipe might never end).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("no regular file")
        data = file.read(most + 1) if found.st_size <= most else b""
    if found.st_size > most or len(data) > most:
        raise ValueError(f"more than {most} bytes")
    return data


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object (RFC 8259) in UTF-8 text; each key occurs once.

    Raises:
        ValueError: if it is none.
        RecursionError: if it is nested too deep.
    """
    found = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in a JSON object")
    return found


def npz_arrays(data: bytes, most: int) -> dict[str, NDArray[Any]]:
    """The arrays of a numpy archive (``.npz``), which together have at most `most` bytes.

    Unlike `numpy.load`, this does not trust the size in a header: an array is as long as its
    member. Arrays of Python objects are refused.

    Raises:
        Exception: of any class, from zipfile, zlib or numpy, if the archive is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS or len({m.filename for m in members}) != len(members):
            raise ValueError("more arrays than an archive has, or one of them twice")
        unpacked = sum(member.file_size for member in members)
        if unpacked > most:
            raise ValueError(f"unpacks to {unpacked} bytes, more than {most}")
        arrays = {}
        for member in members:
            if not _ARRAY_NAME.fullmatch(member.filename) or member.compress_type not in _PACKING:
                raise ValueError("a member that is no array")
            with archive.open(member) as file:  # `archive.read` might unpack far more than this
                content = file.read(member.file_size)
            arrays[member.filename.removesuffix(".npy")] = _array(content)
    return arrays


def _array(data: bytes) -> NDArray[Any]:
    """A ``.npy`` file's array, a copy (format: numpy.lib.format, versions 1 and 2)."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of type {dtype}")
    length = len(data) - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length:
        raise ValueError(f"an array of another length than its shape {shape} says")
    return np.ndarray(
        shape, dtype, data, offset=file.tell(), order="F" if is_fortran else "C"
    ).copy()


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file or of a gzip of it, with ``\\n`` as the only line ending.

    UTF-8, UTF-16 and UTF-32 are recognised by their byte order mark, UTF-16 also by its zero bytes.
    Otherwise the text is UTF-8 or, if it is not valid UTF-8, Windows-1252.

    Raises:
        DataError: it cannot be read, is empty, longer than `max_bytes`, or no text.
    """
    try:
        data = _unpacked(path, max_bytes)
    except (OSError, zlib.error) as error:
        raise DataError(
            f"{path}: {said(error)}",
            expected="a readable file",
            hint="check the path, or copy it again",
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


def _unpacked(path: Path, max_bytes: int) -> bytes:
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
        errors: treatment of invalid bytes, as for `bytes.decode`.

    Raises:
        UnicodeDecodeError: with ``strict``, if there are such bytes.
    """
    encoding = next((name for mark, name in _ENCODINGS if data.startswith(mark)), None)
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


def file_sha256(path: Path, left_out: int = 0) -> str:
    """SHA-256 of a file without its last `left_out` bytes, in hexadecimal.

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
    """Add its checksum to a finished zip file without a comment.

    Raises:
        OSError: if it cannot be read or written.
        ValueError: if it is not such a file.
    """
    with path.open("r+b") as file:
        file.seek(-_ZIP_END_BYTES, 2)
        end = file.read()
        if not (end.startswith(_ZIP_END) and end.endswith(b"\0\0")):
            raise ValueError(f"{path} is no zip file without a comment")
        file.seek(-2, 2)
        file.write(struct.pack("<H", _COMMENT) + _SEAL)
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
    if len(comment) < _COMMENT or not comment.startswith(_SEAL):
        return None
    return file_sha256(path, _HEX).encode() == comment[len(_SEAL) :]


def json_sha256(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, in hexadecimal; equal for equal values in any order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
