"""Embedded colour profiles (ICC): the numbers of an image become those of sRGB.

Phones write Display P3, cameras Adobe RGB: the same numbers mean other colours there. A
viewer shows the colours; the network was trained on sRGB.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

_SPACES: Final = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space in a profile's header (ICC.1:2022, 7.2.6) -> Pillow's mode."""


def to_srgb(image: Image.Image, profile: bytes | None, is_grey: bool) -> Image.Image:
    """The image with its profile applied.

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
