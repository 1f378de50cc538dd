"""Files from elsewhere: bounded, and refused in one line; every damage of every kind of file."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from cnn.common.errors import DataError
from cnn.common.outside import file_bytes, json_object, npz_arrays, refusing, said


def packed(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def archive(name: str, content: bytes, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as out:
        out.writestr(name, content)
    return file.getvalue()


def npy(shape: tuple[int, ...], body: bytes, descr: str = "<f4") -> bytes:
    """An array's file that claims `shape`."""
    file = io.BytesIO()
    about = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)  # type: ignore[arg-type]
    return file.getvalue() + body


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "u1", "<i8", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
def test_arrays_read_as_numpy_reads_them(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = npz_arrays(packed(c=array, f=array.copy(order="F")), 10_000)
    for name in "cf":
        assert (found[name].dtype, found[name].shape) == (array.dtype, shape)
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        archive("a.npy", npy((2**62,), b"")),
        archive("a.npy", npy((2**40, 2**40), b"")),
        archive("a.npy", npy((-1,), b"\0" * 4)),
        archive("a.npy", npy((0, 2**70), b"")),
        archive("a.npy", npy((1,), b"\0" * 8, "|O")),
        archive("a.npy", npy((1,), b"", "|V0")),
        archive("a.npy", b"\x93NUMPY\x01\x00\x20\x00" + b"(" * 32),
        archive("a.npy", b"\x93NUMPY\x01\x00\x02\x00'\n"),
        archive("../a.npy", npy((1,), b"\0" * 4)),
        archive("/etc/a.npy", npy((1,), b"\0" * 4)),
        archive("a.npy", npy((1,), b"\0" * 4), zipfile.ZIP_BZIP2),
        archive("a.npy", npy((1,), b"\0" * 4), zipfile.ZIP_LZMA),
        packed(**{f"a{i}": np.zeros(1) for i in range(300)}),
        packed(a=np.zeros(10**6)),
        b"",
        b"PK\5\6" + b"\0" * 17,
    ],
)
def test_an_archive_that_claims_what_is_not_there_is_refused(data: bytes) -> None:
    tracemalloc.start()
    try:
        with (
            pytest.raises(DataError, match=r"^it: "),
            refusing(DataError, "it", expected="", hint=""),
        ):
            npz_arrays(data, 10**6)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.slow(1)
def test_a_member_that_unpacks_to_more_than_its_entry_says_is_not_unpacked() -> None:
    body = npy((4 * 10**7,), b"\0" * (16 * 10**7))
    data = bytearray(archive("a.npy", body))
    small = (1000).to_bytes(4, "little")
    data[22:26] = small  # in the member's own header
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = small  # in the directory
    del body
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, zipfile.BadZipFile, zlib.error)):
            npz_arrays(bytes(data), 10**6)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_json_is_an_object_in_which_every_key_stands_once() -> None:
    assert json_object('{"a": {"b": "ä"}}'.encode()) == {"a": {"b": "ä"}}
    for text in (b"[]", b"1", b'{"a": 1, "a": 1}', b'{"a": {"b": 1, "b": 2}}', b"\xff", b""):
        with pytest.raises(ValueError):
            json_object(text)
    with pytest.raises(RecursionError):
        json_object(b'{"a":' * 100_000)


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert file_bytes(path, 3) == b"abc"
    with pytest.raises(ValueError, match="more than 2 bytes"):
        file_bytes(path, 2)
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises((ValueError, IsADirectoryError)):
            file_bytes(odd, 3)
    with pytest.raises(ValueError, match="more than"):
        file_bytes(Path("/proc/self/status"), 3)  # whose size reads as 0


def test_errors_are_said_in_one_short_line() -> None:
    for error in (
        ValueError("a\nb" * 1000),
        KeyError("x"),
        RecursionError("maximum recursion depth"),
        MemoryError(),
        OSError(2, "No such file"),
        json.JSONDecodeError("bad\n", "doc", 0),
    ):
        assert "\n" not in said(error)
        assert 0 < len(said(error)) <= 300
