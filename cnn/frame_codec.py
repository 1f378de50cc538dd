"""Codecs of the frame itself on the uplink at split 0: raw, lossless WebP or JPEG.

Raw is the default: it costs no compute and is exact. `benchmarks/payload_codecs.py` measures the
savings and costs of the others.

Received data are untrusted. Before one of Pillow's decoders gets them, `image_size` checks the
header: it accepts only a single lossless WebP or a baseline colour JPEG of exactly the expected
size, so a few bytes cannot decode into an image of another size.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cnn.common.errors import ConfigError, DataError

FrameCodec = Literal["raw", "webp", "jpeg"]
FRAME_CODECS: Final[tuple[FrameCodec, ...]] = get_args(FrameCodec)
JPEG_QUALITY: Final = 90

_SOI, _SOF0, _SOS = 0xD8, 0xC0, 0xDA
_JPEG_SEGMENTS: Final = frozenset({0xE0, 0xDB, 0xC4, _SOF0, 0xDD})
"""Markers before the scan: APP0 (JFIF), DQT, DHT, SOF0 (baseline) and DRI."""


@dataclass(frozen=True, slots=True)
class FrameEncoding:
    """A codec and its setting.

    Attributes:
        codec: ``raw``, ``webp`` (lossless) or ``jpeg``.
        quality: of JPEG, 1..95; no meaning for the others.
    """

    codec: FrameCodec = "raw"
    quality: int = JPEG_QUALITY

    def __post_init__(self) -> None:
        if self.codec not in FRAME_CODECS or not 1 <= self.quality <= 95:
            raise _unknown(f"{self.codec}:{self.quality}")

    @classmethod
    def parse(cls, text: str) -> FrameEncoding:
        """``raw``, ``webp``, ``jpeg`` or ``jpeg:QUALITY``; `ConfigError` otherwise."""
        for codec in FRAME_CODECS:
            if text == codec:
                return cls(codec)
        kind, _, quality = text.partition(":")
        if kind != "jpeg" or not (quality.isascii() and quality.isdigit()) or len(quality) > 2:
            raise _unknown(text)
        return cls("jpeg", int(quality))

    def __str__(self) -> str:
        return f"jpeg:{self.quality}" if self.codec == "jpeg" else self.codec

    def encode(self, frame: NDArray[np.uint8]) -> bytes:
        """uint8 (H, W, 3) -> bytes for the uplink."""
        if self.codec == "raw":
            return frame.tobytes()
        buffer = io.BytesIO()
        image = Image.fromarray(frame)
        if self.codec == "webp":
            image.save(buffer, "WEBP", lossless=True, quality=0, method=0)
        else:
            image.save(buffer, "JPEG", quality=self.quality, subsampling=0)
        return buffer.getvalue()


def decode_frame(data: bytes, codec: FrameCodec, size: int) -> NDArray[np.uint8]:
    """Inverse of `FrameEncoding.encode`.

    Args:
        data: received bytes; if encoded, at most as long as the raw frame.
        codec: its encoding, as stated by the sender.
        size: side of the frame, pixels.

    Returns:
        uint8 (size, size, 3), RGB; a view of `data` if raw.

    Raises:
        DataError: if `data` is not such a frame of exactly this size.
    """
    raw_bytes = 3 * size * size
    if codec == "raw":
        if len(data) != raw_bytes:
            raise _no_frame(f"raw frame of {len(data)} bytes", f"{raw_bytes} bytes")
        return np.frombuffer(data, np.uint8).reshape(size, size, 3)
    if len(data) > raw_bytes:
        raise _no_frame(f"{codec} frame of {len(data)} bytes", f"at most the raw {raw_bytes}")
    found = image_size(data, codec)
    if found != (size, size):
        what = "no usable header" if found is None else f"{found[0]} x {found[1]} pixels"
        raise _no_frame(
            f"{codec} frame of {what}", f"{_FORMS[codec]} of {size} x {size} pixels, RGB"
        )
    try:
        with (WebPImageFile if codec == "webp" else JpegImageFile)(io.BytesIO(data)) as image:
            if image.mode != "RGB" or image.size != (size, size):
                raise ValueError(f"mode {image.mode}, size {image.size}")
            return np.array(image, np.uint8)
    except Exception as error:  # a damaged image may raise any error
        raise _no_frame(
            f"{codec} frame that cannot be decoded ({type(error).__name__})", _FORMS[codec]
        ) from error


_FORMS: Final[dict[str, str]] = {"webp": "one lossless WebP image", "jpeg": "a baseline JPEG"}


def image_size(data: bytes, codec: FrameCodec) -> tuple[int, int] | None:
    """Width and height that the header states, pixels; None if it is not of the plain form."""
    return _webp_size(data) if codec == "webp" else _jpeg_size(data)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """A RIFF container with one VP8L chunk and nothing else.

    https://developers.google.com/speed/webp/docs/riff_container and
    https://developers.google.com/speed/webp/docs/webp_lossless_bitstream_specification.
    """
    if len(data) < 25 or data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or data[20] != 0x2F:
        return None
    riff_bytes = int.from_bytes(data[4:8], "little")
    chunk_bytes = int.from_bytes(data[16:20], "little")
    if riff_bytes != len(data) - 8 or chunk_bytes + chunk_bytes % 2 != len(data) - 20:
        return None
    bits = int.from_bytes(data[21:25], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The one frame header among the segments before the first scan (ITU-T T.81, annex B)."""
    size = None
    at = 2
    if data[:2] != bytes((0xFF, _SOI)):
        return None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SOS:
            return size
        if marker not in _JPEG_SEGMENTS or length < 2 or at + 2 + length > len(data):
            return None
        if marker == _SOF0:
            body = data[at + 4 : at + 2 + length]
            if size is not None or len(body) != 15 or body[0] != 8 or body[5] != 3:
                return None  # a second one, or not three components of 8 bits
            size = int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")
        at += 2 + length
    return None


def _unknown(text: str) -> ConfigError:
    return ConfigError(
        f"frame encoding {text!r}", expected="raw, webp, jpeg or jpeg:1..95", hint="use raw"
    )


def _no_frame(given: str, expected: str) -> DataError:
    return DataError(given, expected=expected, hint="encode the bundle's input with `sliproad`")
