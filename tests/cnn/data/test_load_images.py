"""A user's images: each form is read, equal content gives equal sets, what is wrong is named."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cnn.common.errors import ConfigError, DataError
from cnn.data.image_set import ImageSet
from cnn.data.load_images import is_gtsrb, list_images, load_images, load_parts

CLASSES = ("ant", "bee", "cat")
Images = list[tuple[str, str, bytes]]
"""(class name, file name, content) of each image."""


def picture(seed: int, width: int = 6, height: int = 6) -> bytes:
    """An encoded image that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def some_images(n: int = 12) -> Images:
    return [(CLASSES[i % 3], f"{i}.png", picture(i, 5 + i % 3, 7)) for i in range(n)]


def write_folder(folder: Path, images: Images) -> Path:
    for name, file, content in images:
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def huggingface(names: tuple[str, ...], column: str = "label") -> dict[str, str]:
    """The metadata with which image sets are shared."""
    label = {"names": list(names), "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": {column: label}}})}


def write_parquet(path: Path, images: Images, names: tuple[str, ...] = CLASSES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": [{"bytes": content, "path": file} for _, file, content in images],
            "label": [names.index(name) for name, _, _ in images],
        }
    )
    metadata = huggingface(names)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=4)
    return path


def write_csv(path: Path, images: Images) -> Path:
    write_folder(path.parent, images)
    lines = [f"{name}/{file},{name}" for name, file, _ in images]
    path.write_text("\n".join(["path,label", *lines]) + "\n")
    return path


def assert_same(a: ImageSet, b: ImageSet) -> None:
    assert a.class_names == b.class_names
    for column in ("images", "label", "track", "frame", "width_px", "height_px"):
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column), column)


# --- The same images in every form ------------------------------------------------------------


def forms(folder: Path, images: Images) -> dict[str, Path]:
    """The same images as each kind of set, their files and rows in different orders."""
    backwards = images[::-1]
    paths = write_csv(folder / "csv/list.csv", backwards).parent
    lines = pa.table({"path": [f"{c}/{f}" for c, f, _ in images], "label": [i[0] for i in images]})
    pq.write_table(lines, paths / "list.parquet")
    shards = folder / "shards"
    write_parquet(shards / "all-00000-of-00002.parquet", images[7:])
    write_parquet(shards / "all-00001-of-00002.parquet", images[:7])
    plain = pa.table({"image": [i[2] for i in images], "label": [i[0] for i in images]})
    pq.write_table(plain, folder / "plain.parquet")
    return {
        "folder": write_folder(folder / "classes", images),
        "one Parquet file": write_parquet(folder / "x.parquet", backwards),
        "several Parquet files": shards,
        "bytes and class names in Parquet": folder / "plain.parquet",
        "CSV": paths / "list.csv",
        "paths in Parquet": paths / "list.parquet",
    }


def test_equal_images_give_equal_sets_in_every_form(tmp_path: Path) -> None:
    images = some_images()
    sets = {name: load_images(path, 8) for name, path in forms(tmp_path, images).items()}
    first = sets["folder"]
    for other in sets.values():
        assert_same(first, other)
    assert first.class_names == CLASSES
    assert first.images.shape == (12, 8, 8, 3)
    assert np.bincount(first.label).tolist() == [4, 4, 4]
    np.testing.assert_array_equal(first.track, np.arange(12))
    assert not first.frame.any()
    # Each image is the one that PIL reads, with its own size.
    wanted = {}
    for name, _, content in images:
        image = Image.open(io.BytesIO(content))
        resized = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
        wanted[resized.tobytes()] = (CLASSES.index(name), *image.size)
    found = {
        first.images[i].tobytes(): (first.label[i], first.width_px[i], first.height_px[i])
        for i in range(12)
    }
    assert found == wanted


