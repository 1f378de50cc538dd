"""One policy for all preferences: trained over drives with different weights and floors.

As `agents.training`, on `offload_env.preferences`. Two things differ. The price of a wrong answer
is a function of the preference: bilinear between the nodes of a small grid over floor and weight,
each node moved by its own dual ascent. And floors lie within about one per cent, a twentieth of
their field's range, so training stretches that input to [-1, 1]. Afterwards the stretch is folded
into the first layer, and the exported policy reads the observation without it.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed

from agents import train_checkpoint as checkpoint
from agents.baselines.prediction import Floats
from agents.export_policy import bundle_of, task_of
from agents.rollout import simulate
from agents.sb3_adapter import OffloadVecEnv
from agents.supervisor import Report, Watch, stop_when_told
from agents.train_config import TrainConfig
from agents.training import error_probability, ppo_settings
from cnn.common.outputs import Claim
from cnn.topology import Topology
from offload_env.episode import episode_keys
from offload_env.preferences import ConditionedVectorEnv, Preferences, floor_at, preferring
from offload_env.scenario import anchored, scenario_toml
from offload_env.world import World
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.observation_fields import schema_of
from testbed.policy.policies import Policy
from testbed.policy.policy_file import PolicyBundle

FLOOR_NODES: Final = 4
SHARE_NODES: Final = 3
_DUAL_SHARE: Final = 0.25
"""Of the plain training's dual rate: a node sees a twelfth of the frames, so its accuracy is
noisier, and neighbours move together through the interpolation."""
_SHORTFALL_PRICE: Final = 100.0
"""Cost that validation charges for each unit of accuracy missing below a preference's floor."""


class PriceGrid:
    """Prices of a wrong answer at nodes over (floor, delay share), bilinear in between.

    Args:
        preferences: range of the nodes.
        start: price at every node.
        margin: accuracy asked for above each floor.
    """

    def __init__(self, preferences: Preferences, start: float, margin: float) -> None:
        self.floors = np.linspace(*preferences.floor, FLOOR_NODES)
        self.shares = np.linspace(*preferences.delay_share, SHARE_NODES)
        self.values = np.full((FLOOR_NODES, SHARE_NODES), start)
        self.margin = margin
        self._clear()

    def _clear(self) -> None:
        self._missing = np.zeros_like(self.values)
        self._weight = np.zeros_like(self.values)

    def weights(self, floor: Floats, share: Floats) -> Floats:
        """Weight of each node, (B, FLOOR_NODES, SHARE_NODES), summing to 1 a row."""
        return _hats(floor, self.floors)[:, :, None] * _hats(share, self.shares)[:, None, :]

    def add(self, weights: Floats, floor: Floats, correct: Floats) -> None:
        """Add frames with these node weights, floors (B,) and answers (B,), 1 for right."""
        missing = floor + self.margin - correct
        self._missing += np.tensordot(missing, weights, 1)
        self._weight += weights.sum(0)

    def ascend(self, rate: float) -> None:
        """Raise each node's price by `rate` times the accuracy missing around it; forget."""
        seen = self._weight > 0
        step = rate * self._missing[seen] / self._weight[seen]
        self.values[seen] = np.maximum(self.values[seen] + step, 0.0)
        self._clear()


def _hats(values: Floats, nodes: Floats) -> Floats:
    """Linear interpolation as weights of the nodes, (B, n); beyond the ends the end counts."""
    return np.column_stack([np.interp(values, nodes, unit) for unit in np.eye(len(nodes))])


