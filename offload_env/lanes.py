"""The state of B parallel episodes as arrays of one element (or column) per lane."""

from __future__ import annotations

from dataclasses import fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_EXITS
from offload_env.simulator import LONG_AGO_MS
from offload_env.trace_pool import Lane
from offload_env.world import Plans
from testbed.policy.observer import NEVER_S, PRIOR_RTT_MS, RECENT, fit_link

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Indices = NDArray[np.intp]

_FLOATS: Final = (
    # where the episode runs
    "offset",
    # device and radio, milliseconds since the start of the episode
    "start",
    "queue",
    "captured",
    "radio_free",
    "last_end",
    "jitter",
    "far_jitter",
    "compute",
    "spent_mj",
    # estimators, as in `testbed.policy.observer.Observer`
    "s0",
    "sx",
    "sxx",
    "sy",
    "sxy",
    "rtt_ms",
    "ms_per_kb",
    "mean_ms",
    "spread_ms",
    "residual_ms",
    "transfer_s",
    "failure_s",
    "server_s",
    "failures",
    "server_wait_ms",
    "confidence_sum",
    "last_confidence",
    "last_exit",
    "agreement",
    "answers",
    # what is asked for: accuracy floor, prices of a millisecond and of a millijoule
    "floor",
    "delay_price",
    "energy_price",
    # the stage within a frame
    "stage_confidence",
    "stage_track",
    "stage_frame",
    # an exchange of this frame on which the device gave up
    "waited",
    "wasted_mj",
    "rest",
)
_INTS: Final = (
    "frame",
    "row",
    "tracks",
    "cell0",
    "jitter_at",
    "last_prediction",
    "position",
    "stage_prediction",
    "evaluated",
    "timed_out",
    "sent_action",
)


class Lanes:
    """All state of B episodes; every attribute's last axis has one element a lane.

    Attributes named as in `Simulator` and `Observer` mean the same; ``confidences`` is
    float64 (5, B), ``recent`` int16 (`RECENT`, B) with -1 where empty.
    """

    __slots__ = (*_FLOATS, *_INTS, "confidences", "key", "lane", "recent")

    offset: Floats
    start: Floats
    queue: Floats
    captured: Floats
    radio_free: Floats
    last_end: Floats
    jitter: Floats
    far_jitter: Floats
    compute: Floats
    spent_mj: Floats
    s0: Floats
    sx: Floats
    sxx: Floats
    sy: Floats
    sxy: Floats
    rtt_ms: Floats
    ms_per_kb: Floats
    mean_ms: Floats
    spread_ms: Floats
    residual_ms: Floats
    transfer_s: Floats
    failure_s: Floats
    server_s: Floats
    failures: Floats
    server_wait_ms: Floats
    confidence_sum: Floats
    last_confidence: Floats
    last_exit: Floats
    agreement: Floats
    answers: Floats
    floor: Floats
    delay_price: Floats
    energy_price: Floats
    stage_confidence: Floats
    stage_track: Floats
    stage_frame: Floats
    waited: Floats
    wasted_mj: Floats
    rest: Floats
    frame: Ints
    row: Ints
    tracks: Ints
    cell0: Ints
    jitter_at: Ints
    last_prediction: Ints
    position: Ints
    stage_prediction: Ints
    evaluated: Ints
    timed_out: Ints
    sent_action: Ints
    confidences: Floats
    key: NDArray[np.uint64]
    lane: Lane
    recent: NDArray[np.int16]

    @classmethod
    def begin(cls, plans: Plans, lane: Lane) -> Lanes:
        """Lanes at the start of the episodes `plans`; rows and jitter are set by the caller."""
        n = len(plans.key)
        new = cls()
        for name in _FLOATS:
            setattr(new, name, np.zeros(n))
        for name in _INTS:
            setattr(new, name, np.zeros(n, np.int64))
        new.key, new.lane = plans.key.copy(), lane
        new.offset, new.cell0 = plans.offset_ms.copy(), plans.server_cell.copy()
        new.jitter_at = plans.jitter_at.copy()
        new.confidences = np.zeros((N_EXITS, n))
        new.recent = np.full((RECENT, n), -1, np.int16)
        for name in ("radio_free", "last_end"):
            getattr(new, name)[:] = LONG_AGO_MS
        for name in ("transfer_s", "failure_s", "server_s"):
            getattr(new, name)[:] = -NEVER_S
        new.rtt_ms[:], new.ms_per_kb[:] = fit_link(0.0, 0.0, 0.0, 0.0, 0.0)
        new.mean_ms[:] = PRIOR_RTT_MS
        new.tracks[:] = 1
        new.last_prediction[:] = -1
        new.stage_prediction[:] = -1
        return new

    def take(self, lanes: Indices) -> Lanes:
        """A copy of some lanes."""
        part = Lanes()
        for name in (*_FLOATS, *_INTS, "key"):
            setattr(part, name, getattr(self, name)[lanes])
        part.confidences = self.confidences[:, lanes]
        part.recent = self.recent[:, lanes]
        part.lane = Lane(*(getattr(self.lane, f.name)[lanes] for f in fields(Lane)))
        return part

    def put(self, lanes: Indices, part: Lanes) -> None:
        """Write lanes back, as taken by `take` or newly begun."""
        for name in (*_FLOATS, *_INTS, "key"):
            getattr(self, name)[lanes] = getattr(part, name)
        self.confidences[:, lanes] = part.confidences
        self.recent[:, lanes] = part.recent
        for f in fields(Lane):
            getattr(self.lane, f.name)[lanes] = getattr(part.lane, f.name)

    def __len__(self) -> int:
        return len(self.key)
