"""Native vector environment of `sliproad/Offload-v0`: B drives as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from cnn.action import N_ACTIONS
from cnn.errors import ConfigError
from offload_env.batch import EXIT, BatchOutcome, BatchSimulator
from offload_env.env import draw_key, observation_box
from offload_env.hashing import Keys
from offload_env.reward import Multipliers
from offload_env.scenario import Scenario, Split
from offload_env.world import World, build_world
from testbed.decide.observation import OBS_DIM

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
StepResult = tuple[NDArray[np.float32], Floats, Bools, Bools, dict[str, Any]]


class LaneSeeds:
    """One generator a lane, seeded as Gymnasium seeds the members of a vector."""

    def __init__(self, n: int) -> None:
        self._rngs = [np.random.default_rng() for _ in range(n)]

    def seed(self, seed: int | Sequence[int | None] | None) -> None:
        """An int seeds lane k with seed + k; a list seeds each lane; None goes on."""
        if seed is None:
            return
        n = len(self._rngs)
        seeds = [seed + k for k in range(n)] if isinstance(seed, int) else list(seed)
        if len(seeds) != n:
            raise ConfigError(f"{len(seeds)} seeds", expected=f"{n}", mend="give one a lane")
        for k, value in enumerate(seeds):
            if value is not None:
                self._rngs[k] = seeding.np_random(value)[0]

    def keys(self, lanes: NDArray[np.intp]) -> Keys:
        """Keys of the next episodes of some lanes."""
        return np.array([draw_key(self._rngs[k]) for k in lanes.tolist()], np.uint64)


class OffloadVectorEnv(Multipliers, gym.vector.VectorEnv[NDArray[np.float32], Any, Any]):
    """`OffloadEnv` for ``num_envs`` drives at once; lane k equals a single one step for step.

    Seeds as in Gymnasium: ``reset(seed=s)`` gives lane k the drive of
    ``OffloadEnv.reset(seed=s + k)``.

    Autoreset is **same-step** (`AutoresetMode.SAME_STEP`): a step that truncates returns the
    first observation of the next drive; ``info["final_obs"]`` (float32 (B, 33), rows where
    ``info["_final_obs"]``) is the last one of the drive that ended. ``info`` otherwise holds
    arrays (B,) of the frame just done in every lane, also in the step that truncates:
    ``delay_ms, energy_mj, accuracy, cost, cost_delay, cost_energy, cost_miss, queue_ms,
    action (canonical number), exit_used (1..5), status (0 ok, 1 fallback, 2 skipped),
    critical``.

    Args:
        num_envs: lanes.
        scenario, split, world, lagrange: as in `OffloadEnv`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str | Path = "urban-5g",
        split: Split = "train",
        *,
        world: World | None = None,
        lagrange: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs {num_envs}", expected="at least 1", mend="give more")
        if render_mode is not None:
            raise ConfigError(
                f"render_mode {render_mode!r}", expected="None", mend="render a single environment"
            )
        self.world = world if world is not None else build_world(scenario, split)
        self.num_envs = num_envs
        self.render_mode = None
        self._set_spaces()
        self.critical_lagrange = 0.0
        self.set_lagrange(lagrange)
        self.simulator = self._make_simulator()
        self._seeds = LaneSeeds(num_envs)
        self._n_frames = self.world.scenario.timing.n_frames
        self._all = np.arange(num_envs)
        self._true, self._false = np.ones(num_envs, bool), np.zeros(num_envs, bool)

    def _make_simulator(self) -> BatchSimulator:
        return BatchSimulator(self.world, self.num_envs)

    def _set_spaces(self) -> None:
        self.single_action_space = gym.spaces.Discrete(N_ACTIONS)
        self.single_observation_space = observation_box(OBS_DIM)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start another drive in every lane.

        ``options`` may hold ``keys`` (uint64 (B,)), the episodes to run, or ``reset_mask``
        (bool (B,)), the lanes to reset.
        """
        self._seeds.seed(seed)
        options = options or {}
        mask = options.get("reset_mask")
        lanes = self._all if mask is None else np.flatnonzero(mask)
        keys = np.asarray(options["keys"], np.uint64) if "keys" in options else None
        keys = self._seeds.keys(lanes) if keys is None else keys[lanes]
        self._begin(lanes, keys)
        return self._observe(), {}

    def _begin(self, lanes: NDArray[np.intp], keys: Keys) -> None:
        if len(lanes) == self.num_envs:
            self.simulator.reset(keys)
        else:
            self.simulator.reset_some(lanes, keys)

    def _observe(self) -> NDArray[np.float32]:
        return self.simulator.observe()

    def step(self, actions: NDArray[np.int64]) -> StepResult:
        """Run the frame in front of every lane."""
        outcome = self.simulator.step(actions)
        critical = self.world.critical.take(outcome.row)
        reward = -outcome.cost - self._price(outcome.correct, critical)
        info = frame_info(self.world, outcome, critical)
        truncated = self.simulator.frame >= self._n_frames
        observation = self._autoreset(truncated, info)
        return observation, reward, np.zeros(self.num_envs, bool), truncated, info

    def _autoreset(self, truncated: Bools, info: dict[str, Any]) -> NDArray[np.float32]:
        observation = self._observe()
        if truncated.any():
            info["final_obs"], info["_final_obs"] = observation, truncated
            # The usual keys always describe the frame just done: also the final one.
            info["final_info"] = {k: v for k, v in info.items() if not k.endswith("final_obs")}
            info["_final_info"] = truncated
            lanes = np.flatnonzero(truncated)
            self._begin(lanes, self._seeds.keys(lanes))
            observation = self._observe()
        return observation

    def action_masks(self) -> Bools:
        """bool (B, 20): every action is legal."""
        return np.ones((self.num_envs, N_ACTIONS), bool)


def frame_info(world: World, outcome: BatchOutcome, critical: Bools) -> dict[str, Any]:
    """The info arrays of one frame in every lane."""
    price = world.scenario.price
    return {
        "delay_ms": outcome.delay_ms,
        "energy_mj": outcome.energy_mj,
        "accuracy": outcome.correct.astype(np.float64),
        "cost": outcome.cost,
        "cost_delay": (price.delay_weight / world.delay_ref_ms) * outcome.delay_ms,
        "cost_energy": (price.energy_weight / world.energy_ref_mj) * outcome.energy_mj,
        "cost_miss": price.miss * outcome.miss,
        "queue_ms": outcome.queue_ms,
        "action": outcome.action,
        "exit_used": EXIT.take(outcome.used),
        "status": outcome.status,
        "critical": critical,
    }
