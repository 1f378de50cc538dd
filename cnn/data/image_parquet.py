"""Parquet as an image set: the images themselves, or their paths, one row an image.

As image sets are shared (huggingface.co/docs/datasets, "Image feature"), the images are in a
column, encoded: a struct of ``bytes`` and ``path``, or the bytes alone; class names stand in the
file's metadata under the key ``huggingface``. Else there is a column ``path``. The other columns
are those of `image_columns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, shown
from cnn.common.outside import MAX_JSON_BYTES, json_object, refusing
from cnn.data.found_images import FoundImages, Given, image_bytes
from cnn.data.image_columns import (
    FRAME,
    LABEL,
    PATH,
    TRACK,
    class_numbers,
    empty_cell,
    frame_numbers,
    refuse_twice,
)

_BATCH: Final = 256
"""Rows in memory at a time."""
_EXPECTED: Final = (
    "one column of encoded images (bytes, or a struct of bytes and path) or the column path, "
    "and the column label"
)
_HINT: Final = "docs/your-data.md describes the forms of image sets"


def find_parquet(files: Sequence[tuple[Path, Given]], path: Path) -> FoundImages:
    """The images of Parquet files, or those whose paths they list, in the order of the files.

    Rows are read in small batches: what is in memory does not grow with the images.

    Args:
        files: at least one, each with the part that its name says.
        path: of the set, for messages.

    Raises:
        DataError: if a file cannot be read, has other columns or classes, or an empty cell.
    """
    parts = [_PartFile.of(file) for file, _ in files]
    for part in parts[1:]:
        if part.class_names != parts[0].class_names:
            raise DataError(
                f"{part.path}: other class names than {parts[0].path}",
                expected="the same classes in all files of a set",
                hint="give the folder or file of one set",
            )
    columns = [part.columns() for part in parts]
    starts = np.cumsum([0, *(part.n_rows for part in parts)])
    track = [cell for c in columns for cell in c.track]
    has_frames = all(c.frame is not None for c in columns)
    frame = (
        np.concatenate([c.frame for c in columns if c.frame is not None]) if has_frames else None
    )

    def name_of(number: int) -> str:
        at = int(np.searchsorted(starts, number, "right")) - 1
        return f"{parts[at].path}, row {number - starts[at]}"

    def read(numbers: NDArray[np.intp]) -> Iterator[tuple[int, bytes]]:
        for part, low, high in zip(parts, starts, starts[1:], strict=False):
            inside = numbers[(numbers >= low) & (numbers < high)] - low
            for number, content in part.read(inside):
                yield int(low) + number, content

    refuse_twice(track, frame, name_of)
    return FoundImages(
        path=path,
        label=_joined([c.label for c in columns], path),
        class_names=parts[0].class_names,
        track=track,
        frame=np.arange(starts[-1]) if frame is None else frame,
        given=[part for c, (_, part) in zip(columns, files, strict=True) for _ in c.track],
        read=read,
        name=name_of,
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """Everything of a Parquet file but its images."""

    label: list[str] | NDArray[np.int64]
    track: list[str]
    frame: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class _PartFile:
    """One Parquet file of a set; it is open only while it is read.

    Attributes:
        path: of the file.
        image: its column of encoded images, or `PATH`.
        label: its column of labels.
        class_names: as its metadata says; else empty.
        names: of all its columns.
        groups: number of rows of each row group.
    """

    path: Path
    image: str
    label: str
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> _PartFile:
        with _reading(path), _opened(path) as file:
            schema, about = file.schema_arrow, file.metadata
            features = _features(schema.metadata or {}, path)
            groups = tuple(about.row_group(g).num_rows for g in range(about.num_row_groups))
        images = [f.name for f in schema if _holds_images(f.type)]
        image = images[0] if len(images) == 1 else PATH if PATH in schema.names else ""
        labels = [LABEL] if LABEL in schema.names else [n for n in features if n in schema.names]
        if not image or len(images) > 1 or len(labels) != 1:
            raise DataError(
                f"{path}: columns {', '.join(schema.names) or 'none'}",
                expected=_EXPECTED,
                hint=_HINT,
            )
        names = features.get(labels[0], ())
        return cls(path, image, labels[0], names, tuple(schema.names), groups)

    @property
    def n_rows(self) -> int:
        return sum(self.groups)

    def columns(self) -> _Columns:
        wanted = {self.label, TRACK, FRAME} & set(self.names)
        with _reading(self.path), _opened(self.path) as file:
            table = file.read(columns=sorted(wanted))
        label = table[self.label].to_pylist()
        if None in label:
            raise empty_cell(f"{self.path}, row {label.index(None)}", self.label)
        numbers = all(type(v) is int for v in label)
        if not numbers and not all(type(v) is str and v for v in label):
            at = next(i for i, v in enumerate(label) if type(v) not in (int, str) or v == "")
            raise DataError(
                f"{self.path}, row {at}: label {shown(label[at])}",
                expected="a class's name, or its number from 0",
                hint="correct the label, or leave the image out",
            )
        track = [""] * len(label)
        if TRACK in wanted:
            track = ["" if v is None else str(v) for v in table[TRACK].to_pylist()]
        frame = None
        if FRAME in wanted:
            cells = table[FRAME].to_pylist()
            if not all(v is None or type(v) in (int, float) for v in cells):
                raise DataError(
                    f"{self.path}: column frame of type {table.schema.field(FRAME).type}",
                    expected="whole numbers from 0",
                    hint=_HINT,
                )
            places = [f"{self.path}, row {i}" for i in range(len(cells))]
            frame = frame_numbers(np.array(cells, np.float64), track, places)
        return _Columns(
            label=class_numbers(label) if numbers else [str(v) for v in label],
            track=track,
            frame=frame,
        )

    def read(self, rows: NDArray[np.intp]) -> Iterator[tuple[int, bytes]]:
        """The images of these ascending rows; only row groups that hold any are read."""
        start = 0
        for group, n in enumerate(self.groups):
            wanted = set(rows[(rows >= start) & (rows < start + n)].tolist())
            at = start
            for batch in self._batches(group) if wanted else ():
                cells = batch.column(0)
                for i in range(len(cells)):
                    if at + i in wanted:
                        yield at + i, self._content(cells[i].as_py(), at + i)
                at += len(cells)
            start += n

    def _batches(self, group: int) -> Iterator[Any]:
        with _reading(self.path), _opened(self.path) as file:
            yield from file.iter_batches(_BATCH, row_groups=[group], columns=[self.image])

    def _content(self, cell: Any, row: int) -> bytes:
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(content, bytes):
            return content
        name = cell.get("path") if isinstance(cell, dict) else cell
        if not isinstance(name, str) or not name:
            raise empty_cell(f"{self.path}, row {row}", self.image)
        return image_bytes(self.path.parent / name, f"{self.path}, row {row} ({name})")


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    if not pa.types.is_struct(kind):
        return is_bytes(kind)
    return any(f.name == "bytes" and is_bytes(f.type) for f in kind)


def _features(metadata: dict[bytes, bytes], path: Path) -> dict[str, tuple[str, ...]]:
    """Columns of labels with their class names, as the metadata ``huggingface`` says."""
    text = metadata.get(b"huggingface", b"{}")
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"metadata of more than {MAX_JSON_BYTES} bytes")
    info = json_object(text).get("info", {})
    found = {}
    for column, feature in info.get("features", {}).items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if (
                not isinstance(names, list)
                or not all(type(n) is str and n for n in names)
                or len(set(names)) != len(names)
            ):
                raise DataError(
                    f"{path}: class names of column {column} that are no distinct texts",
                    expected="a list of names under the key huggingface of its metadata",
                    hint="write the file again",
                )
            found[column] = tuple(names)
    return found


def _joined(labels: list[list[str] | NDArray[np.int64]], path: Path) -> Any:
    named = [isinstance(each, list) for each in labels]
    if all(named):
        return [name for each in labels for name in each]
    if any(named):
        raise DataError(
            f"{path}: class names in some files, class numbers in others",
            expected="one of them in all files",
            hint="write the files in one way",
        )
    return np.concatenate(labels)


def _reading(path: Path) -> AbstractContextManager[None]:
    return refusing(DataError, str(path), expected="a whole Parquet file", hint="copy it again")


def _opened(path: Path) -> Any:
    """A Parquet file whose pages are read piece by piece, and checked where they have sums."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        path, page_checksum_verification=True, buffer_size=1 << 20, pre_buffer=False
    )
