"""From a camera crop of any size to the network's input; shared by training and device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn.data.image_file import read_image, to_rgb


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
        DataError: if the bytes are no image that it reads.
    """
    return resize_rgb(read_image(data, name), size)
