"""Any set of labelled images, by its path: GTSRB, class folders, Parquet, or a table of paths.

`load_images` is the way in. The content tells which kind it is (docs/your-data.md); `list_images`
and `cnn.data.image_split` are its two steps for a user's own set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, DataError, shown
from cnn.data.class_folders import find_class_folders
from cnn.data.found_images import GIVEN, Given, ListedImages, listed
from cnn.data.gtsrb import load_gtsrb, load_tracks, split_part
from cnn.data.gtsrb_folders import detect_layout
from cnn.data.image_csv import find_csv
from cnn.data.image_file import IMAGE_SUFFIXES
from cnn.data.image_parquet import find_parquet
from cnn.data.image_set import PARTS, ImageSet
from cnn.data.image_split import AnyPart, same_split, split_images

if TYPE_CHECKING:
    from cnn.bundle import Bundle

KINDS: Final = (
    "a folder with one subfolder a class (or train/, val/, test/ with those in them); a folder "
    "of .parquet files, or one of them; a CSV with the columns path and label; or GTSRB in one "
    "of its layouts (docs/data.md)"
)
_PARQUET: Final = b"PAR1"
"""First bytes of a Parquet file."""
_SHARD: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.ASCII)
"""``NAME-00000-of-00002.parquet``: the first of two files of the part NAME."""


@dataclass(frozen=True, slots=True)
class LoadedImages:
    """The parts of a set that were asked for.

    Attributes:
        parts: images by the name of the part.
        source: the set in a word, such as ``GTSRB`` or the folder's name.
        class_names: by class; empty for GTSRB.
        split: what a bundle keeps of the split (`ImageSplit.to_json`); empty for GTSRB, whose split
            is a fixed one.
    """

    parts: Mapping[AnyPart, ImageSet]
    source: str
    class_names: tuple[str, ...]
    split: Mapping[str, Any]


def load_images(
    path: Path,
    size: int,
    part: AnyPart = "all",
    *,
    seed: int = 0,
    stored: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> ImageSet:
    """One part of a set of images; see `load_parts`."""
    return load_parts(path, size, (part,), seed=seed, stored=stored, limit=limit).parts[part]


def load_parts(
    path: Path,
    size: int,
    parts: Sequence[AnyPart],
    *,
    seed: int = 0,
    stored: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> LoadedImages:
    """Parts of a set of images, of any kind in `KINDS`.

    Args:
        path: the folder or file.
        size: side of the network's square input, pixels; every image is resized to it.
        parts: some of `cnn.data.image_split.ANY_PARTS`. GTSRB has no ``all``.
        seed: of the split, and of what `limit` leaves.
        stored: the split that a network was trained with, instead of `seed`'s: from its bundle.
        limit: at most so many images of each part, drawn by `seed`, tracks kept together; of GTSRB
            the first.

    Raises:
        DataError: if the path holds none of these kinds, an image or a label is wrong, a part has
            no image, or the images are not those of the stored split.
        ConfigError: if the set has no such part.
    """
    if is_gtsrb(path):
        return LoadedImages(_gtsrb_parts(path, parts, size, limit), "GTSRB", (), {})
    data = list_images(path)
    # A part "all" needs no split, so a stored one of another set is no obstacle.
    needs_split = any(part != "all" for part in parts)
    split = same_split(data, stored) if stored and needs_split else split_images(data, seed)
    if "cnn-fit" in parts and len(data.class_names) < 2:
        raise DataError(
            f"{path}: one class, {shown(data.class_names[0])}",
            expected=f"two or more classes to fit a network: {KINDS}",
            hint="give the folder that holds the classes' folders, or the table itself",
        )
    loaded: dict[AnyPart, ImageSet] = {}
    for part in parts:
        rows = split.rows(part)
        if not len(rows):
            raise DataError(
                f"{path}: {len(data)} images, none of them in {part}",
                expected="enough images of each class, about ten",
                hint="give more images, or another part",
            )
        loaded[part] = data.load(_limited(data, rows, limit, seed), size)
    return LoadedImages(loaded, path.resolve().name, data.class_names, split.to_json())


def images_for(
    bundle: Bundle, path: Path, part: AnyPart, limit: int | None = None
) -> tuple[ImageSet, str]:
    """A part of a set for a bundle's network: its size, its split, its class numbers.

    Args:
        bundle: of the network. If it was trained on this set, the part is that of its own split.
        path, part, limit: as of `load_parts`.

    Returns:
        the images, and the name of set and part.

    Raises:
        DataError: as of `load_parts`, or the network does not know a class.
    """
    provenance = bundle.manifest.get("provenance")
    stored = provenance.get("split") if isinstance(provenance, dict) else None
    found = load_parts(path, bundle.config.input_size, (part,), stored=stored, limit=limit)
    images = found.parts[part].in_classes(bundle.class_names, bundle.config.n_classes)
    return images, f"{found.source} {part}"


def list_images(path: Path) -> ListedImages:
    """The images of a user's own set, not yet decoded, in an order that depends on content alone.

    Raises:
        DataError: as of `load_parts`.
    """
    if path.is_file():
        return listed(_find_file(path))
    _require_folder(path)
    files = _parquet_files(path)
    if files:
        return listed(find_parquet(files, path))
    if any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir()):
        return listed(find_class_folders(path))
    raise _unknown(path)


def is_gtsrb(path: Path) -> bool:
    """Whether a path holds GTSRB in one of the layouts of `cnn.data.gtsrb_folders`.

    Raises:
        DataError: if there is nothing at this path.
    """
    if path.is_file():
        return False
    _require_folder(path)
    packed = [p for p in (path / "train.parquet", path / "test.parquet") if p.is_file()]
    if packed:
        return any(_is_packed_gtsrb(p) for p in packed)
    try:
        return detect_layout(path) in ("official", "csv")
    except DataError:
        return False


def _is_packed_gtsrb(path: Path) -> bool:
    """By the columns that no other set has; a damaged file is left to GTSRB's reader."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return True
    return {"width", "height"} <= set(schema.names)


