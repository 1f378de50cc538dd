"""The same drives through the batch simulator and through scalar ones, compared bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.topology import SHIPPED
from offload_env.batch_simulator import BatchSimulator
from offload_env.episode import episode_keys
from offload_env.simulator import Simulator
from offload_env.world import World
from testbed.policy.decision_points import decision_points
from testbed.policy.observation_fields import schema_of

POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)


class BothSimulators:
    """`lanes` drives of a world of the shipped topology, at their start, in both simulators.

    Attributes:
        seen: frames that ended with each status, over all lanes.
        points: decision points that were met.
        celsius: float64 (steps, lanes), temperatures at the start of each step.
    """

    def __init__(self, world: World, lanes: int, seed: int) -> None:
        keys = episode_keys(seed, lanes)
        self._batch = BatchSimulator(world, lanes)
        self._batch.reset(keys)
        self._single = [Simulator(world) for _ in keys]
        for simulator, key in zip(self._single, keys, strict=True):
            simulator.reset(world.plan(int(key)))
        self._rng = np.random.default_rng(seed)
        self.seen = np.zeros(3, int)
        self.points: set[int] = set()
        self._celsius: list[NDArray[np.float64]] = []

    @property
    def celsius(self) -> NDArray[np.float64]:
        return np.array(self._celsius)

    def settle(self, steps: int) -> None:
        """Whole frames, with random actions."""
        lanes = len(self._single)
        for _ in range(steps):
            observed = self._batch.observe()
            assert observed.shape == (lanes, SCHEMA.obs_dim)
            np.testing.assert_allclose(observed, [s.observe() for s in self._single], atol=2e-6)
            self._same_temperatures()
            actions = self._rng.integers(0, SHIPPED.n_actions, lanes)
            together = self._batch.settle(actions)
            for k, simulator in enumerate(self._single):
                self._same(simulator.settle(int(actions[k])), together, k)

    def advance(self, steps: int) -> None:
        """Single decisions, random among the legal ones, in a random part of the lanes."""
        for _ in range(steps):
            at = self._batch.point
            np.testing.assert_array_equal(at, [s.point for s in self._single])
            observed = [s.observe(POINTS.staged) for s in self._single]
            np.testing.assert_allclose(self._batch.observe(POINTS.staged), observed, atol=2e-6)
            self._same_temperatures()
            self.points |= set(at.tolist())
            some = np.flatnonzero(self._rng.random(len(at)) < 0.8)
            chosen = [self._rng.choice(np.flatnonzero(POINTS.legal[p])) for p in at[some]]
            ended, together = self._batch.advance(np.array(chosen), some)
            for lane, action in zip(some.tolist(), chosen, strict=True):
                alone = self._single[lane].advance(int(action))
                assert (alone is not None) == (lane in ended)
                if alone is not None:
                    self._same(alone, together, int(np.flatnonzero(ended == lane)[0]))

    def _same_temperatures(self) -> None:
        self._celsius.append(self._batch.lanes.celsius.copy())
        np.testing.assert_array_equal(self._celsius[-1], [s.celsius for s in self._single])

    def _same(self, alone: Any, together: Any, k: int) -> None:
        assert alone == tuple(column[k] for column in together)
        self.seen[alone.status] += 1
