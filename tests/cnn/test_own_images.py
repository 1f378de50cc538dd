"""From a folder of images to a bundle, its evaluation and its tables, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cnn.bundle import load_bundle
from cnn.frame_table import FrameTable
from cnn.network_commands import app

COLOURS = {"blue": (30, 40, 200), "green": (30, 180, 40), "red": (200, 40, 30)}


def write_images(folder: Path, n: int, seed: int) -> Path:
    """Plain colours with noise: a network that sees them once knows them or not; sizes differ."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        name = list(COLOURS)[i % 3]
        noise = rng.normal(0, 30, (20 + i % 5, 24, 3))
        pixels = np.clip(noise + COLOURS[name], 0, 255).astype(np.uint8)
        path = folder / name / f"{seed}-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def run(*line: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, line), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def refused(*line: object) -> str:
    return str(CliRunner().invoke(app, list(map(str, line))).exception)


@pytest.mark.slow(40)
def test_a_folder_becomes_a_bundle_and_tables(tmp_path: Path) -> None:
    photos, out = write_images(tmp_path / "photos", 240, 0), tmp_path / "run"
    line = ["train", "--data", photos, "--out", out, "--epochs", 1, "--bottleneck-epochs", 1]
    run(*line, "--precision", "float32", "--device", "cpu", "--threads", 1, "--seed", 3)
    bundle = load_bundle(out / "bundle")
    assert bundle.class_names == tuple(COLOURS)
    assert bundle.config.n_classes == 3
    provenance = bundle.manifest["provenance"]
    assert provenance["split"]["seed"] == 3
    assert provenance["split"]["images"] == {
        "cnn-fit": 151, "cnn-val": 17, "policy-train": 36, "policy-test": 36
    }  # fmt: skip
    info = run("info", "--bundle", bundle.path)
    assert info["class_names"] == list(COLOURS)
    shown = CliRunner().invoke(app, ["info", "--bundle", str(bundle.path)])
    assert "3 classes: blue, green, red" in shown.stdout

    given = ["--data", photos, "--bundle", bundle.path]
    assert run("evaluate", *given)["frames"] == 72
    labels = []
    for part in ("policy-train", "policy-test"):
        run("table", *given, "--part", part, "--out", tmp_path / f"{part}.npz")
        table = FrameTable.load(tmp_path / f"{part}.npz")
        assert table.n_tracks == len(table) == 36
        assert table.source == f"photos {part}"
        labels += table.label.tolist()
    assert np.bincount(labels).tolist() == [24, 24, 24]

    # The same again from the checkpoint.
    run("export", "--checkpoint", out / "network.pt", "--out", tmp_path / "again",
        "--data", photos, "--precision", "float32")  # fmt: skip
    again = load_bundle(tmp_path / "again")
    assert again.class_names == bundle.class_names
    assert again.temperatures == bundle.temperatures
    assert again.manifest["provenance"]["split"] == provenance["split"]

    # Another set is no test of this network by chance, but by word; its classes go by name.
    other = write_images(tmp_path / "other", 6, 1)
    assert "not those the network was trained with" in refused(
        "evaluate", "--data", other, "--bundle", bundle.path
    )
    (other / "red").rename(other / "pink")
    assert "images of class 'pink'" in refused(
        "evaluate", "--data", other, "--bundle", bundle.path, "--part", "all"
    )
    for path in (other / "pink").iterdir():
        path.unlink()
    (other / "pink").rmdir()
    assert run("evaluate", "--data", other, "--bundle", bundle.path, "--part", "all")["frames"] == 4


def test_too_few_images_to_train_are_refused(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", 30, 0)
    said = refused("train", "--data", photos, "--out", tmp_path / "run", "--epochs", 1)
    assert "19 images to fit the network" in said


def test_named_classes_need_a_network_that_knows_names(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", 6, 0)
    said = refused("evaluate", "--data", photos, "--part", "all")
    assert "knows its classes by number alone" in said
