"""Folders of images with labels: whose, in what order, and in the records of a live run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from networks import TWO_EXITS
from PIL import Image
from typer.testing import CliRunner

from cnn.bundle import Bundle, load_bundle, manifest_hash
from cnn.common.errors import BundleError, DataError
from cnn.data.image_file import decode_rgb
from cnn.data.load_images import load_images
from cnn.runtime import SplitRuntime
from cnn.topology import Topology
from offload_env.replay import source_table
from testbed.cli.app import app
from testbed.device.frame_sources import open_frames
from testbed.records.record_file import read_records

NAMES = ("cat", "ant", "bee", "dog")
"""In the order of a network's classes, which is not that of their letters."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of four single images each, and a film of three frames of a fourth."""
    rng = np.random.default_rng(0)
    paths = [f"{name}/{i}.png" for name in NAMES[:3] for i in range(4)]
    paths += [f"dog/walk/{i}.png" for i in (1, 2, 10)]
    for path in paths:
        file = tmp_path / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(file)
    return tmp_path / "images"


@pytest.fixture
def named_bundle(tmp_path: Path, tiny_bundle: Callable[[Topology], Bundle]) -> Bundle:
    """A tiny network of four classes with names."""
    return with_names(tiny_bundle(TWO_EXITS), tmp_path / "named", list(NAMES))


def with_names(bundle: Bundle, path: Path, names: object) -> Bundle:
    shutil.copytree(bundle.path, path)
    manifest = {**bundle.manifest, "class_names": names}
    manifest["hash"] = manifest_hash(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return load_bundle(path)


def test_frames_of_class_folders_have_the_networks_labels(folder: Path) -> None:
    frames = list(open_frames(f"folder:{folder}", 8, seed=1, n=15, class_names=NAMES))
    assert [NAMES[f.label] for f in frames if f.label is not None] == [
        "dog" if f.name.startswith("walk/") else f.name.split("/")[0] for f in frames
    ]
    assert len({f.name for f in frames}) == 15
    assert (frames[0].width_px, frames[0].height_px) == (7, 9)
    # Single images are tracks of one frame; the film is one track, in order.
    assert [f.name for f in frames if f.label == 3] == ["walk/1.png", "walk/2.png", "walk/10.png"]
    assert np.bincount([f.track for f in frames]).tolist().count(1) == 12
    assert [f.frame_in_track for f in frames if f.label == 3] == [0, 1, 2]
    assert [f.track for f in frames] == sorted(f.track for f in frames)


def test_their_order_is_the_seeds(folder: Path) -> None:
    def names(seed: int) -> list[str]:
        source = f"folder:{folder}"
        return [f.name for f in open_frames(source, 8, seed=seed, n=15, class_names=NAMES)]

    assert names(1) == names(1) != names(2)
    assert sorted(names(1)) == sorted(names(2))
    assert len({name.split("/")[0] for name in names(1)[:8]}) > 2  # not one class first


def test_folders_that_are_no_classes_have_no_labels(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "dog").rename(folder / "horse")
    with caplog.at_level(logging.WARNING):
        frames = list(open_frames(f"folder:{folder}", 8, n=15, class_names=NAMES))
    assert {f.label for f in frames} == {None}
    assert [f.name for f in frames[:4]] == ["0.png", "1.png", "2.png", "3.png"]
    assert "without labels: 'horse' is no class" in caplog.text
    caplog.clear()
    assert next(open_frames(f"folder:{folder}", 8)).label is None
    assert next(open_frames(f"folder:{folder / 'cat'}", 8, class_names=NAMES)).label is None
    assert not caplog.text


def test_a_class_without_images_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "dog/walk")
    with pytest.raises(DataError, match="dog without images"):
        open_frames(f"folder:{folder}", 8, class_names=NAMES)


def test_a_live_run_over_a_labelled_folder_has_its_accuracy(
    folder: Path, named_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "run.parquet"
    line = ["device", "--local-only", "--action", "e2s2", "--frames", f"folder:{folder}"]
    line += ["--bundle", str(named_bundle.path), "--n-frames", "15", "--fps", "0"]
    line += ["--meter", "none", "--seed", "3", "--out", str(out), "--json"]
    run = CliRunner().invoke(app, line)
    assert run.exit_code == 0, run.output
    summary = json.loads(run.stdout.splitlines()[-1])
    records = read_records(out)
    frames = list(open_frames(f"folder:{folder}", 8, seed=3, n=15, class_names=NAMES))
    label = records.numbers("label")
    assert label.tolist() == [f.label for f in frames]
    # What the network says of each image, asked directly.
    runtime = SplitRuntime(named_bundle)
    said = []
    for frame in frames:
        (path,) = folder.rglob(frame.name)
        image = decode_rgb(path.read_bytes(), 8)[None]
        logits = runtime.logits(runtime.forward(image, 1, 2), 2)
        said.append(int(logits[0].argmax()))
    assert records.numbers("prediction").tolist() == said
    right = np.equal(said, label)
    assert records.numbers("correct").tolist() == right.tolist()
    assert summary["accuracy"] == pytest.approx(right.mean())


def test_a_table_of_the_same_folder_knows_the_same_labels(
    folder: Path, named_bundle: Bundle
) -> None:
    runtime = SplitRuntime(named_bundle)
    table = source_table(runtime, f"folder:{folder}", 0, 15)
    assert sorted(table.label.tolist()) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 3
    loaded = load_images(folder, 8).in_classes(named_bundle.class_names, 4)
    assert sorted(loaded.label.tolist()) == sorted(table.label.tolist())
    assert table.n_tracks == 13


@pytest.mark.parametrize(
    "names", ["cat", [1, 2, 3, 4], ["a", "b", "c"], ["a", "b", "c", "c"], ["a", "b", "c", ""]]
)
def test_a_bundle_with_other_class_names_is_refused(
    names: object, tmp_path: Path, tiny_bundle: Callable[[Topology], Bundle]
) -> None:
    with pytest.raises(BundleError, match="class_names"):
        with_names(tiny_bundle(TWO_EXITS), tmp_path / "bad", names)


def test_class_names_of_a_bundle(
    named_bundle: Bundle, tiny_bundle: Callable[[Topology], Bundle]
) -> None:
    assert named_bundle.class_names == NAMES
    assert tiny_bundle(TWO_EXITS).class_names == ()
