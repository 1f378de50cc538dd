"""Checkpoints from which a training run resumes bit for bit.

They are written here because stable-baselines3's `CheckpointCallback` keeps neither the
environment's state nor the random states.

A checkpoint is a folder: the model with its optimiser, its replay buffer if any, and one file
with every random state, the state of all lanes, the supervisor's progress and the best model.
``manifest.json``, written last, has the SHA-256 of each. The folder is written beside its final
path, synced, and replaces the old one in one step; the old one is kept as the previous checkpoint.
So a kill at any moment leaves a whole checkpoint, and damage to one file leaves another checkpoint
to resume from.

Like stable-baselines3's own files it contains pickles. Checksums detect damage, not malice, since
anyone who can write the folder can write them too: resume only from your own folders.

A run that is begun in the folder of another one writes its settings first and its checkpoint
and best model later. Both therefore carry the settings they were made with, so that files of the
other run are never taken for this run's.
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
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.run_files import CHECKPOINT, CONFIG, SCENARIO
from cnn.common.console import warn
from cnn.common.errors import DataError
from cnn.common.files import replacing, write_bytes, write_text
from cnn.common.folders import replacing_folder, settle
from cnn.common.outside import file_sha256, is_sealed, seal
from offload_env.vector_env import OffloadVectorEnv

FOLDER: Final = "checkpoint"
PREVIOUS: Final = "checkpoint.previous"
BEST: Final = "best.zip"
_MANIFEST: Final = "manifest.json"
_KEPT: Final = "kept_scenario"
_FIGURES: Final = "sliproad.json"
"""Member of `BEST` beside stable-baselines3's own, so that figures and model are one file."""
MODELS: Final[dict[str, Any]] = {
    "ppo": PPO,
    "dqn": DQN,
    "qr-dqn": QRDQN,
    "maskable-ppo": MaskablePPO,
}
"""Class of the models of each `agents.train_config.ALGORITHMS`."""


class _DamagedError(Exception):
    """A checkpoint's damage, and the file it is in."""


def save(
    model: Any,
    env: OffloadVectorEnv,
    progress: Any,
    out: Path,
    settings: dict[str, Any] | None = None,
) -> None:
    """Write ``out/checkpoint``, whole or not at all; the one before it is kept if it is whole.

    Args:
        model: of stable-baselines3.
        env: whose lanes are kept.
        progress: other state that a resumed run needs; any object that can be pickled.
        out: folder of the run.
        settings: the run's settings, as plain values; None takes those in ``out/config.json``.

    Raises:
        DataError: if it cannot be written.
    """
    state = {
        "settings": _settings(out) if settings is None else settings,
        "checksums": True,
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
    keep = out / PREVIOUS if _is_whole(out / FOLDER) else None
    with replacing_folder(out / FOLDER, CHECKPOINT, keep) as new:
        (new / "model.zip").write_bytes(_zip_of(model))
        if isinstance(model, OffPolicyAlgorithm):
            model.save_replay_buffer(new / "replay.pkl")
        (new / "state.pkl").write_bytes(pickle.dumps(state))
        sums = {path.name: file_sha256(path) for path in sorted(new.iterdir())}
        manifest = {"step": int(model.num_timesteps), "sha256": sums}
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def load(algo: str, out: Path, adapter: Any) -> tuple[Any, Any]:
    """Model and progress of the newest whole checkpoint; also restores the environment.

    Prints one line if that is not the newest checkpoint.

    Raises:
        DataError: if there is no whole checkpoint, or it is of a run with other settings.
    """
    folder, state = _newest_whole(out)
    _check_settings(folder, state.get("settings"), out)
    try:
        model = MODELS[algo].load(
            io.BytesIO((folder / "model.zip").read_bytes()),
            env=adapter,
            device="cpu",
            force_reset=False,
            # The space's bounds were narrower in older versions; observations are the same.
            custom_objects={"observation_space": adapter.observation_space},
        )
        if isinstance(model, OffPolicyAlgorithm):
            model.load_replay_buffer(folder / "replay.pkl")
        env: OffloadVectorEnv = adapter.env
        env.simulator.lanes, env._seeds = state["lanes"], state["seeds"]
        model._last_obs, model._last_episode_starts = state["last_obs"], state["last_starts"]
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])
        random.setstate(state["random"])
        # Loading reseeds the space, which DQN explores with.
        model.action_space.np_random.bit_generator.state = state["explore"]
    except Exception as error:  # pickles of another version may raise any error
        raise _not_loaded(f"checkpoint {folder}: {_first_line(error)}") from error
    return model, state["progress"]


