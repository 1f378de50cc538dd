"""GTSRB in its usual forms on disk: the official archives and the common CSV copy.

Official (unpacked archives, the folder ``GTSRB`` or the one that holds it)::

    GTSRB/Final_Training/Images/00000/00000_00000.ppm ... GT-00000.csv
    GTSRB/Final_Test/Images/00000.ppm ...   GT-final_test.csv

The training set of the online competition, which torchvision fetches (into ``gtsrb/``),
has the same form with fewer tracks, numbered on their own; it is read where there is no
``Final_Training``::

    GTSRB/Training/00000/00000_00000.ppm ... GT-00000.csv

CSV copy::

    Train.csv  Train/0/00000_00000_00000.png ...
    Test.csv   Test/00000.png ...

Both list, per image, its size, sign box, class and file. Rows come out in the same order
as from the packed form: by class, track and frame, or by number in the test set.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import numpy as np

from cnn.common.csv_table import read_csv_table
from cnn.common.errors import DataError
from cnn.data.image_file import IMAGE_SUFFIXES, decode_rgb
from cnn.data.image_set import ImageSet

_log = logging.getLogger(__name__)

Layout = Literal["packed", "official", "csv"]
Part = Literal["train", "test"]

N_CLASSES: Final = 43

_TRAIN_NAME: Final = re.compile(r"(?:(\d{5})_)?(\d{5})_(\d{5})\.\w+", re.ASCII)
"""``[class_]track_frame.ext``; the CSV copy puts the class first."""
_TEST_NAME: Final = re.compile(r"(\d{1,6})\.\w+", re.ASCII)
_TRAIN_DIR: Final = Path("Final_Training") / "Images"
_COMPETITION_DIR: Final = Path("Training")
_TEST_DIR: Final = Path("Final_Test") / "Images"
_OFFICIAL_DIRS: Final = (_TRAIN_DIR, _COMPETITION_DIR, _TEST_DIR)
_TEST_TRUTH: Final = "GT-final_test.csv"


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of an annotation file."""

    path: Path
    label: int
    track: int
    frame: int
    width_px: int
    height_px: int
    box_fits: bool

    def order(self) -> tuple[int, ...]:
        """Sorting key: class, track and frame; or the number in the test set."""
        return (self.label, self.track, self.frame) if self.track >= 0 else (self.frame,)


def detect_layout(root: Path) -> Layout:
    """The form of GTSRB in `root`.

    Raises:
        DataError: if it is none of the three; says what was found and what is expected.
    """
    if not root.is_dir():
        raise DataError(
            f"data folder {root} does not exist",
            expected="a folder with GTSRB",
            hint="give another path with --data",
        )
    if any((root / f"{part}.parquet").is_file() for part in ("train", "test")):
        return "packed"
    if any((base / d).is_dir() for base in _bases(root) for d in _OFFICIAL_DIRS):
        return "official"
    if any((base / f"{p}.csv").is_file() for base in _bases(root) for p in ("Train", "Test")):
        return "csv"
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in root.iterdir())
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise DataError(
        f"{root} holds {found or 'nothing'}",
        expected="train.parquet/test.parquet (packed), GTSRB/Final_Training and "
        "GTSRB/Final_Test (official), GTSRB/Training (torchvision), or Train.csv/Test.csv",
        hint="unpack the archives there, or run `sliproad cnn download --help`",
    )


def load_official(root: Path, part: Part, size: int, limit: int | None = None) -> ImageSet:
    """Read the unpacked official archives.

    Args:
        root: the folder ``GTSRB``, or the folder that holds it.
        part: training or test set.
        size: side of the resized square images, pixels.
        limit: read at most so many images, the first in order.

    Raises:
        DataError: if a folder, an annotation file, a column or an image is missing or bad.
    """
    rows, folder = _official_train(root) if part == "train" else _official_test(root)
    return _read(rows, folder, size, limit)


def load_csv_layout(root: Path, part: Part, size: int, limit: int | None = None) -> ImageSet:
    """Read the common copy with one ``Train.csv`` or ``Test.csv``.

    Arguments and errors are those of `load_official`; `root` holds the CSV files.
    """
    name = "Train" if part == "train" else "Test"
    base = next((b for b in _bases(root) if (b / f"{name}.csv").is_file()), root)
    rows = [
        _row(base / line["Path"], line, part, where)
        for where, line in _lines(base / f"{name}.csv", "Path")
    ]
    return _read(rows, base / name, size, limit)


def has_official_tracks(root: Path) -> bool:
    """Whether the training tracks in `root` are those that the committed split numbers.

    Those of the online competition are fewer, and numbered on their own.
    """
    official = any((base / _TRAIN_DIR).is_dir() for base in _bases(root))
    return detect_layout(root) != "official" or official


def _bases(root: Path) -> tuple[Path, ...]:
    """Possible places of the archives' folders; torchvision puts its own ``gtsrb`` around them."""
    return root, root / "GTSRB", root / "gtsrb", root / "gtsrb" / "GTSRB"


def _official_train(root: Path) -> tuple[list[_Row], Path]:
    wanted = (_TRAIN_DIR, _COMPETITION_DIR)
    folder = _existing(root, wanted, "GTSRB_Final_Training_Images.zip")
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit())
    if not classes:
        raise DataError(
            f"no class folders in {folder}",
            expected="00000 to 00042",
            hint="unpack GTSRB_Final_Training_Images.zip again",
        )
    rows = [
        _row(c / line["Filename"], line, "train", where)
        for c in classes
        for where, line in _lines(c / f"GT-{c.name}.csv", "Filename")
    ]
    return rows, folder


