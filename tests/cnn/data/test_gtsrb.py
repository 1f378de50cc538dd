"""The same small data set in all forms gives the same arrays; what disagrees is refused or said."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from cnn.common.errors import DataError
from cnn.data.gtsrb import load_gtsrb, load_tracks, split_part
from cnn.data.gtsrb_folders import detect_layout, load_csv_layout, load_official
from cnn.data.image_set import ImageSet, load_split
from cnn.render.rendered_tracks import RenderedFrame, render_tracks

SIZE = 24
HEADER = ["Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId"]


def frames() -> list[RenderedFrame]:
    """Four tracks of three classes, in no particular order."""
    found = list(render_tracks(4, seed=1, size=SIZE, frames_per_track=2, labels=[20, 3, 20, 41]))
    return [found[i] for i in (5, 0, 7, 2, 4, 1, 6, 3)]


def line(name: str, f: RenderedFrame) -> list[object]:
    return [name, f.width_px, f.height_px, 5, 5, f.width_px - 5, f.height_px - 5, f.label]


def write_table(path: Path, header: list[str], rows: list[list[object]], separator: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])


def save(path: Path, f: RenderedFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(f.image).save(path)


def write_official(root: Path) -> None:
    tables: dict[int, list[list[object]]] = {}
    for f in frames():
        name = f"{f.track:05d}_{f.frame_in_track:05d}.ppm"
        save(root / f"GTSRB/Final_Training/Images/{f.label:05d}/{name}", f)
        tables.setdefault(f.label, []).append(line(name, f))
    for label, rows in tables.items():
        folder = root / f"GTSRB/Final_Training/Images/{label:05d}"
        write_table(folder / f"GT-{label:05d}.csv", HEADER, rows, ";")
    test = []
    for number, f in enumerate(frames()):
        save(root / f"GTSRB/Final_Test/Images/{number:05d}.ppm", f)
        test.append(line(f"{number:05d}.ppm", f))
    write_table(root / "GT-final_test.csv", HEADER, test[::-1], ";")


def write_csv(root: Path) -> None:
    header = [*HEADER[1:], "Path"]
    train, test = [], []
    for number, f in enumerate(frames()):
        name = f"Train/{f.label}/{f.label:05d}_{f.track:05d}_{f.frame_in_track:05d}.png"
        save(root / name, f)
        train.append([*line(name, f)[1:], name])
        save(root / f"Test/{number:05d}.png", f)
        test.append([*line(name, f)[1:], f"Test/{number:05d}.png"])
    write_table(root / "Train.csv", header, train, ",")
    write_table(root / "Test.csv", header, test, ",")


def write_packed(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def encoded(f: RenderedFrame) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(f.image).save(buffer, "PNG")
        return buffer.getvalue()

    root.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        table: dict[str, list[object]] = {
            "image": [encoded(f) for f in frames()],
            "label": [f.label for f in frames()],
            "track": [f.track if part == "train" else -1 for f in frames()],
            "frame": [f.frame_in_track if part == "train" else -1 for f in frames()],
            "width": [f.width_px for f in frames()],
            "height": [f.height_px for f in frames()],
        }
        if part == "test":
            table["number"] = list(range(len(frames())))
        pq.write_table(pa.table(table), root / f"{part}.parquet")


def assert_same(a: ImageSet, b: ImageSet) -> None:
    for name in ("images", "label", "track", "frame", "width_px", "height_px"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.slow(2)
@pytest.mark.parametrize("part", ["train", "test"])
def test_three_layouts_give_the_same_set(tmp_path: Path, part: Literal["train", "test"]) -> None:
    for name, write in (("o", write_official), ("c", write_csv), ("p", write_packed)):
        write(tmp_path / name)
    packed = load_gtsrb(tmp_path / "p", part, SIZE)
    assert len(packed) == 8
    assert_same(packed, load_official(tmp_path / "o", part, SIZE))
    if part == "train":
        assert_same(packed, load_official(tmp_path / "o" / "GTSRB", part, SIZE))
    assert_same(packed, load_csv_layout(tmp_path / "c", part, SIZE))
    three = packed.take(np.arange(3))
    assert_same(three, load_csv_layout(tmp_path / "c", part, SIZE, limit=3))
    assert_same(three, load_official(tmp_path / "o", part, SIZE, limit=3))


def test_truth_beside_the_test_images_is_found(tmp_path: Path) -> None:
    write_official(tmp_path)
    expected = load_official(tmp_path, "test", SIZE)
    (tmp_path / "GT-final_test.csv").rename(tmp_path / "GTSRB/GT-final_test.csv")
    assert_same(expected, load_official(tmp_path, "test", SIZE))


def write_torchvision(root: Path) -> None:
    """As ``torchvision.datasets.GTSRB(root, download=True)`` leaves it, with both splits."""
    write_official(root / "gtsrb")
    (root / "gtsrb/GTSRB/Final_Training/Images").rename(root / "gtsrb/GTSRB/Training")
    (root / "gtsrb/GTSRB/Final_Training").rmdir()


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("inside", ["", "gtsrb", "gtsrb/GTSRB"])
def test_torchvision_s_folder_is_read(
    tmp_path: Path, part: Literal["train", "test"], inside: str
) -> None:
    write_official(tmp_path / "o")
    write_torchvision(tmp_path / "t")
    assert_same(
        load_gtsrb(tmp_path / "o", part, SIZE), load_gtsrb(tmp_path / "t" / inside, part, SIZE)
    )


def test_the_split_names_no_tracks_of_the_competition(tmp_path: Path) -> None:
    write_torchvision(tmp_path)
    with pytest.raises(DataError, match="GTSRB_Final_Training_Images"):
        load_tracks(tmp_path, SIZE)


def test_missing_tracks_of_a_part_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_official(tmp_path)
    data = load_tracks(tmp_path, SIZE)
    data.label[:], data.track[:] = 0, 1
    with pytest.raises(DataError, match="none of the"):
        split_part(data, "cnn-val")
    name = load_split()["cnn-val"][0]
    data.label[:], data.track[:] = (int(n) for n in name.split("/"))
    assert len(split_part(data, "cnn-val")) == len(data)
    n = len(load_split()["cnn-val"])
    assert f"{n - 1} of the {n} tracks of cnn-val are missing" in caplog.text


def first_image(root: Path) -> Path:
    return min((root / "GTSRB/Final_Training/Images/00020").glob("*.ppm"))


def test_images_without_an_annotation_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_official(tmp_path)
    expected = load_gtsrb(tmp_path, "train", SIZE)
    assert not caplog.records
    shutil.copy(first_image(tmp_path), first_image(tmp_path).with_name("00009_00000.ppm"))
    first_image(tmp_path).with_name("._00000_00000.ppm").write_bytes(b"hidden")
    first_image(tmp_path).with_name("Thumbs.db").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        assert_same(expected, load_gtsrb(tmp_path, "train", SIZE))
    (record,) = caplog.records
    assert "1 images that no annotation lists" in record.getMessage()
    assert "00009_00000.ppm" in record.getMessage()


def test_sign_boxes_outside_their_images_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_csv(tmp_path)
    path = tmp_path / "Test.csv"
    rows = [row.split(",") for row in path.read_text().splitlines()]
    rows[1][HEADER[1:].index("Roi.X2")] = "5000"
    rows[2][HEADER[1:].index("Roi.Y1")] = "-1"
    path.write_text("\n".join(",".join(row) for row in rows))
    load_gtsrb(tmp_path, "test", SIZE)
    assert "2 of 8 sign boxes" in caplog.text


def test_a_frame_that_comes_twice_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path / "o")
    table = tmp_path / "o/GTSRB/Final_Training/Images/00020/GT-00020.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(DataError, match="same frame twice"):
        load_gtsrb(tmp_path / "o", "train", SIZE)
    twin = lines[1].replace(".ppm", ".png")  # another ending, the same frame
    table.write_text("\n".join([*lines, twin]))
    with pytest.raises(DataError, match="same frame twice"):
        load_gtsrb(tmp_path / "o", "train", SIZE)


def test_a_class_that_the_folder_contradicts_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path / "o")
    table = tmp_path / "o/GTSRB/Final_Training/Images/00020/GT-00020.csv"
    table.write_text(table.read_text().replace(";20\n", ";21\n", 1))
    with pytest.raises(DataError, match="class 21, but 00020/"):
        load_gtsrb(tmp_path / "o", "train", SIZE)
    write_csv(tmp_path / "c")
    table = tmp_path / "c/Train.csv"
    rows = [row.split(",") for row in table.read_text().splitlines()]
    rows[3][HEADER[1:].index("ClassId")] = "7"
    table.write_text("\n".join(",".join(row) for row in rows))
    with pytest.raises(DataError, match="line 4: class 7"):
        load_gtsrb(tmp_path / "c", "train", SIZE)


def test_an_annotation_file_without_a_line_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "Train.csv", [*HEADER[1:], "Path"], [], ",")
    with pytest.raises(DataError, match="no row"):
        load_gtsrb(tmp_path, "train", SIZE)


@pytest.mark.slow(13)
@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        ("label", 43, "label: 1 of 8 values out of range, such as 43"),
        ("label", None, "label"),
        ("width", 70_000, "width: 1 of 8 values out of range, such as 70000"),
        ("height", 0, "height"),
        ("frame", 40_000, "frame"),
        ("track", -1, "track"),
        ("image", None, "row"),
        ("image", "front.png", "type string"),
    ],
)
def test_packed_numbers_that_do_not_fit_are_refused(
    tmp_path: Path, column: str, value: object, word: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_packed(tmp_path)
    path = tmp_path / "train.parquet"
    rows = pq.read_table(path).to_pydict()
    rows[column] = ["a"] * 8 if isinstance(value, str) else [value, *rows[column][1:]]
    pq.write_table(pa.table(rows), path)
    with pytest.raises(DataError, match=word):
        load_gtsrb(tmp_path, "train", SIZE)


@pytest.mark.slow(1)
def test_a_packed_frame_that_comes_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_packed(tmp_path)
    for part in ("train", "test"):
        path = tmp_path / f"{part}.parquet"
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table, table.slice(2, 1)]), path)
        with pytest.raises(DataError, match="1 frames that come twice"):
            load_gtsrb(tmp_path, "train" if part == "train" else "test", SIZE)


@pytest.mark.slow(1)
def test_layout_is_detected(tmp_path: Path) -> None:
    for name, write in (("official", write_official), ("csv", write_csv), ("packed", write_packed)):
        write(tmp_path / name)
        assert detect_layout(tmp_path / name) == name
    assert detect_layout(tmp_path / "official" / "GTSRB") == "official"


def test_unknown_layout_says_what_was_found_and_expected(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError) as caught:
        detect_layout(tmp_path)
    for word in ("holiday.jpg", "sub/", "train.parquet", "Final_Training", "Train.csv"):
        assert word in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        detect_layout(tmp_path / "absent")


def test_missing_column_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "Train.csv", ["Width", "Height", "Path"], [[30, 30, "a.png"]], ",")
    with pytest.raises(DataError, match="ClassId"):
        load_csv_layout(tmp_path, "train", SIZE)


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        ([30, 30, "stop", "Train/00020_00000_00000.png"], "stop"),
        ([30, 30, 43, "Train/00020_00000_00000.png"], "class 43"),
        ([0, 30, 20, "Train/00020_00000_00000.png"], "0 x 30"),
        ([30, 30, 20, "Train/photo.png"], "photo.png"),
        ([30, 30, 20, "Train/00020_00000_00000.png"], "No such file"),
        ([30], "line 2"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, cells: list[object], word: str) -> None:
    write_table(tmp_path / "Train.csv", ["Width", "Height", "ClassId", "Path"], [cells], ",")
    with pytest.raises(DataError, match=word):
        load_csv_layout(tmp_path, "train", SIZE)


def test_a_table_that_a_spreadsheet_saved_is_the_same(tmp_path: Path) -> None:
    write_csv(tmp_path)
    expected = load_csv_layout(tmp_path, "train", SIZE)
    table = tmp_path / "Train.csv"
    with table.open(newline="") as file:
        rows = [[*row, ""] for row in csv.reader(file)]  # an empty column at the right
    write_table(
        table, rows[0], [list[object](row) for row in [*rows[1:], [""] * len(rows[0])]], ";"
    )
    table.write_bytes(table.read_text().encode("utf-16"))
    assert_same(expected, load_csv_layout(tmp_path, "train", SIZE))


def test_damaged_image_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path)
    victim = tmp_path / "Train/41/00041_00003_00000.png"
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(DataError, match="00041_00003_00000"):
        load_csv_layout(tmp_path, "train", SIZE)


def test_missing_parts_say_which_archive(tmp_path: Path) -> None:
    write_official(tmp_path)
    (tmp_path / "GT-final_test.csv").unlink()
    with pytest.raises(DataError, match=r"GTSRB_Final_Test_GT\.zip"):
        load_official(tmp_path, "test", SIZE)
    with pytest.raises(DataError, match=r"GTSRB_Final_Training_Images\.zip"):
        load_official(tmp_path / "GTSRB" / "Final_Test", "train", SIZE)
