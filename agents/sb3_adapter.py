"""Adapter of the native Gymnasium vector environments to stable-baselines3.

stable-baselines3 expects one info dict a lane and step. Making those for hundreds of
lanes would cost more than the simulation, so lanes share empty dicts and only a lane
that ends gets its own. The scalar reward joins cost and constraint: with multiplier
``m`` of the accuracy floor it is ``-cost - m * wrong``, where ``wrong`` is 1 for a wrong
or missing answer, or (`agents.training`) how often an answer like this one is wrong, see below.

**The modem's tail is charged to the exchange that causes it.** The simulator charges tail energy
as it is spent, up to ten seconds after an exchange; a learner with a horizon of some frames cannot
learn that the exchange caused it, and once the modem is up, sending looks free. The learner's
reward therefore charges the whole tail when it is caused and returns the part that is not spent:
``reward + owed(before) - owed(after)``, where ``owed`` is the pending tail cost. Over a drive these
terms cancel exactly (none is pending at its start, the rest is returned at its end), so the return
without discount and the optimal policy under it stay the same (reward redistribution: Arjona-Medina
et al., "RUDDER", NeurIPS 2019).

**How hard a frame is, is left out.** Where the reward has the chance of a wrong answer, the mean
over all actions for that frame is taken from it. Which frames come does not depend on the policy,
so no policy becomes better or worse than another, and the reward has much less noise (exogenous
rewards: Dietterich, Trimponias, Chen, "Discovering and removing exogenous state variables and
rewards for reinforcement learning", ICML 2018).

**Only frames are discounted.** Where a frame takes several decisions, there is no reward and no
discount between them: only after the decision that ends a frame is the future discounted
(`FrameRolloutBuffer`). So the horizon is that of the frame-level agent, however many exits a policy
evaluates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.vec_env import VecEnv

from cnn.common.errors import ConfigError
from offload_env.batch_simulator import FALLBACK, SKIPPED
from offload_env.env_input import checked_options
from offload_env.vector_env import OffloadVectorEnv
from testbed.policy.decision_points import decision_points


class RolloutSums:
    """Running sums of the environment's reports since the last `take`.

    Args:
        n_actions: of the network.
    """

    def __init__(self, n_actions: int) -> None:
        self._n_actions = n_actions
        self._clear()

    def _clear(self) -> None:
        self.frames = 0
        self._sums = dict.fromkeys(("reward", "cost", "accuracy", "delay_ms", "energy_mj"), 0.0)
        self._actions = np.zeros(self._n_actions, np.int64)

    def add(self, actions: NDArray[np.int64], **values: NDArray[Any]) -> None:
        """Add one step of all lanes; `values` are arrays (B,) by name."""
        self.frames += len(actions)
        for name, value in values.items():
            self._sums[name] += float(value.sum())
        self._actions += np.bincount(actions, minlength=self._n_actions)

    def take(self) -> tuple[dict[str, float], NDArray[np.float64]]:
        """Means by name and shares of the actions since the last call, then forget."""
        frames = max(self.frames, 1)
        means = {name: total / frames for name, total in self._sums.items()}
        shares = self._actions / frames
        self._clear()
        return means, shares


class OffloadVecEnv(VecEnv):
    """Adapter of a vector environment (same-step autoreset) to stable-baselines3.

    One step is one decision in every lane.

    Args:
        env: native vector environment, of either decision space.
        actions: numbers of the actions offered to the learner, of the environment's space; its
            action k is ``actions[k]``. None offers all.
        error_probability: float32 (N, n_actions), chance that an action's answer to a table row is
            wrong, used in the reward instead of the answer's own 0 or 1, less its mean over the
            actions; None uses the latter.

    Attributes:
        multiplier: price of a wrong answer in the reward, moved by the dual ascent.
        sums: of the frames since the last rollout.
        frame_done: bool (B,), lanes in which the last step ended a frame.

    Raises:
        ConfigError: if `env` resets in another way.
    """

    def __init__(
        self,
        env: OffloadVectorEnv,
        actions: Sequence[int] | None = None,
        error_probability: NDArray[np.float32] | None = None,
    ) -> None:
        if env.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"autoreset_mode {env.autoreset_mode.value}",
                expected="SameStep, which stable-baselines3 needs",
                hint="make the vector environment without autoreset_mode",
            )
        self.env = env
        self.multiplier = 0.0
        self.table = np.asarray(
            range(env.space.n_actions) if actions is None else actions, np.int64
        )
        topology = env.world.topology
        self.sums = RolloutSums(topology.n_actions)
        self.render_mode = None
        super().__init__(
            env.num_envs, env.single_observation_space, spaces.Discrete(len(self.table))
        )
        self._error_probability: NDArray[np.float32] | None = None
        if error_probability is not None:
            hard = error_probability.mean(1, keepdims=True)
            self._error_probability, self._skip_wrong = error_probability - hard, 1.0 - hard[:, 0]
        self._staged, self._local_of = env.space.is_staged, topology.local_of
        legal = decision_points(topology).legal
        self._legal = legal[:, self.table] if self._staged else None
        self.frame_done = np.ones(env.num_envs, bool)
        self._no_info: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]
        self._chosen = np.zeros(env.num_envs, np.int64)
        self._tail_price = env.world.cost.radio.tail_mw / 1e3  # mJ a ms

    def reset(self) -> NDArray[np.float32]:
        """Reset every lane, with the values of `seed` and `set_options`, if any.

        Raises:
            InvalidResetError: if the options hold anything but a ``key`` for every lane.
        """
        seeds = [s for s in self._seeds if s is not None]
        given = [checked_options(options, ("key",)) for options in self._options]
        options = {"key": [lane.get("key") for lane in given]} if any(given) else None
        observation, _ = self.env.reset(seed=seeds[0] if seeds else None, options=options)
        self._reset_seeds()
        self._reset_options()
        return np.array(observation, np.float32)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Store the learner's actions."""
        self._chosen = self.table[np.asarray(actions, np.int64)]

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """One decision in every lane."""
        rows = self.env.simulator.row.copy()
        owed = self._owed() if self._tail_price else 0.0
        observation, _, terminated, truncated, info = self.env.step(self._chosen)
        done = terminated | truncated
        if self._staged:
            self.frame_done = info["frame_done"]
        # In a lane that ended a new drive begins, without a pending tail.
        reward = -info["cost"] - self.multiplier * self._wrong(rows, info)
        self._count(reward, info)
        if self._tail_price:  # most modems have none, and this runs at every step
            reward += owed - self._owed()
        infos = self._no_info
        if done.any():
            infos = list(infos)
            final = info["final_obs"]
            for lane in np.flatnonzero(done):
                infos[lane] = {
                    "terminal_observation": np.array(final[lane], np.float32),
                    "TimeLimit.truncated": bool(truncated[lane] and not terminated[lane]),
                }
        # A copy: the environment may reuse its arrays, the rollout buffer must not see it.
        return np.array(observation, np.float32), reward.astype(np.float32), done, infos

    def _owed(self) -> NDArray[np.float64]:
        """Pending tail cost of each lane, float64 (B,)."""
        s = self.env.simulator.lanes
        left_ms = s.last_end + self.env.world.cost.radio.tail_ms - s.start
        owed: NDArray[np.float64] = self._tail_price * s.energy_price * np.maximum(left_ms, 0.0)
        return owed

    def _count(self, reward: NDArray[np.float64], info: dict[str, Any]) -> None:
        """Add the frames that ended to `sums`."""
        values = {name: info[name] for name in ("action", "cost", "accuracy", "delay_ms")}
        values |= {"energy_mj": info["energy_mj"], "reward": reward}
        if self._staged:
            values = {name: value[self.frame_done] for name, value in values.items()}
        self.sums.add(values.pop("action"), **values)

    def _wrong(self, rows: NDArray[np.int64], info: dict[str, Any]) -> NDArray[np.float64]:
        """How wrong the answers were, float64 (B,), see the module's text; 0 in an open frame."""
        wrong: NDArray[np.float64]
        if self._error_probability is None:
            wrong = 1.0 - info["accuracy"]
        else:
            fell = info["status"] == FALLBACK
            used = np.where(fell, self._local_of.take(info["exit_used"]), info["action"])
            skipped = info["status"] == SKIPPED
            wrong = np.where(skipped, self._skip_wrong[rows], self._error_probability[rows, used])
        return wrong * self.frame_done if self._staged else wrong

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (B, n_actions): legal actions of each lane at its decision point."""
        if self._legal is None:
            return np.ones((self.num_envs, len(self.table)), bool)
        masks: NDArray[np.bool_] = self._legal[self.points]
        return masks

    @property
    def points(self) -> NDArray[np.int64]:
        """Decision point of each lane, int64 (B,)."""
        return self.env.simulator.point

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same value for every lane: lanes are rows of one environment.

        The masks are the adapter's: of the actions that it offers.
        """
        of = self if attr_name == "action_masks" else self.env
        return [getattr(of, attr_name) for _ in self._lanes(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not offered: lanes are rows of one environment."""
        raise NotImplementedError("lanes of the native vector environment share their attributes")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environment once and give its answer to every lane.

        ``action_masks`` gives every lane its own row.
        """
        if method_name == "action_masks":
            masks = self.action_masks()
            return [masks[lane] for lane in self._lanes(indices)]
        answer = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [answer for _ in self._lanes(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """No lane is wrapped."""
        return [False for _ in self._lanes(indices)]

    def _lanes(self, indices: Any) -> Iterable[int]:
        return self._get_indices(indices)


class FrameRolloutBuffer(MaskableRolloutBuffer):
    """Advantages with a discount of 1 between two decisions about the same frame.

    `follow` must be called before the first rollout. Generalised advantage estimation with
    the weight `gae_lambda` a frame, not a decision.
    """

    def follow(self, frame_done: Callable[[], NDArray[np.bool_]]) -> None:
        """Set the source, read after each step, of the lanes that ended a frame (bool (B,))."""
        self._frame_done = frame_done

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        self.ended = np.zeros((self.buffer_size, self.n_envs), bool)

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add one step of all lanes."""
        self.ended[self.pos] = self._frame_done()
        super().add(*args, **kwargs)

    def compute_returns_and_advantage(
        self, last_values: torch.Tensor, dones: NDArray[np.bool_]
    ) -> None:
        """See the class; float32 (n_steps, B) ``advantages`` and ``returns``."""
        value = last_values.clone().cpu().numpy().flatten()
        going = 1.0 - dones.astype(np.float32)
        advantage = np.zeros(self.n_envs, np.float32)
        for step in reversed(range(self.buffer_size)):
            gamma = np.where(self.ended[step], self.gamma, 1.0).astype(np.float32) * going
            weight = np.where(self.ended[step], self.gae_lambda, 1.0).astype(np.float32)
            surprise = self.rewards[step] + gamma * value - self.values[step]
            advantage = surprise + gamma * weight * advantage
            self.advantages[step] = advantage
            value, going = self.values[step], 1.0 - self.episode_starts[step]
        self.returns = self.advantages + self.values
