"""Cheap features of a camera frame, known before any convolution runs.

The frame table (training) and the device (live) both call `frame_features`, so a policy
sees the same six numbers in both.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.errors import DataError

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

    Args:
        image: the network's input, uint8 (H, W, 3), at least 3 x 3 pixels.
        width_px: width of the original crop, pixels.
        height_px: height of the original crop, pixels.
        frame_in_track: number of frames of this track already seen.

    Returns:
        float32 (6,): brightness (mean of luma, 0..1), contrast (standard deviation of
        luma), sharpness (standard deviation of luma's 4-neighbour Laplacian over the
        pixels that have four neighbours), width_px, height_px, frame_in_track.

    Raises:
        DataError: if `image` is not a colour image of at least 3 x 3 pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 3:
        raise DataError(
            f"frame of shape {image.shape}",
            expected="uint8 (height, width, 3), at least 3 x 3 pixels",
            mend="resize the frame with `cnn.preprocess.resize_rgb`",
        )
    y = luma(image)
    laplacian = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]
    return np.array(
        [y.mean(), y.std(), laplacian.std(), width_px, height_px, frame_in_track], np.float32
    )
