"""The one reader of image files: it gives an image as a person sees it, or refuses it.

`resize_rgb` and `decode_rgb` make the network's input from it, in training and on the device.

Everything that reads an encoded image (training data, folders of frames, Parquet) comes
through `read_image`. Its rules are in docs/data.md, "Images". The network's own payloads
have a narrower reader, `cnn.frame_codec`.
"""

from __future__ import annotations

import io
import struct
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from cnn.common.errors import DataError

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

IMAGE_SUFFIXES: Final = frozenset(
    {".ppm", ".pgm", ".pbm", ".pnm", ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp"}
    | {".bmp", ".gif", ".tif", ".tiff"}
)
"""Endings of files that `read_image` reads, in lower case. The content decides, not the ending."""
UNREAD_SUFFIXES: Final = frozenset(
    {".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".svg", ".exr"}
    | {".hdr", ".pfm", ".ico", ".tga", ".qoi", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw"}
    | {".orf", ".rw2", ".raf", ".apng", ".jps", ".pcx", ".dds", ".fits"}
)
"""Endings of images that viewers show and this reader cannot read: refused, never skipped."""
IMAGE_FORMATS: Final = "a PPM, PNG, JPEG, WebP, BMP, GIF or TIFF image"
MAX_PIXELS: Final = 64_000_000
"""Largest image, width x height: a phone's 48 megapixels fit, a decompression bomb does not."""

_FORMATS: Final = ("PPM", "PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_SPACES: Final = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space in a profile's header (ICC.1:2022, 7.2.6) -> Pillow's mode."""
_WHITE: Final = (255, 255, 255, 255)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""TIFF 6.0, section 8: tags, and a value of PhotometricInterpretation."""
_DAMAGE: Final = (
    OSError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    ZeroDivisionError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""Errors of Pillow's decoders for damaged or hostile files."""


def read_image(source: bytes | Path, name: str | None = None) -> Image.Image:
    """An encoded image as a person sees it.

    Upright (its orientation tag applied, so width and height are those that a person
    sees), 8 bits a channel, sRGB (its colour profile applied), transparent parts on white.

    Args:
        source: the file, or its content.
        name: its name in errors; None takes the path, or ``image``.

    Returns:
        A loaded image of mode RGB and at least 1 x 1 pixels.

    Raises:
        DataError: if it cannot be read, is damaged, has more than one frame or more than
            `MAX_PIXELS`, or holds numbers that do not say how bright they are.
    """
    if name is None:
        name = str(source) if isinstance(source, Path) else "image"
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise DataError(
            f"{name}: {error.strerror or error}",
            expected="a readable image file",
            hint="check the path and its permissions",
        ) from error
    try:
        image = _upright(data, name)
        profile = image.info.get("icc_profile")
        is_grey = image.mode[0] in "1LI"
        if image.mode == "CMYK":
            _check_inks(image, name)
            image, profile = to_srgb(image, profile, is_grey), None
        return to_srgb(to_rgb(image, name), profile, is_grey)
    except _DAMAGE as error:
        why = str(error) if isinstance(error, OSError) and str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            why = "no image format that is read here"
        raise DataError(
            f"{name}: {len(data)} bytes that cannot be decoded ({why})",
            expected=IMAGE_FORMATS,
            hint="remove or replace the file",
        ) from error


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """The colours of a decoded image as 8-bit RGB, as a person sees them.

    Args:
        image: of any mode.
        name: its name in errors.

    Raises:
        DataError: if its mode does not say how bright its numbers are, or all of it is
            transparent.
    """
    mode = image.mode
    if mode == "RGB" and not image.has_transparency_data:
        return image
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        return _from_16_bit(image, name)
    if mode in ("I", "F"):
        raise _refused(
            f"{name}: pixels of {'32-bit integers' if mode == 'I' else 'floating point numbers'}",
            "8 or 16 bits a channel: these numbers do not say which of them is white",
            "convert it to an 8-bit or 16-bit image",
        )
    if image.has_transparency_data:
        return _on_white(image, name)
    return image.convert("RGB")


def _upright(data: bytes, name: str) -> Image.Image:
    """Decoded and rotated by its orientation tag; refused if it has more than one frame."""
    with warnings.catch_warnings():
        # A wrong orientation tag or a malformed container is refused below, or harmless.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if not 0 < width * height <= MAX_PIXELS:
                raise _refused(
                    f"{name}: {width} x {height} pixels",
                    f"at least one and at most {MAX_PIXELS / 1e6:g} million",
                    "scale it down",
                )
            # A multi-picture JPEG (MPO) shows its first picture; the others are previews
            # or the second eye of a stereo camera.
            n_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if n_frames != 1:
                raise _refused(
                    f"{name}: {n_frames} images in one file",
                    "one: an animation or a stack of pages is no camera frame",
                    "save its images as files of their own",
                )
            form = image.format
            if form == "PNG":
                _check_sums(data)
            tags = dict(image.tag_v2) if isinstance(image, TiffImageFile) else {}
            # TIFF's own orientation is applied by its decoder, the others' is in EXIF or XMP.
            upright = ImageOps.exif_transpose(image)
    upright.format = form
    return _white_is_bright(upright, tags, name) if upright.mode.startswith("I;16") else upright


def _check_inks(image: Image.Image, name: str) -> None:
    if image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        raise _refused(
            f"{name}: a CMYK JPEG without an Adobe marker",
            "one that says how its inks are stored: without it every reader guesses",
            "convert it to RGB",
        )


def _check_sums(data: bytes) -> None:
    """Raise if a chunk of a PNG does not have its CRC: decoding alone lets some damage pass."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _white_is_bright(image: Image.Image, tags: dict[int, object], name: str) -> Image.Image:
    """16-bit grey as the full range from black to white; a TIFF may store it otherwise."""
    if "transparency" in image.info:
        raise _refused(
            f"{name}: 16-bit grey with a transparent colour", "no transparency", "flatten it"
        )
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    n_bits = int(bits[0]) if isinstance(bits, tuple) else 16
    inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if n_bits == 16 and not inverted:
        return image
    top = 2**n_bits - 1
    grey = np.asarray(image).astype(np.uint32)
    grey = np.minimum(grey, top) * 65535 // top
    return Image.fromarray((65535 - grey if inverted else grey).astype(np.uint16))


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """0..65535 -> 0..255 (Pillow's own conversion clips at 255: a white image)."""
    grey = np.asarray(image).astype(np.float64) / 257.0
    if not (grey.min() >= 0 and grey.max() <= 255):
        raise _refused(f"{name}: grey levels outside 0..65535", "16-bit grey", "convert it")
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image, name: str) -> Image.Image:
    """Transparent parts on a white page, as a browser shows them."""
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        raise _refused(
            f"{name}: 16 bits a channel with a transparent colour", "no transparency", "flatten it"
        )
    rgba = image.convert("RGBA")
    lowest, highest = rgba.getchannel("A").getextrema()
    if highest == 0:
        raise _refused(
            f"{name}: every pixel is transparent", "an image with something to see", "flatten it"
        )
    if lowest == 255:
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")


def _refused(given: str, expected: str, hint: str) -> DataError:
    return DataError(given, expected=expected, hint=hint)


def to_srgb(image: Image.Image, profile: bytes | None, is_grey: bool) -> Image.Image:
    """The image with its colour profile (ICC) applied: its numbers become those of sRGB.

    Phones write Display P3, cameras Adobe RGB, where the same numbers mean other colours. A viewer
    shows the right colours; the network was trained on sRGB.

    Args:
        image: of mode RGB or CMYK.
        profile: as embedded; None is sRGB. One that is damaged, or made for other numbers
            than the image has, is ignored, as viewers do.
        is_grey: the file holds grey levels, which are RGB with three equal channels here.

    Returns:
        Mode RGB; the image itself where there is nothing to apply.
    """
    transform = _transform(profile) if profile else None
    if transform is None:
        return image
    wanted = transform.input_mode
    if wanted == "L" and is_grey:
        return transform.apply(image.getchannel(0))
    return transform.apply(image) if wanted == image.mode else image


@lru_cache(16)
def _transform(profile: bytes) -> ImageCmsTransform | None:
    """From the profile to sRGB; None if it is sRGB, damaged, or of another colour space."""
    from PIL import ImageCms  # most images have no profile, and a device starts without it

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space)
        is_srgb = "sRGB" in ImageCms.getProfileDescription(source)
        if mode is None or is_srgb:
            return None
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, srgb, mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def resize_rgb(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Crop -> uint8 (size, size, 3), RGB, bilinear with area support when shrinking.

    Raises:
        DataError: if the image has no colours that can be shown (`cnn.data.image_file.to_rgb`).
    """
    image = to_rgb(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def decode_rgb(data: bytes, size: int, *, name: str = "image") -> NDArray[np.uint8]:
    """Encoded image -> uint8 (size, size, 3), upright, as `read_image` has it.

    Raises:
        DataError: if the bytes are not an image that it reads.
    """
    return resize_rgb(read_image(data, name), size)
