"""`sliproad/OffloadLiveStaged-v0`: every step is one decision within a real frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from offload_env.env import observation_box
from offload_env.env_input import checked_action, from_mapping
from offload_env.live_env import OffloadLiveEnv
from offload_env.scenario import Scenario, Split
from offload_env.staged_env import deciding
from offload_env.world import World
from testbed.policy.decision_points import CANONICAL, LEGAL, N_STAGED, REPAIR
from testbed.policy.observer import STAGED_OBS_DIM


class OffloadLiveStagedEnv(OffloadLiveEnv):
    """`OffloadStagedEnv` on the real testbed, as `OffloadLiveEnv` is `OffloadEnv` on it.

    ## Description
    The device that runs here computes, looks at exits, sends and measures as
    `sliproad testbed device` does with a staged policy; a step is one of its decisions.
    ``step`` returns when the exit's answer is known or, at the end of a frame, when the next
    one has been captured.

    ## Action Space, Observation Space, Rewards, Episode End
    As `OffloadStagedEnv`: ``Discrete(36)`` with the same masks, 43 elements, 0 while a frame
    is open. Every action on a frame that waited too long ends it, skipped.

    ## Info
    As `OffloadStagedEnv`, and ``measurement`` where ``frame_done``.

    ## Starting State, Arguments
    As `OffloadLiveEnv`.
    """

    @from_mapping
    def __init__(
        self,
        scenario: Scenario | str | Path = "urban-5g",
        split: Split = "test",
        *,
        world: World | None = None,
        lagrange: float = 0.0,
        frames: str = "render",
        n_frames: int | None = None,
        paced: bool = True,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            scenario,
            split,
            world=world,
            lagrange=lagrange,
            frames=frames,
            n_frames=n_frames,
            paced=paced,
            render_mode=render_mode,
        )
        self.action_space = gym.spaces.Discrete(N_STAGED)
        self.observation_space = observation_box(STAGED_OBS_DIM)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """As `OffloadLiveEnv.reset`."""
        observation, info = super().reset(seed=seed, options=options)
        return self._begin(observation), info

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one decision; the frame ends or the device stands further on."""
        device = self._rig.device
        chosen = int(REPAIR[device.point, checked_action(action, N_STAGED)])
        if not self._rig.skipped:
            seen = device.take_stage(chosen)
            if seen is not None:
                return seen, 0.0, False, False, deciding(chosen)
        observation, reward, terminated, truncated, info = self._finish(int(CANONICAL[chosen]))
        info["frame_done"] = True
        seen = self._rig.look_staged(observation) if truncated else self._begin(observation)
        return seen, reward, terminated, truncated, info

    def _begin(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Before the first decision on the frame in hand."""
        if self._rig.skipped:
            return self._rig.look_staged(observation)
        return self._rig.device.begin_stages(observation)

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (36,): what is legal where the device stands."""
        return np.array(LEGAL[self._rig.device.point])
