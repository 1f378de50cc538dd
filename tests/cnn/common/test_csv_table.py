"""Tables as spreadsheets, instruments and scripts save them: read rightly, or one clear line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn.common.csv_table import read_csv_table
from cnn.common.errors import DataError

ENCODINGS = {
    "UTF-8": (b"", "utf-8"),
    "UTF-8 with mark": (codecs.BOM_UTF8, "utf-8"),
    "Excel Unicode text": (codecs.BOM_UTF16_LE, "utf-16-le"),
    "big-endian": (codecs.BOM_UTF16_BE, "utf-16-be"),
    "without mark": (b"", "utf-16-le"),
    "ANSI": (b"", "cp1252"),
}


def saved(folder: Path, content: bytes | str) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, *columns: str) -> str:
    """What is said about a table that must not be read."""
    with pytest.raises(DataError) as caught:
        read_csv_table(path, needed=columns).numbers(*columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow(2)
@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text('abcäß;,"\t x', max_size=6),
            st.none() | st.floats(-1e6, 1e6).map(lambda x: round(x, 4)),
            st.integers(0, 10**9),
        ),
        min_size=1,
        max_size=12,
    ),
    separator=st.sampled_from(",;\t"),
    point=st.sampled_from(".,"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    packed=st.booleans(),
    sep_line=st.booleans(),
)
def test_every_way_of_saving_gives_the_same_table(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, float | None, int]],
    separator: str,
    point: str,
    end: str,
    encoding: str,
    packed: bool,
    sep_line: bool,
) -> None:
    rows = [*rows, ("last", 0.5, 1)]  # 0.5 is a fraction in every country
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator=end)
    writer.writerow(["number", "name", "other", "whole"])
    for name, number, whole in rows:
        cell = "" if number is None else f"{number:.4f}".replace(".", point)
        writer.writerow([cell, name, "x", whole])
    mark, codec = ENCODINGS[encoding]
    text = (f"sep={separator}{end}" if sep_line else "") + out.getvalue()
    data = mark + text.encode(codec)
    folder = tmp_path_factory.mktemp("table")
    path = saved(folder, gzip.compress(data) if packed else data)
    table = read_csv_table(path, needed=["name", "number"], wanted=["whole", "nowhere"])
    assert len(table) == len(rows)
    assert table.texts("name") == [name.strip() for name, _, _ in rows]
    number, whole_column = table.numbers("number", "whole", required=["whole"])
    assert [None if n != n else n for n in number] == [n for _, n, _ in rows]
    assert whole_column.tolist() == [w for _, _, w in rows]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120) | st.text('ab,;\t\n"1.5', max_size=60).map(str.encode))
def test_any_bytes_are_a_table_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    path = saved(tmp_path_factory.mktemp("junk"), junk)
    said = ""
    try:
        table = read_csv_table(path, needed=["a"])
        assert len(table.numbers("a")[0]) == len(table)
    except DataError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        (" \n\n", ["empty"]),
        ("a,b\n", ["header", "no row"]),
        ("a,b\n,\n,\n", ["no row"]),
        ("a,c\n1,2\n", ["a, c", "also b"]),
        ("a,b,a\n1,2,3\n", ["column a", "2 times"]),
        ("a,b\n1,2\n1\n", ["line 3", "1 cells"]),
        ("a,b\n1,2,3\n", ["line 2", "3 cells"]),
        ("a,b\n\n1,2\n   \n1,x\n", ["line 5", "x in column b"]),
        ("sep=;\na;b\n1;x\n", ["line 3", "x in column b"]),
        ("a,b\n1,inf\n", ["line 2", "inf", "finite"]),
        ("a,b\n1,1e999\n", ["line 2", "1e999", "finite"]),
        ("a,b\n1,#DIV/0!\n", ["line 2", "#DIV/0!"]),
        ('a,b\n1,"2\n', ["line 2", "quotes around whole cells"]),
        # Thousands and fractions, where nothing tells which.
        ("a;b\n1.234;5\n", ["1.234", "fraction or thousands"]),
        ("a;b\n1,234;5\n", ["1,234", "fraction or thousands"]),
        ('a,b\n"1,234",5\n', ["1,234", "fraction or thousands"]),
        ("a;b\n1.234,5;5\n", ["1.234,5"]),
        ('a,b\n"1,234.5",5\n', ["1,234.5"]),
        ("a;b\n1,5;2.5\n", ["decimal mark"]),
        ("a;b\n1 234,5;2\n", ["1 234,5"]),
    ],
)
def test_what_is_unclear_or_broken_is_named(tmp_path: Path, content: str, words: list[str]) -> None:
    said = refusal(saved(tmp_path, content), "a", "b")
    for word in words:
        assert word in said


def test_a_clear_number_decides_for_all(tmp_path: Path) -> None:
    path = saved(tmp_path, "a;b\n1.234;0.5\n")
    assert [c.tolist() for c in read_csv_table(path, needed="ab").numbers("a", "b")] == [
        [1.234],
        [0.5],
    ]
    path = saved(tmp_path, "a,b\n1.234,7\n")  # separated by commas: points are decimal
    assert read_csv_table(path, needed="ab").numbers("a")[0].tolist() == [1.234]


def test_missing_values_are_nan_and_limits_name_the_line(tmp_path: Path) -> None:
    path = saved(tmp_path, "a,b\n1,\n2,NaN\n3,-\n4,-2\n")
    table = read_csv_table(path, needed="ab")
    with pytest.raises(DataError, match="line 4: - in column b"):
        table.numbers("b")
    (b,) = table.numbers("b", missing=["-"])
    assert [x == x for x in b] == [False, False, False, True]
    with pytest.raises(DataError, match=r"line 5: -2 in column b.*0 or more"):
        table.numbers("b", missing=["-"], least=0)
    with pytest.raises(DataError, match=r"line 2: nothing in column b \(and 2 more rows\)"):
        table.numbers("b", missing=["-"], required=["b"])


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.csv", "a")
    assert "table.csv" in refusal(saved(tmp_path, bytes(range(256))), "a")
    assert "cut off" in refusal(saved(tmp_path, gzip.compress(b"a\n1\n" * 999)[:-9]), "a")
    long = saved(tmp_path, gzip.compress(b"a\n" + b"1\n" * 10**6))
    with pytest.raises(DataError, match="MB"):
        read_csv_table(long, needed="a", max_bytes=10**5)
