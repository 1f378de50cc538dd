"""Native vector environment of `sliproad/OffloadStaged-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_EXITS
from offload_env.batch_simulator import EXIT, OFFLOADS
from offload_env.env import observation_box
from offload_env.outcome import DECIDING
from offload_env.staged_batch import StagedBatchSimulator
from offload_env.vector_env import Bools, Floats, OffloadVectorEnv, frame_info
from testbed.policy.decision_points import (
    ANSWER,
    CANONICAL,
    LEGAL,
    N_STAGED,
    REPAIR,
    TIMES_OUT_EARLY,
)
from testbed.policy.observer import STAGED_OBS_DIM


class OffloadStagedVectorEnv(OffloadVectorEnv):
    """`OffloadStagedEnv` for ``num_envs`` drives at once; lane k equals a single one.

    As `OffloadVectorEnv` (seeds, autoreset, options); lanes finish their frames at
    different steps. ``info["frame_done"]`` (bool (B,)) says in which lanes the figures are
    those of a finished frame; elsewhere they are 0 and the status is 3 (deciding).
    """

    simulator: StagedBatchSimulator

    def _set_up(self) -> None:
        self.simulator = StagedBatchSimulator(self.world, self.num_envs)
        self.single_action_space = gym.spaces.Discrete(N_STAGED)
        self.single_observation_space = observation_box(STAGED_OBS_DIM)

    def _observe(self) -> NDArray[np.float32]:
        return self.simulator.observe_staged()

    def _advance(self, actions: NDArray[np.int64]) -> tuple[Floats, dict[str, Any]]:
        simulator, s = self.simulator, self.simulator.lanes
        chosen = REPAIR[simulator.point, actions]
        skip = s.queue > self.world.scenario.timing.max_queue_ms
        answer = chosen == ANSWER
        canonical = CANONICAL[chosen]
        looks = ~OFFLOADS[canonical] & ~answer & ~skip
        lanes = np.flatnonzero(looks)
        if len(lanes):
            simulator.evaluate_some(lanes, EXIT[canonical[lanes]])
        answer |= looks & (EXIT[canonical] == N_EXITS)
        ending = np.flatnonzero(answer | ~looks)
        # A skipped frame spends nothing, wherever it "answers" from.
        answers = (answer & ~skip)[ending]
        over, outcome = simulator.finish_some(
            ending, canonical[ending], answers, TIMES_OUT_EARLY[chosen[ending]]
        )
        ended, outcome = ending[over], outcome.part(over)
        done = np.zeros(self.num_envs, bool)
        done[ended] = True
        critical = self.world.critical.take(outcome.row)
        reward = np.zeros(self.num_envs)
        reward[ended] = -outcome.cost - self._price(outcome.correct, critical)
        if self.render_mode is not None:
            self._show(ended, outcome)
        prices = simulator.lanes.delay_price[ended], simulator.lanes.energy_price[ended]
        info: dict[str, Any] = {"frame_done": done}
        for name, values in frame_info(self.world, outcome, critical, *prices).items():
            info[name] = np.zeros(self.num_envs, values.dtype)
            info[name][ended] = values
        info["status"][~done] = DECIDING
        info["action"][~done] = canonical[~done]
        return reward, info

    def action_masks(self) -> Bools:
        """bool (B, 36): what is legal where each lane's device stands."""
        self._check_started()
        masks: Bools = LEGAL[self.simulator.point]
        return masks
