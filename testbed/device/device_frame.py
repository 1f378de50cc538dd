"""The current frame, from decision to decision, until there is an answer.

It is a `testbed.policy.policies.OpenFrame`, as the simulators are: `settle` carries out a whole
frame, `advance` one staged action. Both compute and send in the same way; no block runs twice.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cnn.runtime import Features, SplitRuntime
from cnn.topology import Action, Topology
from testbed.device.frame_record import FrameRecord
from testbed.device.processor import Processor
from testbed.device.uplink import Uplink
from testbed.policy.decision_points import DecisionSpace, decision_points
from testbed.policy.observation_fields import schema_of
from testbed.policy.observer import Observer


class DeviceFrame:
    """The frame that the device works on: some blocks have run, some exits are evaluated.

    Args:
        work: the frame's record so far; its answer, times and evaluated exits are filled in.
        seen: float32 (obs_dim,), the observation as the frame begins; None if it is skipped.
        runtime: the network; its topology gives the actions and decision points.
        observer: receives the confidence of every exit evaluated.
        processor: runs everything.
        uplink: the way to the server.
        timeout_ms: longest wait for an answer.
    """

    def __init__(
        self,
        work: FrameRecord,
        seen: NDArray[np.float32] | None,
        *,
        runtime: SplitRuntime,
        observer: Observer,
        processor: Processor,
        uplink: Uplink,
        timeout_ms: float,
    ) -> None:
        self.work = work
        self._seen = seen
        self._runtime, self._observer = runtime, observer
        self._processor, self._uplink = processor, uplink
        self._timeout_ms = timeout_ms
        self._topology = runtime.topology
        self._points = decision_points(runtime.topology)
        self._features: Features | None = None
        self._block = 0
        self._exits: list[tuple[int, int, float]] = []  # exit, prediction, confidence
        self._timed_out = False
        self._spent_ms = 0.0

    @property
    def point(self) -> int:
        """The decision point (`testbed.policy.decision_points`), while the frame is open."""
        evaluated = self._exits[-1][0] if self._exits else 0
        return int(self._points.point[int(self._timed_out), self._block, evaluated])

    def observe(self, space: DecisionSpace) -> NDArray[np.float32]:
        """The observation of a policy of `space` at `point`, float32 (`space.obs_dim`,)."""
        base = self._begun()
        if not space.is_staged:
            return base
        return self._observer.observe_stage(
            base, self._exits, self._block, self._spent_ms, self._timed_out
        )

    def settle(self, action: int) -> Self:
        """Carry the whole frame out as one canonical action.

        If no answer comes, the device resumes and runs on to the exit of the action.
        """
        self._begun()
        pair = self._topology.action_at(int(action))
        if pair.is_local:
            self._evaluate(pair.exit, self._parts_ms(pair)[0])
        elif not self._send(pair, self._timeout_ms):
            pace = self._processor.pace
            self._evaluate(pair.exit, 0.0 if pace is None else pace.fallback_ms[pair.index])
        return self._ended()

    def advance(self, action: int) -> Self | None:
        """Carry out one staged action that is legal at `point`; None if the frame is open."""
        self._begun()
        points = self._points
        if action == points.answer:
            return self._ended()
        pair = points.pair(action)
        if pair.is_local:
            self._evaluate(pair.exit, self._parts_ms(pair)[0])
            self.work.looks |= 1 << (pair.exit - 1)
            if pair.exit == self._topology.n_blocks:
                return self._ended()
            confidence = self._exits[-1][2]
            self._observer.record_exit(pair.exit, confidence)
            self._show(f"confidence_exit{pair.exit}", confidence)
        else:
            timeout_ms = self._timeout_ms
            if points.times_out_early[action]:
                timeout_ms = min(self._observer.early_timeout_ms(), timeout_ms)
            if self._send(pair, timeout_ms):
                return self._ended()
            if self.work.exchanges:  # otherwise nothing was sent: no server, or an open breaker
                self._show("failures", self._observer.failures + 1)
                self._show("failure_age_s", 0.0)
        self._spent_ms = (self._processor.now_s() - self.work.start_s) * 1e3
        return None

    def _begun(self) -> NDArray[np.float32]:
        if self._seen is None:
            raise RuntimeError("a frame that was skipped is not decided about")
        return self._seen

    def _ended(self) -> Self:
        self.work.free_s = self._processor.now_s()
        return self

    def _show(self, name: str, value: float) -> None:
        """An element of the observation has changed within the frame."""
        at = _places(self._topology)[name]
        self._seen = self._begun().copy()
        self._seen[at] = schema_of(self._topology).scale_one(at, value)

    def _parts_ms(self, pair: Action) -> tuple[float, float]:
        """Times of an emulated device from here: to the end of the blocks, and after them."""
        return self._processor.parts_ms(pair, self._block, self._timed_out)

    def _run_to(self, block: int) -> Features:
        """Run on to a block, at least the one that ran last; returns the features there."""
        if self._features is None:
            self._features = self._runtime.start(self.work.frame.image)
        self._features = self._runtime.forward(self._features, self._block + 1, block)
        self._block = block
        return self._features

    def _evaluate(self, exit: int, pace_ms: float) -> None:
        """Run on to an exit; its answer is kept until there is another."""

        def answer() -> tuple[int, float]:
            return self._runtime.answer(self._run_to(exit), exit, exit)

        work = self.work
        (prediction, confidence), took_ms = self._processor.run(answer, pace_ms)
        work.exit_used, work.prediction, work.confidence = exit, prediction, confidence
        self._exits.append((exit, prediction, confidence))
        if self._timed_out:
            work.fallback_ms = (work.fallback_ms or 0.0) + took_ms
        else:
            work.head_ms += took_ms
            work.action = self._topology.action(exit, exit)

    def _send(self, pair: Action, timeout_ms: float) -> bool:
        """Run on to the split and send from there; True if an answer came in time."""
        work = self.work
        work.action = pair
        blocks_ms, rest_ms = self._parts_ms(pair)
        x, head_ms = self._processor.run(partial(self._run_to, pair.split), blocks_ms)
        work.head_ms += head_ms
        if self._uplink.offload(work, pair, x, timeout_ms, rest_ms):
            return True
        self._timed_out = True
        work.status, work.fallback_ms = "fallback", 0.0
        return False


@lru_cache(maxsize=64)
def _places(topology: Topology) -> dict[str, int]:
    """Index of each element of the observation."""
    return {field.name: field.index for field in schema_of(topology).fields}
