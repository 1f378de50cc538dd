"""Frames survive their codecs, and nothing else gets through."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cnn.common.errors import ConfigError, DataError
from cnn.frame_codec import FrameCodec, FrameEncoding, decode_frame, image_size


def picture(size: int = 48) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.stack([4 * x, 4 * y, 2 * (x + y)], 2).astype(np.uint8)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (16, 16, 3), elements=st.sampled_from([0, 7, 255])))
def test_lossless_codecs_are_exact(frame: np.ndarray) -> None:
    for codec in ("raw", "webp"):
        encoded = FrameEncoding.parse(codec).encode(frame)
        np.testing.assert_array_equal(decode_frame(encoded, codec, 16), frame)


def test_jpeg_is_close_and_smaller_at_lower_quality() -> None:
    frame = picture()
    data = {q: FrameEncoding("jpeg", q).encode(frame) for q in (50, 75, 90)}
    assert len(data[50]) < len(data[75]) < len(data[90]) < frame.size / 3
    assert np.abs(decode_frame(data[90], "jpeg", 48).astype(int) - frame).mean() < 4


def test_settings_are_words_and_come_back() -> None:
    for text in ("raw", "webp", "jpeg:90", "jpeg:5"):
        assert str(FrameEncoding.parse(text)) == text
    assert FrameEncoding.parse("jpeg") == FrameEncoding("jpeg", 90)
    for text in (
        "gif",
        "jpeg:",
        "jpeg:0",
        "jpeg:96",
        "jpeg:100",
        "jpeg:-5",
        "webp:3",
        "jpeg:\uff19",
        "",
    ):
        with pytest.raises(ConfigError, match="frame encoding"):
            FrameEncoding.parse(text)


def test_header_size_is_what_pillow_says() -> None:
    for width, height in ((1, 1), (48, 48), (300, 17), (5000, 3)):
        image = Image.new("RGB", (width, height), (10, 200, 30))
        assert image_size(saved(image, "WEBP", lossless=True), "webp") == image.size
        assert image_size(saved(image, "JPEG"), "jpeg") == image.size


BOMB = Image.new("RGB", (12000, 12000))
REFUSED: dict[str, tuple[FrameCodec, bytes]] = {
    "short raw": ("raw", b"short"),
    "no JPEG": ("jpeg", b"no image"),
    "JPEG as WebP": ("webp", saved(Image.fromarray(picture()), "JPEG")),
    "PNG as JPEG": ("jpeg", saved(Image.new("RGB", (48, 48)), "PNG")),
    "cut JPEG": ("jpeg", FrameEncoding("jpeg").encode(picture())[:-200]),
    "cut WebP": ("webp", FrameEncoding("webp").encode(picture())[:-9]),
    "progressive JPEG": (
        "jpeg",
        saved(Image.fromarray(picture()), "JPEG", progressive=True),
    ),
    "grey JPEG": ("jpeg", saved(Image.new("L", (48, 48)), "JPEG")),
    "lossy WebP": ("webp", saved(Image.fromarray(picture()), "WEBP")),
    "animated WebP": (
        "webp",
        saved(
            Image.new("RGB", (48, 48)),
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", (48, 48), (255, 0, 0))],
            lossless=True,
        ),
    ),
    "another size": ("jpeg", FrameEncoding("jpeg").encode(picture(32))),
    "longer than raw": ("jpeg", FrameEncoding("jpeg").encode(picture()) + bytes(6912)),
    "WebP bomb": ("webp", saved(BOMB, "WEBP", lossless=True)),
    "JPEG bomb": (
        "jpeg",
        saved(Image.new("RGB", (65000, 8)), "JPEG", quality=1)[:6000],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_but_a_frame_of_this_size_is_refused(name: str) -> None:
    codec, data = REFUSED[name]
    with pytest.raises(DataError, match="frame"):
        decode_frame(data, codec, 48)


def test_a_bomb_is_small_enough_to_pass_the_length_check() -> None:
    """So that it is the header that refuses it."""
    assert len(REFUSED["WebP bomb"][1]) < 6912
    assert image_size(REFUSED["WebP bomb"][1], "webp") == BOMB.size


GOOD = {codec: FrameEncoding.parse(codec).encode(picture()) for codec in ("webp", "jpeg")}


@settings(max_examples=200, deadline=None)
@given(
    codec=st.sampled_from(["webp", "jpeg"]),
    edits=st.lists(
        st.tuples(st.integers(0, 5000), st.binary(max_size=4), st.integers(0, 4)), max_size=6
    ),
)
def test_an_edited_frame_is_a_frame_or_refused(
    codec: FrameCodec, edits: list[tuple[int, bytes, int]]
) -> None:
    data = GOOD[codec]
    for where, insert, cut in edits:
        at = where % (len(data) + 1)
        data = data[:at] + insert + data[at + cut :]
    try:
        frame = decode_frame(data, codec, 48)
    except DataError:
        return
    assert frame.shape == (48, 48, 3)
    assert frame.dtype == np.uint8


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["raw", "webp", "jpeg"]), st.binary(max_size=300))
def test_any_bytes_are_refused(codec: FrameCodec, data: bytes) -> None:
    with pytest.raises(DataError):
        decode_frame(data, codec, 48)
