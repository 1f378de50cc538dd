"""Frames survive their codecs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cnn.errors import ConfigError, DataError
from cnn.frame_codec import decode_frame, encode_frame


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, (16, 16, 3), elements=st.integers(0, 255)))
def test_lossless_codecs_are_exact(frame: np.ndarray) -> None:
    for codec in ("raw", "webp-lossless"):
        np.testing.assert_array_equal(decode_frame(encode_frame(frame, codec), codec, 16), frame)


def test_jpeg_is_close_and_small() -> None:
    y, x = np.mgrid[:48, :48]
    frame = np.stack([4 * x, 4 * y, 2 * (x + y)], 2).astype(np.uint8)
    data = encode_frame(frame, "jpeg")
    assert len(data) < frame.size / 3
    assert np.abs(decode_frame(data, "jpeg", 48).astype(int) - frame).mean() < 4


def test_damaged_or_unknown_is_refused() -> None:
    with pytest.raises(DataError, match="expected 768 bytes"):
        decode_frame(b"short", "raw", 16)
    with pytest.raises(DataError, match="received frame"):
        decode_frame(b"no image", "jpeg", 16)
    with pytest.raises(ConfigError, match="frame codec"):
        encode_frame(np.zeros((4, 4, 3), np.uint8), "gif")  # type: ignore[arg-type]
