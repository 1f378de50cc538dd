"""Drives with different preferences: weights and floor drawn by lane.

The observation already holds the device's accuracy floor and weight of delay against energy
(`testbed.policy.observer`: ``accuracy_floor``, ``delay_share``). Here both differ from drive to
drive, so that one policy can learn to serve all preferences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from cnn.common.errors import ConfigError
from offload_env.env_input import from_mapping
from offload_env.episode import Keys, draw_batch, unit_batch
from offload_env.scenario import Scenario, Split
from offload_env.vector_env import OffloadVectorEnv
from offload_env.world import World
from testbed.policy.observation_fields import Schema, schema_of

Floats = NDArray[np.float64]

_FLOOR, _SHARE = 4, 5
"""Draw numbers of an episode's key that `offload_env.world` does not use."""


def floor_at(schema: Schema) -> int:
    """Index of the accuracy floor in an observation; the delay share follows it."""
    return schema.constants_at + 1


@dataclass(frozen=True, slots=True)
class Preferences:
    """Range of the preferences: uniform between the ends.

    Attributes:
        floor: lowest and highest accuracy floor of the device's task settings.
        delay_share: lowest and highest w_delay / (w_delay + w_energy).
    """

    floor: tuple[float, float]
    delay_share: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for low, high in (self.floor, self.delay_share):
            if not 0 <= low <= high <= 1:
                raise ConfigError(
                    f"{self}", expected="low <= high, both in [0, 1]", hint="correct the range"
                )

    @classmethod
    def of(cls, world: World, margin: float) -> Preferences:
        """All weights, and every floor that binds and can be kept with `margin` to spare.

        From the accuracy of the least accurate action to that of full local processing, on
        the world's frames, both less `margin`.
        """
        accuracy = world.correct.mean(0)
        low, high = float(accuracy.min()) - margin, float(accuracy[world.topology.main]) - margin
        return cls((max(0.0, low), max(0.0, low, high)))

    def draw(self, keys: Keys) -> tuple[Floats, Floats]:
        """Floor and share of each episode, float64 (B,) each, fixed by its key."""
        at = unit_batch(draw_batch(keys, _FLOOR)), unit_batch(draw_batch(keys, _SHARE))
        ends = self.floor, self.delay_share
        floor, share = (low + u * (high - low) for u, (low, high) in zip(at, ends, strict=True))
        return floor, share


class ConditionedVectorEnv(OffloadVectorEnv):
    """`OffloadVectorEnv` in which every drive has a floor and weights of its own.

    The two weights add up to what the scenario's add up to; the price of a missed deadline
    is the scenario's. A drive's preferences follow from its key. ``info`` holds, besides the
    usual keys, ``accuracy_floor`` and ``delay_share`` (B,) of the frame just done.

    Args:
        num_envs, scenario, split, world, autoreset_mode: as in `OffloadVectorEnv`.
        preferences: range to draw from; None takes `Preferences.of` without a margin.
    """

    @from_mapping
    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str | Path = "urban-5g",
        split: Split = "train",
        *,
        world: World | None = None,
        preferences: Preferences | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
    ) -> None:
        super().__init__(num_envs, scenario, split, world=world, autoreset_mode=autoreset_mode)
        self.preferences = preferences or Preferences.of(self.world, 0.0)
        self._schema = schema_of(self.world.topology)
        self._floor, self._delay_share = np.zeros(num_envs), np.zeros(num_envs)

    @property
    def floor(self) -> Floats:
        """Accuracy floor of each lane's drive, float64 (B,), a copy."""
        return self._floor.copy()

    @property
    def delay_share(self) -> Floats:
        """w_delay / (w_delay + w_energy) of each lane's drive, float64 (B,), a copy."""
        return self._delay_share.copy()

    def _begin(self, lanes: NDArray[np.intp], keys: Keys) -> None:
        super()._begin(lanes, keys)
        floor, share = self.preferences.draw(keys)
        self._floor[lanes], self._delay_share[lanes] = floor, share
        price, s = self.world.scenario.price, self.simulator.lanes
        total = price.delay_weight + price.energy_weight
        s.floor[lanes] = floor
        s.delay_price[lanes] = share * total / self.world.delay_ref_ms
        s.energy_price[lanes] = (1.0 - share) * total / self.world.energy_ref_mj

    def _observe(self) -> NDArray[np.float32]:
        observation = super()._observe()
        preferences = np.column_stack([self._floor, self._delay_share])
        at = floor_at(self._schema)
        observation[:, at : at + 2] = self._schema.normalise(preferences, at)
        return observation

    def _advance(self, actions: NDArray[np.int64]) -> tuple[Floats, dict[str, Any]]:
        asked = {"accuracy_floor": self.floor, "delay_share": self.delay_share}
        reward, info = super()._advance(actions)
        return reward, {**info, **asked}


def preferring(world: World, floor: float, delay_share: float) -> World:
    """The same world under one floor and weight, as one lane of `ConditionedVectorEnv`.

    Args:
        world: of any split. Its own floor moves by as much as the device's, so that on other frames
            too the floor keeps its distance below full local processing.
        floor: accuracy floor in the device's task settings.
        delay_share: w_delay / (w_delay + w_energy), [0, 1].
    """
    price = world.scenario.price
    total = price.delay_weight + price.energy_weight
    scenario = world.scenario.with_weights(delay_share * total, (1.0 - delay_share) * total)
    move = floor - world.settings.accuracy_floor
    own = min(1.0, max(0.0, world.accuracy_floor + move))
    margin = min(1.0, max(0.0, float(world.correct[:, world.topology.main].mean()) - own))
    constraint = replace(scenario.constraint, accuracy_floor=0.0, accuracy_margin=margin)
    return replace(
        world,
        scenario=replace(scenario, constraint=constraint),
        accuracy_floor=own,
        settings=replace(world.settings, accuracy_floor=floor, delay_share=delay_share),
    )
