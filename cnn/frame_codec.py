"""How the frame itself may cross the uplink at split 0: raw, lossless or JPEG.

Raw is the default: it costs no compute and is exact. `benchmarks/payload_codecs.py`
measures what the others save and cost.
"""

from __future__ import annotations

import io
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnn.errors import ConfigError, DataError
from cnn.preprocess import decode_rgb

FrameCodec = Literal["raw", "webp-lossless", "jpeg"]
FRAME_CODECS: Final[tuple[FrameCodec, ...]] = ("raw", "webp-lossless", "jpeg")
JPEG_QUALITY: Final = 90


def encode_frame(frame: NDArray[np.uint8], codec: FrameCodec) -> bytes:
    """uint8 (H, W, 3) -> bytes for the uplink; `ConfigError` for an unknown codec."""
    if codec == "raw":
        return frame.tobytes()
    buffer = io.BytesIO()
    image = Image.fromarray(frame)
    if codec == "webp-lossless":
        image.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    elif codec == "jpeg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        raise ConfigError(
            f"frame codec {codec!r}", expected=" or ".join(FRAME_CODECS), mend="use raw"
        )
    return buffer.getvalue()


def decode_frame(data: bytes, codec: FrameCodec, size: int) -> NDArray[np.uint8]:
    """Inverse of `encode_frame`, uint8 (size, size, 3); `DataError` if `data` is no frame."""
    if codec != "raw":
        return decode_rgb(data, size, name="received frame")
    if len(data) != 3 * size * size:
        raise DataError(
            f"raw frame of {len(data)} bytes",
            expected=f"{3 * size * size} bytes",
            mend="send uint8 (H, W, 3) in the bundle's input size",
        )
    return np.frombuffer(data, np.uint8).reshape(size, size, 3)
