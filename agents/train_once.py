"""Runs of many trainings: what a folder already holds is not trained again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from agents.run_files import CONFIG, POLICY, kept_scenario
from agents.train_config import TrainConfig
from cnn.common.errors import BundleError
from offload_env.scenario import anchored
from offload_env.world import World
from testbed.policy.policy_file import PolicyBundle


def train_once(config: TrainConfig, folder: Path, world: World) -> None:
    """Train into `folder` unless that is done; a run of these settings there is resumed.

    Args:
        config: settings, with the network's actions (`TrainConfig.of`).
        folder: of the run.
        world: training world.

    Raises:
        TrainingInterrupted: at SIGINT or SIGTERM; the work so far is kept in `folder`.
        DataError: as `agents.training.train`.
    """
    from agents import train_checkpoint as checkpoint
    from agents.training import train

    if not is_trained(config, folder, world):
        begun = _is_begun(config, folder, world) and checkpoint.exists(folder)
        train(config, folder, world=world, resume=begun)


def is_trained(config: TrainConfig, folder: Path, world: World) -> bool:
    """Whether `folder` holds the finished run of these settings in this world."""
    return _is_begun(config, folder, world) and has_policy_of(config, folder)


def has_policy_of(config: TrainConfig, folder: Path) -> bool:
    """Whether a folder's policy file says that it was trained with these settings of a network.

    The folder's ``config.json`` is that of the last run that was begun there, not ended.
    """
    try:
        made_with = PolicyBundle.load(folder / POLICY).manifest.get("provenance", {}).get("config")
    except BundleError:  # none yet, or damaged
        return False
    return bool(made_with == json.loads(json.dumps(asdict(config))))


def _is_begun(config: TrainConfig, folder: Path, world: World) -> bool:
    """Whether `folder` holds a run of these settings in this world, finished or not."""
    if not (folder / CONFIG).is_file() or TrainConfig.load(folder / CONFIG) != config:
        return False
    return kept_scenario(folder) in (None, anchored(world.scenario))  # None: an older run