def test_every_form_is_split_in_the_same_way(tmp_path: Path) -> None:
    paths = forms(tmp_path, some_images(60)).values()
    loaded = [load_parts(p, 8, ("cnn-fit", "cnn-val", "test"), seed=3) for p in paths]
    for other in loaded[1:]:
        assert other.split == loaded[0].split
        for part, images in loaded[0].parts.items():
            assert_same(images, other.parts[part])
    other = load_parts(tmp_path / "classes", 8, ("cnn-fit",), seed=4)
    assert other.split["sha256"] != loaded[0].split["sha256"]


def test_sets_that_come_in_parts_keep_them(tmp_path: Path) -> None:
    images = some_images(90)
    train, test = images[:60], images[60:]
    write_folder(tmp_path / "f/train", train)
    write_folder(tmp_path / "f/test", test)
    write_parquet(tmp_path / "p/data/train-00000-of-00001.parquet", train)
    write_parquet(tmp_path / "p/data/test-00000-of-00001.parquet", test)
    parts: tuple[Any, ...] = ("cnn-fit", "cnn-val", "policy-train", "policy-test", "test", "all")
    loaded = [load_parts(tmp_path / kind, 8, parts, seed=1) for kind in ("f", "p")]
    for part, found in loaded[0].parts.items():
        assert_same(found, loaded[1].parts[part])
    counts = {part: len(found) for part, found in loaded[0].parts.items()}
    assert counts == {
        "cnn-fit": 54, "cnn-val": 6, "policy-train": 15, "policy-test": 15, "test": 30, "all": 90
    }  # fmt: skip
    contents = {found.tobytes() for found in loaded[0].parts["test"].images}
    assert contents == {found.tobytes() for found in load_images(tmp_path / "f/test", 8).images}


def test_what_the_test_part_repeats_never_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = some_images(60)
    write_folder(tmp_path / "train", images)
    write_folder(tmp_path / "val", images[:6])
    write_folder(tmp_path / "test", [*images[3:9], *some_images(90)[60:]])
    with caplog.at_level(logging.WARNING):
        parts = load_parts(tmp_path, 8, ("cnn-fit", "cnn-val", "test")).parts
    fit, val, test = ({i.tobytes() for i in images.images} for images in parts.values())
    assert not fit & val
    assert not (fit | val) & test
    assert (len(fit), len(val), len(test)) == (60 - 9, 3, 36)
    assert "12 images are left out" in caplog.text  # 9 of train, 3 of val


# --- Tracks ------------------------------------------------------------------------------------


