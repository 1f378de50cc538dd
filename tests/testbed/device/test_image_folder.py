"""A folder of images: in what order, what is skipped and said, what is refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnn.common.errors import DataError
from cnn.data.image_folder import image_tracks, natural_key
from testbed.device.camera import square_rgb
from testbed.device.frame_sources import folder_frames, open_frames


def put(path: Path, level: int = 0, width: int = 6, height: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (level, level, level)).save(path)
    return path


def names(folder: Path) -> list[list[str]]:
    return [[path.name for path in track] for track in image_tracks(folder)]


@given(st.permutations(range(0, 200, 7)))
def test_numbers_count_and_not_their_digits(numbers: list[int]) -> None:
    ordered = sorted((f"Frame{n}.png" for n in numbers), key=natural_key)
    assert ordered == [f"Frame{n}.png" for n in sorted(numbers)]


@given(st.lists(st.text(st.sampled_from("aB01290_."), min_size=1, max_size=8), unique=True))
def test_no_two_names_are_equal_in_order(found: list[str]) -> None:
    assert len({natural_key(name) for name in found}) == len(found)


def test_frames_and_folders_come_in_the_order_a_person_counts(tmp_path: Path) -> None:
    for name in ("f10.png", "f9.PNG", "F1.png", "f2.Jpg", "s10/a.png", "s9/a.png", "s9/b2/c.png"):
        put(tmp_path / name)
    assert names(tmp_path) == [
        ["F1.png", "f2.Jpg", "f9.PNG", "f10.png"],
        ["a.png"],
        ["c.png"],
        ["a.png"],
    ]
    frames = list(folder_frames(tmp_path, 48))
    assert [f.track for f in frames] == [0, 0, 0, 0, 1, 2, 3]


def test_what_is_no_image_is_skipped_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a.png")
    for name in (".DS_Store", "._a.png", "Thumbs.db", "notes.txt", ".thumbs/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7 not to be read")
    with caplog.at_level(logging.WARNING):
        frames = list(open_frames(f"folder:{tmp_path}", 48, n=3))
    assert [f.name for f in frames] == ["a.png"] * 3
    (record,) = caplog.records  # three rounds, one line
    assert "5 entries skipped: 3 hidden" in record.getMessage()
    assert "2 no image (notes.txt, Thumbs.db)" in record.getMessage()


def test_nothing_is_said_of_a_clean_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a.png")
    image_tracks(tmp_path)
    assert not caplog.records


def test_links_are_followed_and_nothing_comes_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "in/a.png")
    elsewhere = put(tmp_path / "elsewhere/b.png")
    (tmp_path / "in/latest.png").symlink_to(tmp_path / "in/a.png")
    (tmp_path / "in/other.png").symlink_to(elsewhere)
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "in") == [["a.png", "other.png"], ["b.png"]]
    assert "2 seen before (loop/, latest.png)" in caplog.text


def test_what_a_person_sees_and_the_reader_does_not_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"anything")
    with pytest.raises(DataError, match=r"IMG_1\.HEIC"):
        image_tracks(tmp_path)


def test_one_frame_in_two_forms_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a1.png")
    put(tmp_path / "a1.jpg")
    put(tmp_path / "a2.jpg")
    with pytest.raises(DataError, match=r"a1\.jpg and a1\.png"):
        image_tracks(tmp_path)


def test_a_link_to_nowhere_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        list(folder_frames(tmp_path, 48))
    (tmp_path / "gone.png").unlink()
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: 0 bytes"):
        list(folder_frames(tmp_path, 48))


def test_a_pipe_named_like_an_image_does_not_hang(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert names(tmp_path) == [["a.png"]]


def test_width_and_height_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    (frame,) = folder_frames(tmp_path, 48)
    assert (frame.width_px, frame.height_px) == (20, 30)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 4), (0, 6, 3)])
def test_a_camera_image_of_another_form_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="camera image"):
        square_rgb(np.zeros(shape, np.uint8), 48)
    with pytest.raises(DataError, match="uint16"):
        square_rgb(np.zeros((4, 6, 3), np.uint16), 48)  # type: ignore[arg-type]
