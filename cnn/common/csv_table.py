"""The one reader of users' tables: CSV as instruments, scripts and spreadsheets save it.

It reads commas, semicolons or tabs between cells, also after Excel's ``sep=`` line; decimal points
or commas; quoted cells; any line ending; any encoding that `cnn.common.outside` decodes. It refuses
text that could mean two numbers (``1.234`` beside semicolons: 1.234 or 1234).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.common.outside import MAX_BYTES, read_text

if TYPE_CHECKING:
    import pyarrow

MISSING: Final = ("", "nan", "-nan", "na", "n/a", "#n/a", "null", "none")
"""Cells, in lower case, of a missing measurement."""

_SEPARATORS: Final = ",;\t"
_SEP_LINE: Final = re.compile(r'\A"?sep=(.)"?\n')
"""Excel's line before the header where the separator is not that of the locale."""
_BLANK_LINE: Final = re.compile(r"(?m)^[ \t]+$")
_NUMBER: Final = r"^[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?$"
_INFINITE: Final = r"(?i)^[+-]?inf(inity)?$"
_GROUPED: Final = r"^[+-]?[1-9]\d{0,2}([.,]\d{3})+$"
"""Text that may be a number with thousands separators or a decimal fraction."""


@dataclass(frozen=True, slots=True)
class CsvTable:
    """The requested columns, as text without outer spaces.

    Attributes:
        path: the file, for messages.
        columns: every name in the header, in its order.
        cells: requested columns that are there -> one string a row (pyarrow, chunked).
    """

    path: Path
    columns: tuple[str, ...]
    cells: dict[str, pyarrow.ChunkedArray] = field(repr=False)
    _text: str = field(repr=False)
    _separator: str
    _rows: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self._rows)

    def texts(self, column: str) -> list[str]:
        """The cells of a requested column."""
        found: list[str] = self.cells[column].to_pylist()
        return found

    def numbers(
        self,
        *columns: str,
        least: float = -np.inf,
        required: Sequence[str] = (),
        missing: Sequence[str] = (),
    ) -> list[NDArray[np.float64]]:
        """Columns as numbers, NaN where nothing was measured.

        Args:
            columns: requested columns that are there. The meaning of a comma in a number is decided
                on all of them together.
            least: smaller values are refused.
            required: the columns in which no cell may be empty.
            missing: cells of a missing measurement, besides `MISSING`.

        Returns:
            One float64 array (rows,) a column; never infinite.

        Raises:
            DataError: a cell is no number, unclear, infinite or below `least`; names the line.
        """
        import pyarrow
        import pyarrow.compute as pc

        absent = pyarrow.array([*MISSING, *missing])
        known = {
            c: pc.invert(pc.is_in(pc.utf8_lower(self.cells[c]), value_set=absent)) for c in columns
        }
        for column in columns:
            cells, some = self.cells[column], known[column]
            if column in required:
                self._refuse(column, pc.invert(some), "a number in every row")
            infinite = pc.match_substring_regex(cells, _INFINITE)
            self._refuse(column, infinite, "a finite number")
            number = pc.match_substring_regex(cells, _NUMBER)
            wrong = pc.and_(some, pc.invert(number))
            self._refuse(column, wrong, "a plain number, such as 1234.5, or an empty cell")
        comma = self._decimal_comma({c: self.cells[c].filter(known[c]) for c in columns})
        found = []
        for column in columns:
            plain = pc.utf8_ltrim(self.cells[column].filter(known[column]), "+")
            if comma:
                plain = pc.replace_substring(plain, ",", ".")
            values = np.full(len(self), np.nan)
            values[np.asarray(known[column])] = np.asarray(pc.cast(plain, pyarrow.float64()))
            self._refuse(column, np.isinf(values), "a finite number")
            self._refuse(column, values < least, f"{least:g} or more")
            found.append(values)
        return found

    def lines(self) -> list[int]:
        """The line of the file, from 1, on which each row ends."""
        ends = [line for line, _ in _lines(self._text, self._separator)]
        return [ends[row + 1] for row in self._rows.tolist()]

    def _decimal_comma(self, cells: dict[str, Any]) -> bool:
        """Whether commas in numbers are decimal; refuses ambiguous numbers."""
        import pyarrow.compute as pc

        marked = [
            (mark, column, some)
            for mark in ",."
            for column, values in cells.items()
            if len(some := values.filter(pc.match_substring(values, mark)))
        ]
        if not marked:
            return False
        mark, column, some = marked[0]
        number = some[0].as_py()
        if len({m for m, _, _ in marked}) > 1 or pc.max(pc.count_substring(some, mark)).as_py() > 1:
            raise DataError(
                f"{self.path}: {number} in column {column}, and points or commas otherwise",
                expected="one decimal mark, and nothing between the thousands",
                hint="save the file with plain numbers, such as 1234.5",
            )
        # Scripts write points in numbers and commas between them.
        plain = mark == "." and self._separator == ","
        if not plain and all(
            pc.all(pc.match_substring_regex(s, _GROUPED)).as_py() for _, _, s in marked
        ):
            raise DataError(
                f"{self.path}: {number} in column {column} may be a fraction or thousands, and "
                "no other number of the file tells which",
                expected="numbers that are clear",
                hint="save it with commas between cells and points in numbers",
            )
        return mark == ","

    def _refuse(self, column: str, wrong: Any, expected: str) -> None:
        rows = np.flatnonzero(np.asarray(wrong))
        if len(rows):
            cell = " ".join(self.cells[column][int(rows[0])].as_py().split())[:40] or "nothing"
            more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
            raise DataError(
                f"{self.path}, line {self.lines()[int(rows[0])]}: {cell} in column {column}{more}",
                expected=expected,
                hint="correct the file",
            )