def test_tracks_of_a_table_stay_in_order_and_together(tmp_path: Path) -> None:
    rows = [("b", 1, "cat"), ("a", 2, "ant"), ("", None, "bee"), ("b", 0, "cat"), ("a", 10, "bee")]
    lines = ["path,label,track,frame"]
    for i, (track, frame, label) in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
        lines.append(f"{i}.png,{label},{track},{'' if frame is None else frame}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    data = load_images(tmp_path / "list.csv", 6)
    by_content = {np.asarray(Image.open(io.BytesIO(picture(i)))).tobytes(): i for i in range(5)}
    assert [by_content[image.tobytes()] for image in data.images] == [1, 4, 3, 0, 2]
    assert data.track.tolist() == [0, 0, 1, 1, 2]
    assert data.frame.tolist() == [0, 1, 0, 1, 0]
    assert data.label.tolist() == [0, 1, 2, 2, 1]
    table = pa.table(
        {
            "image": [picture(i) for i in range(5)],
            "label": [label for *_, label in rows],
            "track": [track or None for track, *_ in rows],
            "frame": [frame if track else None for track, frame, _ in rows],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    assert_same(data, load_images(tmp_path / "x.parquet", 6))


def test_a_folder_within_a_class_is_a_track(tmp_path: Path) -> None:
    for i, name in enumerate(("ant/1.png", "ant/d/2.png", "ant/d/10.png", "bee/d/1.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(i))
    data = load_images(tmp_path, 6)
    assert data.track.tolist() == [0, 0, 1, 2]
    assert data.frame.tolist() == [0, 1, 0, 0]
    assert data.label.tolist() == [0, 0, 1, 0]
    np.testing.assert_array_equal(data.images[1], Image.open(io.BytesIO(picture(2))))


def test_limits_keep_tracks_whole_and_draw_from_all_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, some_images(90))
    few = load_images(tmp_path, 6, limit=30, seed=2)
    assert len(few) == 30
    assert set(few.label) == {0, 1, 2}
    assert_same(few, load_images(tmp_path, 6, limit=30, seed=2))
    for drive in range(40):
        images = [
            (f"ant/drive{drive}", f"{i}.png", picture(500 + 10 * drive + i)) for i in range(5)
        ]
        write_folder(tmp_path, images)
    few = load_images(tmp_path, 6, limit=32)
    lengths = np.unique(few.track, return_counts=True)[1]
    assert lengths.sum() == 32
    assert (lengths == 5).sum() >= 2
    assert np.isin(lengths, (1, 5)).sum() >= len(lengths) - 1  # the last one may be cut


# --- Labels and classes ------------------------------------------------------------------------


def test_class_numbers_name_themselves(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "a.csv").write_text("label;path\n3;0.png\n0;1.png\n3;2.png\n")
    data = load_images(tmp_path / "a.csv", 6)
    assert data.class_names == ("0", "1", "2", "3")
    assert sorted(data.label.tolist()) == [0, 3, 3]


def test_classes_are_found_by_name_in_a_network(tmp_path: Path) -> None:
    data = load_images(write_folder(tmp_path, some_images()), 6)
    names = ("dog", "cat", "ant", "bee")
    found = data.in_classes(names, 4)
    assert found.class_names == names
    assert [names[c] for c in found.label] == [CLASSES[c] for c in data.label]
    with pytest.raises(DataError, match="images of class 'bee'"):
        data.in_classes(("ant", "cat"), 2)
    with pytest.raises(DataError, match="class numbers"):
        data.in_classes((), 43)
    part = data.take(data.label < 2)  # a class without images is no obstacle
    assert set(part.in_classes(("bee", "ant"), 2).label) == {0, 1}


def test_images_and_labels_are_found_by_what_they_are_not_by_name(tmp_path: Path) -> None:
    """Images beside the table (as paths in the struct), and another name of both columns."""
    images = some_images()
    for _, file, content in images:
        (tmp_path / file).write_bytes(content)
    image = pa.array(
        [{"bytes": None, "path": file} for _, file, _ in images],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"img": image, "kind": [CLASSES.index(name) for name, *_ in images]})
    pq.write_table(
        table.replace_schema_metadata(huggingface(CLASSES, "kind")), tmp_path / "x.parquet"
    )
    wanted = load_images(write_folder(tmp_path / "folder", images), 6)
    assert_same(wanted, load_images(tmp_path / "x.parquet", 6))


def test_many_classes(tmp_path: Path) -> None:
    names = tuple(f"c{i:05d}" for i in range(10_000))
    content = [{"bytes": picture(i % 7), "path": None} for i in range(20)]
    labels = [i * 500 + 499 for i in range(20)]
    table = pa.table({"image": content, "label": labels})
    pq.write_table(table.replace_schema_metadata(huggingface(names)), tmp_path / "x.parquet")
    data = load_images(tmp_path / "x.parquet", 6)
    assert data.class_names == names
    assert sorted(data.label.tolist()) == labels


# --- What is wrong is named --------------------------------------------------------------------


def broken_folder(folder: Path) -> Path:
    write_folder(folder, some_images())
    (folder / "bee/4.png").write_bytes(picture(4)[:60])
    return folder


def empty_class(folder: Path) -> Path:
    write_folder(folder, some_images())
    (folder / "dog").mkdir()
    return folder


def table_of(**columns: list[Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "x.parquet")
        return folder / "x.parquet"

    return write


def shared(labels: list[Any], names: tuple[str, ...] = CLASSES) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = [{"bytes": picture(i), "path": None} for i in range(len(labels))]
        table = pa.table({"image": image, "label": labels})
        pq.write_table(table.replace_schema_metadata(huggingface(names)), folder / "x.parquet")
        return folder / "x.parquet"

    return write


def csv_of(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_folder(folder, some_images())
        (folder / "x.csv").write_text(text)
        return folder / "x.csv"

    return write


def missing_shard(folder: Path) -> Path:
    write_parquet(folder / "train-00000-of-00003.parquet", some_images())
    write_parquet(folder / "train-00002-of-00003.parquet", some_images())
    return folder


def two_sets(folder: Path) -> Path:
    write_parquet(folder / "birds.parquet", some_images())
    write_parquet(folder / "signs.parquet", some_images())
    return folder


def other_classes(folder: Path) -> Path:
    write_parquet(folder / "train.parquet", some_images())
    write_parquet(folder / "test.parquet", some_images(), ("bee", "ant", "cat"))
    return folder


def cut_off(folder: Path) -> Path:
    path = write_parquet(folder / "x.parquet", some_images())
    path.write_bytes(path.read_bytes()[:-20])
    return path


def one_image(folder: Path) -> Path:
    (folder / "a.png").write_bytes(picture(0))
    return folder / "a.png"


def loose_images(folder: Path) -> Path:
    return one_image(folder).parent


def same_frame(folder: Path) -> Path:
    return csv_of(
        "path,label,track,frame\nant/0.png,ant,t,1\nbee/1.png,bee,,1\nant/3.png,ant,t,1\n"
    )(folder)


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "broken image in a folder": (broken_folder, r"bee/4\.png"),
    "class without an image": (empty_class, r"dog without images.*or remove it"),
    "label above the classes": (shared([0, 1, 3, 2]), r"x\.parquet, row 2: label 3"),
    "labels kept back": (shared([0, -1, -1]), r"row 1: label -1 .*kept back.*and 1 more"),
    "empty label": (shared([0, None, 2]), r"row 1: nothing in column label"),
    "label with a fraction": (shared([0.5, 1.0]), r"row 0: label 0\.5"),
    "repeated class name": (shared([0, 1], ("a", "a")), r"class names of column label"),
    "no image column": (table_of(text=["a"], label=[0]), r"columns text, label"),
    "no label column": (table_of(image=[b"a"]), r"columns image"),
    "two image columns": (table_of(a=[b"a"], b=[b"b"], label=[0]), r"columns a, b, label"),
    "image column of numbers": (table_of(image=[1], label=[0]), r"columns image, label"),
    "broken image in Parquet": (
        table_of(image=[picture(0), b"no image"], label=[0, 1]),
        r"x\.parquet, row 1: 8 bytes that cannot be decoded",
    ),
    "empty image in Parquet": (table_of(image=[picture(0), None], label=[0, 1]), r"row 1: nothing"),
    "cut-off Parquet": (cut_off, r"x\.parquet"),
    "missing file of a series": (missing_shard, r"also train-00001-of-00003"),
    "files of two sets": (two_sets, r"birds\.parquet, signs\.parquet"),
    "other classes in a file": (other_classes, r"other class names"),
    "path that is not there": (csv_of("path,label\nant/0.png,a\nb.png,a\n"), r"line 3 \(b\.png\)"),
    "no path column": (csv_of("file,label\nant/0.png,a\n"), r"expected also path"),
    "empty path": (csv_of("path,label\nant/0.png,a\n,a\n"), r"line 3: nothing in column path"),
    "negative label": (csv_of("path,label\nant/0.png,0\nbee/1.png,-2\n"), r"line 3.*label -2"),
    "frame that is missing": (
        csv_of("path,label,track,frame\nant/0.png,a,t,1\nant/3.png,a,,\nbee/1.png,b,t,\n"),
        r"line 4: frame nan",
    ),
    "frame with a fraction": (
        table_of(image=[picture(0)], label=[0], track=["a"], frame=[0.5]),
        r"row 0: frame 0\.5",
    ),
    "frame of another type": (
        table_of(image=[picture(0)], label=[0], track=["a"], frame=["x"]),
        r"column frame of type string",
    ),
    "same frame twice": (same_frame, r"line 4 .*frame 1 of track 't' again, as in .*line 2"),
    "one image": (one_image, r"one image"),
    "images without classes": (loose_images, r"holds a\.png"),
    "empty folder": (lambda folder: folder, r"holds nothing"),
    "nothing there": (lambda folder: folder / "none", r"does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    with pytest.raises(DataError, match=message) as error:
        load_images(make(tmp_path), 6)
    assert "\n" not in str(error.value)


def test_a_folder_with_a_table_in_it_says_which(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"give .*list\.csv"):
        load_images(tmp_path, 6)


def test_one_class_is_none_to_fit_on(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", some_images(60))
    with pytest.raises(DataError, match="one class, 'photos'"):
        load_parts(tmp_path, 6, ("cnn-fit",))


def test_a_part_without_images_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, some_images(6))
    with pytest.raises(DataError, match="6 images, none of them in cnn-val"):
        load_images(tmp_path, 6, "cnn-val")


def test_a_network_refuses_other_images_than_it_was_trained_with(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", some_images(60))
    stored = dict(load_parts(folder, 6, ("cnn-fit",), seed=7).split)
    moved = Path(shutil.move(folder, tmp_path / "b"))
    (moved / "ant/0.png").rename(moved / "ant/renamed.png")
    trained = load_images(moved, 6, "cnn-fit", seed=7)
    assert_same(trained, load_images(moved, 6, "cnn-fit", seed=1, stored=stored))
    write_folder(moved, [("ant", "new.png", picture(999))])
    with pytest.raises(DataError, match="not those the network was trained with"):
        load_images(moved, 6, "test", stored=stored)
    assert len(load_images(moved, 6, "all", stored=stored)) == 61
    with pytest.raises(DataError, match="stored split"):
        load_images(moved, 6, "test", stored={"seed": "7"})


# --- Real sets ---------------------------------------------------------------------------------


def test_gtsrb_is_recognised_by_its_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", some_images())
    assert not is_gtsrb(tmp_path)
    table = pa.table({name: [1] for name in ("label", "track", "frame", "width", "height")})
    pq.write_table(table.append_column("image", pa.array([picture(0)])), tmp_path / "train.parquet")
    assert is_gtsrb(tmp_path)
    with pytest.raises(ConfigError, match="part all of GTSRB"):
        load_images(tmp_path, 6)


def test_cifar10(data_dir: Path) -> None:
    path = data_dir / "cifar10"
    if not path.is_dir():
        pytest.skip("no cifar10 in the data folder")
    listed = list_images(path / "test-00000-of-00001.parquet")
    assert listed.class_names[3] == "cat"
    assert len(listed) == 6667
    data = listed.load(np.arange(0, 6667, 20), 32)
    assert data.images.shape == (334, 32, 32, 3)
    assert set(data.label) == set(range(10))
    assert set(data.width_px) == {32}
    assert 40 < data.images.mean() < 200


@pytest.mark.slow(40)
def test_fifty_thousand_images_need_little_memory(data_dir: Path) -> None:
    path = data_dir / "cifar10"
    if not path.is_dir():
        pytest.skip("no cifar10 in the data folder")
    # VmHWM: unlike ru_maxrss it does not count what the parent had when it forked.
    code = (
        "from pathlib import Path; from cnn.data.load_images import load_parts; "
        f"data = load_parts(Path({str(path)!r}), 32, ('cnn-fit', 'cnn-val', 'test')); "
        "print(*(len(part) for part in data.parts.values()), "
        "next(line.split()[1] for line in open('/proc/self/status') if line[:6] == 'VmHWM:'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *counts, peak_kb = map(int, done.stdout.split())
    assert counts == [45_000, 5_000, 6_667]
    assert peak_kb < 1_000_000
