"""From a camera crop of any size to the network's input; shared by training and device."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn.errors import DataError


def resize_rgb(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Crop -> uint8 (size, size, 3), RGB, bilinear with area support when shrinking."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def decode_rgb(data: bytes, size: int, *, name: str = "image") -> NDArray[np.uint8]:
    """Encoded image (PPM, PNG, JPEG, WebP) -> uint8 (size, size, 3).

    Raises:
        DataError: if the bytes are no image that Pillow can read.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return resize_rgb(image, size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name}: {len(data)} bytes that cannot be decoded ({error})",
            expected="a PPM, PNG, JPEG or WebP image",
            mend="remove or replace the file",
        ) from error
