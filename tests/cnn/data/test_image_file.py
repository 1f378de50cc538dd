"""An image file is what a person sees, or it is refused: every mode, form and kind of damage."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from cnn.common.errors import DataError
from cnn.data.image_file import MAX_PIXELS, decode_rgb, read_image, resize_rgb

HEIGHT, WIDTH = 5, 7
GREY = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 7).astype(np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], 2)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def seen(data: bytes) -> np.ndarray:
    image = read_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey_rgb(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[..., None], 3, 2)


def tiff(pixels: bytes, bits: int, photometric: int, order: str = "<") -> bytes:
    """A grey, uncompressed TIFF of one strip, HEIGHT x WIDTH, by TIFF 6.0, sections 2 to 4."""
    short, long = 3, 4
    tags = [
        (256, short, WIDTH),
        (257, short, HEIGHT),
        (258, short, bits),
        (259, short, 1),
        (262, short, photometric),
        (273, long, 8),
        (277, short, 1),
        (278, short, HEIGHT),
        (279, long, len(pixels)),
    ]
    body = pixels + bytes(len(pixels) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(body))
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        packed = struct.pack(order + ("HH" if kind == short else "I"), *[value, 0][: 5 - kind])
        directory += struct.pack(order + "HHI", tag, kind, 1) + packed
    return head + body + directory + bytes(4)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as a camera stores them: where row 0 and column 0 lie is TIFF 6.0's table of tag 274.

    Row 0 is the top (1, 2), bottom (3, 4), left (5, 8) or right side (6, 7) of what is seen.
    """
    swapped = upright.swapaxes(0, 1)
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: swapped,
        6: swapped[::-1],
        7: swapped[::-1, ::-1],
        8: swapped[:, ::-1],
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_an_image_is_upright(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    data = saved(
        Image.fromarray(np.ascontiguousarray(stored(COLOUR, orientation))),
        form,
        exif=exif,
        **options,
    )
    np.testing.assert_array_equal(seen(data), COLOUR)


def test_a_phone_s_jpeg_is_upright_in_the_network_s_input() -> None:
    upright = Image.linear_gradient("L").convert("RGB").resize((48, 48))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 6  # the phone was held upright: stored lying on its left side
    data = saved(upright.rotate(90, expand=True), "JPEG", exif=exif, quality=95)
    difference = decode_rgb(data, 48).astype(int) - np.asarray(upright)
    assert np.abs(difference).max() <= 4


def test_an_unknown_orientation_is_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    np.testing.assert_array_equal(seen(saved(Image.fromarray(COLOUR), "PNG", exif=exif)), COLOUR)


@pytest.mark.parametrize("depth", [16, 10, 12])
def test_more_than_8_bits_are_scaled_and_not_clipped(depth: int) -> None:
    """The same grey in 16 bits (PNG, TIFF of both byte orders, PGM) and other depths (PGM)."""
    top = 2**depth - 1
    levels = np.rint(GREY / 255.0 * top).astype(np.uint16)
    forms = [b"P5 %d %d %d\n" % (WIDTH, HEIGHT, top) + levels.astype(">u2").tobytes()]
    if depth == 16:
        forms.append(saved(Image.fromarray(levels), "PNG"))
        for order in "<>":
            pixels = levels.astype(f"{order}u2").tobytes()
            forms.append(tiff(pixels, 16, photometric=1, order=order))
        forms.append(tiff((top - levels).astype("<u2").tobytes(), 16, photometric=0))
    for data in forms:
        np.testing.assert_allclose(seen(data), grey_rgb(GREY), atol=0.5)


def test_a_12_bit_tiff_is_scaled_by_its_own_depth() -> None:
    levels = np.rint(GREY / 255.0 * 4095).astype(int)
    rows = ["".join(f"{v:012b}" for v in row) + "0000" for row in levels]  # whole bytes a row
    pixels = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    np.testing.assert_allclose(seen(tiff(pixels, 12, photometric=1)), grey_rgb(GREY), atol=0.5)


def test_8_bit_white_is_zero_and_black_and_white() -> None:
    data = tiff((255 - GREY).tobytes(), 8, photometric=0)
    np.testing.assert_array_equal(seen(data), grey_rgb(GREY))
    bits = GREY > 100
    packed = np.packbits(~bits, axis=1)  # PBM: 1 is black
    data = b"P4 %d %d\n" % (WIDTH, HEIGHT) + packed.tobytes()
    np.testing.assert_array_equal(seen(data), grey_rgb(np.where(bits, 255, 0)))


def test_colour_modes_give_the_colours_that_were_put_in() -> None:
    image = Image.fromarray(COLOUR)
    forms = {
        "palette": saved(image.quantize(64), "PNG"),
        "GIF": saved(image.quantize(64), "GIF"),
        "CMYK TIFF": saved(image.convert("CMYK"), "TIFF"),
        "opaque": saved(image.convert("RGBA"), "PNG"),
        "BMP": saved(image, "BMP"),
        "16-bit colour": b"P6 %d %d 65535\n" % (WIDTH, HEIGHT)
        + (COLOUR.astype(">u2") * 257).astype(">u2").tobytes(),
    }
    for name, data in forms.items():
        np.testing.assert_array_equal(seen(data), COLOUR, err_msg=name)
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    data = saved(flat.convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_allclose(seen(data), np.asarray(flat), atol=3)


def test_transparent_parts_are_white() -> None:
    alpha = np.where(GREY < 100, 0, 128).astype(np.uint8)
    share = alpha[..., None] / 255.0
    expected = share * COLOUR + (1 - share) * 255
    for form in ("PNG", "TIFF"):
        rgba = np.dstack([COLOUR, alpha])
        np.testing.assert_allclose(seen(saved(Image.fromarray(rgba), form)), expected, atol=1)
    grey = Image.fromarray(np.dstack([GREY, alpha]))
    assert grey.mode == "LA"
    np.testing.assert_allclose(
        seen(saved(grey, "PNG")), share * grey_rgb(GREY) + (1 - share) * 255, atol=1
    )
    palette = Image.fromarray(np.where(GREY < 100, 3, 4).astype(np.uint8))
    palette.putpalette([0] * 9 + [10, 20, 30] + [200, 100, 0])
    data = saved(palette, "PNG", transparency=3)
    white_or = np.where(GREY[..., None] < 100, 255, [200, 100, 0])
    np.testing.assert_array_equal(seen(data), white_or)
    key = saved(Image.fromarray(COLOUR), "PNG", transparency=tuple(COLOUR[0, 0].tolist()))
    assert seen(key)[0, 0].tolist() == [255, 255, 255]


PRIMARIES = np.array(  # of sRGB, adapted to D50 as profiles state them (IEC 61966-2-1, ICC.1)
    [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]]
)


def icc_profile(space: bytes, gamma: float, primaries: np.ndarray = PRIMARIES) -> bytes:
    """A display profile of ICC version 2: a power law and, for RGB, a matrix (ICC.1:2001-04)."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(fixed(v) for v in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78 + 1)
    white = xyz(np.array([0.9642, 1.0, 0.8249]))
    tags = {b"desc": text, b"wtpt": white, b"cprt": b"text" + bytes(4) + b"none\0" + bytes(3)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags |= {name + b"XYZ": xyz(primary), name + b"TRC": curve}
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I", at + len(body)) + bytes(4) + struct.pack(">I", 0x02100000)
    head += b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += b"".join(fixed(v) for v in (0.9642, 1.0, 0.8249))
    return head.ljust(128, b"\0") + table + body


def srgb_of_linear(light: np.ndarray) -> np.ndarray:
    """Encoded levels 0..255 of linear light 0..1: IEC 61966-2-1."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_a_colour_profile_is_applied(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    linear = saved(Image.fromarray(COLOUR), form, icc_profile=icc_profile(b"RGB ", 1.0), **options)
    np.testing.assert_allclose(seen(linear), srgb_of_linear(COLOUR / 255.0), atol=2)


def test_swapped_primaries_are_swapped_and_grey_has_profiles_too() -> None:
    profile = icc_profile(b"RGB ", 2.2, PRIMARIES[[1, 0, 2]])  # its red is sRGB's green
    data = saved(Image.new("RGB", (4, 4), (255, 0, 0)), "PNG", icc_profile=profile)
    np.testing.assert_allclose(seen(data)[0, 0], [0, 255, 0], atol=2)
    for levels in (GREY, GREY.astype(np.uint16) * 257):
        data = saved(Image.fromarray(levels), "PNG", icc_profile=icc_profile(b"GRAY", 1.0))
        np.testing.assert_allclose(seen(data), grey_rgb(srgb_of_linear(GREY / 255.0)), atol=4)


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile at all",
        icc_profile(b"GRAY", 1.0)[:200],
        icc_profile(b"CMYK", 1.0),
        icc_profile(b"GRAY", 1.0),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ],
)
def test_a_damaged_or_foreign_profile_and_srgb_change_nothing(profile: bytes) -> None:
    data = saved(Image.fromarray(COLOUR), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(seen(data), COLOUR)


def test_the_content_decides_and_not_the_ending(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(saved(Image.fromarray(COLOUR), "PNG"))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.jpg")), COLOUR)


def test_the_first_picture_of_a_multi_picture_jpeg_counts() -> None:
    first, other = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16))
    data = saved(first, "MPO", save_all=True, append_images=[other])
    assert seen(data)[0, 0, 0] > 190


