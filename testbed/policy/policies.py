"""The policy protocol, the loop that asks a policy, and policies without a file.

A policy answers in a decision space (`testbed.policy.decision_points.DecisionSpace`). In the
frame space one decision settles a frame; in the staged space the policy decides at every
decision point. A frame policy is a staged one that commits at its first decision point
(`CommitOnce`). `agents` trains policies; nothing here imports it, torch or stable-baselines3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import BundleError
from cnn.topology import SHIPPED, Action, Topology
from testbed.policy.decision_points import START, DecisionSpace, decision_points

if TYPE_CHECKING:
    from testbed.records.measurement import Measurement

Ended_co = TypeVar("Ended_co", covariant=True)


@runtime_checkable
class Policy(Protocol):
    """Chooses an action at every decision point of its space.

    A policy whose decisions depend on the observation and the point alone has an attribute
    ``memoryless = True``: asking it twice then changes nothing.

    Attributes:
        name: shown in tables and records.
        space: the frame or the staged one of its network; a policy may change from one to the
            other between two frames.
    """

    name: str

    @property
    def space(self) -> DecisionSpace:
        """Its actions and its observation."""

    def reset(self) -> None:
        """Forget everything since the start of the drive."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """An action of the space for one observation.

        Args:
            observation: float32 (`space.obs_dim`,).
            point: the decision point, at which a staged action must be legal. A frame policy is
                asked only at `START`, and may ignore it.
        """

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Actions, int64 (B,), for float32 (B, `space.obs_dim`) and int64 (B,).

        Row b of successive calls belongs to drive b: a policy with memory keeps one memory a
        row. Without `points`, every row is at `START`.
        """


class OpenFrame(Protocol[Ended_co]):
    """A frame in front of a simulator or a device; `Ended_co` is the type of an ended frame."""

    @property
    def point(self) -> int:
        """The decision point."""

    def observe(self, space: DecisionSpace) -> NDArray[np.float32]:
        """The observation of a policy of `space` now, float32 (`space.obs_dim`,)."""

    def settle(self, action: int) -> Ended_co:
        """Carry the whole frame out as one canonical action."""

    def advance(self, action: int) -> Ended_co | None:
        """Carry out one staged action that is legal at `point`; None if the frame is open."""


def decide_frame(frame: OpenFrame[Ended_co], policy: Policy) -> Ended_co:
    """Observe, ask the policy and carry out its action, until the frame has ended.

    A policy that changed to the staged space during its decision is asked again there.
    """
    if not policy.space.is_staged:
        action = policy.decide(frame.observe(policy.space))
        if not policy.space.is_staged:
            return frame.settle(action)
    ended = None
    while ended is None:
        ended = frame.advance(policy.decide(frame.observe(policy.space), frame.point))
    return ended


Checked = TypeVar("Checked", bound=Policy)


def require_space(policy: Checked, space: DecisionSpace) -> Checked:
    """The policy itself; raises `BundleError` unless it decides in `space`, of the same network."""
    space.topology.require_same(policy.space.topology, f"policy {policy.name!r}", "the device")
    if policy.space.name == space.name:
        return policy
    kinds = {"frame": "a policy that decides once a frame", "staged": "a staged policy"}
    raise BundleError(
        f"policy {policy.name!r}: {kinds[policy.space.name]}",
        expected=kinds[space.name],
        hint=f"give another policy, or train one with `sliproad agent train --env {space.name}`",
    )


class StaticPolicy:
    """Always the same action.

    Args:
        action: of the network, or its canonical number.
        name: shown in tables; ``static e3s1`` if None.
        topology: of the network.
    """

    memoryless: Final = True

    def __init__(
        self, action: Action | int, name: str | None = None, topology: Topology = SHIPPED
    ) -> None:
        self.action = action if isinstance(action, Action) else topology.action_at(action)
        self.space = decision_points(topology).frame
        self.name = name or f"static {self.action.name}"
        self._index = topology.index(self.action.exit, self.action.split)

    def reset(self) -> None:
        """Nothing to forget."""

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """The fixed action's number."""
        return self._index

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The fixed action's number, once a row."""
        return np.full(len(observations), self._index, np.int64)


