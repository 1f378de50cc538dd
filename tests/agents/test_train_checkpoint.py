"""Checkpoints and best models: whole after a kill at any step, and never another run's."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import train_checkpoint as checkpoint
from agents.train_config import TrainConfig
from agents.train_once import has_policy_of
from agents.training import adapter_of, train
from cnn.common.errors import DataError

pytestmark = pytest.mark.slow(25)

Kills = Callable[[str, Path], Iterator[int]]

SAVING = """
import pickle
from pathlib import Path
from types import SimpleNamespace
import torch
from agents import train_checkpoint as checkpoint

kept = Path({kept!r})
state = pickle.loads((kept / "checkpoint" / "state.pkl").read_bytes())
model = checkpoint.MODELS["ppo"].load(kept / "checkpoint" / "model.zip", device="cpu")
model._last_obs, model._last_episode_starts = state["last_obs"], state["last_starts"]
torch.set_rng_state(state["torch"])
env = SimpleNamespace(simulator=SimpleNamespace(lanes=state["lanes"]), _seeds=state["seeds"])
state["progress"].seconds = 1e6
"""


def test_a_kill_at_any_step_of_a_checkpoint_leaves_one_to_resume_from(
    tmp_path: Path,
    make_world: Any,
    kill_at_every_step: Kills,
    small_run: TrainConfig,
    cut_off: Callable[..., None],
) -> None:
    world, kept, out = make_world(20.0), tmp_path / "kept", tmp_path / "run"
    cut_off(small_run, kept, world, 5 * 256)
    shutil.copytree(kept / "checkpoint", kept / "checkpoint.previous")
    shutil.copytree(kept, out)
    program = SAVING.format(kept=str(kept)) + (
        "random_states = (state['numpy'], state['random'])\n"
        "import numpy as np, random\n"
        "model.action_space.np_random.bit_generator.state = state['explore']\n"
        "def change():\n"
        "    np.random.set_state(random_states[0])\n"
        "    random.setstate(random_states[1])\n"
        "    checkpoint.save(model, env, state['progress'], Path(FOLDER))\n"
    )
    seen = []
    for step in kill_at_every_step(program, out):
        assert checkpoint._is_whole(out / "checkpoint")
        _, progress = checkpoint.load("ppo", out, adapter_of(small_run, world))
        seen.append(progress.seconds == 1e6)
        if step == 3:  # the old one, beside half a new one
            shutil.copytree(out, tmp_path / "early")
        shutil.rmtree(tmp_path / "late", ignore_errors=True)
        shutil.copytree(out, tmp_path / "late")  # the new one, beside what is left of the old
        shutil.rmtree(out)
        shutil.copytree(kept, out)
    assert seen == sorted(seen)
    assert {False, True} == set(seen)
    whole = train(small_run, tmp_path / "whole", world=world)
    for name in ("early", "late"):
        resumed = train(small_run, tmp_path / name, world=world, resume=True)
        for key, array in whole.bundle.arrays.items():
            np.testing.assert_array_equal(resumed.bundle.arrays[key], array)
        assert not [p.name for p in (tmp_path / name).iterdir() if p.name.startswith(".")]


def test_a_kill_at_any_step_leaves_the_best_model_with_its_own_figures(
    tmp_path: Path,
    make_world: Any,
    kill_at_every_step: Kills,
    small_run: TrainConfig,
    cut_off: Callable[..., None],
) -> None:
    kept, out = tmp_path / "kept", tmp_path / "run"
    cut_off(small_run, kept, make_world(20.0), 5 * 256)
    program = SAVING.format(kept=str(kept)) + (
        "weights = next(model.policy.parameters())\n"
        "def change():\n"
        "    with torch.no_grad():\n        weights.fill_(7.0)\n"
        "    checkpoint.save_best(model, Path(FOLDER), {'cost': 1.0, 'accuracy': 1.0}, 777)\n"
    )
    shutil.copytree(kept, out)
    steps = set()
    for _ in kill_at_every_step(program, out):
        model, figures = checkpoint.load_best("ppo", out)
        is_new = bool(torch.all(next(model.policy.parameters()) == 7.0))
        assert is_new == (figures["step"] == 777)
        steps.add(figures["step"])
        shutil.rmtree(out)
        shutil.copytree(kept, out)
    assert len(steps) == 2


def test_what_an_earlier_run_left_in_the_folder_is_not_taken_for_this_one_s(
    tmp_path: Path, make_world: Any, small_run: TrainConfig, cut_off: Callable[..., None]
) -> None:
    world, out = make_world(20.0), tmp_path / "run"
    train(small_run, out, world=world)
    small_run = small_run.of(world.topology)
    other = replace(small_run, gamma=0.5)
    assert has_policy_of(small_run, out)
    cut_off(other, out, world, 256)  # before its first validation and checkpoint
    assert TrainConfig.load(out / "config.json") == other
    with pytest.raises(DataError, match="earlier run"):
        checkpoint.load_best("ppo", out)
    with pytest.raises(DataError, match="earlier run"):
        train(other, out, world=world, resume=True)
    assert not has_policy_of(other, out)
    assert has_policy_of(small_run, out)  # the policy is still the old one's, and says so


def test_files_from_before_they_carried_their_settings_still_load(
    tmp_path: Path, make_world: Any, small_run: TrainConfig, cut_off: Callable[..., None]
) -> None:
    """Checkpoint and best model as an earlier version wrote them."""
    world, out = make_world(20.0), tmp_path / "run"
    cut_off(small_run, out, world, 5 * 256)
    path = out / "checkpoint" / "state.pkl"
    state = pickle.loads(path.read_bytes())
    del state["settings"], state["checksums"]
    path.write_bytes(pickle.dumps(state))
    (path.parent / "manifest.json").unlink()
    model, figures = checkpoint.load_best("ppo", out)
    model.save(out / "best.zip")
    (out / "best.json").write_text(json.dumps(figures))
    assert checkpoint.load_best("ppo", out)[1] == figures
    train(small_run, out, world=world, resume=True)


@pytest.mark.parametrize("name", ["best.zip", "agent.policy", "config.json", "checkpoint/notes"])
def test_a_folder_with_the_users_own_files_under_our_names_is_refused(
    tmp_path: Path, make_world: Any, name: str, small_run: TrainConfig
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(DataError, match=path.name):
        train(small_run, tmp_path / "run", world=make_world(20.0))
    assert path.read_text() == "mine"
    assert len(list((tmp_path / "run").rglob("*"))) == len(Path(name).parts)


TRAINING = """
import sys, time
from pathlib import Path
from cnn.common.outputs import Claim
with Claim(Path(sys.argv[1]), folder=True):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_training_in_the_same_folder_is_refused(
    tmp_path: Path, make_world: Any, small_run: TrainConfig
) -> None:
    out = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"in use by process {other.pid}"):
            train(small_run, out, world=make_world(20.0))
        assert list(out.iterdir()) == []
    finally:
        other.communicate("\n", timeout=60)