def many(form: str) -> bytes:
    other = Image.new("RGB", (WIDTH, HEIGHT), (9, 9, 9))
    return saved(Image.fromarray(COLOUR), form, save_all=True, append_images=[other])


def cmyk_without_marker() -> bytes:
    data = saved(Image.new("CMYK", (16, 16)), "JPEG")
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "0 bytes"),
    "text": (b"nothing of an image", "no image format"),
    "another format": (b"SIMPLE  =                    T" + bytes(90), "no image format"),
    "animated GIF": (many("GIF"), "2 images"),
    "animated PNG": (many("PNG"), "2 images"),
    "animated WebP": (many("WEBP"), "2 images"),
    "two pages": (many("TIFF"), "2 images"),
    "float TIFF": (saved(Image.new("F", (4, 4)), "TIFF"), "floating point"),
    "32-bit TIFF": (saved(Image.new("I", (4, 4)), "TIFF"), "32-bit"),
    "float PFM": (b"Pf\n1 1\n-1.0\n" + bytes(4), "floating point"),
    "all transparent": (saved(Image.new("RGBA", (4, 4)), "PNG"), "transparent"),
    "CMYK without its marker": (cmyk_without_marker(), "Adobe"),
    "no pixels": (b"P6 0 3 255\n", "decoded"),
    "a little too large": (b"P5 8000 %d 255\n" % (MAX_PIXELS // 8000 + 1), "pixels"),
    "a bomb that Pillow warns of": (b"P5 10000 10000 255\n", "Bomb"),
    "a bomb": (b"P5 90000 90000 255\n", "Bomb"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_can_see_is_refused_in_one_line(name: str) -> None:
    data, word = REFUSED[name]
    with pytest.raises(DataError, match=word) as caught:
        read_image(data, "front.png")
    assert str(caught.value).startswith("front.png: ")
    assert "\n" not in str(caught.value)


def test_an_image_in_memory_is_shown_by_the_same_rules() -> None:
    with pytest.raises(DataError, match="32-bit"):
        resize_rgb(Image.new("I", (48, 48), 30000), 48)
    bright = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert resize_rgb(bright, 4).max() == 128


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        read_image(tmp_path / "gone.png")


NOISE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
WHOLE: dict[str, bytes] = {
    "PNG": saved(Image.fromarray(NOISE), "PNG"),
    "JPEG": saved(Image.fromarray(NOISE), "JPEG"),
    "progressive JPEG": saved(Image.fromarray(NOISE), "JPEG", progressive=True),
    "WebP": saved(Image.fromarray(NOISE), "WEBP"),
    "BMP": saved(Image.fromarray(NOISE), "BMP"),
    "GIF": saved(Image.fromarray(NOISE), "GIF"),
    "TIFF": saved(Image.fromarray(NOISE), "TIFF"),
    "LZW TIFF": saved(Image.fromarray(NOISE), "TIFF", compression="tiff_lzw"),
    "PPM": saved(Image.fromarray(NOISE), "PPM"),
    "10-bit PGM": b"P5 24 20 1023\n" + (NOISE[..., 0].astype(">u2") * 4).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=40, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_the_whole_image_or_refused(name: str, share: float) -> None:
    data = WHOLE[name]
    try:
        image = read_image(data[: int(share * len(data))])
    except DataError:
        return
    np.testing.assert_array_equal(np.asarray(image), np.asarray(read_image(data)))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(WHOLE["PNG"]) - 1), st.integers(0, 7))
def test_a_flipped_bit_of_a_png_changes_nothing_or_is_refused(at: int, bit: int) -> None:
    data = bytearray(WHOLE["PNG"])
    data[at] ^= 1 << bit
    try:
        image = read_image(bytes(data))
    except DataError:
        return
    np.testing.assert_array_equal(np.asarray(image), NOISE)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=4)), max_size=4),
)
def test_an_edited_file_is_an_image_or_refused(name: str, edits: list[tuple[int, bytes]]) -> None:
    data = WHOLE[name]
    for at, insert in edits:
        data = data[:at] + insert + data[at + 2 :]
    try:
        image = read_image(data)
    except DataError:
        return
    assert image.mode == "RGB"
    assert min(image.size) > 0
