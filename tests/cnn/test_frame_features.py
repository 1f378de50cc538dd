"""Frame features against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from cnn.common.errors import DataError
from cnn.frame_table import FEATURES, frame_features


def test_a_uniform_white_frame_is_bright_flat_and_blurred() -> None:
    image = np.full((48, 48, 3), 255, np.uint8)
    got = frame_features(image, 31, 62, 7)
    assert got.dtype == np.float32
    assert got.shape == (len(FEATURES),)
    np.testing.assert_allclose(got, [1, 0, 0, 31, 62, 7], atol=1e-5)


def test_they_are_the_moments_of_every_second_pixel() -> None:
    image = np.random.default_rng(3).integers(0, 256, (47, 52, 3), np.uint8)
    y = (image[::2, ::2] / 255.0) @ np.array([0.299, 0.587, 0.114])
    steps = np.concatenate([np.diff(y, axis=0).ravel(), np.diff(y, axis=1).ravel()])
    got = frame_features(image, 1, 1, 0)[:3]
    np.testing.assert_allclose(got, [y.mean(), y.std(), np.sqrt((steps**2).mean())], rtol=1e-4)


def test_a_ramp_has_the_slope_and_the_spread_of_a_uniform_law() -> None:
    ramp = np.repeat(np.arange(48, dtype=np.uint8)[None, :, None] * 5, 48, axis=0)
    image = np.repeat(ramp, 3, axis=2)
    brightness, contrast, sharpness = frame_features(image, 48, 48, 0)[:3]
    assert brightness == pytest.approx(23 * 5 / 255, rel=1e-5)
    assert contrast == pytest.approx(10 / 255 * np.sqrt((24**2 - 1) / 12), rel=1e-4)
    # Every horizontal step is two columns, no vertical one is any, half are horizontal.
    assert sharpness == pytest.approx(10 / 255 / np.sqrt(2), rel=1e-4)


def test_pure_green_weighs_by_bt601() -> None:
    image = np.zeros((5, 5, 3), np.uint8)
    image[..., 1] = 255
    assert frame_features(image, 5, 5, 0)[0] == pytest.approx(0.587, rel=1e-5)


@pytest.mark.parametrize("shape", [(48, 48), (48, 48, 1), (2, 48, 3)])
def test_no_image_is_a_clear_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected uint8"):
        frame_features(np.zeros(shape, np.uint8), 1, 1, 0)
