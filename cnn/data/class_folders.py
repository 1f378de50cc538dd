"""A folder with one subfolder a class, as an image set.

::

    cat/1.jpg ...  dog/7.png ...            the set is split here
    train/cat/1.jpg ...  test/cat/9.jpg ... or it comes in parts (also val or validation)

An image directly in its class's folder stands alone; a folder within it (``cat/drive-3/``) is a
track. Class names are sorted by their characters, as most tools do (``10`` before ``2``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cnn.data.found_images import GIVEN, FoundImages, Given, files_reader
from cnn.data.image_folder import class_folder_names, class_tracks


def find_class_folders(folder: Path) -> FoundImages:
    """The images below `folder`.

    Raises:
        DataError: if a class has no image, or a folder cannot be listed.
    """
    inside = class_folder_names(folder)
    in_parts = bool(inside) and all(name.lower() in GIVEN for name in inside)
    roots: list[tuple[Given, Path]] = [("", folder)]
    if in_parts:
        roots = [(GIVEN[name.lower()], folder / name) for name in inside]
    label: list[str] = []
    track: list[str] = []
    frame: list[int] = []
    given: list[Given] = []
    paths: list[Path] = []
    for part, root in roots:
        for name, images in class_tracks(root):
            place = images[0].parent.relative_to(root)
            alone = place.parts == (name,)
            paths += images
            label += [name] * len(images)
            track += ["" if alone else place.as_posix()] * len(images)
            frame += range(len(images))
            given += [part] * len(images)

    def name_of(number: int) -> str:
        return str(paths[number])

    return FoundImages(
        path=folder,
        label=label,
        class_names=(),
        track=track,
        frame=np.array(frame, np.int64),
        given=given,
        read=files_reader(paths, name_of),
        name=name_of,
    )
