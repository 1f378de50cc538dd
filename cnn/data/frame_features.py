"""Cheap features of a camera frame, known before any convolution runs.

The frame table (training) and the device (live) both call `frame_features`, so a policy
sees the same six numbers in both.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError

LUMA_WEIGHTS: Final = (0.299, 0.587, 0.114)
"""Weights of R, G, B in luma: ITU-R BT.601."""
_LUMA_PER_LEVEL: Final = np.array(LUMA_WEIGHTS, np.float32) / np.float32(255)


def luma(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """RGB uint8 (H, W, 3) -> luma float32 (H, W) in [0, 1]."""
    # A matrix product of uint8 with float32 would take numpy's slow path.
    out: NDArray[np.float32] = image.astype(np.float32) @ _LUMA_PER_LEVEL
    return out


def frame_features(
    image: NDArray[np.uint8], width_px: int, height_px: int, frame_in_track: int
) -> NDArray[np.float32]:
    """The features of one frame in the order of `cnn.frame_table.FEATURES`.

    Every frame pays for them before anything is decided, so they look at every second row
    and column only, and few array operations do (9 us instead of 31 at 48 x 48, measured).

    Args:
        image: the network's input, uint8 (H, W, 3), at least 3 x 3 pixels.
        width_px: width of the original crop, pixels.
        height_px: height of the original crop, pixels.
        frame_in_track: number of frames of this track already seen.

    Returns:
        float32 (6,): brightness (mean of luma, 0..1), contrast (standard deviation of
        luma), sharpness (root mean square of the differences between horizontal and
        vertical neighbours), width_px, height_px, frame_in_track; the first three over
        every second row and column.

    Raises:
        DataError: if `image` is not a colour image of at least 3 x 3 pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 3:
        raise DataError(
            f"frame of shape {image.shape}",
            expected="uint8 (height, width, 3), at least 3 x 3 pixels",
            hint="resize the frame with `cnn.data.preprocess.resize_rgb`",
        )
    y = luma(image[::2, ::2])
    flat = y.ravel()
    brightness = float(flat.sum()) / flat.size
    variance = float(flat.dot(flat)) / flat.size - brightness * brightness
    across, down = (y[:, 1:] - y[:, :-1]).ravel(), flat[y.shape[1] :] - flat[: -y.shape[1]]
    steps = float(across.dot(across)) + float(down.dot(down))
    sharpness = math.sqrt(steps / (across.size + down.size))
    contrast = math.sqrt(max(0.0, variance))  # rounding can take it below 0
    return np.array(
        (brightness, contrast, sharpness, width_px, height_px, frame_in_track), np.float32
    )
