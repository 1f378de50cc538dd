"""B parallel episodes: their state as arrays of one element (or column) per lane.

Estimators and observations are those of `testbed.policy.observer.Observer`, with arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offload_env.episode import Plans
from offload_env.simulator import LONG_AGO_MS
from offload_env.trace_pool import Lane
from offload_env.world import World
from testbed.policy.decision_points import DecisionSpace
from testbed.policy.estimators import PRIOR_RTT_MS, fit_link, forget, smooth
from testbed.policy.observation_fields import (
    MIN_MS_PER_KB,
    N_LOG,
    NEVER_S,
    RECENT,
    Field,
    schema_of,
    stopping_blocks,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]
PerExit = NDArray[np.float64]
Recent = NDArray[np.int16]


@dataclass(init=False, eq=False, slots=True)
class Lanes:
    """All state of B episodes; every attribute's last axis has one element a lane.

    Attributes named as in `Simulator` and `Observer` mean the same; ``confidences`` is
    float64 (n_exits, B), ``recent`` int16 (`RECENT`, B) with -1 where empty.
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
    celsius: Floats
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
    # preferences: accuracy floor, prices of a millisecond and of a millijoule
    floor: Floats
    delay_price: Floats
    energy_price: Floats
    # decisions on the current frame
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
    def begin(cls, plans: Plans, lane: Lane, n_exits: int) -> Lanes:
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
        new.confidences = np.zeros((n_exits, n))
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
        """Clear the decisions: no lane has decided about its current frame yet."""
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


def _column(values: Iterable[float]) -> NDArray[np.float32]:
    return np.array(list(values), np.float32)[:, None]


def _scaled_log(field: Field, values: Floats) -> Floats:
    """Values of a field on a log scale, scaled."""
    log = np.log(np.clip(values, field.least, field.most) / field.low)
    scaled: Floats = log * (2 / np.log(field.high / field.low)) - 1.0
    return scaled


class BatchObserver:
    """Turns the state of B lanes into observations.

    Args:
        world: shared and never changed.
        n: number of lanes.
    """

    def __init__(self, world: World, n: int) -> None:
        self.world, self.n = world, n
        self._has_tail = world.cost.radio.tail_ms > 0
        self._features = np.ascontiguousarray(world.features.T)
        self._constants = np.array(world.settings.scaled(), np.float32)[:, None]
        self._lane_numbers = np.arange(n)
        schema, stops = schema_of(world.topology), stopping_blocks(world.topology)
        self._dim, self._staged_dim = schema.obs_dim, schema.staged_obs_dim
        self._features_at, self._constants_at = schema.features_at, schema.constants_at
        self._answers_at = next(f.index for f in schema.fields if f.name == "last_confidence")
        self._spent, self._n_stops = schema.staged_fields[-1], len(stops)
        self._stop = np.array(schema.stop_place, np.intp)
        heat = world.scenario.heat
        self._heat, self._full_local = (heat if heat.is_on else None), schema.fields[-1]
        moving = schema.fields[: schema.features_at]
        self._least = _column(f.least for f in moving)
        self._most = _column(f.most for f in moving)
        self._base = _column(np.log(f.low) if f.scale == "log" else f.low for f in moving)
        self._gain = _column(
            2 / (np.log(f.high / f.low) if f.scale == "log" else f.high - f.low) for f in moving
        )

    def observe(self, s: Lanes, space: DecisionSpace | None = None) -> NDArray[np.float32]:
        """Observations now, float32 (B, ``space.obs_dim``), a new array; as `Simulator.observe`."""
        staged = space is not None and space.is_staged
        out = self._columns(s, self._staged_dim if staged else self._dim)
        if staged:
            self._write_stage(s, out[self._dim :])
        return np.ascontiguousarray(out.T)

    def _write_stage(self, s: Lanes, stage: NDArray[np.float32]) -> None:
        n, field = self._n_stops, self._spent
        stage[:n] = -1.0
        stage[self._stop[s.position], self._lane_numbers] = 1.0
        stage[n] = 2.0 * s.stage_confidence - 1.0
        stage[n + 1] = s.stage_track
        stage[n + 2] = s.stage_frame
        stage[n + 3] = 2.0 * s.timed_out - 1.0
        spent = s.compute + s.waited + s.rest
        stage[n + 4] = _scaled_log(field, spent)

    def _columns(self, s: Lanes, n_fields: int) -> NDArray[np.float32]:
        settings, at = self.world.settings, self._answers_at
        out = np.empty((n_fields, self.n), np.float32)
        now_s = s.start * 1e-3
        np.divide(8.0, np.maximum(s.ms_per_kb, MIN_MS_PER_KB), out=out[0], casting="unsafe")
        out[1] = s.rtt_ms
        out[2] = s.mean_ms
        out[3] = s.spread_ms
        np.subtract(now_s, s.transfer_s, out=out[4], casting="unsafe")
        np.subtract(now_s, s.failure_s, out=out[5], casting="unsafe")
        out[6] = s.server_wait_ms
        np.subtract(now_s, s.server_s, out=out[7], casting="unsafe")
        if self._has_tail:
            out[8] = s.last_end + self.world.cost.radio.tail_ms - s.start
        else:
            out[8] = 0.0
        out[9] = s.residual_ms
        out[10] = s.failures
        out[11] = s.queue
        out[12:at] = s.confidences
        out[at] = s.last_confidence
        out[at + 1] = s.last_exit
        out[at + 2] = s.agreement
        out[at + 3] = s.answers
        # Before any frame the credit is 0: no accuracy is missing yet.
        frames = np.maximum(s.frame, 1)
        np.subtract(
            s.confidence_sum / frames,
            s.floor * (s.frame > 0),
            out=out[at + 4],
            casting="unsafe",
        )
        budget = settings.energy_budget_mj
        out[at + 5] = 1.0 if not budget else 1.0 - s.spent_mj / budget
        features_at, constants_at = self._features_at, self._constants_at
        moving = out[:features_at]
        np.clip(moving, self._least, self._most, out=moving)
        np.log(out[:N_LOG], out=out[:N_LOG])
        moving -= self._base
        moving *= self._gain
        moving -= 1.0
        np.take(self._features, s.row, axis=1, out=out[features_at:constants_at], mode="clip")
        out[constants_at : self._dim] = self._constants
        if self._heat is not None:
            now_ms = self.world.delay_ref_ms / self._heat.clock(s.celsius)
            out[self._dim - 1] = _scaled_log(self._full_local, now_ms)
        return out


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
    exit: Indices,
    place: Indices,
    answer: NDArray[np.int32],
    confidence: NDArray[np.float32],
    skip: Bools,
    any_skip: bool,
    lane_numbers: Indices,
) -> None:
    """`Observer.record_answer`, or `record_skipped` where a frame was skipped."""
    prediction = answer >> 1
    lanes: NDArray[np.intp] | slice = slice(None)
    if any_skip:
        lanes = np.flatnonzero(~skip)
        prediction, confidence = prediction[lanes], confidence[lanes]
        exit, place = exit[lanes], place[lanes]
        numbers = lanes
    else:
        numbers = lane_numbers[: len(s)]
    s.confidences[place, numbers] = confidence
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
