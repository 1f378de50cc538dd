"""Training with stable-baselines3 on the native vector environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from agents import train_checkpoint as checkpoint
from agents.error_probability import error_probability
from agents.evaluation import keeps
from agents.export_policy import bundle_of
from agents.file_kinds import check_run
from agents.interrupt import stop_when_told
from agents.offline.from_records import recorded_traces, world_from_records
from agents.reference_figures import promise_of
from agents.run_folder import CONFIG, POLICY, keep_scenario, kept_scenario
from agents.sb3_adapter import OffloadVecEnv
from agents.staged_vec import FrameRolloutBuffer, OffloadStagedVecEnv
from agents.supervisor import VALIDATION_SEED_OFFSET, Progress, Supervisor
from agents.table_file import write_table
from agents.train_config import TrainConfig
from agents.world_task import task_of
from cnn.common.errors import ConfigError
from cnn.common.locks import Claim
from offload_env.episode import episode_keys
from offload_env.scenario import anchored
from offload_env.vector_env import OffloadStagedVectorEnv, OffloadVectorEnv
from offload_env.world import World, build_world
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.staged_policies import any_policy_from_bundle

Report = Callable[[int, dict[str, float]], object]


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
    """Train, validate as it goes, and keep the best policy that keeps the floor.

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
        DataError: if there is nothing to resume from, `out` holds something else that a run
            would replace, or another process trains into it.
        ConfigError: if the settings or the scenario differ from those of the checkpoint.
        TrainingInterrupted: at SIGINT or SIGTERM, once a checkpoint is written; the resumed
            run ends as the uninterrupted one would have.
    """
    check_run(out, resume)
    with Claim(out, folder=True):
        return _train(config, out, world, resume, report, extra)


def _train(
    config: TrainConfig,
    out: Path,
    world: World | None,
    resume: bool,
    report: Report,
    extra: Callable[[BaseCallback], BaseCallback],
) -> TrainResult:
    """`train`, with its folder held."""
    if world is None:
        world = world_of(config, out if resume else None)
    # One thread: the matrices are small, and more would change sums between machines.
    torch.set_num_threads(1)
    set_random_seed(config.seed)
    adapter = adapter_of(config, world)
    if resume:
        _same_settings(config, world, out)
        model, progress = checkpoint.load(config.algo, out, adapter)
        # Of an older version's, the attribute is not there at all.
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
    if isinstance(adapter, OffloadStagedVecEnv):
        model.rollout_buffer.follow(lambda: adapter.frame_done)
    config.save(out / CONFIG)
    if not resume or kept_scenario(out) is None:
        keep_scenario(world.scenario, out)
    model.set_logger(configure(str(out / "tensorboard"), ["tensorboard"]))
    try:
        with stop_when_told() as stop:
            supervisor = Supervisor(config, world, adapter, out, progress, report, stop)
            _learn(model, config.steps - model.num_timesteps, extra(supervisor))
            supervisor.finish()
    finally:
        model.logger.close()
    return _result(config, out, world, progress)


def _learn(model: Any, steps: int, callback: BaseCallback) -> None:
    if steps > 0:
        model.learn(steps, callback=callback, reset_num_timesteps=False, log_interval=10**9)


def world_of(config: TrainConfig, run: Path | None = None) -> World:
    """The training world that the settings name, on the scenario that the folder `run` keeps."""
    kept = None if run is None else kept_scenario(run)
    if not config.records:
        return build_world(kept or config.scenario)
    if kept is None:
        return world_from_records(config.scenario, Path(config.records))
    # The kept scenario has the speed that the records told, but not their link.
    return build_world(kept, traces=recorded_traces(kept, Path(config.records)))


def adapter_of(config: TrainConfig, world: World) -> OffloadVecEnv:
    """The environment that a run learns in, as stable-baselines3 wants it."""
    table = error_probability(world.table)
    if config.env == "staged":
        staged = OffloadStagedVectorEnv(config.n_envs, world=world)
        return OffloadStagedVecEnv(staged, config.outputs, table)
    return OffloadVecEnv(OffloadVectorEnv(config.n_envs, world=world), config.outputs, table)


def _make(config: TrainConfig, adapter: OffloadVecEnv) -> Any:
    if config.algo == "dqn":
        steps = config.n_envs * config.n_steps
        return DQN(
            "MlpPolicy",
            adapter,
            policy_kwargs={"net_arch": [config.hidden, config.hidden]},
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
    kind: Any = checkpoint.MODELS[config.algo]
    buffer = {"rollout_buffer_class": FrameRolloutBuffer} if config.env == "staged" else {}
    return kind("MlpPolicy", adapter, **ppo_settings(config), **buffer)


def _common_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of every algorithm's model."""

    def rate(left: float) -> float:
        return config.learning_rate * (0.1 + 0.9 * left)

    return {"seed": config.seed, "device": "cpu", "gamma": config.gamma, "learning_rate": rate}


def ppo_settings(config: TrainConfig) -> dict[str, Any]:
    """Arguments of PPO and of what is built on it."""
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


def policy_of(
    model: Any, config: TrainConfig, world: World, validation: dict[str, float]
) -> PolicyBundle:
    """Policy bundle of a model trained with `config` in `world`, with its task and its promise."""
    bundle = bundle_of(
        model,
        actions=config.outputs,
        name="staged-agent" if config.env == "staged" else "agent",
        bundle_hash=world.table.bundle_hash,
        scenario=world.scenario.name,
        algorithm=config.algo,
        metrics={
            "validation": validation,
            "validated_on": f"{config.validate_drives} drives over {world.table.source}",
            "accuracy_floor": world.accuracy_floor,
        },
        provenance={
            "config": asdict(config),
            "frames": world.table.source,
            "cost_model": world.cost.name,
            "traces": len(world.pool),
            "numpy": np.__version__,
        },
        task=task_of(world),
    )
    keys = episode_keys(config.seed + VALIDATION_SEED_OFFSET, config.validate_drives)
    reference = promise_of(world, any_policy_from_bundle(bundle), keys)
    metrics = {**bundle.manifest["metrics"], "promise": reference.to_json()}
    return replace(bundle, manifest={**bundle.manifest, "metrics": metrics})
