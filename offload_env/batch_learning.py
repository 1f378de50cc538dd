"""What many devices learn from a frame: `testbed.policy.observer.Observer` with arrays."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS
from offload_env.lanes import Indices, Lanes
from testbed.policy.estimators import fit_link, forget, smooth
from testbed.policy.observation_fields import RECENT

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_EXIT: Final = np.array([a.exit for a in ACTIONS])


def learn_link(
    s: Lanes,
    size: Floats,
    answered: Bools,
    fell: Bools,
    end: Floats,
    transfer: Floats,
    wait: Floats,
) -> None:
    """`Observer.record_transfer`, `record_server` and `record_failure` where they apply."""
    end_s = end * 1e-3
    x = size * 1e-3 * answered
    y = transfer * answered
    np.copyto(s.residual_ms, y - (s.rtt_ms + s.ms_per_kb * x), where=answered)
    keep = np.where(answered, forget(end_s - s.transfer_s), 1.0)
    s.s0 = keep * s.s0 + answered
    s.sx = keep * s.sx + x
    s.sxx = keep * s.sxx + x * x
    s.sy = keep * s.sy + y
    s.sxy = keep * s.sxy + x * y
    s.rtt_ms, s.ms_per_kb = fit_link(s.s0, s.sx, s.sxx, s.sy, s.sxy)
    mean, spread = smooth(s.mean_ms, s.spread_ms, y)
    np.copyto(s.mean_ms, mean, where=answered)
    np.copyto(s.spread_ms, spread, where=answered)
    np.copyto(s.transfer_s, end_s, where=answered)
    np.copyto(s.failure_s, end_s, where=fell)
    s.failures = (s.failures + fell) * ~answered
    np.copyto(s.server_s, end_s, where=answered)
    np.copyto(s.server_wait_ms, wait, where=answered)


def learn_answer(
    s: Lanes,
    used: NDArray[np.int64],
    answer: NDArray[np.int32],
    confidence: NDArray[np.float32],
    skip: Bools,
    any_skip: bool,
    lane_numbers: Indices,
) -> None:
    """`Observer.record_answer`, or `record_skipped` where a frame was skipped."""
    prediction = answer >> 1
    exit = _EXIT.take(used)
    lanes: NDArray[np.intp] | slice = slice(None)
    if any_skip:
        lanes = np.flatnonzero(~skip)
        prediction, exit, confidence = prediction[lanes], exit[lanes], confidence[lanes]
        numbers = lanes
    else:
        numbers = lane_numbers[: len(s)]
    s.confidences[exit - 1, numbers] = confidence
    s.last_confidence[lanes] = confidence
    s.last_exit[lanes] = exit
    s.last_prediction[lanes] = prediction
    s.recent[s.answers[lanes].astype(np.int64) % RECENT, numbers] = prediction
    s.answers[lanes] += 1.0
    # Lanes that skipped keep their agreement: their last prediction is unchanged.
    same = (s.recent == s.last_prediction.astype(np.int16)).view(np.int8)
    count = same.sum(0, dtype=np.int8)
    agreement = count / np.clip(s.answers, 1.0, RECENT)
    if any_skip:
        s.agreement[lanes] = agreement[lanes]
    else:
        s.agreement = agreement
    s.confidence_sum[lanes] += confidence
