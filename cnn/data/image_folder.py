"""A folder of images as tracks: natural order, every file read, refused, or counted.

Rules are in docs/data.md, "Images": a folder that holds images is one track, its
subfolders at any depth are others. Hidden files and files that are no images are skipped,
and one line says how many. A folder with one subfolder a class is labelled (`class_tracks`).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cnn.common.errors import DataError
from cnn.data.image_file import IMAGE_SUFFIXES, UNREAD_SUFFIXES

_log = logging.getLogger(__name__)
_DIGITS: Final = re.compile(r"([0-9]+)")
_NAMED: Final = 3
"""Number of skipped files that the line names; it counts the others."""


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sorting key that puts ``frame2`` before ``frame10``, whatever their case.

    Numbers compare as numbers, the text between them without case; equal ones (``1``
    and ``01``) by their characters.
    """
    parts = _DIGITS.split(name.casefold())
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name


def image_tracks(folder: Path, *, film: bool = True) -> list[list[Path]]:
    """The images of a folder and its subfolders, one list for each folder that holds any.

    Args:
        folder: its own images come first, then its subfolders', each in natural order.
            A folder or file that is reached a second time through a link is skipped.
        film: the images of a folder follow each other, so the same name twice, with different
            endings, is refused.

    Returns:
        At least one track of at least one path. Logs a warning that counts what was skipped.

    Raises:
        DataError: if the folder is missing or cannot be listed, holds no images, holds
            images of an unsupported format, or two of the same name with different endings.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", expected="a folder of images", hint="check the path")
    skipped: list[tuple[str, str]] = []
    try:
        groups = list(_folders(folder, set(), skipped))
        tracks = [track for group in groups if (track := _images(group, skipped, film))]
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: {error.strerror or error}",
            expected="a folder that can be listed",
            hint="check its permissions and links",
        ) from error
    if skipped:
        _log.warning("folder %s: %s", folder, _summary(skipped))
    if not tracks:
        raise DataError(
            f"folder {folder} without images",
            expected=f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}",
            hint="give another folder" if film else "put images into it, or remove it",
        )
    return tracks


def class_tracks(folder: Path) -> list[tuple[str, list[Path]]]:
    """The images of a folder with one subfolder a class, as (class name, paths of a track).

    An image directly in a class's folder stands alone: a track of one. A folder within it is one
    track. Images beside the classes' folders are left out, which a warning counts.

    Raises:
        DataError: as of `image_tracks`; or if a class has no image, or there is no class.
    """
    names = class_folder_names(folder)
    if not names:
        raise DataError(
            f"folder {folder} without subfolders",
            expected="one subfolder a class",
            hint="move the images into folders that are named as their classes",
        )
    stray = [p.name for p in _entries(folder) if p.suffix.lower() in IMAGE_SUFFIXES]
    if stray:
        _log.warning("folder %s: %s in no class's folder", folder, _counted(stray, "image"))
    tracks = []
    for name in names:
        for paths in image_tracks(folder / name, film=False):
            alone = paths[0].parent == folder / name
            tracks += [(name, [path]) for path in paths] if alone else [(name, paths)]
    return tracks


def class_folder_names(folder: Path) -> list[str]:
    """Names of the subfolders of `folder` that are not hidden, sorted by their characters.

    Raises:
        DataError: if it cannot be listed.
    """
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror or error}",
            expected="a folder that can be listed",
            hint="check the path and its permissions",
        ) from error


def _folders(
    folder: Path, seen: set[tuple[int, int]], skipped: list[tuple[str, str]]
) -> Iterator[Path]:
    """`folder` and the folders below it, each once, in natural order; links are followed."""
    identity = _identity(folder)
    if identity in seen:
        skipped.append(("seen before", f"{folder.name}/"))
        return
    seen.add(identity)
    yield folder
    for path in _entries(folder):
        if not path.is_dir():
            continue
        if path.name.startswith("."):
            skipped.append(("hidden", f"{path.name}/"))
        else:
            yield from _folders(path, seen, skipped)


def _images(folder: Path, skipped: list[tuple[str, str]], film: bool) -> list[Path]:
    """The images directly in `folder`, in natural order."""
    images = []
    for path in _entries(folder):
        suffix = path.suffix.lower()
        if path.is_dir():
            continue
        if path.name.startswith("."):
            skipped.append(("hidden", path.name))
        elif suffix in UNREAD_SUFFIXES:
            raise DataError(
                f"{path}: an image of a form that is not read",
                expected=f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}",
                hint="convert it, or move it out of the folder",
            )
        elif suffix in IMAGE_SUFFIXES and (path.is_file() or path.is_symlink()):
            images.append(path)  # a broken link is refused when it is read
        else:
            skipped.append(("no image", path.name))
    return _distinct(images, skipped, film)


def _distinct(images: list[Path], skipped: list[tuple[str, str]], film: bool) -> list[Path]:
    """The list without links to other images of it; of a film, two endings of one name are
    refused."""
    files = {_identity(path) for path in images if not path.is_symlink()}
    kept: list[Path] = []
    for path in images:
        if path.is_symlink() and path.exists():
            identity = _identity(path)
            if identity in files:
                skipped.append(("seen before", path.name))
                continue
            files.add(identity)
        kept.append(path)
    stems = Counter(path.stem for path in kept)
    for stem, n in stems.items():
        if film and n > 1:
            names = " and ".join(path.name for path in kept if path.stem == stem)
            raise DataError(
                f"{names} in {kept[0].parent}",
                expected="one file for each frame: the same name twice looks like one image "
                "in two forms",
                hint="move one of them out of the folder, or rename it",
            )
    return kept


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: natural_key(path.name))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _counted(names: list[str], noun: str) -> str:
    """``1 image (a.png)`` or ``5 images (a.png, b.png, c.png, ...)``."""
    more = ", ..." if len(names) > _NAMED else ""
    some = ", ".join(names[:_NAMED])
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} ({some}{more})"


def _summary(skipped: list[tuple[str, str]]) -> str:
    """``3 entries skipped: 2 hidden (.DS_Store, ._a.jpg), 1 no image (notes.txt)``."""
    kinds: dict[str, list[str]] = {}
    for why, name in skipped:
        kinds.setdefault(why, []).append(name)
    parts = []
    for why, names in sorted(kinds.items()):
        more = ", ..." if len(names) > _NAMED else ""
        parts.append(f"{len(names)} {why} ({', '.join(names[:_NAMED])}{more})")
    noun = "entry" if len(skipped) == 1 else "entries"
    return f"{len(skipped)} {noun} skipped: {', '.join(parts)}"