def exists(out: Path) -> bool:
    """Whether a run's folder has a checkpoint, whole or not."""
    for name in (FOLDER, PREVIOUS):
        settle(out / name)
    return any((out / name).is_dir() for name in (FOLDER, PREVIOUS))


def settings_of(out: Path) -> Any:
    """The settings that the newest whole checkpoint was made with; None if it has none.

    Raises:
        DataError: if there is no whole checkpoint.
    """
    return _newest_whole(out)[1].get("settings")


def save_best(model: Any, out: Path, figures: dict[str, float], step: int) -> bytes:
    """Keep the best model so far, with its validation figures, whole or not at all.

    ``best.json`` has the figures again, for people.

    Returns:
        Content of ``best.zip``, for `put_back_best`.
    """
    figures = {"step": step, **figures}
    content = io.BytesIO(_zip_of(model))
    with zipfile.ZipFile(content, "a") as archive:
        kept = {"figures": figures, "settings": _settings(out), "sealed": True}
        archive.writestr(_FIGURES, json.dumps(kept, indent=1))
    with replacing(out / BEST) as temporary:
        temporary.write_bytes(content.getvalue())
        seal(temporary)
        written = temporary.read_bytes()
    write_text(out / "best.json", json.dumps(figures, indent=1) + "\n")
    return written


def put_back_best(content: bytes, out: Path) -> None:
    """Write ``best.zip`` as it was at a checkpoint; replaces a later or damaged one."""
    write_bytes(out / BEST, content)
    with zipfile.ZipFile(out / BEST) as archive:
        figures = json.loads(archive.read(_FIGURES))["figures"]
    write_text(out / "best.json", json.dumps(figures, indent=1) + "\n")


def load_best(algo: str, out: Path) -> tuple[Any, dict[str, float]]:
    """The best model of a run and its validation figures.

    Raises:
        DataError: if the run has none, it is damaged, or it is of a run with other settings.
    """
    settings, path = None, out / BEST
    try:
        sealed = is_sealed(path)
        if sealed is False:
            raise ValueError("it is damaged: its checksum differs")
        with zipfile.ZipFile(path) as archive:
            if _FIGURES in archive.namelist():
                kept = json.loads(archive.read(_FIGURES))
                figures, settings = kept["figures"], kept["settings"]
                if kept.get("sealed") and not sealed:
                    raise ValueError("it is damaged: its checksum is gone")
            else:  # from before the file itself had them
                figures = json.loads((out / "best.json").read_text())
    except Exception as error:  # a damaged file may raise any error
        raise _no_best(path, error) from error
    _check_settings(path, settings, out)
    try:
        return MODELS[algo].load(io.BytesIO(path.read_bytes()), device="cpu"), figures
    except Exception as error:
        raise _no_best(path, error) from error