class Stretch:
    """Maps the floor's input from the range of the preferences to [-1, 1], and back.

    Args:
        preferences: range of the floor.
        topology: of the network whose observations are mapped.
    """

    def __init__(self, preferences: Preferences, topology: Topology) -> None:
        schema = schema_of(topology)
        self._at = floor_at(schema)
        field = schema.fields[self._at]
        low, high = (2 * (f - field.low) / (field.high - field.low) - 1 for f in preferences.floor)
        self.centre = 0.5 * (low + high)
        self.half = max(0.5 * (high - low), 1e-6)

    def apply(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Observations (B, obs_dim) with the floor stretched, in place."""
        observations[:, self._at] = (observations[:, self._at] - self.centre) / self.half
        return observations

    def fold(self, bundle: PolicyBundle) -> PolicyBundle:
        """The same policy for observations that were not stretched."""
        weight, bias = (np.array(bundle.arrays[name], np.float64) for name in ("weight0", "bias0"))
        weight[:, self._at] /= self.half
        bias -= weight[:, self._at] * self.centre
        first = {"weight0": weight.astype(np.float32), "bias0": bias.astype(np.float32)}
        return replace(bundle, arrays={**bundle.arrays, **first})


class ConditionedVecEnv(OffloadVecEnv):
    """Adapter of `ConditionedVectorEnv`: prices by lane, the floor's input stretched."""

    def __init__(
        self, env: ConditionedVectorEnv, grid: PriceGrid, error_probability: NDArray[np.float32]
    ) -> None:
        super().__init__(env, error_probability=error_probability)
        self.grid, self.preferences = grid, env.preferences
        self.stretch = Stretch(env.preferences, env.world.topology)
        self.multiplier = 1.0  # `_wrong` has the price already

    def reset(self) -> NDArray[np.float32]:
        """Reset every lane."""
        return self.stretch.apply(super().reset())

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """One frame in every lane."""
        observation, reward, done, infos = super().step_wait()
        for lane in np.flatnonzero(done):
            self.stretch.apply(infos[lane]["terminal_observation"][None])
        return self.stretch.apply(observation), reward, done, infos

    def _wrong(self, rows: NDArray[np.int64], info: dict[str, Any]) -> NDArray[np.float64]:
        """Error of the answers, times its price under each lane's preferences."""
        weights = self.grid.weights(info["accuracy_floor"], info["delay_share"])
        self.grid.add(weights, info["accuracy_floor"], info["accuracy"])
        price = np.tensordot(weights, self.grid.values, 2)
        priced: NDArray[np.float64] = price * super()._wrong(rows, info)
        return priced


@dataclass(frozen=True, slots=True)
class ConditionedResult:
    """A finished run.

    Attributes:
        bundle: of the best validated policy.
        preferences: range it was trained for.
        prices: float64 (FLOOR_NODES, SHARE_NODES), multipliers at the end.
        validation: one row a preference: floor, delay_share, cost, accuracy.
    """

    bundle: PolicyBundle
    preferences: Preferences
    prices: Floats
    validation: list[dict[str, float]]


class _ConditionedWatch(Watch):
    """Dual ascent after every rollout, validation from time to time, the best one kept."""

    env: ConditionedVecEnv

    def __init__(
        self, config: TrainConfig, world: World, env: ConditionedVecEnv, *given: Any
    ) -> None:
        super().__init__(config, world, env, *given)
        self.best: PolicyBundle | None = None
        self.validation: list[dict[str, float]] = []
        self._score, self._due = math.inf, config.validate_every
        self.next_checkpoint = config.checkpoint_every
        self._keys = episode_keys(config.validation_seed, max(8, config.validate_drives // 4))

    def checkpoint(self) -> None:
        """Write everything needed to resume exactly from here."""
        self.next_checkpoint = self.num_timesteps + self.config.checkpoint_every
        checkpoint.save(self.model, self.env.env, self._state(), self.out, self.settings())

    def settings(self) -> dict[str, Any]:
        """Values that identify this run, as plain values."""
        task = _plain_task(self.config, self.env.preferences)
        return {**task, "scenario": scenario_toml(anchored(self.world.scenario))}

    def _state(self) -> dict[str, Any]:
        """State that a resumed run needs besides the model and the lanes."""
        env: Any = self.env.env
        return {
            "prices": self.env.grid.values,
            "asked": (env.floor, env.delay_share),
            "best": self.best,
            "validation": self.validation,
            "score": self._score,
            "due": self._due,
            "next_checkpoint": self.next_checkpoint,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Resume from a `_state`."""
        env: Any = self.env.env
        self.env.grid.values = state["prices"]
        env._floor, env._delay_share = state["asked"]
        self.best, self.validation = state["best"], state["validation"]
        self._score, self._due = state["score"], state["due"]
        self.next_checkpoint = state["next_checkpoint"]

    def _on_rollout_end(self) -> None:
        means, _ = self.env.sums.take()
        self.env.grid.ascend(_DUAL_SHARE * self.config.dual_rate)
        self._report(
            self.num_timesteps, {"multiplier": float(self.env.grid.values.mean()), **means}
        )
        if self.num_timesteps >= self._due:
            self._due += self.config.validate_every
            self.validate()

    def validate(self) -> None:
        """Drive the greedy policy under nine preferences of training drives."""
        bundle = self._bundle()
        policy = policy_from_bundle(bundle)
        asked = self.env.preferences
        rows = [
            preference_figures(self.world, policy, self._keys, floor, share)
            for floor in np.linspace(*asked.floor, 3).tolist()
            for share in np.linspace(*asked.delay_share, 5)[1:4].tolist()
        ]
        short = [max(0.0, r["floor"] + self.config.margin - r["accuracy"]) for r in rows]
        score = sum(r["cost"] for r in rows) + _SHORTFALL_PRICE * sum(short)
        if score < self._score:
            self._score, self.best, self.validation = score, bundle, rows

    def _bundle(self) -> PolicyBundle:
        config, world = self.config, self.world
        bundle = bundle_of(
            self.model,
            actions=config.outputs(world.topology),
            name="conditioned",
            bundle_hash=world.table.bundle_hash,
            scenario=world.scenario.name,
            algorithm="ppo",
            metrics={},
            provenance={"config": asdict(config), "frames": world.table.source},
            task=task_of(world, self.env.preferences),
            topology=world.topology,
        )
        return self.env.stretch.fold(bundle)


def preference_figures(
    world: World, policy: Policy, keys: NDArray[np.uint64], floor: float, share: float
) -> dict[str, float]:
    """Cost and accuracy of a policy under one preference on the episodes `keys`."""
    driven = simulate(preferring(world, floor, share), policy, keys)
    return {
        "floor": floor,
        "delay_share": share,
        "cost": float(driven.cost.mean()),
        "accuracy": float(driven.correct.mean()),
    }


def train_conditioned(
    config: TrainConfig,
    out: Path,
    *,
    world: World,
    preferences: Preferences | None = None,
    report: Report = lambda step, row: None,
) -> ConditionedResult:
    """Train one policy over the weights and floors of `preferences`.

    Args:
        config: settings as for one preference (PPO); its scenario's own weights and floor
            are not used.
        out: file to write, ``.policy``.
        world: training world.
        preferences: None takes `Preferences.of` with the configured margin.
        report: called after every rollout.

    A checkpoint is kept beside `out` while it trains, in the folder ``NAME.run``; a checkpoint of
    the same scenario, settings and preferences is resumed, bit for bit.

    Raises:
        DataError: if no checkpoint there is whole, or another process trains into it.
        TrainingInterrupted: at SIGINT or SIGTERM, once a checkpoint is written.
    """
    config = config.of(world.topology)
    run = out.with_suffix(".run")
    with Claim(run, folder=True):
        asked = preferences or Preferences.of(world, config.margin)
        torch.set_num_threads(1)
        set_random_seed(config.seed)
        env = ConditionedVectorEnv(config.n_envs, world=world, preferences=asked)
        grid = PriceGrid(asked, config.dual_start, config.margin)
        adapter = ConditionedVecEnv(env, grid, error_probability(world.table))
        with stop_when_told() as stop:
            watch = _ConditionedWatch(config, world, adapter, run, report, stop)
            model = _resumed(adapter, watch, run)
            if model is None:
                adapter.seed(config.seed)
                model = PPO("MlpPolicy", adapter, **ppo_settings(config))
            left = config.steps - model.num_timesteps
            model.learn(left, callback=watch, reset_num_timesteps=False, log_interval=10**9)
            watch.validate()
        assert watch.best is not None
        manifest = {
            **watch.best.manifest,
            "metrics": {"validation": watch.validation},
            "preferences": asdict(asked),
        }
        bundle = replace(watch.best, manifest=manifest)
        bundle.save(out)
        shutil.rmtree(run, ignore_errors=True)  # the run is complete
        return ConditionedResult(bundle, asked, grid.values, watch.validation)


def _resumed(adapter: ConditionedVecEnv, watch: _ConditionedWatch, run: Path) -> Any:
    """The model of a checkpoint in `run` of the same task, all state restored; None without."""
    if not checkpoint.exists(run):
        return None
    if checkpoint.settings_of(run) == watch.settings():
        model, state = checkpoint.load("ppo", run, adapter)
        watch.resume(state)
        return model
    for name in (checkpoint.FOLDER, checkpoint.PREVIOUS):  # of another task
        shutil.rmtree(run / name, ignore_errors=True)
    return None


def _plain_task(config: TrainConfig, asked: Preferences) -> dict[str, Any]:
    """A policy's training task, as plain values: equal for equal runs."""
    plain: dict[str, Any] = json.loads(json.dumps({"config": asdict(config), **asdict(asked)}))
    return plain


def already_trained(path: Path, config: TrainConfig, asked: Preferences) -> bool:
    """Whether `path` is the conditioned policy of these settings and preferences.

    Args:
        path: policy file, which need not exist.
        config: as `TrainConfig.of` gives it for the network.
        asked: preferences.
    """
    if not path.is_file():
        return False
    manifest = PolicyBundle.load(path).manifest
    had = {"config": manifest["provenance"].get("config"), **manifest.get("preferences", {})}
    return had == _plain_task(config, asked)
