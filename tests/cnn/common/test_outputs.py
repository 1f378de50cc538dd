"""What may be replaced, and what is refused before any work."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from cnn.bundle import BUNDLE
from cnn.common.errors import DataError
from cnn.common.outputs import (
    SOFTWARE,
    check_file,
    check_folder,
    check_room,
    check_whole_folder,
    json_kind,
    npz_kind,
    picture_kind,
    text_kind,
)
from cnn.frame_table import embedded_table
from cnn.network_command_options import FRAME_TABLE

MODEL = json_kind("a model", "some command", "weights", "name")
PICTURE = picture_kind("a picture", "some command")
TEXT = text_kind("a text", "some command", "# Model ", "<html>")
ARRAYS = npz_kind("a table", "some command", "meta", "hash")


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def text_array(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def drawn(**metadata: str) -> bytes:
    buffer = io.BytesIO()
    Figure(figsize=(1, 1)).savefig(buffer, format="png", metadata=metadata or None)
    return buffer.getvalue()


def tagged(keyword: str, text: str) -> bytes:
    """A PNG of another program, Pillow, with one text chunk."""
    info = PngImagePlugin.PngInfo()
    info.add_text(keyword, text)
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


OURS = [
    (MODEL, b'{"name": "m", "weights": [1, 2], "more": 0}'),
    (PICTURE, drawn(Software=SOFTWARE)),
    (PICTURE, tagged("Software", SOFTWARE)),
    (TEXT, b"# Model m\n\nText.\n"),
    (TEXT, b"<html>"),
    (ARRAYS, npz(meta=text_array('{"hash": "1"}'), x=np.zeros(3))),
]
NOT_OURS = [
    (MODEL, b"{}"),
    (MODEL, b'["name", "weights"]'),
    (MODEL, b'{"name": "m", "weights": '),
    (MODEL, b"\xff\xfe\x00"),
    (MODEL, b"dear diary"),
    (PICTURE, drawn()),
    (PICTURE, tagged("Comment", SOFTWARE)),
    (PICTURE, tagged("Software", "paint")),
    (PICTURE, b"\x89PNG\r\n\x1a\n"),
    (PICTURE, b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXt"),
    (TEXT, b"# Models\n"),
    (TEXT, b"\n# Model m\n"),
    (ARRAYS, npz(x=np.zeros(3))),
    (ARRAYS, npz(meta=text_array('{"other": "1"}'))),
    (ARRAYS, npz(meta=np.array([{"hash": 1}], object))),  # pickled: never loaded
    (ARRAYS, b"PK\x03\x04 and then nothing"),
]


@pytest.mark.parametrize(("kind", "content"), OURS)
def test_what_a_command_wrote_may_be_replaced(tmp_path: Path, kind, content: bytes) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "out"
    path.write_bytes(content)
    check_file(path, kind)
    assert path.read_bytes() == content


@pytest.mark.parametrize(("kind", "content"), NOT_OURS)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, kind, content: bytes) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "out"
    path.write_bytes(content)
    with pytest.raises(DataError, match="exists and was not written by `some command`") as said:
        check_file(path, kind)
    assert "\n" not in str(said.value)
    with pytest.raises(DataError, match="exists and was not written"):
        check_folder(tmp_path, {"out": kind})


def test_a_file_that_says_its_chunk_is_huge_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    chunk = (2**31 - 1).to_bytes(4, "big") + b"IHDR"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + zlib.compress(bytes(1000)))
    with pytest.raises(DataError, match="not written"):
        check_file(path, PICTURE)


def test_an_empty_file_holds_nothing_and_a_new_one_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    check_file(tmp_path / "empty", MODEL)
    check_file(tmp_path / "a" / "b" / "new", MODEL)
    check_folder(tmp_path / "c" / "d", {"e/f": MODEL})
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def below_a_file(path: Path) -> Path:
    path.write_text("mine")
    return path / "out"


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


PLACES: list[tuple[Callable[[Path], Path], str]] = [
    (make_folder, "is a folder"),
    (below_a_file, "Not a directory"),
    (pipe, "is no regular file"),
    (lambda path: Path("/dev/full"), "is no regular file"),
    (lambda path: Path("/dev/full/out"), "Not a directory"),
    (lambda path: Path("/proc/out"), "cannot write /proc/out"),
    (lambda path: path / ("x" * 300), "File name too long"),
    (lambda path: path / ("x" * 300) / "out", "File name too long"),
    (lambda path: Path("a\0b"), "null (byte|character)"),
]


@pytest.mark.parametrize(("place", "said"), PLACES)
def test_places_that_take_no_file(tmp_path: Path, place: Callable[[Path], Path], said: str) -> None:
    path = place(tmp_path / "there")
    with pytest.raises(DataError, match=said):
        check_file(path, MODEL)


def test_places_that_take_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "out", Path("/dev/null")):
        with pytest.raises(DataError):
            check_folder(path)
        with pytest.raises(DataError):
            check_whole_folder(path, BUNDLE)


def test_an_input_is_no_output(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(OURS[0][1])
    (tmp_path / "link").symlink_to(path)
    check_file(path, MODEL, inputs=[tmp_path / "other"])
    for out in (path, tmp_path / "link"):
        with pytest.raises(DataError, match="is also what is read"):
            check_file(out, MODEL, inputs=[path])


def test_more_than_is_free_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MB are free"):
        check_room(tmp_path / "out", tmp_path, 1 << 60)


def test_a_limit_on_files_is_found_before_the_work(tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from cnn.common.errors import DataError\n"
        "from cnn.common.outputs import check_file, text_kind\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    check_file(Path(sys.argv[1]), text_kind('a', 'b', 'c'))\n"
        "except DataError as error:\n    print(error.given)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert said == f"cannot write {tmp_path / 'out'}: File too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_without_the_right_to_write_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o500)
    (tmp_path / "file").write_bytes(OURS[0][1])
    (tmp_path / "file").chmod(0o400)
    for path in (tmp_path / "locked" / "out", tmp_path / "file"):
        with pytest.raises(DataError):
            check_file(path, MODEL)


def test_shipped_files_are_of_their_kinds(tmp_path: Path) -> None:
    """Kinds know what earlier versions wrote: the shipped files were made long ago."""
    shipped = Path(__file__).parents[3] / "cnn" / "assets"
    for name in ("policy-test", "policy-train", "policy-train-varied"):
        assert FRAME_TABLE.holds(shipped / f"{name}.npz")
    assert BUNDLE.foreign(shipped / "bundle") == []
    assert not FRAME_TABLE.holds(shipped / "bundle" / "manifest.json")
    embedded_table("policy-test").save(tmp_path / "new.npz")
    assert FRAME_TABLE.holds(tmp_path / "new.npz")


def test_a_json_of_another_tool_with_some_of_the_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"weights": 1}))
    with pytest.raises(DataError):
        check_file(path, MODEL)
