"""Begin a training where a planner is: imitate it, then improve on it.

A learner that starts from nothing must first find out that evaluating an exit pays later, and where
frames queue, its first policies drown in their own backlog. `imitate` lets it begin at a tuned
baseline instead. As in DAgger (S. Ross, G. Gordon, J. A. Bagnell, "A reduction of
imitation learning and structured prediction to no-regret online learning", AISTATS 2011) the
learner drives, more and more often by its own decisions, and learns what the teacher would do
there. The values of the states are fitted to the rewards on the way, at the price of a wrong answer
that PPO begins with, so that its first updates know what the policy is worth.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from agents.baselines.tuning import best_static, measure, tuned_mpc, tuned_planner
from agents.sb3_adapter import OffloadVecEnv
from agents.train_config import TrainConfig
from offload_env.episode import episode_keys
from offload_env.world import World
from testbed.policy.policies import CommitOnce, Policy

_DRIVES: Final = 64
"""Training drives on which the teacher is tuned: it is a beginning, and need not be the best."""
_PASSES: Final = 2
"""Over each stretch of decisions."""
_RATE: Final = 2e-3
"""Adam's, falling to a tenth."""


def teacher_of(config: TrainConfig, world: World) -> tuple[Policy, float]:
    """The teacher that a run names, and the price of a wrong answer to begin with.

    Both are tuned on training drives, the same for every seed. The price is the teacher's own; that
    of `best` is the `mpc`'s. `best` is the cheapest of planner, `mpc` and static pair, with the
    accuracy that one of them lacks charged at that price: where none keeps the floor, the most
    accurate may be a costly beginning. A `teacher_bonus` is planner's and `mpc`'s own.
    """
    keys, floor = episode_keys(0, _DRIVES), world.accuracy_floor + config.margin
    bonuses = (config.teacher_bonus,) if config.teacher_bonus else ()
    planner = tuned_planner(world, keys, floor, bonuses)
    if config.teacher == "planner":
        return planner, planner.error_price
    mpc = tuned_mpc(world, keys, floor, planner, bonuses)
    if config.teacher == "mpc":
        return mpc, mpc.error_price
    static = CommitOnce(best_static(world, keys, floor))

    def charged(policy: Policy) -> float:
        found = measure(world, policy, keys)
        return found.cost + mpc.error_price * max(0.0, floor - found.accuracy)

    candidates: tuple[Policy, ...] = (mpc, planner, static)
    return min(candidates, key=charged), mpc.error_price


def imitate(
    model: Any, env: OffloadVecEnv, teacher: Policy, price: float, config: TrainConfig
) -> None:
    """Fit `model`'s policy to the teacher's decisions and its values to their rewards.

    Args:
        model: a new (maskable) PPO on `env`, which offers all actions.
        env: staged; left in the middle of its drives, with these decisions in its sums.
        teacher: decides for every state that the learner comes to.
        price: of a wrong answer in the rewards.
        config: of the run: `teacher_steps` decisions, in stretches of `n_steps`.
    """
    n, steps = config.n_envs, config.n_steps
    stretches = max(1, config.teacher_steps // (n * steps))
    optimiser = torch.optim.Adam(model.policy.parameters(), lr=_RATE)
    rng = np.random.default_rng([config.seed, 1])
    env.multiplier = price
    observation: Any = env.reset()
    for k in range(stretches):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1.0 - 0.9 * k / stretches)
        stretch = _Stretch(steps, env)
        for t in range(steps):
            masks, points = env.action_masks(), env.points
            wanted = teacher.decide_batch(observation, points)
            own, _ = model.predict(observation, action_masks=masks)
            by_teacher = rng.random(n) >= k / stretches
            stretch.keep(t, observation, masks, wanted)
            observation, reward, done, _ = env.step(np.where(by_teacher, wanted, own))
            stretch.judge(t, reward, done, env.frame_done)
        with torch.no_grad():
            last = model.policy.predict_values(torch.as_tensor(observation)).flatten().numpy()
        _fit(model.policy, optimiser, stretch, stretch.returns(last, config.gamma), config, rng)


class _Stretch:
    """Decisions of all lanes: T steps, B lanes, O elements of an observation, A actions."""

    def __init__(self, steps: int, env: OffloadVecEnv) -> None:
        masks = env.action_masks()
        n = len(masks)
        self.seen = np.zeros((steps, n, *(env.observation_space.shape or ())), np.float32)
        self.masks = np.zeros((steps, *masks.shape), bool)
        self.wanted = np.zeros((steps, n), np.int64)
        self.rewards = np.zeros((steps, n), np.float32)
        self.done = np.zeros((steps, n), bool)
        self.ended = np.zeros((steps, n), bool)

    def keep(self, t: int, seen: Any, masks: Any, wanted: Any) -> None:
        """What is known before step `t`, and what the teacher would do."""
        self.seen[t], self.masks[t], self.wanted[t] = seen, masks, wanted

    def judge(self, t: int, reward: Any, done: Any, ended: Any) -> None:
        """What followed: reward, drives that ended, frames that ended."""
        self.rewards[t], self.done[t], self.ended[t] = reward, done, ended

    def returns(self, last: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
        """Discounted by frame, as `agents.sb3_adapter.FrameRolloutBuffer`; float32 (T, B)."""
        out, value = np.zeros_like(self.rewards), last
        for t in reversed(range(len(out))):
            discount = np.where(self.ended[t], gamma, 1.0) * ~self.done[t]
            value = (self.rewards[t] + discount * value).astype(np.float32)
            out[t] = value
        return out


def _fit(
    policy: Any,
    optimiser: torch.optim.Optimizer,
    stretch: _Stretch,
    returns: NDArray[np.float32],
    config: TrainConfig,
    rng: np.random.Generator,
) -> None:
    flat = [
        torch.as_tensor(array.reshape(-1, *array.shape[2:]))
        for array in (stretch.seen, stretch.wanted, stretch.masks, returns)
    ]
    for _ in range(_PASSES):
        order = torch.as_tensor(rng.permutation(len(flat[0])))
        for at in torch.split(order, config.batch_size):
            seen, wanted, masks, worth = (part[at] for part in flat)
            values, log_prob, _ = policy.evaluate_actions(seen, wanted, action_masks=masks)
            miss = torch.nn.functional.smooth_l1_loss(values.flatten(), worth)
            loss = miss - log_prob.mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimiser.step()
