"""Training on `sliproad/OffloadStaged-v0`: the adapter, and returns by frame.

Within a frame no reward falls and no time passes for the purpose of the discount: only
the decision that ends a frame is followed by a discounted future. So the horizon is that of
the frame-level agent, however often a policy looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer

from agents.sb3_adapter import OffloadVecEnv
from offload_env.vector_env import OffloadStagedVectorEnv
from testbed.policy.decision_points import LEGAL, N_STAGED


class OffloadStagedVecEnv(OffloadVecEnv):
    """Adapter of the staged vector environment; one step is one decision in every lane.

    Args:
        env: native staged vector environment.
        actions: staged numbers of the actions offered; the learner's action k is
            ``actions[k]``.
        error_probability: as in `OffloadVecEnv`, applied to the pair that a frame amounts to.

    Attributes:
        frame_done: bool (B,), lanes in which the last step ended a frame.
    """

    def __init__(
        self,
        env: OffloadStagedVectorEnv,
        actions: Sequence[int] = range(N_STAGED),
        error_probability: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(env, actions, error_probability)
        self.frame_done = np.zeros(env.num_envs, bool)
        self._staged = env
        self._legal = LEGAL[:, self.table]

    def action_masks(self) -> NDArray[np.bool_]:
        """bool (B, n_actions): what each lane may do where it stands."""
        masks: NDArray[np.bool_] = self._legal[self._staged.simulator.point]
        return masks

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environment, the masks excepted: those are the adapter's."""
        if attr_name == "action_masks":
            return [self.action_masks for _ in self._lanes(indices)]
        return super().get_attr(attr_name, indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """As `OffloadVecEnv`; ``action_masks`` gives every lane its own row."""
        if method_name == "action_masks":
            masks = self.action_masks()
            return [masks[lane] for lane in self._lanes(indices)]
        return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def _count(
        self, reward: NDArray[np.float64], info: dict[str, Any], names: tuple[str, ...]
    ) -> None:
        done = self.frame_done
        values = {name: info[name][done] for name in names}
        self.sums.add(info["action"][done], reward=reward[done], **values)

    def _wrong(self, rows: NDArray[np.int64], info: dict[str, Any]) -> NDArray[np.float64]:
        """How wrong the answers of the frames that ended were; 0 while a frame is open."""
        self.frame_done = info["frame_done"]
        wrong: NDArray[np.float64] = super()._wrong(rows, info) * self.frame_done
        return wrong


class FrameRolloutBuffer(MaskableRolloutBuffer):
    """Advantages with a discount of 1 between two decisions about the same frame.

    `follow` must be called before the first rollout. Generalised advantage estimation with
    the weight `gae_lambda` a frame, not a decision.
    """

    def follow(self, frame_done: Callable[[], NDArray[np.bool_]]) -> None:
        """Say where to read, after each step, which lanes ended a frame (bool (B,))."""
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
