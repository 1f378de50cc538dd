"""Files from elsewhere: read with a bound, and refused in one line whatever is wrong with them.

A damaged or hostile file makes its reader raise whatever its content hits: errors of zip, zlib,
JSON, numpy, ONNX Runtime and Arrow, of recursion, memory and overflow. A list of them is never
complete, so `refusing` takes them all. What it cannot undo, memory that is gone or a wait that
does not end, is prevented before: `file_bytes` reads regular files up to a bound, `npz_arrays`
unpacks no more than an archive may hold.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import SliproadError

MAX_JSON_BYTES: Final = 4 * 2**20
"""A manifest of a bundle or policy has about 10 KB, a cost model 5 KB."""
MAX_MEMBERS: Final = 256
"""Arrays of an archive; the largest of ours has 16."""
_ARRAY_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\.npy")
_PACKING: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What numpy writes. Python unpacks the other methods in pieces of any size."""
_MOST_SAID: Final = 300


@contextmanager
def refusing(kind: type[SliproadError], what: str, *, expected: str, hint: str) -> Iterator[None]:
    """Turn any error of reading a file into one of `kind`, whose message is one line.

    Args:
        kind: class of the error.
        what: is read, such as ``policy file a.policy``.
        expected: what would have been right.
        hint: what the user can do about it.

    Raises:
        SliproadError: one that is raised inside passes as it is.
    """
    try:
        yield
    except SliproadError:
        raise
    except Exception as error:
        raise kind(f"{what}: {said(error)}", expected=expected, hint=hint) from error


def said(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
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
    """The JSON object (RFC 8259) in UTF-8 text; each of its keys stands once.

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

    Unlike `numpy.load`, nothing is allocated by what a header claims: an array is as long as its
    member. Arrays of Python objects are refused.

    Raises:
        Exception: whatever a damaged archive makes zipfile, zlib and numpy raise.
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
