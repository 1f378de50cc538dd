"""Policies driven through a world: the same drives, traces and random numbers for each.

An episode is named by a 64-bit key that fixes its frames, its stretch of trace, the
server's load and the jitter, whatever the decisions. Two policies on the same keys are therefore
paired frame by frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from agents.baselines.planner import planners_alike
from cnn.frame_table import Correct
from cnn.topology import Topology
from offload_env.batch_simulator import SKIPPED, BatchOutcome, BatchSimulator
from offload_env.world import World
from testbed.policy.decision_points import decision_points
from testbed.policy.policies import Feedback, Learner, Policy

Floats = NDArray[np.float64]

_KEPT: Final = (
    *("action", "delay_ms", "energy_mj", "cost", "correct", "miss", "row", "status"),
    *("queue_ms", "compute_ms", "exchange_ms", "fallback_ms", "radio_mj"),
)
"""Of an outcome, kept under the same names."""
LANES: Final = 1024
"""Drives of all policies that are simulated at once: more take more memory, and no less time."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One policy on B drives of T frames; every array is (B, T).

    Attributes:
        policy: its name.
        topology: of the network whose actions are numbered.
        action: int64, canonical number decided.
        delay_ms, energy_mj, cost: float64.
        correct: bool, or float64 qualities in [0, 1] (`offload_env.world.World.correct`).
        miss: bool.
        confidence: float32, calibrated, of the answer that is used; NaN if skipped.
        uplink_mbps: float64, true capacity when the frame was decided (for pictures; hidden from
            policies).
        row: int64, row of the frame table.
        status: int64, of `offload_env.simulator`.
        queue_ms, compute_ms, exchange_ms, fallback_ms, radio_mj: float64, as in
            `offload_env.outcome.Outcome`.
    """

    policy: str
    topology: Topology
    action: NDArray[np.int64]
    delay_ms: Floats
    energy_mj: Floats
    cost: Floats
    correct: Correct
    miss: NDArray[np.bool_]
    confidence: NDArray[np.float32]
    uplink_mbps: Floats
    row: NDArray[np.int64]
    status: NDArray[np.int64]
    queue_ms: Floats
    compute_ms: Floats
    exchange_ms: Floats
    fallback_ms: Floats
    radio_mj: Floats

    def frame(self) -> pd.DataFrame:
        """One row a frame, with ``policy``, ``drive`` and ``frame``."""
        drives, frames = self.action.shape
        names = [n for n in self.__slots__ if n not in ("policy", "topology")]
        columns: dict[str, Any] = {n: getattr(self, n).ravel() for n in names}
        return pd.DataFrame(
            {
                "policy": self.policy,
                "drive": np.repeat(np.arange(drives), frames),
                "frame": np.tile(np.arange(frames), drives),
                **columns,
            }
        )


def simulate(
    world: World,
    policy: Policy,
    keys: NDArray[np.uint64],
    *,
    frames: int | None = None,
    seen: Callable[[NDArray[np.float32]], object] | None = None,
) -> Rollout:
    """Drive one policy through the episodes `keys` (uint64 (B,)), all at once.

    Args:
        world: where.
        policy: reset first; a learning policy gets the outcomes of its decisions.
        keys: of the episodes.
        frames: of each episode, from its start; None takes all.
        seen: called before each frame's decision with the frame-level observations,
            float32 (B, obs_dim).

    The ``action`` of a staged policy is the equivalent pair (exit, split) of the whole frame.

    Raises:
        ConfigError: if the policy decides for another network than the world's.
    """
    return _side_by_side(world, [policy], keys, frames, seen)[0]


def simulate_each(
    world: World, policies: Sequence[Policy], keys: NDArray[np.uint64]
) -> Iterator[Rollout]:
    """`simulate` of several policies, as many side by side as `LANES` allows.

    The rollouts are the same, and come several times as fast where drives are few.

    Args:
        policies: all of the frame space, or all of the staged one.
        keys: each policy drives all of them.
    """
    at_once = max(1, LANES // len(keys))
    for first in range(0, len(policies), at_once):
        yield from _side_by_side(world, policies[first : first + at_once], keys)


def _side_by_side(
    world: World,
    policies: Sequence[Policy],
    keys: NDArray[np.uint64],
    frames: int | None = None,
    seen: Callable[[NDArray[np.float32]], object] | None = None,
) -> list[Rollout]:
    """A rollout of each policy, all simulated at once."""
    for policy in policies:
        check_network(world, policy)
        policy.reset()
    simulator = BatchSimulator(world, len(policies) * len(keys))
    simulator.reset(np.tile(keys, len(policies)))
    lanes = [slice(i * len(keys), (i + 1) * len(keys)) for i in range(len(policies))]
    learners = [(p, own) for p, own in zip(policies, lanes, strict=True) if isinstance(p, Learner)]
    outcomes: list[BatchOutcome] = []
    rates: list[Floats] = []
    n_frames = world.scenario.timing.n_frames
    # The matrices are small. Beside a busy process several threads of BLAS wait for each other at
    # every product (200 times slower, seen on two cores), and their number changes the last bits.
    with threadpool_limits(limits=1, user_api="blas"):
        for _ in range(n_frames if frames is None else min(frames, n_frames)):
            rates.append(uplink_now(simulator))
            if seen is not None:
                seen(simulator.observe())
            outcomes.append(decide_frames(simulator, policies))
            for learner, own in learners:
                learner.learn(feedback(world, outcomes[-1].part(own)))

    arrays = {name: np.stack([getattr(o, name) for o in outcomes], axis=1) for name in _KEPT}
    status = arrays["status"] = arrays["status"].astype(np.int64)
    used = np.stack([o.used for o in outcomes], axis=1)
    confidence = np.where(status == SKIPPED, np.nan, world.table.confidence[arrays["row"], used])
    arrays["confidence"] = confidence.astype(np.float32)
    arrays["uplink_mbps"] = np.stack(rates, axis=1)
    return [
        Rollout(policy.name, world.topology, **{name: a[own] for name, a in arrays.items()})
        for policy, own in zip(policies, lanes, strict=True)
    ]


def check_network(world: World, policy: Policy) -> None:
    """Raise `ConfigError` unless a policy decides for the network of a world's frames."""
    frames = f"the frames of scenario {world.scenario.name}"
    world.topology.require_same(policy.space.topology, f"policy {policy.name!r}", frames)


