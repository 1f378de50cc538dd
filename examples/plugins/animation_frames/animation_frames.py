"""An animated GIF, WebP or PNG, or a TIFF of several pages, as a frame source of sliproad.

sliproad testbed device --frames animation:film.gif --local-only ...
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from testbed import CameraFrame


def frames(
    setting: str, size: int, seed: int, class_names: tuple[str, ...]
) -> Iterator[CameraFrame]:
    """The images of the file `setting` in their order, one track without labels."""
    name = Path(setting).name
    with Image.open(setting) as film:
        for number, page in enumerate(ImageSequence.Iterator(film)):
            image = page.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            yield CameraFrame(
                image=np.array(image),
                label=None,
                track=0,
                frame_in_track=number,
                width_px=film.width,
                height_px=film.height,
                name=f"{name}#{number}",
            )
