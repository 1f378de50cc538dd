"""Native vector environment of `sliproad/OffloadStaged-v0`."""

from __future__ import annotations

from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from cnn.action import N_EXITS
from offload_env.batch import EXIT, OFFLOADS
from offload_env.env import observation_box
from offload_env.staged import ANSWER, LEGAL, N_STAGED, REPAIR
from offload_env.vector_env import Bools, Floats, OffloadVectorEnv, StepResult, frame_info
from offload_env.world import LOCAL
from testbed.decide.observation import STAGED_OBS_DIM

DECIDING: Final = 3
"""Status of a lane whose frame is still open."""


class OffloadStagedVectorEnv(OffloadVectorEnv):
    """`OffloadStagedEnv` for ``num_envs`` drives at once; lane k equals a single one.

    As `OffloadVectorEnv` (seeds, same-step autoreset); lanes finish their frames at
    different steps. ``info["frame_done"]`` (bool (B,)) says in which lanes the figures are
    those of a finished frame; elsewhere they are 0 and the status is 3 (deciding).
    """

    def _set_spaces(self) -> None:
        self.single_action_space = gym.spaces.Discrete(N_STAGED)
        self.single_observation_space = observation_box(STAGED_OBS_DIM)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _observe(self) -> NDArray[np.float32]:
        return self.simulator.observe_staged()

    def step(self, actions: NDArray[np.int64]) -> StepResult:
        """Take one decision in every lane."""
        simulator, s = self.simulator, self.simulator.lanes
        chosen = REPAIR[s.position, np.asarray(actions, np.int64)]
        skip = s.queue > self.world.scenario.timing.max_queue_ms
        answer = chosen == ANSWER
        canonical = np.where(answer, LOCAL[0], chosen)
        looks = ~OFFLOADS[canonical] & ~answer & ~skip
        lanes = np.flatnonzero(looks)
        if len(lanes):
            simulator.evaluate_some(lanes, EXIT[canonical[lanes]])
        answer |= looks & (EXIT[canonical] == N_EXITS)
        done = answer | ~looks
        ended = np.flatnonzero(done)
        # A skipped frame spends nothing, wherever it "answers" from.
        outcome = simulator.finish_some(ended, canonical[ended], (answer & ~skip)[ended])
        critical = self.world.critical.take(outcome.row)
        reward = np.zeros(self.num_envs)
        reward[ended] = -outcome.cost - self._price(outcome.correct, critical)
        info: dict[str, Any] = {"frame_done": done}
        for name, values in frame_info(self.world, outcome, critical).items():
            info[name] = np.zeros(self.num_envs, values.dtype)
            info[name][ended] = values
        info["status"][~done] = DECIDING
        info["action"][~done] = canonical[~done]
        truncated = (simulator.frame >= self._n_frames) & done
        observation = self._autoreset(truncated, info)
        return observation, reward, np.zeros(self.num_envs, bool), truncated, info

    def action_masks(self) -> Bools:
        """bool (B, 21): what is legal where each lane's device stands."""
        masks: Bools = LEGAL[self.simulator.lanes.position]
        return masks


__all__ = ["DECIDING", "Floats", "OffloadStagedVectorEnv"]