def _newest_whole(out: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that is whole, and its state; one line if it is not the newest."""
    faults: list[str] = []
    for name in (FOLDER, PREVIOUS):
        folder = out / name
        settle(folder)
        if not folder.is_dir():
            continue
        try:
            state = _state_of(folder)
        except _DamagedError as fault:
            faults.append(str(fault))
            continue
        if faults:
            warn(f"{faults[0]}; resuming from the whole one before it, {folder}")
        return folder, state
    if not faults:
        raise DataError(
            f"no checkpoint in {out}",
            expected="a folder in which `sliproad agent train` has written one",
            hint="give the run's folder with --out, or start without --resume",
        )
    raise _not_loaded("; ".join(faults))


def _state_of(folder: Path) -> dict[str, Any]:
    """State of a checkpoint whose files are all unchanged; raises `_DamagedError` otherwise."""
    sealed = (folder / _MANIFEST).exists()
    if sealed:
        _check_sums(folder)
    path = folder / "state.pkl"
    try:
        _regular(path)
        state = pickle.loads(path.read_bytes())
        if not isinstance(state, dict) or not {"lanes", "progress"} <= state.keys():
            raise _DamagedError(f"{path} holds no state of a training")
    except Exception as error:  # a damaged pickle may raise any error
        if isinstance(error, _DamagedError):
            raise
        raise _DamagedError(f"{path} cannot be read: {_first_line(error)}") from error
    if state.get("checksums") and not sealed:  # older versions wrote none
        raise _DamagedError(f"{folder / _MANIFEST} is missing")
    return state


def _check_sums(folder: Path) -> None:
    path = folder / _MANIFEST
    try:
        _regular(path)
        sums = json.loads(path.read_bytes())["sha256"]
        known = isinstance(sums, dict) and {"model.zip", "state.pkl"} <= sums.keys()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _DamagedError(f"{path} is damaged") from error
    if not known:
        raise _DamagedError(f"{path} is damaged")
    others = {each.name for each in folder.iterdir()} - {_MANIFEST}
    for name in sorted({*sums, *others}):
        _regular(folder / name)
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise _DamagedError(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != sums.get(name):
            raise _DamagedError(f"{folder / name} is damaged: its checksum differs")


def _is_whole(folder: Path) -> bool:
    """Whether there is a checkpoint whose checksums all match."""
    try:
        _check_sums(folder)
    except _DamagedError:
        return False
    return True


def _regular(path: Path) -> None:
    if not path.exists():
        raise _DamagedError(f"{path} is missing")
    if not path.is_file():
        raise _DamagedError(f"{path} is no regular file")


def _not_loaded(given: str) -> DataError:
    return DataError(
        given,
        expected="a whole checkpoint written by `sliproad agent train`",
        hint="train again without --resume, or export what best.zip holds with "
        "`sliproad agent export --run`",
    )


def _no_best(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: {_first_line(error)}",
        expected="the best model of a training run, as `sliproad agent train --out` writes",
        hint="resume the run with --resume, which puts it back, train again, or give another "
        "folder",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _zip_of(model: Any) -> bytes:
    """The model as the content of stable-baselines3's zip file.

    In memory, because torch's error for a full disk hides the cause.
    """
    content = io.BytesIO()
    model.save(content)
    return content.getvalue()


def _settings(out: Path) -> dict[str, Any] | None:
    """The run in a folder: its settings without the number of steps, and its kept scenario.

    None without a ``config.json``.
    """
    try:
        settings: dict[str, Any] = json.loads((out / CONFIG).read_text())
        files = sorted((out / SCENARIO).glob("*.toml"))
        kept = [file.read_bytes().decode(errors="replace") for file in files]
    except (OSError, ValueError):
        return None
    same = {name: value for name, value in settings.items() if name not in ("steps", "sha256")}
    return {**same, _KEPT: kept}


def _check_settings(path: Path, made_with: dict[str, Any] | None, out: Path) -> None:
    """Raise `DataError` if both are known and differ: the file is an earlier run's."""
    now = _settings(out)
    if made_with is None or now is None:
        return
    if _KEPT not in made_with:  # an older version's
        del now[_KEPT]
    if made_with != now:
        raise DataError(
            f"{path} is of an earlier run in that folder, with other settings than its {CONFIG}, "
            f"or with another scenario than stands in {SCENARIO}/",
            expected="what the run itself has written: it ended before it could",
            hint="train again, or go back to the earlier run's settings and scenario",
        )
