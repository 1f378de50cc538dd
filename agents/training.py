"""Training with stable-baselines3 on the native vector environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from agents import train_checkpoint as checkpoint
from agents.export_policy import policy_of, task_of
from agents.floor_kept import keeps
from agents.from_records import recorded_traces, world_from_records
from agents.run_files import CONFIG, POLICY, check_run, keep_scenario, kept_scenario, write_table
from agents.sb3_adapter import FrameRolloutBuffer, OffloadVecEnv
from agents.supervisor import Progress, Report, Supervisor, stop_when_told
from agents.teacher import imitate, teacher_of
from agents.train_config import REPLAYED, TrainConfig
from cnn.common.console import stderr_console
from cnn.common.errors import ConfigError, DataError
from cnn.common.outputs import Claim
from cnn.frame_table import FrameTable
from offload_env.scenario import anchored
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import World, build_world
from testbed.policy.policy_file import PolicyBundle

_QUANTILES: Final = 50
"""Of QR-DQN's value of each action, instead of the library's 200, which take longer."""
_PRIOR: Final = 4.0
"""Pseudo-answers, with the mean of all answers of the bin's confidence, in every bin."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run.

    Attributes:
        out: its folder.
        config: its settings.
        bundle: policy bundle of the best validated model.
        validation: figures of that model on the validation drives, and its step.
        log: one row a rollout.
        seconds: training time, interruptions excluded.
        floor: accuracy floor of the training frames, which the validation accuracy must keep.
        full_local_ms: time of full local processing on the device it was trained for.
    """

    out: Path
    config: TrainConfig
    bundle: PolicyBundle
    validation: dict[str, float]
    log: pd.DataFrame
    seconds: float
    floor: float
    full_local_ms: float

    @property
    def keeps_floor(self) -> bool:
        """Whether the best model's accuracy on validation drives is at least the floor."""
        return keeps(self.validation["accuracy"], self.floor)


def train(
    config: TrainConfig,
    out: Path,
    *,
    world: World | None = None,
    resume: bool = False,
    report: Report = lambda step, row: None,
    extra: Callable[[BaseCallback], BaseCallback] = lambda own: own,
) -> TrainResult:
    """Train with validation, and keep the best policy that keeps the floor.

    Args:
        config: settings.
        out: folder of the run: ``config.json``, ``scenario/``, ``best.zip``, ``checkpoint/``,
             ``learning.parquet``, ``tensorboard/``, ``agent.policy``.
        world: training world; None builds the scenario's, on the records that `config` names.
        resume: resume from ``out/checkpoint`` or, if it is damaged, from the one before it; the
            settings must be the same, except steps.
        report: called after every rollout.
        extra: wraps the training's own callback, to add others.

    Raises:
        DataError: if there is no checkpoint to resume from, `out` holds other files that a run
            would replace, or another process trains into it.
        ConfigError: if the settings or the scenario differ from those of the checkpoint.
        TrainingInterrupted: at SIGINT or SIGTERM, once a checkpoint is written; the resumed
            run ends as the uninterrupted one would have.
    """
    check_run(out, resume)
    with Claim(out, folder=True):
        if world is None:
            world = world_of(config, out if resume else None)
        config = config.of(world.topology)
        # One thread: the matrices are small, and more would change sums between machines.
        torch.set_num_threads(1)
        set_random_seed(config.seed)
        adapter = adapter_of(config, world)
        if resume:
            _same_settings(config, world, out)
            model, progress = checkpoint.load(config.algo, out, adapter)
            # A run of an older version does not have the attribute.
            if best_file := getattr(progress, "best_file", None):
                checkpoint.put_back_best(best_file, out)
        else:
            adapter.seed(config.seed)
            model = _make(config, adapter)
            progress = Progress(
                multiplier=config.dual_start,
                next_validation=config.validate_every,
                next_checkpoint=config.checkpoint_every,
            )
        if config.env == "staged":
            model.rollout_buffer.follow(lambda: adapter.frame_done)
        if config.teacher and not resume:
            stderr_console().print(f"tuning and imitating the {config.teacher}", highlight=False)
            teacher, progress.multiplier = teacher_of(config, world)
            imitate(model, adapter, teacher, progress.multiplier, config)
            adapter.sums.take()  # the log begins with PPO's own decisions
        config.save(out / CONFIG)
        if not resume or kept_scenario(out) is None:
            keep_scenario(world.scenario, out)
        model.set_logger(configure(str(out / "tensorboard"), ["tensorboard"]))
        try:
            with stop_when_told() as stop:
                supervisor = Supervisor(config, world, adapter, out, progress, report, stop)
                left = config.steps - model.num_timesteps
                if left > 0:
                    watch = extra(supervisor)
                    model.learn(left, callback=watch, reset_num_timesteps=False, log_interval=10**9)
                supervisor.finish()
        finally:
            model.logger.close()
        return _result(config, out, world, progress)


def world_of(config: TrainConfig, run: Path | None = None) -> World:
    """The training world that the settings name, on the scenario that the folder `run` keeps."""
    kept = None if run is None else kept_scenario(run)
    if not config.records:
        return build_world(kept or config.scenario)
    if kept is None:
        return world_from_records(config.scenario, Path(config.records))
    # The kept scenario has the speed from the records, but not their link.
    return build_world(kept, traces=recorded_traces(kept, Path(config.records)))


def adapter_of(config: TrainConfig, world: World) -> OffloadVecEnv:
    """The environment that a run learns in, adapted to stable-baselines3."""
    table = error_probability(world.table)
    kind = OffloadStagedVectorEnv if config.env == "staged" else OffloadVectorEnv
    outputs = config.outputs(world.topology)
    return OffloadVecEnv(kind(config.n_envs, world=world), outputs, table)