def decide_frames(simulator: BatchSimulator, policies: Sequence[Policy]) -> BatchOutcome:
    """`testbed.policy.policies.decide_frame` for the current frame of every lane.

    Args:
        policies: each has an equal share of the lanes, in this order; all decide in one space.
    """
    space = policies[0].space
    if not space.is_staged:
        seen = simulator.observe(space)
        parts = np.split(seen, len(policies))
        decided = [p.decide_batch(part) for p, part in zip(policies, parts, strict=True)]
        return simulator.settle(np.concatenate(decided))
    at = decision_points(space.topology)
    ended: list[tuple[NDArray[np.intp], BatchOutcome]] = []
    lanes, points = np.arange(simulator.n), simulator.point
    while len(lanes):
        chosen = _decide_open(policies, simulator.observe(space), points, lanes)
        ended.append(simulator.advance(at.repair[points[lanes], chosen[lanes]], lanes))
        lanes = np.setdiff1d(lanes, ended[-1][0], assume_unique=True)
        # Any point after the start, where the frame has ended: the answer there is not used.
        points = np.full(simulator.n, at.n_points - 1)
        points[lanes] = simulator.point[lanes]
    whose = np.concatenate([lanes for lanes, _ in ended])
    return BatchOutcome.joined([outcome for _, outcome in ended], whose)


def _decide_open(
    policies: Sequence[Policy],
    seen: NDArray[np.float32],
    points: NDArray[np.int64],
    lanes: NDArray[np.intp],
) -> NDArray[np.int64]:
    """Staged actions, int64 (n,); in lanes whose frame has ended they mean nothing.

    Planners that differ in their prices alone decide in one call. Otherwise a memoryless policy
    decides for the lanes whose frame is open only, any other for all its lanes while one of them is
    open: as often as alone.

    Args:
        policies: each has an equal share of the n lanes.
        seen, points: float32 (n, obs_dim) and int64 (n,).
        lanes: whose frame is open, ascending.
    """
    chosen = np.zeros(len(seen), np.int64)
    alike = planners_alike(policies)
    if len(alike) > 1:
        whose = lanes // (len(seen) // len(policies))
        chosen[lanes] = alike[0].decide_beside(alike, whose, seen[lanes], points[lanes])
        return chosen
    shares = np.split(np.arange(len(seen)), len(policies))
    still_open = np.split(lanes, np.searchsorted(lanes, [own[0] for own in shares[1:]]))
    for policy, own, asked in zip(policies, shares, still_open, strict=True):
        if len(asked):
            rows = asked if getattr(policy, "memoryless", False) else own
            chosen[rows] = policy.decide_batch(seen[rows], points[rows])
    return chosen


def feedback(world: World, outcome: BatchOutcome) -> Feedback:
    """Feedback to the devices of all lanes after a frame."""
    skipped = outcome.status == SKIPPED
    sent = ~world.topology.is_local[outcome.action] & ~skipped
    confidence = world.table.confidence[outcome.row, outcome.used].astype(np.float64)
    return Feedback(
        action=outcome.action,
        exchange_ms=np.where(sent, outcome.exchange_ms, np.nan),
        delay_ms=outcome.delay_ms,
        energy_mj=outcome.energy_mj,
        confidence=np.where(skipped, np.nan, confidence),
    )


def uplink_now(simulator: BatchSimulator) -> Floats:
    """True uplink capacity of every lane now, Mbit/s."""
    s, pool = simulator.lanes, simulator.world.pool
    sample = np.floor((s.start + s.offset) / s.lane.period_ms) % s.lane.length
    rate: Floats = pool.bits_per_ms[(s.lane.first + sample).astype(np.int64)] / 1e3
    return rate


PERCENTILES: Final = (50, 95, 99)


def summary(rollout: Rollout) -> dict[str, float]:
    """Means and percentiles over all frames of all drives."""
    r = rollout
    return mean_figures(r.cost, r.delay_ms, r.energy_mj, r.correct, r.miss)


def mean_figures(
    cost: Floats, delay_ms: Floats, energy_mj: Floats, correct: NDArray[Any], miss: NDArray[Any]
) -> dict[str, float]:
    """`summary` of frames given as arrays of one shape; `correct` and `miss` are 0 to 1."""
    out = {
        "cost": float(cost.mean()),
        "delay_ms": float(delay_ms.mean()),
        "energy_mj": float(energy_mj.mean()),
        "accuracy": float(correct.mean()),
        "deadline_miss": float(miss.mean()),
    }
    for q, value in zip(PERCENTILES, np.percentile(delay_ms, PERCENTILES), strict=True):
        out[f"delay_p{q}_ms"] = float(value)
    return out
