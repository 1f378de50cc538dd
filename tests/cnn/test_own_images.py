"""Folders of images that no network can be made of, or judged on, on the command line.

From a folder to a bundle and its tables: `tests/test_your_pages.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from cnn.network_commands import app

COLOURS = {"blue": (30, 40, 200), "green": (30, 180, 40), "red": (200, 40, 30)}


def write_images(folder: Path, n: int) -> Path:
    """Plain colours with noise."""
    rng = np.random.default_rng(0)
    for i in range(n):
        name = list(COLOURS)[i % 3]
        pixels = np.clip(rng.normal(COLOURS[name], 30, (20, 24, 3)), 0, 255).astype(np.uint8)
        path = folder / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def refused(*line: object) -> str:
    return str(CliRunner().invoke(app, list(map(str, line))).exception)


def test_too_few_images_to_train_are_refused(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", 30)
    said = refused("train", "--data", photos, "--out", tmp_path / "run", "--epochs", 1)
    assert "19 images to fit the network" in said


def test_named_classes_need_a_network_that_knows_names(tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", 6)
    said = refused("evaluate", "--data", photos, "--part", "all")
    assert "knows its classes by number alone" in said