def _official_test(root: Path) -> tuple[list[_Row], Path]:
    folder = _existing(root, (_TEST_DIR,), "GTSRB_Final_Test_Images.zip")
    # GTSRB_Final_Test_GT.zip has no folder, so its file ends up wherever it was unpacked.
    # The file GT-final_test.test.csv that comes with the images has no classes.
    places = [folder, folder.parent, folder.parent.parent, folder.parent.parent.parent, root]
    truth = next((p / _TEST_TRUTH for p in places if (p / _TEST_TRUTH).is_file()), None)
    if truth is None:
        raise DataError(
            f"no {_TEST_TRUTH} in {root}",
            expected="the test set's classes",
            hint=f"unpack GTSRB_Final_Test_GT.zip in {root}",
        )
    lines = _lines(truth, "Filename")
    return [_row(folder / line["Filename"], line, "test", where) for where, line in lines], folder


def _existing(root: Path, inside: tuple[Path, ...], archive: str) -> Path:
    for folder in (base / d for d in inside for base in _bases(root)):
        if folder.is_dir():
            return folder
    raise DataError(
        f"no {' or '.join(str(d) for d in inside)} in {root}",
        expected="the unpacked official archives",
        hint=f"unpack {archive} in {root}, or run `sliproad cnn download`",
    )


def _lines(path: Path, name_column: str) -> list[tuple[str, dict[str, str]]]:
    """Rows of an annotation file, each with the place that an error names."""
    needed = (name_column, "Width", "Height", "ClassId")
    table = read_csv_table(path, needed=needed, wanted=("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2"))
    rows = zip(*(table.texts(column) for column in table.cells), strict=True)
    return [
        (f"{path}, line {line}", dict(zip(table.cells, cells, strict=True)))
        for line, cells in zip(table.lines(), rows, strict=True)
    ]


def _row(path: Path, line: dict[str, str], part: Part, where: str) -> _Row:
    try:
        label = int(line["ClassId"])
        width, height = int(line["Width"]), int(line["Height"])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: {error}", expected="whole numbers", hint="take the file unchanged"
        ) from error
    if not 0 <= label < N_CLASSES or not (0 < width < 2**15 and 0 < height < 2**15):
        raise DataError(
            f"{where}: class {label}, {width} x {height} pixels",
            expected="a class 0..42 and a positive size",
            hint="take the file unchanged",
        )
    pattern = _TRAIN_NAME if part == "train" else _TEST_NAME
    match = pattern.fullmatch(path.name)
    if match is None:
        raise DataError(
            f"{where}: file name {path.name}",
            expected="track_frame, five digits each" if part == "train" else "the image's number",
            hint="keep the official file names: track and frame are read from them",
        )
    if part == "test":
        return _Row(path, label, -1, int(match[1]), width, height, _sign_box_fits(line))
    stated = {path.parent.name, match[1]} if path.parent.name.isdecimal() else {match[1]}
    disagree = [text for text in stated if text is not None and int(text) != label]
    if disagree:
        raise DataError(
            f"{where}: class {label}, but {path.parent.name}/{path.name}",
            expected="the same class in the annotation file and in the image's path",
            hint="take both unchanged from one copy",
        )
    track, frame = int(match[2]), int(match[3])
    return _Row(path, label, track, frame, width, height, _sign_box_fits(line))


def _read(rows: list[_Row], folder: Path, size: int, limit: int | None) -> ImageSet:
    kept = sorted(rows, key=_Row.order)
    _check_rows(kept, folder)
    kept = kept[:limit]
    images = np.empty((len(kept), size, size, 3), np.uint8)
    for i, row in enumerate(kept):
        try:
            data = row.path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{row.path}: {error.strerror or error}",
                expected="every image that the annotation file lists",
                hint="unpack or copy the images again",
            ) from error
        images[i] = decode_rgb(data, size, name=str(row.path))
    return ImageSet.of(
        images,
        label=[r.label for r in kept],
        track=[r.track for r in kept],
        frame=[r.frame if r.track >= 0 else -1 for r in kept],
        width_px=[r.width_px for r in kept],
        height_px=[r.height_px for r in kept],
        what=str(folder),
    )


def _sign_box_fits(line: Mapping[str, str]) -> bool:
    """Whether the sign box (``Roi``) of an annotation lies in its image; True without one.

    The network gets the whole crop, so a wrong box does no harm and is only counted; but a file
    with wrong boxes may have other wrong numbers.
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


def _check_rows(rows: Sequence[_Row], folder: Path) -> None:
    """Refuse duplicate frames; log rows that are left out or look wrong.

    Args:
        rows: every annotation, in order.
        folder: holds the images, at any depth.

    Raises:
        DataError: if two rows are the same frame.
    """
    for row, other in pairwise(rows):
        if row.order() == other.order():
            raise DataError(
                f"{row.path} and {other.path}: the same frame twice",
                expected="each class, track and frame, or number, once",
                hint="remove the second line",
            )
    wrong = sum(not row.box_fits for row in rows)
    if wrong:
        _log.warning("%s: %d of %d sign boxes (Roi) leave their image", folder, wrong, len(rows))
    listed = {row.path for row in rows}
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
