"""A frame decided in stages: look at exits, or send, until there is an answer."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.runtime import SplitRuntime
from cnn.topology import ACTIONS, N_EXITS, Action
from testbed.device.frame_record import Work
from testbed.device.frame_state import Stand
from testbed.device.processor import Processor
from testbed.device.uplink import Uplink
from testbed.policy.decision_points import ANSWER, CANONICAL, TIMES_OUT_EARLY
from testbed.policy.observer import FIELDS, Observer, scale_one
from testbed.policy.policies import Policy

_AT: Final = {field.name: field.index for field in FIELDS}
_CONFIDENCE_AT: Final = _AT["confidence_exit1"]


class Stages:
    """The frame in hand from decision to decision; no block runs twice.

    Args:
        work: the frame; its answer, times and looks are filled in.
        observation: float32 (`OBS_DIM`,), as the frame began.
        runtime: the network.
        observer: told the confidence of every exit looked at.
        processor: runs everything.
        uplink: the way to the server.
        timeout_ms: longest wait for an answer.

    Attributes:
        seen: float32 (`STAGED_OBS_DIM`,), the observation of the next decision.
    """

    def __init__(
        self,
        work: Work,
        observation: NDArray[np.float32],
        *,
        runtime: SplitRuntime,
        observer: Observer,
        processor: Processor,
        uplink: Uplink,
        timeout_ms: float,
    ) -> None:
        self._work, self._observer = work, observer
        self._processor, self._uplink = processor, uplink
        self._timeout_ms = timeout_ms
        self._base = observation.copy()
        self._stand = Stand.before(runtime, work.frame.image)
        self._see(0.0)

    @property
    def point(self) -> int:
        """Where the device stands in the open frame, 0..19 (`testbed.policy.decision_points`)."""
        return self._stand.number

    def take(self, chosen: int) -> bool:
        """Carry out a legal staged action; True if the frame is still open, with a new `seen`."""
        work = self._work
        is_open = chosen != ANSWER and self._go_on(chosen)
        now_s = self._processor.now_s()
        if not is_open:
            work.free_s = now_s
            return False
        self._see((now_s - work.start_s) * 1e3)
        return True

    def _see(self, spent_ms: float) -> None:
        point = self._stand
        self.seen = self._observer.observe_stage(
            self._base, point.exits, point.position, spent_ms, point.timed_out
        )

    def _go_on(self, chosen: int) -> bool:
        """Run on to a split and send, or to an exit and look; True if the frame is open."""
        action = ACTIONS[int(CANONICAL[chosen])]
        if action.is_local:
            return self._look(action.exit)
        work, point = self._work, self._stand
        work.action = action
        blocks_ms, rest_ms = self._parts_ms(action)
        x, head_ms = self._processor.run(partial(point.run_to, action.split), blocks_ms)
        work.head_ms += head_ms
        early_timeout_ms = self._timeout_ms
        if TIMES_OUT_EARLY[chosen]:
            early_timeout_ms = min(self._observer.early_timeout_ms(), early_timeout_ms)
        if self._uplink.offload(work, action, x, early_timeout_ms, rest_ms):
            return False
        self._give_up()
        return True

    def _give_up(self) -> None:
        """No answer came: the frame stays open, and the failure shows in what is seen of it."""
        work = self._work
        self._stand.timed_out = True
        work.status, work.fallback_ms = "fallback", 0.0
        if work.exchanges:  # otherwise nothing was sent: no server, or an open breaker
            failures = self._observer.failures + 1
            self._base[_AT["failures"]] = scale_one(_AT["failures"], failures)
            self._base[_AT["failure_age_s"]] = scale_one(_AT["failure_age_s"], 0.0)

    def _parts_ms(self, action: Action) -> tuple[float, float]:
        """What an emulated device takes from here: to the end of the blocks, and on."""
        point = self._stand
        return self._processor.parts_ms(action, point.position, point.timed_out)

    def _look(self, exit: int) -> bool:
        """Run on to an exit and look at its answer; True if the frame is open."""
        work, point = self._work, self._stand
        look_ms, _ = self._parts_ms(Action(exit, exit))
        view, took_ms = self._processor.run(partial(point.look, exit), look_ms)
        if point.timed_out:
            work.fallback_ms = (work.fallback_ms or 0.0) + took_ms
        else:
            work.head_ms += took_ms
            work.action = Action(exit, exit)
        work.exit_used, work.prediction, work.confidence = exit, view.prediction, view.confidence
        work.looks |= 1 << (exit - 1)
        if exit == N_EXITS:
            return False
        self._observer.record_exit(exit, view.confidence)
        at = _CONFIDENCE_AT + exit - 1
        self._base[at] = scale_one(at, view.confidence)
        return True


def decide_in_stages(stages: Stages, policy: Policy) -> None:
    """Carry a frame to its answer.

    Args:
        stages: the frame, just begun.
        policy: decides.
    """
    is_open = True
    while is_open:
        is_open = stages.take(policy.decide(stages.seen, stages.point))
