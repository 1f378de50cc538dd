"""Checkpoints of a training run that it can be continued from bit for bit.

A checkpoint holds the model with its optimiser, every random state, the state of all
lanes and the supervisor's progress. It is written to a new folder, synced, that takes the old
one's place in one step: a kill at any moment leaves the old or the new one. Like
stable-baselines3's own files it contains pickles: resume only from folders of your own.

A run that is begun in the folder of another one writes its settings first and its checkpoint
and best model later. Both therefore carry the settings they were made with, so that what is
still the other run's is never taken for this one's.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO

from agents.file_kinds import CHECKPOINT
from cnn.errors import DataError
from cnn.files import write_bytes, write_text
from cnn.folders import replacing_folder, settle
from offload_env.vector_env import OffloadVectorEnv

FOLDER: Final = "checkpoint"
BEST: Final = "best.zip"
_FIGURES: Final = "sliproad.json"
"""Member of `BEST` beside stable-baselines3's own, so that figures and model are one file."""
MODELS: Final[dict[str, Any]] = {"ppo": PPO, "dqn": DQN, "maskable-ppo": MaskablePPO}
"""Class of the models of each `agents.config.ALGORITHMS`."""


def save(model: Any, env: OffloadVectorEnv, progress: Any, out: Path) -> None:
    """Write ``out/checkpoint``, whole or not at all; raises `DataError` if it cannot be."""
    state = {
        "settings": _settings(out),
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
    with replacing_folder(out / FOLDER, CHECKPOINT) as new:
        (new / "model.zip").write_bytes(_zip_of(model).getvalue())
        if isinstance(model, DQN):
            model.save_replay_buffer(new / "replay.pkl")
        (new / "state.pkl").write_bytes(pickle.dumps(state))


def load(algo: str, out: Path, adapter: Any) -> tuple[Any, Any]:
    """Model and progress of ``out/checkpoint``, with the environment put back to its state.

    Raises:
        DataError: if there is no whole checkpoint, or it is of a run with other settings.
    """
    folder = out / FOLDER
    try:
        settle(folder)
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
    _check_settings(folder, state.get("settings"), out)
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
    """Keep the best model so far, with its validation figures, whole or not at all.

    ``best.json`` has the figures again, for people.
    """
    figures = {"step": step, **figures}
    content = _zip_of(model)
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr(
            _FIGURES, json.dumps({"figures": figures, "settings": _settings(out)}, indent=1)
        )
    write_bytes(out / BEST, content.getvalue())
    write_text(out / "best.json", json.dumps(figures, indent=1) + "\n")


def load_best(algo: str, out: Path) -> tuple[Any, dict[str, float]]:
    """The best model of a run and its validation figures.

    Raises:
        DataError: if the run has none, or it is of a run with other settings.
    """
    settings = None
    try:
        with zipfile.ZipFile(out / BEST) as archive:
            if _FIGURES in archive.namelist():
                kept = json.loads(archive.read(_FIGURES))
                figures, settings = kept["figures"], kept["settings"]
            else:  # written before the file itself had them
                figures = json.loads((out / "best.json").read_text())
        _check_settings(out / BEST, settings, out)
        model = MODELS[algo].load(out / BEST, device="cpu")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"training run {out}: {error}",
            expected="a folder with best.zip, as `sliproad agent train --out` writes",
            mend="train first, or give another folder",
        ) from error
    return model, figures


def _zip_of(model: Any) -> io.BytesIO:
    """The model as the content of stable-baselines3's zip file.

    In memory, since what torch raises of a full disk hides the cause.
    """
    content = io.BytesIO()
    model.save(content)
    return content


def _settings(out: Path) -> dict[str, Any] | None:
    """Settings of the run that a folder's ``config.json`` is of, steps apart; None without it."""
    try:
        settings: dict[str, Any] = json.loads((out / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return {name: value for name, value in settings.items() if name != "steps"}


def _check_settings(path: Path, made_with: dict[str, Any] | None, out: Path) -> None:
    """Raise `DataError` if both are known and differ: the file is an earlier run's."""
    now = _settings(out)
    if made_with is not None and now is not None and made_with != now:
        raise DataError(
            f"{path} is of an earlier run in that folder, with other settings than its config.json",
            expected="what the run itself has written: it ended before it could",
            mend="train again, or go back to the earlier run's settings",
        )
