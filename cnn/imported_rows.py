"""Rows of frame and action that a pipeline of one's own wrote to Parquet, checked column by column.

docs/your-tables.md describes the columns.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, narrowed, shown
from cnn.common.outside import file_bytes, refusing
from cnn.frame_table import FEATURES, MAX_BYTES
from cnn.topology import MAX_BLOCKS

if TYPE_CHECKING:
    import pyarrow as pa

Ints = NDArray[np.int64]

MAX_ROWS: Final = 10_000_000
_MOST_UNPACKED: Final = 2 * 2**30
_NEEDED: Final = ("frame", "confidence", "quality", "payload_bytes")
_OPTIONAL: Final = ("track", "prediction", *FEATURES)
_NAME: Final = re.compile(r"e(\d{1,2})s(\d{1,2})", re.ASCII)
_HINT: Final = "correct the file; docs/your-tables.md describes it"


def wrong(given: str, expected: str) -> DataError:
    """The error of a file that says something it cannot."""
    return DataError(given, expected=expected, hint=_HINT)


def _read(path: Path) -> pa.Table:
    """The file's rows, if its columns are known and there are not too many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = "a Parquet file with one row a frame and action"
    with refusing(DataError, f"table {path}", expected=expected, hint=_HINT):
        data = pa.BufferReader(file_bytes(path, MAX_BYTES))
        file = pq.ParquetFile(data, page_checksum_verification=True)
        about = file.metadata
        unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if about.num_rows > MAX_ROWS or unpacked > _MOST_UNPACKED:
            raise wrong(
                f"{path}: {about.num_rows} rows, {unpacked / 1e6:.0f} MB unpacked",
                f"at most {MAX_ROWS} rows and {_MOST_UNPACKED / 1e6:.0f} MB",
            )
        _check_columns(path, list(file.schema_arrow.names))
        if not about.num_rows:
            raise ValueError("no rows")
        return file.read()


def _check_columns(path: Path, names: list[str]) -> None:
    """Refuse columns that are missing, unknown, or say the action in two ways."""
    pair = ("action",) if "action" in names else ("exit", "split")
    missing = [name for name in (*_NEEDED, *pair) if name not in names]
    if missing:
        raise wrong(
            f"{path}: columns {shown(names)}",
            f"also {', '.join(missing)}" + (" (or action)" if "exit" in missing else ""),
        )
    foreign = sorted({*names} - {*_NEEDED, *pair, *_OPTIONAL})
    if foreign or len(names) != len(set(names)):
        raise DataError(
            f"{path}: column {shown(foreign[0])}" if foreign else f"{path}: a column twice",
            expected=f"only {', '.join((*_NEEDED, *pair, *_OPTIONAL))}, each once",
            hint="leave it out (pandas writes its index unless to_parquet has index=False)",
        )


class Rows:
    """The R rows of a file.

    Args:
        path: a Parquet file with the columns of a table, none missing and none unknown.

    Attributes:
        names: of the columns.

    Raises:
        DataError: if it is no such file; from the methods, if a column holds something wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._table = path, _read(path)
        self.names: frozenset[str] = frozenset(self._table.column_names)

    def is_whole(self, name: str) -> bool:
        """Whether a column has whole numbers."""
        return str(self._table[name].type).lstrip("u").startswith("int")

    def numbers(self, name: str) -> NDArray[Any]:
        """A column of numbers or of yes and no, missing ones as NaN, (R,)."""
        values = np.asarray(self._table[name].to_numpy())
        if values.dtype.kind not in "iufb":
            raise wrong(
                f"{self.path}: column {name} of type {self._table[name].type}", "numbers, none null"
            )
        return values

    def whole(self, name: str, low: int | None = None, high: int | None = None) -> Ints:
        """A column of whole numbers, int64 (R,)."""
        what = f"{self.path}: column {name}"
        return narrowed(self.numbers(name), np.int64, what, low=low, high=high)

    def words(self, name: str) -> tuple[list[str], Ints]:
        """The different words of a column of text, and which one each row has, int64 (R,)."""
        import pyarrow as pa

        column = self._table[name]
        with refusing(
            DataError, f"{self.path}: column {name}", expected="text, none null", hint=_HINT
        ):
            if column.null_count:
                raise ValueError(f"{column.null_count} nulls")
            coded = column.cast(pa.string()).combine_chunks().dictionary_encode()
        return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)

    def pairs(self) -> tuple[Ints, Ints]:
        """Exit and split of every row, int64 (R,) each."""
        if "action" in self.names:
            words, which = self.words("action")
            found = [_NAME.fullmatch(word) for word in words]
            for word, match in zip(words, found, strict=True):
                if match is None:
                    raise wrong(f"{self.path}: action {shown(word)}", "a name such as e3s1")
            pairs = np.array([(int(m[1]), int(m[2])) for m in found if m], np.int64)
            exit, split = pairs[which].T
        else:
            exit, split = self.whole("exit"), self.whole("split")
        odd = np.flatnonzero((exit < 1) | (exit > MAX_BLOCKS) | (split < 0) | (split > exit))
        if odd.size:
            row = odd[0]
            raise wrong(
                f"{self.path}: exit {exit[row]} with split {split[row]} in row {row}",
                f"an exit from 1 to {MAX_BLOCKS}, and a split from 0 to the exit",
            )
        return exit, split