class RandomPolicy:
    """Uniform over `actions` (all by default), from its own seeded generator."""

    def __init__(
        self, seed: int, actions: Sequence[int] | None = None, topology: Topology = SHIPPED
    ) -> None:
        self.name = "random"
        self.space = decision_points(topology).frame
        self._seed = seed
        self._actions = np.asarray(range(topology.n_actions) if actions is None else actions)
        self.reset()

    def reset(self) -> None:
        """Start the sequence of random numbers anew."""
        self._rng = np.random.default_rng(self._seed)

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """A uniformly random action."""
        return int(self._rng.choice(self._actions))

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Independent uniformly random actions."""
        return self._rng.choice(self._actions, len(observations))


class CommitOnce:
    """A frame policy in the staged space: it decides at `START` and keeps to that decision.

    Args:
        policy: decides once a frame.

    Raises:
        BundleError: if the policy is staged already.
    """

    def __init__(self, policy: Policy) -> None:
        points = decision_points(policy.space.topology)
        self.policy = require_space(policy, points.frame)
        self.name = policy.name
        self.space = points.staged
        self._repair, self._obs_dim = points.repair, points.frame.obs_dim
        self._actions = np.zeros(1, np.int64)

    def reset(self) -> None:
        """Start a drive."""
        self.policy.reset()

    def decide(self, observation: NDArray[np.float32], point: int = START) -> int:
        """The policy's action at `START`; then the rest of that action."""
        if point == START:
            action = self.policy.decide(observation[: self._obs_dim])
            self._actions = np.array([action], np.int64)
        return int(self._repair[point, self._actions[0]])

    def decide_batch(
        self, observations: NDArray[np.float32], points: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """As `decide`, one drive a row: in every call all rows, in the same order."""
        at = np.full(len(observations), START) if points is None else points
        begins = at == START
        if begins.any():
            chosen = self.policy.decide_batch(observations[:, : self._obs_dim])
            self._actions = chosen if begins.all() else np.where(begins, chosen, self._actions)
        taken: NDArray[np.int64] = self._repair[at, self._actions]
        return taken

    def learn(self, feedback: Feedback) -> None:
        """Pass feedback on to a policy that learns."""
        if isinstance(self.policy, Learner):
            self.policy.learn(feedback)


@dataclass(frozen=True, slots=True)
class Feedback:
    """The devices' knowledge after one frame of B drives; every array is (B,).

    It holds no label and no true rate, only values that a device can measure itself.

    Attributes:
        action: int64, canonical number decided.
        exchange_ms: float64, from sending until the answer or the time-out; NaN
            if nothing was sent.
        delay_ms: float64, total processing delay.
        energy_mj: float64; NaN without a meter.
        confidence: float64, calibrated, of the answer; NaN if the frame was skipped.
    """

    action: NDArray[np.int64]
    exchange_ms: NDArray[np.float64]
    delay_ms: NDArray[np.float64]
    energy_mj: NDArray[np.float64]
    confidence: NDArray[np.float64]

    @classmethod
    def of(cls, row: Measurement, topology: Topology = SHIPPED) -> Self:
        """The feedback of one measured frame of a network, B = 1."""
        compute_ms = row.head_ms + (row.encode_ms or 0.0) + (row.fallback_ms or 0.0)
        sent = row.status != "skipped" and not topology.action_at(row.action).is_local
        exchange = row.delay_ms - row.queue_ms - compute_ms if sent else None
        figures: list[Any] = [exchange, row.delay_ms, row.energy_mj, row.confidence]
        return cls(
            np.array([row.action], np.int64),
            *(np.array([np.nan if v is None else v], np.float64) for v in figures),
        )


@runtime_checkable
class Learner(Protocol):
    """A policy that learns from its own frames.

    The device and the simulator report the outcome of its last decision after every frame, before
    the next decision.
    """

    def learn(self, feedback: Feedback) -> None:
        """Learn from the outcome of each row's last decision; row b is drive b."""
