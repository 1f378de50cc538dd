"""The state of B parallel episodes as arrays of one element (or column) per lane."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import N_EXITS
from offload_env.episode import Plans
from offload_env.simulator import LONG_AGO_MS
from offload_env.trace_pool import Lane
from testbed.policy.observer import NEVER_S, PRIOR_RTT_MS, RECENT, fit_link

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Indices = NDArray[np.intp]
PerExit = NDArray[np.float64]
Recent = NDArray[np.int16]


@dataclass(init=False, eq=False, slots=True)
class Lanes:
    """All state of B episodes; every attribute's last axis has one element a lane.

    Attributes named as in `Simulator` and `Observer` mean the same; ``confidences`` is
    float64 (5, B), ``recent`` int16 (`RECENT`, B) with -1 where empty.
    """

    # the episode
    key: NDArray[np.uint64]
    lane: Lane
    offset: Floats
    cell0: Ints
    jitter_at: Ints
    frame: Ints
    row: Ints
    tracks: Ints
    # device and radio, milliseconds since the start of the episode
    start: Floats
    queue: Floats
    captured: Floats
    radio_free: Floats
    last_end: Floats
    jitter: Floats
    server_factor: Floats
    spent_mj: Floats
    # estimators, as in `testbed.policy.observer.Observer`
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
    last_prediction: Ints
    confidences: PerExit
    recent: Recent
    # what is asked for: accuracy floor, prices of a millisecond and of a millijoule
    floor: Floats
    delay_price: Floats
    energy_price: Floats
    # decisions on the frame in front
    compute: Floats
    position: Ints
    evaluated: Ints
    stage_confidence: Floats
    stage_track: Floats
    stage_frame: Floats
    stage_prediction: Ints
    # an exchange of this frame that timed out
    timed_out: Ints
    sent_action: Ints
    waited: Floats
    wasted_mj: Floats
    rest: Floats

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

    def forget_decisions(self) -> None:
        """Nothing has been decided about the frame in front of any lane yet."""
        for name in _OF_FRAME:
            getattr(self, name)[:] = 0
        self.stage_prediction[:] = -1

    def take(self, lanes: Indices) -> Lanes:
        """A copy of some lanes."""
        part = Lanes()
        for name in _LINES:
            setattr(part, name, getattr(self, name)[lanes])
        for name in _TABLES:
            setattr(part, name, getattr(self, name)[:, lanes])
        part.lane = Lane(*(getattr(self.lane, f.name)[lanes] for f in fields(Lane)))
        return part

    def put(self, lanes: Indices, part: Lanes) -> None:
        """Write lanes back, as taken by `take` or newly begun."""
        for name in _LINES:
            getattr(self, name)[lanes] = getattr(part, name)
        for name in _TABLES:
            getattr(self, name)[:, lanes] = getattr(part, name)
        for f in fields(Lane):
            getattr(self.lane, f.name)[lanes] = getattr(part.lane, f.name)

    def __len__(self) -> int:
        return len(self.key)


def _named(kind: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(Lanes) if field.type == kind)


_FLOATS: Final = _named("Floats")
_INTS: Final = _named("Ints")
_LINES: Final = (*_FLOATS, *_INTS, "key")
_TABLES: Final = ("confidences", "recent")
_OF_FRAME: Final = (
    *("position", "evaluated", "timed_out", "compute", "waited", "wasted_mj", "rest"),
    *("stage_confidence", "stage_track", "stage_frame"),
)