def read_csv_table(
    path: Path, *, needed: Sequence[str], wanted: Sequence[str] = (), max_bytes: int = MAX_BYTES
) -> CsvTable:
    """Read a table whose first line names its columns.

    Rows that are empty in every requested column are left out.

    Args:
        path: the file, or a gzip of it.
        needed: columns that must be there.
        wanted: optional columns.
        max_bytes: longer files (unpacked) are refused.

    Raises:
        DataError: the file cannot be read, is empty, has no row, lacks or repeats a column, or
            has a row with more or fewer cells than the header.
    """
    return parse_csv_table(read_text(path, max_bytes), path, needed=needed, wanted=wanted)


def parse_csv_table(
    text: str, path: Path, *, needed: Sequence[str], wanted: Sequence[str] = ()
) -> CsvTable:
    """`read_csv_table` of the text from `read_text`; `path` is for messages."""
    asked = list(dict.fromkeys([*needed, *wanted]))
    columns, separator = header_of(text, asked)
    for name in asked:
        if columns.count(name) > 1:
            raise DataError(
                f"{path}: column {name} appears {columns.count(name)} times",
                expected="each column once",
                hint="rename or remove the others",
            )
    absent = [name for name in needed if name not in columns]
    if absent:
        some = ", ".join(name[:40] for name in columns[:12] if name) or "none"
        raise DataError(
            f"{path}: columns {some}",
            expected=f"also {', '.join(absent)}",
            hint="check that the first line names the columns",
        )
    there = [name for name in asked if name in columns]
    cells, rows = _cells(path, text, separator, columns, there)
    if len(rows) == 0:
        raise DataError(
            f"{path}: a header, and no row under it",
            expected="at least one row",
            hint="check that the measurement did not fail, or give another file",
        )
    return CsvTable(path, tuple(columns), cells, text, separator, rows)


def header_of(text: str, names: Sequence[str]) -> tuple[list[str], str]:
    """The cells of a table's first line, and the separator that finds most of `names` in it."""
    given = _SEP_LINE.match(text)
    body = text[given.end() :] if given else text
    best: tuple[list[str], str] = ([], ",")
    for separator in given[1] if given else _SEPARATORS:
        try:
            rows = csv.reader(io.StringIO(body, newline=""), delimiter=separator)
            found = [" ".join(cell.split()) for cell in next((row for row in rows if any(row)), [])]
        except csv.Error:
            continue
        score, before = ((len(set(cells) & set(names)), len(cells)) for cells in (found, best[0]))
        if score > before:
            best = found, separator
    return best


def _lines(text: str, separator: str) -> Iterator[tuple[int, int]]:
    """The line of the file on which each row ends (the header first), and how many cells it has."""
    given = _SEP_LINE.match(text)
    body = _BLANK_LINE.sub("", text[given.end() :] if given else text)
    if '"' not in body:
        for number, line in enumerate(body.split("\n"), start=1 + bool(given)):
            if line:
                yield number, line.count(separator) + 1
        return
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator)
    for cells in reader:
        if cells:
            yield reader.line_num + bool(given), len(cells)


def unclear_number(cells: Iterable[str]) -> str | None:
    """An ambiguous number of `cells` (a fraction or thousands), unless another one decides it."""
    unclear = None
    for cell in cells:
        if ("." in cell or "," in cell) and re.match(_NUMBER, cell):
            if not re.match(_GROUPED, cell):
                return None
            unclear = unclear or cell
    return unclear


def _refuse_broken_quotes(path: Path, body: str, separator: str) -> None:
    """Refuse a quote that does not end: it would turn many rows into one cell unnoticed."""
    if '"' not in body:
        return
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True)
    try:
        for _ in reader:
            pass
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}",
            expected='quotes around whole cells, and "" for a quote in one',
            hint="correct the file, or copy it again if it is cut off",
        ) from error


def _cells(
    path: Path, text: str, separator: str, columns: list[str], there: list[str]
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """The columns in `there`, and the numbers (from 0) of the rows that are not empty."""
    import pyarrow
    import pyarrow.compute as pc
    import pyarrow.csv

    given = _SEP_LINE.match(text)
    body = _BLANK_LINE.sub("", text[given.end() :] if given else text)
    _refuse_broken_quotes(path, body, separator)
    numbered = [str(columns.index(name)) for name in there]
    try:
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(body.encode()),
            read_options=pyarrow.csv.ReadOptions(
                column_names=[str(i) for i in range(len(columns))], use_threads=False
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=numbered, column_types=dict.fromkeys(numbered, pyarrow.string())
            ),
        )
    except pyarrow.ArrowInvalid as error:
        ragged = ((n, count) for n, count in _lines(text, separator) if count != len(columns))
        number, count = next(ragged, (0, 0))
        raise DataError(
            f"{path}, line {number}: {count} cells"
            if number
            else f"{path}: quotes that do not end",
            expected=f"as many in every row as in the header ({len(columns)})",
            hint="correct the file",
        ) from error
    # The first row is the header, read as cells so that names may repeat or be empty.
    trimmed = [pc.utf8_trim_whitespace(table[n].slice(1)) for n in numbered]
    some = np.zeros(max(len(table) - 1, 0), dtype=bool)
    for cells in trimmed:
        some |= np.asarray(pc.not_equal(cells, ""))
    kept = pyarrow.array(some)
    return (
        {name: cells.filter(kept) for name, cells in zip(there, trimmed, strict=True)},
        np.flatnonzero(some),
    )
