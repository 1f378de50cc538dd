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


def decide_in_stages(
    work: Work,
    observation: NDArray[np.float32],
    policy: StagedPolicy,
    *,
    runtime: SplitRuntime,
    observer: Observer,
    processor: Processor,
    decide_name: str,
    send: Callable[[Action, Features], None],
) -> None:
    """Carry a frame to its answer, going on from the features in hand; no block runs twice.

    Args:
        work: the frame; its answer, times and looks are filled in.
        observation: float32 (OBS_DIM,), as the frame began.
        policy: decides.
        runtime: the network.
        observer: told the confidence of every exit looked at.
        processor: runs everything.
        decide_name: of the decision as a section that may be repeated; empty if it may not.
        send: offloads, or finishes from where the device stands; ends the frame.
    """
    base, compute_ms = observation.copy(), 0.0
    processor.begin()
    stand = Stand.before(runtime, work.frame.image)
    while True:
        seen = observer.observe_stage(base, stand.exits, compute_ms)
        decide = partial(policy.decide, seen, stand.position)
        chosen, _ = processor.run(decide, decide_name)
        if chosen == ANSWER:
            break
        work.action = action = action_from_index(chosen)
        if not action.is_local:
            x, head_ms = processor.run(partial(stand.run_to, action.split))
            work.head_ms += head_ms
            send(action, x)
            break
        _, head_ms = processor.run(partial(stand.look, action.exit))
        work.head_ms += head_ms
        exit, work.prediction, work.confidence = stand.exits[-1]
        work.looks |= 1 << (exit - 1)
        if exit == N_EXITS:
            break
        observer.record_exit(exit, work.confidence)
        at = _CONFIDENCE_AT + exit - 1
        base[at] = scale_one(at, work.confidence)
        processor.end()
        processor.pay()
        compute_ms = (time.monotonic() - work.start_s) * 1e3
        processor.begin()
    processor.end()
    processor.pay()
    work.free_s = time.monotonic()
