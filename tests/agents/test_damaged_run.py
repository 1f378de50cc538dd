"""A damaged file of a run: another whole one instead, or one line; never another result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import train_checkpoint as checkpoint
from agents.run_files import check_run
from agents.train_config import TrainConfig, config_of
from agents.training import TrainResult, train
from cnn.common.console import plain
from cnn.common.errors import SliproadError

pytestmark = pytest.mark.slow(18)


@pytest.fixture(scope="module")
def config(small_run: TrainConfig) -> TrainConfig:
    """A checkpoint and a validation after every other rollout."""
    return replace(small_run, validate_every=512, checkpoint_every=512)


@pytest.fixture(scope="module")
def runs(
    make_world: Any, cut_off: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """A run that was cut off, and what it would have become, for each algorithm."""
    made: dict[str, tuple[Path, TrainResult]] = {}

    def of(config: TrainConfig) -> tuple[Path, TrainResult]:
        if config.algo not in made:
            folder = tmp_path_factory.mktemp(config.algo)
            whole = train(config, folder / "whole", world=make_world(20.0))
            cut_off(config, folder / "cut", make_world(20.0), 6 * 256)
            made[config.algo] = folder / "cut", whole
        return made[config.algo]

    return of


def same(a: TrainResult, b: TrainResult) -> bool:
    return all(
        np.array_equal(array, b.bundle.arrays[key]) for key, array in a.bundle.arrays.items()
    )


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def remove(path: Path) -> None:
    path.unlink()


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_kind(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n something else")


DAMAGES = [flip, halve, empty, remove, folder_instead, another_kind]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.zip", "replay.pkl", "state.pkl", "manifest.json"])
def test_a_damaged_checkpoint_leaves_the_one_before_it(
    name: str,
    damage: Callable[[Path], None],
    runs: Callable[..., Any],
    make_world: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: TrainConfig,
) -> None:
    config = replace(config, algo="dqn") if name == "replay.pkl" else config
    cut, whole = runs(config)
    out = tmp_path / "run"
    shutil.copytree(cut, out)
    damage(out / "checkpoint" / name)
    if (name, damage) in (("model.zip", flip), ("replay.pkl", flip)):  # the others stop there
        resumed = train(config, out, world=make_world(20.0), resume=True)
        assert same(resumed, whole)
        assert checkpoint._is_whole(out / "checkpoint")
        assert checkpoint._is_whole(out / "checkpoint.previous")
    else:
        folder, _ = checkpoint._newest_whole(out)
        assert folder == out / "checkpoint.previous"
    said = capsys.readouterr().err.splitlines()
    (line,) = (line for line in said if line.startswith("warning:"))
    assert str(out / "checkpoint" / name) in line or name == "manifest.json"
    assert str(out / "checkpoint.previous") in line


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "name",
    ["config.json", "scenario/toy.toml", "best.zip", "best.json", "checkpoint", "both checkpoints"],
)
def test_any_other_damage_is_one_line_or_changes_nothing(
    name: str,
    damage: Callable[[Path], None],
    runs: Callable[..., Any],
    make_world: Any,
    tmp_path: Path,
    config: TrainConfig,
) -> None:
    cut, whole = runs(config)
    out = tmp_path / "run"
    shutil.copytree(cut, out)
    if name == "both checkpoints":
        for folder in ("checkpoint", "checkpoint.previous"):
            damage(out / folder / "state.pkl")
    elif name == "checkpoint":
        shutil.rmtree(out / name)
        (out / name).write_text("something else")
    else:
        damage(out / name)
    if name in ("best.zip", "best.json") and damage is not folder_instead:
        if name == "best.zip":
            with pytest.raises(SliproadError, match=r"best\.zip"):
                checkpoint.load_best("ppo", out)
        resumed = train(config_of({}, out, True), out, world=make_world(20.0), resume=True)
        assert same(resumed, whole)
        return

    def resume() -> None:
        check_run(out, resume=True)
        train(config_of({}, out, True), out, world=make_world(20.0), resume=True)

    with pytest.raises(SliproadError) as refused:
        resume()
    text = plain(str(refused.value))
    assert len(text.splitlines()) == 1
    assert str(out) in text
    assert Path(name).name in text or "checkpoint" in text


def test_every_flipped_bit_of_a_checkpoint_is_found(
    runs: Callable[..., Any], tmp_path: Path, config: TrainConfig
) -> None:
    """One bit of every file, at places all over it; the manifest's step is for people only."""
    cut, _ = runs(config)
    folder = tmp_path / "checkpoint"
    shutil.copytree(cut / "checkpoint", folder)
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        kept = path.read_bytes()
        for place in rng.integers(0, len(kept), 40):
            data = bytearray(kept)
            data[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(data)
            if path.name != "manifest.json":
                assert not checkpoint._is_whole(folder)
        path.write_bytes(kept)
    assert checkpoint._is_whole(folder)


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_whole_one_before_it(
    runs: Callable[..., Any],
    make_world: Any,
    tmp_path: Path,
    config: TrainConfig,
    cut_off: Callable[..., None],
) -> None:
    cut, whole = runs(config)
    out = tmp_path / "run"
    shutil.copytree(cut, out)
    flip(out / "checkpoint" / "state.pkl")

    for _ in range(3):  # each time before a new one is written
        cut_off(config, out, make_world(20.0), 0, resume=True)
    assert same(train(config, out, world=make_world(20.0), resume=True), whole)
