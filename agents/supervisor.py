"""Callbacks of a training run: dual ascent, validation, log, checkpoints, Ctrl-C and SIGTERM.

The dual ascent follows the Lagrangian method for constrained Markov decision processes
(E. Altman, 1999; Ray, Achiam, Amodei, "Benchmarking safe exploration", 2019): after each
rollout the price of a wrong answer rises by ``dual_rate * (floor + margin - accuracy)``, and never
falls below 0. The rate falls linearly to a tenth. It is written here because stable-baselines3
has no constraints.

The accuracy is that of the policy that would be deployed, which takes the likeliest action. The
policy that explores draws its actions, and may be some points more or less accurate: where
several actions are nearly as good, none of them is likely, and another one wins. So what a rollout
measured is corrected by the difference that the last validation showed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import train_checkpoint as checkpoint
from agents.export_policy import layers_of
from agents.floor_kept import rank
from agents.rollout import simulate, summary
from agents.sb3_adapter import OffloadVecEnv
from agents.train_config import REPLAYED, TrainConfig
from cnn.topology import Topology
from offload_env.episode import episode_keys
from offload_env.world import World
from testbed.common.signals import StopFlag
from testbed.policy.network_policy import NetworkPolicy
from testbed.policy.policies import Policy

_SAID: Final = (
    b"\nstopping: this update is finished and kept; Ctrl-C again ends at once and loses it\n"
)
_ROLLOUTS: Final = 8
"""Rollouts whose mean accuracy is compared with the greedy policy's: one alone is noisy."""

Report = Callable[[int, dict[str, float]], object]


class TrainingInterrupted(KeyboardInterrupt):
    """A training got a stop signal; everything up to `step` is kept in `out`.

    Args:
        out: folder of the run, with the checkpoint to resume from.
        step: decisions done.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.out, self.step = out, step
        super().__init__(f"interrupted at step {step}; everything up to it is kept in {out}")


@contextmanager
def stop_when_told() -> Iterator[StopFlag]:
    """Within the block the first SIGINT or SIGTERM sets the flag, the second interrupts.

    Outside the main thread, where Python delivers no signals, the flag is never set.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()
        os.write(2, _SAID)

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(slots=True)
class Progress:
    """State that a checkpoint holds besides the model and the environment.

    Attributes:
        multiplier: price of a wrong answer, as dual ascent has added it up.
        missing: accuracy, smoothed over rollouts; more may be added in proportion.
        rows: the log, one row a rollout.
        best: (feasible, -cost or accuracy) of the best validation so far.
        since_best: validations since then.
        seconds: training time so far.
        best_file: content of the best model's file; None without one, or of an older version.
        greedy_gap: accuracy of the greedy policy less that of the exploring one, at the last
            validation; 0 before.
    """

    multiplier: float
    rows: list[dict[str, float]] = field(default_factory=list)
    best: tuple[bool, float] | None = None
    since_best: int = 0
    seconds: float = 0.0
    next_validation: int = 0
    next_checkpoint: int = 0
    best_file: bytes | None = None
    greedy_gap: float = 0.0
    missing: float = 0.0

    def log(self) -> pd.DataFrame:
        """The log as a table: step, cost, accuracy, multiplier, validation figures, ..."""
        return pd.DataFrame(self.rows)


def greedy_policy(model: Any, config: TrainConfig, topology: Topology) -> NetworkPolicy:
    """The policy that would be exported now."""
    weights, biases, activation = layers_of(model)
    return NetworkPolicy(
        weights,
        biases,
        space=config.space(topology),
        activation=activation,
        actions=config.outputs(topology),
    )


class Watch(BaseCallback):
    """Callback of every training: entropy falls, a stopped run ends with a checkpoint.

    Args:
        config: of the run.
        world: training world.
        env: the adapter whose price of a wrong answer is moved.
        out: folder of checkpoints and the best model.
        report: called after each rollout with the steps done and the newest log row.
        stop: once set, the run is checkpointed before its next rollout and ends with
            `TrainingInterrupted`.
    """

    next_checkpoint: int

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        env: OffloadVecEnv,
        out: Path,
        report: Report = lambda step, row: None,
        stop: StopFlag | None = None,
    ) -> None:
        super().__init__()
        self._told = stop or StopFlag()
        self.config, self.world, self.env, self.out = config, world, env, out
        self._report = report

    @property
    def left(self) -> float:
        """Share of the training that is still ahead."""
        return max(0.0, 1.0 - self.num_timesteps / self.config.steps)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """After an update and before the next rollout: the one moment to checkpoint."""
        if self.config.algo not in REPLAYED:
            self.model.ent_coef = self.config.entropy * self.left  # type: ignore[attr-defined]
        told = self._told.is_set()
        due = told or self.num_timesteps >= self.next_checkpoint
        if due and self.env.sums.frames == 0:  # DQN's log rows span many of its rollouts
            self.checkpoint()
            if told:
                raise TrainingInterrupted(self.out, self.num_timesteps)

    def checkpoint(self) -> None:
        """Write everything needed to resume exactly from here."""
        raise NotImplementedError


