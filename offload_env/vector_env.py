"""Native vector environments of `sliproad/Offload-v0` and `OffloadStaged-v0`: arrays of drives."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from offload_env.batch_simulator import BatchSimulator
from offload_env.env import Multipliers, observation_box
from offload_env.env_input import (
    LaneSeeds,
    ResetNeededError,
    Seeds,
    asked_keys,
    asked_lanes,
    check_render_mode,
    checked_actions,
    checked_options,
    from_mapping,
)
from offload_env.episode import Keys
from offload_env.frame_picture import METADATA, Picture, Shown, rendered, shown_of
from offload_env.outcome import DECIDING, BatchOutcome, Outcome, frame_info
from offload_env.scenario import Scenario, Split
from offload_env.world import World, build_world
from testbed.policy.decision_points import decision_points

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
StepResult = tuple[NDArray[np.float32], Floats, Bools, Bools, dict[str, Any]]


class OffloadVectorEnv(Multipliers, gym.vector.VectorEnv[NDArray[np.float32], Any, Any]):
    """`OffloadEnv` for ``num_envs`` drives at once; lane k equals a single one step for step.

    Seeds as in Gymnasium: ``reset(seed=s)`` gives lane k the drive of
    ``OffloadEnv.reset(seed=s + k)``.

    `autoreset_mode` says what a step does in a lane whose drive has ended, as in
    `gymnasium.vector.SyncVectorEnv` (https://farama.org/Vector-Autoreset-Mode):

    * ``SAME_STEP``, the default: the step that truncates returns the first observation of the
      next drive; ``info["final_obs"]`` (float32 (B, obs_dim), rows where ``info["_final_obs"]``) is
      the last one of the drive that ended. The other keys describe the frame just done in every
      lane, also in this step; ``info["final_info"]`` holds them once more.
    * ``NEXT_STEP``, which Gymnasium's vector wrappers and RLlib expect: the step that truncates
      returns the last observation. The next step begins the next drive, whatever the action, with
      reward 0. As in Gymnasium, ``info["_KEY"]`` (bool (B,)) says which lanes have run a frame and
      so have a value of each ``KEY``; elsewhere it is 0.
    * ``DISABLED``: the lane must be reset with ``reset(options={"reset_mask": mask})``.

    ``info`` holds arrays (B,) with the keys and values of `OffloadEnv`.

    Args:
        num_envs: lanes.
        scenario, split, world, lagrange, render_mode: as in `OffloadEnv`; `render` gives one
            picture or line a lane.
        autoreset_mode: of `gymnasium.vector.AutoresetMode`, or its value, such as ``NextStep``.
        max_episode_steps: steps after which a drive is truncated, if it has not ended before; None
            or -1 is no limit.

    Raises:
        RenderModeError, InvalidResetError, InvalidActionError, ResetNeededError: as in
            `OffloadEnv`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        **METADATA,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    granularity: ClassVar[Literal["frame", "staged"]] = "frame"
    """What one step decides: a whole frame, or one decision point of it."""

    single_action_space: gym.spaces.Discrete

    @from_mapping
    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str | Path = "urban-5g",
        split: Split = "train",
        *,
        world: World | None = None,
        lagrange: float = 0.0,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        num_envs = _positive("num_envs", num_envs)
        self.render_mode = check_render_mode(render_mode, self.metadata)
        self.autoreset_mode = _mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.world = world if world is not None else build_world(scenario, split)
        self.num_envs = num_envs
        self.set_lagrange(lagrange)
        self.simulator = BatchSimulator(self.world, num_envs)
        self._points = decision_points(self.world.topology)
        self.space = self._points.space(self.granularity)
        self.single_action_space = gym.spaces.Discrete(self.space.n_actions)
        self.single_observation_space = observation_box(self.space)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._staged = self.space.is_staged
        self._seeds = LaneSeeds(num_envs)
        self._n_frames = self.world.scenario.timing.n_frames
        self._limit = _step_limit(max_episode_steps)
        self._steps = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)
        """Lanes whose drive ended in the step before and has not begun again."""
        self._shown: list[Shown | None] = [None] * num_envs

    def reset(
        self,
        *,
        seed: Seeds = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start another drive in every lane.

        ``options`` may hold ``key`` (an integer for all lanes, or one a lane) or ``keys``
        (uint64 (B,)), the episodes to run, and ``reset_mask`` (bool (B,)), the lanes to reset; the
        others continue, with their seeds.
        """
        given = checked_options(options, ("key", "keys", "reset_mask"))
        lanes, keys = asked_lanes(given, self.num_envs), asked_keys(given, self.num_envs)
        if len(lanes) < self.num_envs:
            self._check_started()
        self._seeds.seed(seed, lanes)
        self._begin(lanes, self._seeds.keys(lanes) if keys is None else keys[lanes])
        return self._observe(), {}

    def _begin(self, lanes: NDArray[np.intp], keys: Keys) -> None:
        self.simulator.reset(keys, None if len(lanes) == self.num_envs else lanes)
        self._steps[lanes] = 0
        self._ended[lanes] = False
        if self.render_mode is not None:
            for lane in lanes.tolist():
                self._shown[lane] = None

    def _observe(self) -> NDArray[np.float32]:
        return self.simulator.observe(self.space)

    def step(self, actions: NDArray[np.int64]) -> StepResult:
        """Take one decision in every lane; the observations are of the next ones."""
        self._check_started()
        chosen = checked_actions(actions, self.num_envs, self.space.n_actions)
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise ResetNeededError(
                f"the drive of lane {int(self._ended.argmax())} has ended",
                expected="a reset before its next step",
                hint="reset(options={'reset_mask': terminated | truncated})",
            )
        reward, info = self._advance(chosen)
        truncated = self.simulator.frame >= self._n_frames
        if self._limit is not None:
            self._steps += 1
            truncated |= self._steps >= self._limit
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            observation = self._begin_in_same_step(truncated, info)
        else:
            if self.autoreset_mode is AutoresetMode.NEXT_STEP:
                self._begin_in_next_step(reward, truncated, info)
            self._ended = truncated.copy()
            observation = self._observe()
        return observation, reward, np.zeros(self.num_envs, bool), truncated, info

    def _advance(self, actions: NDArray[np.int64]) -> tuple[Floats, dict[str, Any]]:
        """Carry out a decision in every lane: reward, float64 (B,), and info."""
        if not self._staged:
            outcome = self.simulator.settle(actions)
            return self._account(np.arange(self.num_envs), outcome)
        chosen = self._points.repair[self.simulator.point, actions]
        ended, outcome = self.simulator.advance(chosen)
        price, of_ended = self._account(ended, outcome)
        done, reward = np.zeros(self.num_envs, bool), np.zeros(self.num_envs)
        done[ended], reward[ended] = True, price
        info: dict[str, Any] = {"frame_done": done}
        for name, values in of_ended.items():
            info[name] = np.zeros(self.num_envs, values.dtype)
            info[name][ended] = values
        info["status"][~done] = DECIDING
        info["action"][~done] = self._points.canonical[chosen[~done]]
        return reward, info

    def _account(
        self, lanes: NDArray[np.intp], outcome: BatchOutcome
    ) -> tuple[Floats, dict[str, Any]]:
        """Reward and info of the frames that ended in K lanes, new arrays (K,)."""
        critical = self.world.critical.take(outcome.row)
        reward: Floats = -outcome.cost - self._price(outcome.correct, critical)
        if self.render_mode is not None:
            self._show(lanes, outcome)
        s = self.simulator.lanes
        delay_price, energy_price = s.delay_price, s.energy_price
        if len(lanes) < self.num_envs:
            delay_price, energy_price = delay_price[lanes], energy_price[lanes]
        info = frame_info(
            outcome._replace(action=outcome.action.copy()),  # it may be the caller's own array
            self.world.topology.exit_of.take(outcome.used),
            outcome.correct.astype(np.float64),
            critical,
            (delay_price, energy_price, self.world.scenario.price.miss),
        )
        return reward, info

    def _begin_in_same_step(self, truncated: Bools, info: dict[str, Any]) -> NDArray[np.float32]:
        """Lanes that ended begin the next drive; the last observations go to `info`."""
        observation = self._observe()
        if truncated.any():
            # The usual keys always describe the frame just done: also the final one.
            info["final_info"] = {name: values.copy() for name, values in info.items()}
            info["_final_info"] = truncated.copy()
            info["final_obs"], info["_final_obs"] = observation, truncated.copy()
            lanes = np.flatnonzero(truncated)
            self._begin(lanes, self._seeds.keys(lanes))
            observation = self._observe()
        return observation

    def _begin_in_next_step(self, reward: Floats, truncated: Bools, info: dict[str, Any]) -> None:
        """Lanes that ended in the step before begin the next drive instead of running a frame.

        They were stepped beyond their end with the others, because leaving them out costs more; the
        results of that step are dropped.
        """
        ran = ~self._ended
        if not ran.all():
            lanes = np.flatnonzero(self._ended)
            self._begin(lanes, self._seeds.keys(lanes))
            reward[lanes], truncated[lanes] = 0.0, False
            for values in info.values():
                values[lanes] = 0
        info.update({f"_{name}": ran.copy() for name in info})

    def action_masks(self) -> Bools:
        """bool (B, n_actions), legal actions now; all of them where one action decides a frame."""
        if not self._staged:
            return np.ones((self.num_envs, self.space.n_actions), bool)
        self._check_started()
        masks: Bools = self._points.legal[self.simulator.point]
        return masks

    def render(self) -> tuple[str | Picture, ...] | None:
        """The last frame that ended in every lane, as `render_mode` says."""
        if self.render_mode is None:
            return None
        self._check_started()
        rows = self.simulator.row.tolist()
        shown = [s or shown_of(self.world, rows[k], 0) for k, s in enumerate(self._shown)]
        return tuple(rendered(self.world, s, self.render_mode) for s in shown)

    def _show(self, lanes: NDArray[np.intp], outcome: BatchOutcome) -> None:
        """Keep the frames that ended in `lanes` for `render`."""
        frames = self.simulator.frame.tolist()
        columns = [values.tolist() for values in outcome]
        for lane, *values in zip(lanes.tolist(), *columns, strict=True):
            one = Outcome._make(values)
            self._shown[lane] = shown_of(self.world, one.row, frames[lane] - 1, one)

    def _check_started(self) -> None:
        if not self.simulator.started:
            raise ResetNeededError(
                "no drive has begun", expected="reset of all lanes first", hint="call reset"
            )


class OffloadStagedVectorEnv(OffloadVectorEnv):
    """`OffloadStagedEnv` for ``num_envs`` drives at once; lane k equals a single one.

    As `OffloadVectorEnv` (seeds, autoreset, options); lanes finish their frames at
    different steps. ``info["frame_done"]`` (bool (B,)) says in which lanes the figures are
    those of a finished frame; elsewhere they are 0 and the status is 3 (deciding).
    """

    granularity = "staged"


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        raise ConfigError(
            f"autoreset_mode {mode}",
            expected=", ".join(m.value for m in AutoresetMode),
            hint="choose one of them",
        ) from error


def _step_limit(max_episode_steps: int | None) -> int | None:
    """As `gymnasium.make` reads it: neither None nor -1 limits anything."""
    unlimited = max_episode_steps is None or max_episode_steps == -1
    return None if unlimited else _positive("max_episode_steps", max_episode_steps)


def _positive(name: str, value: Any) -> int:
    """An integer of at least 1; raises `ConfigError`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(
            f"{name} {value}", expected="an integer of at least 1", hint="give another number"
        )
    return number