def _gtsrb_parts(
    path: Path, parts: Sequence[AnyPart], size: int, limit: int | None
) -> dict[AnyPart, ImageSet]:
    if "all" in parts:
        raise ConfigError(
            "part all of GTSRB",
            expected=f"one of test, {', '.join(PARTS)}",
            hint="name one of these: the shipped network was trained with cnn-fit",
        )
    tracks = load_tracks(path, size) if set(parts) - {"test"} else None
    found: dict[AnyPart, ImageSet] = {}
    for part in parts:
        if tracks is None or part == "test" or part == "all":
            found[part] = load_gtsrb(path, "test", size, limit=limit)
        else:
            data = split_part(tracks, part)
            found[part] = data if limit is None else data.take(np.arange(min(limit, len(data))))
    return found


def _find_file(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET)) == _PARQUET
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}",
            expected="a readable file",
            hint="check its permissions",
        ) from error
    if is_parquet:
        return find_parquet([(path, "")], path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(
            f"{path}, one image", expected=KINDS, hint="give the folder of the whole set"
        )
    return find_csv(path)


def _parquet_files(folder: Path) -> list[tuple[Path, Given]]:
    """The Parquet files of a set, each with its part; in the folder or in ``data`` within it.

    Raises:
        DataError: if a file of a numbered series is missing, or the names tell no parts.
    """
    for place in (folder, folder / "data"):
        paths = sorted(p for p in place.glob("*.parquet") if not p.name.startswith("."))
        if not paths:
            continue
        names = {p: (m[1] if (m := _SHARD.fullmatch(p.stem)) else p.stem) for p in paths}
        _check_series(paths)
        if all(name.lower() in GIVEN for name in names.values()):
            return [(p, GIVEN[names[p].lower()]) for p in paths]
        if len(set(names.values())) > 1:
            raise DataError(
                f"{place} with the Parquet files {', '.join(p.name for p in paths[:6])}",
                expected="files of one set: NAME-00000-of-0000N.parquet, or NAME one of train, "
                "validation and test",
                hint="give one of the files, or move the others away",
            )
        return [(p, "") for p in paths]
    return []


def _check_series(paths: Sequence[Path]) -> None:
    series = [m for p in paths if (m := _SHARD.fullmatch(p.stem))]
    for (name, total), n in Counter((m[1], m[3]) for m in series).items():
        there = {int(m[2]) for m in series if (m[1], m[3]) == (name, total)}
        missing = sorted(set(range(int(total))) - there)
        if missing or n != len(there) or n != int(total):
            first = f"{name}-{missing[0]:05d}-of-{total}.parquet" if missing else "each once"
            raise DataError(
                f"{paths[0].parent}: {n} of {int(total)} files of {name}",
                expected=f"also {first}" if missing else first,
                hint="copy the missing files, or give one file alone",
            )


def _limited(
    data: ListedImages, rows: NDArray[np.intp], limit: int | None, seed: int
) -> NDArray[np.intp]:
    """At most `limit` of `rows`: whole tracks in a random order, the last one cut."""
    if limit is None or len(rows) <= limit:
        return rows
    _, group = np.unique(data.track[rows], return_inverse=True)
    rank = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group]
    return np.sort(rows[np.argsort(rank, kind="stable")[:limit]])


def _require_folder(path: Path) -> None:
    if not path.is_dir():
        raise DataError(
            f"{path} does not exist" if not path.exists() else f"{path}: no folder and no file",
            expected=KINDS,
            hint="give another path with --data",
        )


def _unknown(path: Path) -> DataError:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in path.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    tables = [name for name in names if name.lower().endswith((".csv", ".csv.gz"))]
    return DataError(
        f"{path} holds {', '.join(names[:8]) or 'nothing'}{more}",
        expected=KINDS,
        hint=f"give {path / tables[0]}" if tables else "docs/your-data.md describes them",
    )
