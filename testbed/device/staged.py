"""A frame decided in stages: look at exits until the policy answers or sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import N_EXITS, Action, action_from_index
from cnn.runtime import Features, SplitRuntime
from testbed.decide.observation import FIELDS, Observer, scale_one
from testbed.decide.staged_policy import StagedPolicy
from testbed.decide.stages import ANSWER
from testbed.device.processor import Processor
from testbed.device.stand import Stand
from testbed.device.work import Work

_CONFIDENCE_AT: Final = next(f.index for f in FIELDS if f.name == "confidence_exit1")


class Stages:
    """The frame in hand from decision to decision; no block runs twice.

    Args:
        work: the frame; its answer, times and looks are filled in.
        observation: float32 (`OBS_DIM`,), as the frame began.
        runtime: the network.
        observer: told the confidence of every exit looked at.
        processor: runs everything.
        send: offloads, or finishes from where the device stands; ends the frame.

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
        send: Callable[[Action, Features], None],
    ) -> None:
        self._work, self._observer, self._processor, self._send = work, observer, processor, send
        self._base = observation.copy()
        processor.begin()
        self._stand = Stand.before(runtime, work.frame.image)
        self.seen = observer.observe_stage(self._base, self._stand.exits, 0.0)
        processor.end()

    @property
    def position(self) -> int:
        """Block after which the device stands, 0..5."""
        return self._stand.position

    def take(self, chosen: int) -> bool:
        """Carry out a legal staged action; True if the frame is still open, with a new `seen`."""
        work, processor = self._work, self._processor
        processor.begin()
        is_open = chosen != ANSWER and self._go_on(action_from_index(chosen))
        processor.end()
        processor.pay()
        now_s = time.monotonic()
        if not is_open:
            work.free_s = now_s
            return False
        processor.begin()
        compute_ms = (now_s - work.start_s) * 1e3
        self.seen = self._observer.observe_stage(self._base, self._stand.exits, compute_ms)
        processor.end()
        return True

    def _go_on(self, action: Action) -> bool:
        """Run on to a split and send, or to an exit and look; True if the frame is open."""
        work, stand = self._work, self._stand
        work.action = action
        if not action.is_local:
            x, head_ms = self._processor.run(partial(stand.run_to, action.split))
            work.head_ms += head_ms
            self._send(action, x)
            return False
        _, head_ms = self._processor.run(partial(stand.look, action.exit))
        work.head_ms += head_ms
        exit, work.prediction, confidence = stand.exits[-1]
        work.confidence = confidence
        work.looks |= 1 << (exit - 1)
        if exit == N_EXITS:
            return False
        self._observer.record_exit(exit, confidence)
        at = _CONFIDENCE_AT + exit - 1
        self._base[at] = scale_one(at, confidence)
        return True


def decide_in_stages(
    stages: Stages, policy: StagedPolicy, processor: Processor, decide_name: str
) -> None:
    """Carry a frame to its answer.

    Args:
        stages: the frame, just begun.
        policy: decides.
        processor: runs the decisions.
        decide_name: of a decision as a section that may be repeated; empty if it may not.
    """
    is_open = True
    while is_open:
        processor.begin()
        decide = partial(policy.decide, stages.seen, stages.position)
        chosen, _ = processor.run(decide, decide_name)
        processor.end()
        is_open = stages.take(chosen)