def error_probability(table: FrameTable, bins: int = 12) -> NDArray[np.float32]:
    """Error probability of each action's answer to each frame, for a reward with less noise.

    Wrong answers are rare (about one in a hundred) and their price is high, so the raw 0 or 1
    is almost pure noise to a learner. In training only, it is replaced by its mean over similar
    answers: same calibrated confidence, and the same share of the network's answers to this
    frame that agree with it. The dual ascent and every report use the true 0 or 1.

    Args:
        table: training frames.
        bins: bins of confidence, equally filled.

    Returns:
        float32 (N, n_actions) in [0, 1], each action's mean its true share of wrong answers (of
        frames with qualities, 1 less their mean).
    """
    wrong = 1.0 - table.correct
    edges = np.quantile(table.confidence, np.linspace(0, 1, bins + 1)[1:-1])
    sure = np.searchsorted(edges, table.confidence)
    same = table.prediction[:, :, None] == table.prediction[:, None, :]
    agree = np.minimum((same.mean(2) * 5).astype(np.int64), 4)
    by_sure = np.bincount(sure.ravel(), wrong.ravel(), bins) / np.maximum(
        np.bincount(sure.ravel(), minlength=bins), 1
    )
    cell = (sure * 5 + agree).ravel()
    count = np.bincount(cell, minlength=5 * bins)
    total = np.bincount(cell, wrong.ravel(), 5 * bins)
    mean = (total + _PRIOR * np.repeat(by_sure, 5)) / (count + _PRIOR)
    out = mean[cell].reshape(wrong.shape)
    # Per action the mean must be the true one, because the floor applies to accuracies.
    out *= wrong.mean(0) / np.maximum(out.mean(0), 1e-12)
    chance: NDArray[np.float32] = np.clip(out, 0.0, 1.0).astype(np.float32)
    return chance


def _make(config: TrainConfig, adapter: OffloadVecEnv) -> Any:
    kind: Any = checkpoint.MODELS[config.algo]
    if config.algo in REPLAYED:
        steps = config.n_envs * config.n_steps
        quantiles = {"n_quantiles": _QUANTILES} if config.algo == "qr-dqn" else {}
        return kind(
            "MlpPolicy",
            adapter,
            policy_kwargs={"net_arch": [config.hidden, config.hidden], **quantiles},
            buffer_size=max(steps, min(config.steps, 400_000)),
            learning_starts=steps,
            batch_size=config.batch_size,
            train_freq=1,
            gradient_steps=max(1, config.epochs // 4),
            target_update_interval=100 * config.n_envs,
            exploration_fraction=0.3,
            exploration_final_eps=0.02,
            **_common_settings(config),
        )
    buffer = {"rollout_buffer_class": FrameRolloutBuffer} if config.env == "staged" else {}
    return kind("MlpPolicy", adapter, **ppo_settings(config), **buffer)


def _common_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of every algorithm's model."""

    def rate(left: float) -> float:
        return config.learning_rate * (0.1 + 0.9 * left)

    return {"seed": config.seed, "device": "cpu", "gamma": config.gamma, "learning_rate": rate}


def ppo_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of PPO and of algorithms built on it."""
    width = [config.hidden, config.hidden]
    return {
        **_common_settings(config),
        "n_steps": config.n_steps,
        "n_epochs": config.epochs,
        # Whole minibatches, also with fewer lanes than usual.
        "batch_size": math.gcd(config.batch_size, config.n_envs * config.n_steps),
        "gae_lambda": config.gae_lambda,
        "ent_coef": config.entropy,
        "policy_kwargs": {"net_arch": {"pi": width, "vf": width}, "activation_fn": nn.Tanh},
    }


def _same_settings(config: TrainConfig, world: World, out: Path) -> None:
    before, kept = TrainConfig.load(out / CONFIG), kept_scenario(out)
    if kept is not None and kept != anchored(world.scenario):
        raise ConfigError(
            f"scenario {world.scenario.name} other than the one kept in {out}",
            expected="the scenario of the run to resume",
            hint="leave --scenario and --from-records out, or give another --out without --resume",
        )
    if replace(before, steps=config.steps) != config:
        raise ConfigError(
            f"settings that differ from those of {out}",
            expected="the settings of the run to resume (only steps may differ)",
            hint="give the same options, or another --out without --resume",
        )


def _result(config: TrainConfig, out: Path, world: World, progress: Progress) -> TrainResult:
    best, validation = checkpoint.load_best(config.algo, out)
    log = progress.log()
    write_table(out / "learning.parquet", log)
    bundle = policy_of(best, config, world, validation)
    bundle.save(out / POLICY)
    return TrainResult(
        out,
        config,
        bundle,
        validation,
        log,
        progress.seconds,
        world.accuracy_floor,
        world.delay_ref_ms,
    )


def exported(run: Path, records: Path | None = None) -> PolicyBundle:
    """The best model of a run, as a policy in the world that it was trained in.

    Args:
        run: folder of the run, finished or not.
        records: present path of the records that it was trained on; None takes the path in its
            settings.

    Raises:
        DataError: if the run has no model, or its policy file has another task than its world.
    """
    config = TrainConfig.load(run / CONFIG)
    if records is not None:
        config = replace(config, records=str(records))
    model, figures = checkpoint.load_best(config.algo, run)
    world = world_of(config, run)
    written = run / POLICY
    if written.is_file() and PolicyBundle.load(written).task not in (None, task_of(world)):
        raise DataError(
            f"run {run}, whose agent.policy has another task than its scenario sets now",
            expected="the scenario, and the records if any, that it was trained with",
            hint="give --from-records, put the scenario back, or use that agent.policy as it is",
        )
    return policy_of(model, config, world, figures)