class Supervisor(Watch):
    """See the module's text.

    Args:
        progress: state, new or read from a checkpoint.
        config, world, env, out, report, stop: as `Watch`.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        env: OffloadVecEnv,
        out: Path,
        progress: Progress,
        report: Report = lambda step, row: None,
        stop: StopFlag | None = None,
    ) -> None:
        super().__init__(config, world, env, out, report, stop)
        self.state, self.next_checkpoint = progress, progress.next_checkpoint
        for name in ("greedy_gap", "missing"):  # a run of an older version does not have them
            setattr(progress, name, getattr(progress, name, 0.0))
        self._target = world.accuracy_floor + config.margin
        self._keys = episode_keys(config.validation_seed, config.validate_drives)
        self._began_s = time.monotonic()
        self._stop = False
        env.multiplier = self._price()

    def _on_step(self) -> bool:
        return not self._stop

    def _on_rollout_end(self) -> None:
        single = self.env.sums.frames < self.config.n_envs * self.config.n_steps
        if self.config.algo in REPLAYED and single:
            return  # DQN's rollouts are single steps
        means, shares = self.env.sums.take()
        row = {"step": float(self.num_timesteps), "multiplier": self.env.multiplier, **means}
        row |= {"validation_cost": np.nan, "validation_accuracy": np.nan}
        self.state.rows.append(row)
        self._ascend(means["accuracy"])
        if self.num_timesteps >= self.state.next_validation:
            row |= self._validate()
        self._record(row, shares)
        self._report(self.num_timesteps, row)

    def _ascend(self, accuracy: float) -> None:
        # The rate falls with the learning rate: a rollout's accuracy is noisy, since errors come
        # by track, and towards the end the price must converge.
        rate = self.config.dual_rate * (0.1 + 0.9 * self.left)
        missing = self._target - (accuracy + self.state.greedy_gap)
        self.state.multiplier = max(0.0, self.state.multiplier + rate * missing)
        self.state.missing += (missing - self.state.missing) / _ROLLOUTS
        self.env.multiplier = self._price()

    def _price(self) -> float:
        """Of a wrong answer, in the rewards."""
        return max(0.0, self.state.multiplier + self.config.dual_gain * self.state.missing)

    def _validate(self) -> dict[str, float]:
        """Greedy policy on validation drives; keeps the best, stops early if none is better."""
        state, config = self.state, self.config
        state.next_validation = self.num_timesteps + config.validate_every
        figures = summary(simulate(self.world, self._greedy(), self._keys))
        explored = np.mean([row["accuracy"] for row in state.rows[-_ROLLOUTS:]])
        state.greedy_gap = figures["accuracy"] - float(explored)
        missed, worth = rank(figures["cost"], figures["accuracy"], self._target)
        score = (not missed, -worth)  # as older checkpoints have it: the greater, the better
        if state.best is None or score > state.best:
            state.best, state.since_best = score, 0
            self._keep(figures)
        else:
            state.since_best += 1
        self._stop = bool(config.patience) and state.since_best >= config.patience
        shown = ("cost", "accuracy", "delay_ms", "energy_mj")
        return {f"validation_{name}": figures[name] for name in shown}

    def _greedy(self) -> Policy:
        """The policy that is validated."""
        return greedy_policy(self.model, self.config, self.world.topology)

    def _keep(self, figures: dict[str, float]) -> None:
        """Keep the model, the best so far, with these figures."""
        self.state.best_file = checkpoint.save_best(
            self.model, self.out, figures, self.num_timesteps
        )

    def _record(self, row: dict[str, float], shares: Any) -> None:
        """To TensorBoard."""
        for name in ("reward", "cost", "delay_ms", "energy_mj", "accuracy", "multiplier"):
            self.logger.record(f"offload/{name}", row[name])
        for name, value in row.items():
            if name.startswith("validation_") and np.isfinite(value):
                self.logger.record(f"validation/{name.removeprefix('validation_')}", value)
        for action, share in zip(self.world.topology.actions, shares, strict=True):
            self.logger.record(f"actions/{action.name}", float(share))
        drawn = np.repeat(np.arange(len(shares)), np.rint(1000 * shares).astype(int))
        self.logger.record("offload/actions", torch.as_tensor(drawn), exclude="stdout")
        self.logger.dump(self.num_timesteps)

    def finish(self) -> None:
        """Validate the last update too, and write a checkpoint."""
        if self.state.rows and np.isnan(self.state.rows[-1]["validation_cost"]):
            self.state.rows[-1] |= self._validate()
        self.checkpoint()

    def checkpoint(self) -> None:
        """Write everything needed to resume exactly from here."""
        state = self.state
        self.next_checkpoint = self.num_timesteps + self.config.checkpoint_every
        state.next_checkpoint = self.next_checkpoint
        now_s = time.monotonic()
        state.seconds += now_s - self._began_s
        self._began_s = now_s
        checkpoint.save(self.model, self.env.env, state, self.out)
