"""Checkpoints of a training run that it can be continued from bit for bit.

A checkpoint holds the model with its optimiser, every random state, the state of all
lanes and the supervisor's progress. It is written to a new folder that replaces the old
one by renaming. Like stable-baselines3's own files it contains pickles: resume only from
folders of your own.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO

from cnn.errors import DataError
from offload_env.vector_env import OffloadVectorEnv

FOLDER: Final = "checkpoint"
BEST: Final = "best.zip"
MODELS: Final[dict[str, Any]] = {"ppo": PPO, "dqn": DQN, "maskable-ppo": MaskablePPO}
"""Class of the models of each `agents.config.ALGORITHMS`."""


def save(model: Any, env: OffloadVectorEnv, progress: Any, out: Path) -> None:
    """Write ``out/checkpoint``, whole or not at all."""
    new, old = out / f"{FOLDER}.part", out / FOLDER
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    model.save(new / "model.zip")
    if isinstance(model, DQN):
        model.save_replay_buffer(new / "replay.pkl")
    state = {
        "lanes": env.simulator.lanes,
        "seeds": env._seeds,
        "progress": progress,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "random": random.getstate(),
        "explore": model.action_space.np_random.bit_generator.state,
        "last_obs": model._last_obs,
        "last_starts": model._last_episode_starts,
    }
    (new / "state.pkl").write_bytes(pickle.dumps(state))
    shutil.rmtree(old, ignore_errors=True)
    os.replace(new, old)


def load(algo: str, out: Path, adapter: Any) -> tuple[Any, Any]:
    """Model and progress of ``out/checkpoint``, with the environment put back to its state.

    Raises:
        DataError: if there is no whole checkpoint.
    """
    folder = out / FOLDER
    try:
        state = pickle.loads((folder / "state.pkl").read_bytes())
        model = MODELS[algo].load(
            folder / "model.zip",
            env=adapter,
            device="cpu",
            force_reset=False,
            # Its bounds were narrower in older versions; what was observed is the same.
            custom_objects={"observation_space": adapter.observation_space},
        )
        if isinstance(model, DQN):
            model.load_replay_buffer(folder / "replay.pkl")
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise DataError(
            f"checkpoint {folder}: {error}",
            expected="a checkpoint written by `sliproad agent train`",
            mend="give the run's folder with --out, or start without --resume",
        ) from error
    env: OffloadVectorEnv = adapter.env
    env.simulator.lanes, env._seeds = state["lanes"], state["seeds"]
    model._last_obs, model._last_episode_starts = state["last_obs"], state["last_starts"]
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["random"])
    # Loading seeds the space anew; DQN explores with it.
    model.action_space.np_random.bit_generator.state = state["explore"]
    return model, state["progress"]


def save_best(model: Any, out: Path, figures: dict[str, float], step: int) -> None:
    """Keep the best model so far, with its validation figures, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f"{BEST}.part"
    with temporary.open("wb") as file:
        model.save(file)
    os.replace(temporary, out / BEST)
    text = json.dumps({"step": step, **figures}, indent=1) + "\n"
    (out / "best.json.part").write_text(text)
    os.replace(out / "best.json.part", out / "best.json")


def load_best(algo: str, out: Path) -> tuple[Any, dict[str, float]]:
    """The best model of a run and its validation figures.

    Raises:
        DataError: if the run has none.
    """
    try:
        figures = json.loads((out / "best.json").read_text())
        model = MODELS[algo].load(out / BEST, device="cpu")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"training run {out}: {error}",
            expected="a folder with best.zip, as `sliproad agent train --out` writes",
            mend="train first, or give another folder",
        ) from error
    return model, figures
