"""A Gymnasium wrapper that keeps the accuracy floor in any learner's reward.

The plain reward of an environment is minus its cost. A learner that knows nothing of constraints
then leaves at the cheapest exit and ends below the floor. Here every wrong answer has a price, and
the price moves slowly by dual ascent: up while accuracy is below the floor, down while it is above
(the Lagrangian method for constrained Markov decision processes: E. Altman, 1999, chapter 3; as in
A. Ray, J. Achiam, D. Amodei, 2019, with one multiplier).
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from offload_env.env import Step


class FloorPrice:
    """The price of a wrong answer. Environments that are given the same one share it.

    Every frame moves it by ``rate * (target - accuracy)``; it never falls below 0. Shared by n
    environments it moves n times in each of their steps. Environments in processes of their own
    (`SubprocVecEnv`) have a copy each.

    Args:
        start: first value, in units of the cost (full local processing costs 1 a frame). Too low a
            start makes a short training end below the floor, too high a start above it.
        rate: a frame; the default is 1 for each 10,000 frames that lack 0.25 points.

    Attributes:
        value: the price now.

    Raises:
        ConfigError: if an argument is negative or no finite number.
    """

    def __init__(self, start: float = 10.0, rate: float = 0.04) -> None:
        for name, given in (("start", start), ("rate", rate)):
            if not 0 <= given < math.inf:
                raise ConfigError(
                    f"{name} {given} of a price",
                    expected="a finite number of 0 or more",
                    hint="leave it out for the default",
                )
        self.value = float(start)
        self._rate = float(rate)

    def follow(self, missing: float) -> None:
        """Move the price after a frame whose accuracy was `missing` below the target."""
        self.value = max(0.0, self.value + self._rate * missing)


class KeepFloor(gym.Wrapper[NDArray[np.float32], np.int64, NDArray[np.float32], np.int64]):
    """Take the price of every wrong or missing answer off the reward.

    For a single environment, frame-level or staged::

        wrapped = {"wrapper_class": KeepFloor, "wrapper_kwargs": {"price": FloorPrice()}}
        make_vec_env("sliproad/Offload-v0", 8, **wrapped)

    gives eight environments with one price. ``info["price"]`` is the price in this step's reward.
    The environment's own ``lagrange`` stays as it is, and is 0 unless it was set.

    Args:
        env: `OffloadEnv`, `OffloadStagedEnv`, or a live one, wrapped or not.
        price: None makes one of its own.
        floor: mean accuracy to keep; None takes the floor of the environment's frames.
        margin: asked for above the floor, because drives to come meet other tracks.

    Raises:
        ConfigError: if the environment is another one, or the floor and margin ask for more than
            every answer right or for less than none.
    """

    def __init__(
        self,
        env: gym.Env[NDArray[np.float32], np.int64],
        price: FloorPrice | None = None,
        *,
        floor: float | None = None,
        margin: float = 0.001,
    ) -> None:
        super().__init__(env)
        world = getattr(env.unwrapped, "world", None)
        if world is None:
            raise ConfigError(
                f"environment {env}",
                expected="an environment of sliproad's, which has a world",
                hint="make it with gymnasium.make('sliproad/Offload-v0')",
            )
        self.price = FloorPrice() if price is None else price
        self.target = (world.accuracy_floor if floor is None else floor) + margin
        if not 0 <= self.target <= 1:
            raise ConfigError(
                f"accuracy {self.target:.4f} as floor and margin",
                expected="0 to 1",
                hint="lower the floor or the margin",
            )

    def step(self, action: np.int64 | int) -> Step:
        """As the environment's, with the price of the answer in the reward of its frame."""
        observation, reward, terminated, truncated, info = self.env.step(action)  # type: ignore[arg-type]
        info["price"] = self.price.value
        if info.get("frame_done", True):  # a staged frame may be open: no answer yet
            accuracy = float(info["accuracy"])
            reward = float(reward) - self.price.value * (1.0 - accuracy)
            self.price.follow(self.target - accuracy)
        return observation, float(reward), terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """The environment's, for learners that know masks."""
        masks: Any = self.env.get_wrapper_attr("action_masks")()
        return masks  # type: ignore[no-any-return]
