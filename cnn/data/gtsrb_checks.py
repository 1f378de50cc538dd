"""What an annotation file and the folder it lies beside must agree about."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from cnn.common.errors import DataError
from cnn.data.image_file import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)


def sign_box_fits(line: Mapping[str, str]) -> bool:
    """Whether the sign box (``Roi``) of an annotation lies in its image; True without one.

    The network is shown the whole crop, so a wrong box is counted and spoils nothing; but
    a file with wrong boxes may have other wrong numbers.
    """
    if "Roi.X1" not in line:
        return True
    try:
        sides = ("X", int(line["Width"])), ("Y", int(line["Height"]))
        return all(
            0 <= int(line[f"Roi.{side}1"]) < int(line[f"Roi.{side}2"]) <= length
            for side, length in sides
        )
    except (KeyError, TypeError, ValueError):
        return False


def check_rows(rows: Sequence[tuple[tuple[int, ...], Path, bool]], folder: Path) -> None:
    """Refuse what would count twice; log what is left out or looks wrong.

    Args:
        rows: key (class, track and frame, or number), image and `sign_box_fits` of every
            annotation, sorted by key.
        folder: holds the images, at any depth.

    Raises:
        DataError: if two rows have the same key.
    """
    for (key, path, _), (other, other_path, _) in pairwise(rows):
        if key == other:
            raise DataError(
                f"{path} and {other_path}: the same frame twice",
                expected="each class, track and frame, or number, once",
                hint="remove the second line",
            )
    wrong = sum(not fits for _, _, fits in rows)
    if wrong:
        _log.warning("%s: %d of %d sign boxes (Roi) leave their image", folder, wrong, len(rows))
    listed = {path for _, path, _ in rows}
    unlisted = [path for path in _images(folder) if path not in listed]
    if unlisted:
        _log.warning(
            "%s: %d images that no annotation lists are not read, such as %s",
            folder,
            len(unlisted),
            unlisted[0].relative_to(folder),
        )


def _images(folder: Path) -> list[Path]:
    """Images below `folder`, hidden ones left out, sorted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
