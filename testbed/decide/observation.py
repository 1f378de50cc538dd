"""What the device knows when it decides, as a fixed, documented float32 vector.

`FIELDS` is the specification. `Observer` keeps the estimators on the device; the
simulator applies the very same update functions (`forget`, `fit_link`, `smooth`) to
arrays, so that training and the device cannot drift apart. Nothing here sees the label,
the future or the true current rate: a network quantity is as old as the last exchange,
and its age is part of the vector.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.action import N_EXITS
from cnn.errors import ConfigError

FORGET_PER_TRANSFER: Final = 0.85
"""Weight that old transfers keep at each new one: a memory of about 7 transfers."""
FORGET_TAU_S: Final = 5.0
"""After a pause of this length old transfers keep half their weight (tau / (tau + pause)).

Hyperbolic rather than exponential: it needs no transcendental function, so scalars and
arrays agree bit for bit, and a long pause does not erase everything.
"""
PRIOR_MS_PER_KB: Final = 0.4
"""20 Mbit/s: the median uplink of driving 5G in the IFIP Networking 2024 study."""
PRIOR_RTT_MS: Final = 50.0
"""Median round trip of the same study (50 to 60 ms) and of drives in sa25."""
PRIOR_RTT_WEIGHT: Final = 0.01
PRIOR_SLOPE_WEIGHT: Final = 0.5
"""Ridge weights: one transfer outweighs the prior round trip a hundredfold (a stronger one
would bias the slope of a fast link); the slope moves once payload sizes differ by about a
kilobyte, and takes little of what one size alone shows."""
SMOOTHING: Final = 0.25
"""Weight of the newest transfer in the running mean and spread."""
MAX_RATE_MBPS: Final = 300.0
MIN_MS_PER_KB: Final = 8.0 / MAX_RATE_MBPS
NEVER_S: Final = 60.0
"""An age at or above this reads as "never"."""
RECENT: Final = 8
"""Answers of the current track that the agreement looks back on."""


@dataclass(frozen=True, slots=True)
class Field:
    """One element of the observation.

    Attributes:
        index: position in the vector.
        name: with its unit as suffix.
        unit: of the raw value; ``1`` is a pure number.
        low: raw value that becomes -1; smaller values are clipped.
        high: raw value that becomes +1; larger values are clipped.
        scale: ``linear`` or ``log`` between the two.
        source: what the device takes it from.
    """

    index: int
    name: str
    unit: str
    low: float
    high: float
    scale: Literal["linear", "log"]
    source: str

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ConfigError(
                f"observation field {self.name}: {self.low}..{self.high} {self.scale}",
                expected="low < high, and low > 0 on a log scale",
                mend="correct the field",
            )


# (name, unit, low, high, scale, source). The logarithmic network fields come first so
# that the batch simulator takes one logarithm of one contiguous block.
_ROWS: Final[tuple[tuple[str, str, float, float, Literal["linear", "log"], str], ...]] = (
    ("uplink_mbps", "Mbit/s", 0.1, MAX_RATE_MBPS, "log", "slope of transfer_ms on bytes"),
    ("rtt_ms", "ms", 2.0, 1000.0, "log", "intercept of transfer_ms on bytes"),
    ("transfer_mean_ms", "ms", 2.0, 1000.0, "log", "running mean of recent transfers"),
    ("transfer_spread_ms", "ms", 0.1, 500.0, "log", "running mean absolute deviation of them"),
    ("transfer_age_s", "s", 0.01, NEVER_S, "log", "time since the last answered exchange"),
    ("failure_age_s", "s", 0.01, NEVER_S, "log", "time since the last failed exchange"),
    ("server_wait_ms", "ms", 0.1, 500.0, "log", "wait that the last answer reported"),
    ("server_age_s", "s", 0.01, NEVER_S, "log", "time since that report"),
    ("tail_left_ms", "ms", 1.0, 20000.0, "log", "modem tail left; -1 means it sleeps"),
    ("transfer_residual_ms", "ms", -100.0, 100.0, "linear", "last transfer less its prediction"),
    ("failures", "1", 0.0, 5.0, "linear", "consecutive failed exchanges"),
    ("queue_ms", "ms", 0.0, 200.0, "linear", "time this frame has waited for the device"),
    *(
        (f"confidence_exit{e}", "1", 0.0, 1.0, "linear", "last seen on this track; 0 unknown")
        for e in range(1, N_EXITS + 1)
    ),
    ("last_confidence", "1", 0.0, 1.0, "linear", "of the last answer on this track; 0 none"),
    ("last_exit", "1", 0.0, 5.0, "linear", "exit of the last answer on this track; 0 none"),
    ("agreement", "1", 0.0, 1.0, "linear", f"share of the last {RECENT} answers equal to the last"),
    ("answers_on_track", "1", 0.0, 30.0, "linear", "answers given on this track"),
    ("accuracy_credit", "1", -0.1, 0.1, "linear", "mean calibrated confidence less the floor"),
    ("energy_left", "1", 0.0, 1.0, "linear", "share of the energy budget left; 1 without one"),
    ("brightness", "1", 0.0, 1.0, "linear", "mean luma of the crop"),
    ("contrast", "1", 0.0, 0.4, "linear", "spread of luma"),
    ("sharpness", "1", 0.001, 1.0, "log", "RMS difference of neighbours' luma"),
    ("width_px", "px", 10.0, 300.0, "log", "width of the original crop"),
    ("height_px", "px", 10.0, 300.0, "log", "height of the original crop"),
    ("frame_in_track", "1", 0.0, 30.0, "linear", "frames of this track already seen"),
    ("radio_5g", "1", 0.0, 1.0, "linear", "1 on 5G, 0 on LTE: the modem says so"),
    ("accuracy_floor", "1", 0.8, 1.0, "linear", "the constraint, a setting"),
    ("delay_share", "1", 0.0, 1.0, "linear", "w_delay / (w_delay + w_energy), a setting"),
    ("full_local_ms", "ms", 1.0, 1000.0, "log", "full local processing on this device"),
)

FIELDS: Final[tuple[Field, ...]] = tuple(Field(i, *row) for i, row in enumerate(_ROWS))
OBS_DIM: Final = len(FIELDS)
N_LOG: Final = 9
"""Leading dynamic fields on a log scale."""
FEATURES_AT: Final = 23
"""Index of the first of the six cheap frame features (columns of `FrameTable.features`)."""
CONSTANTS_AT: Final = 29
"""Index of the first of the four settings that do not change within a drive."""

_STAGE_ROWS: Final[tuple[tuple[str, str, float, float, Literal["linear", "log"], str], ...]] = (
    *(
        (f"stands_at_{p}", "1", 0.0, 1.0, "linear", f"1 if the device stands after block {p}")
        for p in range(N_EXITS)
    ),
    ("stage_confidence", "1", 0.0, 1.0, "linear", "of the exit just evaluated; 0 none"),
    ("stage_agrees_track", "1", 0.0, 1.0, "linear", "same class as the track's last answer; 0.5"),
    ("stage_agrees_frame", "1", 0.0, 1.0, "linear", "same class as the exit before; 0.5 none"),
    ("stage_compute_ms", "ms", 0.1, 1000.0, "log", "compute already spent on this frame"),
)
STAGED_FIELDS: Final[tuple[Field, ...]] = (
    *FIELDS,
    *(Field(OBS_DIM + i, *row) for i, row in enumerate(_STAGE_ROWS)),
)
STAGED_OBS_DIM: Final = len(STAGED_FIELDS)
"""Observation of the staged decision: `FIELDS` and what this frame has shown so far."""


def schema_hash(fields: Sequence[Field]) -> str:
    """Sixteen hex digits that change when any field changes."""
    text = json.dumps([asdict(field) for field in fields])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


SCHEMA_HASH: Final = schema_hash(FIELDS)
STAGED_SCHEMA_HASH: Final = schema_hash(STAGED_FIELDS)


def _transform(field: Field) -> tuple[float, float, bool, float, float]:
    log = field.scale == "log"
    low = math.log(field.low) if log else field.low
    high = math.log(field.high) if log else field.high
    return field.low, field.high, log, low, 2.0 / (high - low)


_TRANSFORMS: Final = tuple(_transform(field) for field in STAGED_FIELDS)


def scale_one(index: int, value: float) -> float:
    """One raw value of field `index` -> [-1, 1], clipped."""
    low, high, log, base, gain = _TRANSFORMS[index]
    if value <= low:
        return -1.0
    if value >= high:
        return 1.0
    return ((math.log(value) if log else value) - base) * gain - 1.0


def normalise(raw: ArrayLike, first: int = 0) -> NDArray[np.float32]:
    """Raw field values -> float32 in [-1, 1], clipped to each field's range.

    Args:
        raw: (..., n), values of the fields `first` .. `first` + n - 1, in order.
        first: index of the first field given; 0 takes whole vectors (n = `OBS_DIM`).

    Raises:
        ConfigError: if there are more values than fields.
    """
    values = np.asarray(raw, dtype=np.float64)
    fields = STAGED_FIELDS[first : first + values.shape[-1]]
    if len(fields) != values.shape[-1]:
        raise ConfigError(
            f"{values.shape[-1]} raw values from field {first}",
            expected=f"at most {STAGED_OBS_DIM - first}",
            mend="give values in the order of FIELDS",
        )
    log = np.array([field.scale == "log" for field in fields])
    low = np.array([field.low for field in fields])
    high = np.array([field.high for field in fields])
    values = np.clip(values, low, high)
    values = np.where(log, np.log(np.where(log, values, 1.0)), values)
    base = np.where(log, np.log(np.where(log, low, 1.0)), low)
    top = np.where(log, np.log(np.where(log, high, 1.0)), high)
    return ((values - base) * (2.0 / (top - base)) - 1.0).astype(np.float32)


# --- Update functions: arithmetic only, so floats and arrays take the same path. --------


def forget(age_s: Any) -> Any:
    """Factor on the weight of old transfers when a new one comes `age_s` after the last."""
    return FORGET_PER_TRANSFER * (FORGET_TAU_S / (FORGET_TAU_S + age_s))


def fit_link(s0: Any, sx: Any, sxx: Any, sy: Any, sxy: Any) -> tuple[Any, Any]:
    """Ridge-regularised line through the weighted transfers.

    Args:
        s0, sx, sxx, sy, sxy: weighted sums of 1, x, x^2, y, xy with x = kilobytes sent
            and y = transfer_ms.

    Returns:
        (intercept_ms, slope_ms_per_kb). The prior keeps the 2 x 2 system regular, with
        one payload size as with many.
    """
    a = s0 + PRIOR_RTT_WEIGHT
    d = sxx + PRIOR_SLOPE_WEIGHT
    p = sy + PRIOR_RTT_WEIGHT * PRIOR_RTT_MS
    q = sxy + PRIOR_SLOPE_WEIGHT * PRIOR_MS_PER_KB
    det = a * d - sx * sx
    return (p * d - q * sx) / det, (q * a - p * sx) / det


def smooth(mean: Any, spread: Any, value: Any) -> tuple[Any, Any]:
    """Running mean and mean absolute deviation after one more `value`."""
    deviation = value - mean
    return mean + SMOOTHING * deviation, spread + SMOOTHING * (abs(deviation) - spread)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a scenario tells its device once, before the drive.

    Attributes:
        radio_5g: the modem is on 5G (otherwise LTE).
        accuracy_floor: constraint on mean accuracy, [0, 1].
        delay_share: w_delay / (w_delay + w_energy), [0, 1].
        full_local_ms: mean time of full local processing on this device.
        energy_budget_mj: energy allowed for the drive; 0 is no budget.
    """

    radio_5g: bool
    accuracy_floor: float
    delay_share: float
    full_local_ms: float
    energy_budget_mj: float = 0.0

    def __post_init__(self) -> None:
        ok = 0 <= self.accuracy_floor <= 1 and 0 <= self.delay_share <= 1
        if not ok or self.full_local_ms <= 0 or self.energy_budget_mj < 0:
            raise ConfigError(
                f"{self}",
                expected="floor and delay share in [0, 1], full_local_ms > 0, budget >= 0",
                mend="correct the scenario",
            )

    def scaled(self) -> tuple[float, float, float, float]:
        """The four constant elements of the observation, in [-1, 1]."""
        raw = (float(self.radio_5g), self.accuracy_floor, self.delay_share, self.full_local_ms)
        r, f, d, t = (scale_one(CONSTANTS_AT + i, value) for i, value in enumerate(raw))
        return r, f, d, t


class Observer:
    """The device's memory of its own exchanges and answers, as an observation.

    Times are seconds on one monotonic clock. Call `reset` at the start of a drive,
    `new_track` when a new sign comes into view, the ``record_*`` methods as things
    happen, and `observe` when a decision is due.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._constants = settings.scaled()
        self.reset(0.0)

    def reset(self, now_s: float) -> None:
        """Forget everything; the drive starts at `now_s`."""
        self._s0 = self._sx = self._sxx = self._sy = self._sxy = 0.0
        self.rtt_ms, self.ms_per_kb = fit_link(0.0, 0.0, 0.0, 0.0, 0.0)
        self.transfer_mean_ms = PRIOR_RTT_MS
        self.transfer_spread_ms = 0.0
        self.residual_ms = 0.0
        self._transfer_s = now_s - NEVER_S
        self._failure_s = now_s - NEVER_S
        self._server_s = now_s - NEVER_S
        self.failures = 0
        self.server_wait_ms = 0.0
        self._confidence_sum = 0.0
        self._frames = 0
        self._energy_mj = 0.0
        self.new_track()

    @property
    def uplink_mbps(self) -> float:
        """Estimated uplink rate, Mbit/s."""
        return 8.0 / max(float(self.ms_per_kb), MIN_MS_PER_KB)

    def new_track(self) -> None:
        """Another sign comes into view: what was seen on the last one says nothing."""
        self.confidences = [0.0] * N_EXITS
        self.last_confidence = 0.0
        self.last_exit = 0
        self.last_prediction = -1
        self.agreement = 0.0
        self.answers = 0
        self._recent: list[int] = []

    def record_transfer(self, now_s: float, sent_bytes: float, transfer_ms: float) -> None:
        """An exchange was answered: `transfer_ms` without the server's wait and compute."""
        x = sent_bytes * 1e-3
        self.residual_ms = transfer_ms - (self.rtt_ms + self.ms_per_kb * x)
        keep = forget(now_s - self._transfer_s)
        self._s0 = keep * self._s0 + 1.0
        self._sx = keep * self._sx + x
        self._sxx = keep * self._sxx + x * x
        self._sy = keep * self._sy + transfer_ms
        self._sxy = keep * self._sxy + x * transfer_ms
        self.rtt_ms, self.ms_per_kb = fit_link(self._s0, self._sx, self._sxx, self._sy, self._sxy)
        self.transfer_mean_ms, self.transfer_spread_ms = smooth(
            self.transfer_mean_ms, self.transfer_spread_ms, transfer_ms
        )
        self._transfer_s = now_s
        self.failures = 0

    def expected_transfer_ms(self, sent_bytes: float) -> float:
        """What a transfer of `sent_bytes` should take by the newest estimates."""
        return float(self.rtt_ms + self.ms_per_kb * sent_bytes * 1e-3)

    @property
    def newest_transfer_s(self) -> float:
        """When the last exchange was answered; long ago if none was."""
        return self._transfer_s

    def record_server(self, now_s: float, server_wait_ms: float) -> None:
        """The server reported how long the request waited there."""
        self.server_wait_ms = server_wait_ms
        self._server_s = now_s

    def record_failure(self, now_s: float) -> None:
        """An exchange timed out, was refused, or the connection broke."""
        self.failures += 1
        self._failure_s = now_s

    def record_exit(self, exit: int, confidence: float) -> None:
        """An exit (1..5) was evaluated, whether or not it became the answer."""
        self.confidences[exit - 1] = confidence

    def record_answer(self, exit: int, prediction: int, confidence: float) -> None:
        """A frame was answered by `exit` with class `prediction`."""
        self.confidences[exit - 1] = confidence
        self.last_confidence = confidence
        self.last_exit = exit
        self.last_prediction = prediction
        self.answers += 1
        recent = self._recent
        recent.append(prediction)
        if len(recent) > RECENT:
            del recent[0]
        self.agreement = recent.count(prediction) / len(recent)
        self._confidence_sum += confidence
        self._frames += 1

    def record_skipped(self) -> None:
        """A frame was given up unanswered: it counts against the accuracy credit."""
        self._frames += 1

    def record_energy(self, energy_mj: float) -> None:
        """Energy the device spent on a frame; only needed with an energy budget."""
        self._energy_mj += energy_mj

    @property
    def accuracy_credit(self) -> float:
        """Mean calibrated confidence of this drive less the floor; 0 before any frame."""
        if not self._frames:
            return 0.0
        return self._confidence_sum / self._frames - self.settings.accuracy_floor

    @property
    def energy_left(self) -> float:
        """Share of the energy budget left; 1 without a budget."""
        budget = self.settings.energy_budget_mj
        return 1.0 if not budget else 1.0 - self._energy_mj / budget

    def raw(
        self, now_s: float, features: Sequence[float], queue_ms: float, tail_left_ms: float
    ) -> list[float]:
        """The observation before scaling, in the order of `FIELDS`, for people and baselines."""
        s = self.settings
        return [
            *self._dynamic(now_s, queue_ms, tail_left_ms),
            *(float(f) for f in features),
            float(s.radio_5g),
            s.accuracy_floor,
            s.delay_share,
            s.full_local_ms,
        ]

    def observe(
        self, now_s: float, features: ArrayLike, queue_ms: float, tail_left_ms: float
    ) -> NDArray[np.float32]:
        """The observation at `now_s`.

        Args:
            now_s: decision time, the observer's clock.
            features: (6,), columns of `cnn.frame_table.FEATURES`, raw.
            queue_ms: how long the frame has waited for the device.
            tail_left_ms: how long the modem will still stay up by itself.

        Returns:
            float32 (`OBS_DIM`,) in [-1, 1].
        """
        scaled = [
            scale_one(FEATURES_AT + i, float(value))
            for i, value in enumerate(np.asarray(features).tolist())
        ]
        return np.array(self.scaled(now_s, scaled, queue_ms, tail_left_ms), np.float32)

    def scaled(
        self, now_s: float, features: Sequence[float], queue_ms: float, tail_left_ms: float
    ) -> list[float]:
        """Like `observe`, with features already in [-1, 1] and as a plain list (fast path)."""
        out = [scale_one(i, v) for i, v in enumerate(self._dynamic(now_s, queue_ms, tail_left_ms))]
        out += features
        out += self._constants
        return out

    def _dynamic(self, now_s: float, queue_ms: float, tail_left_ms: float) -> list[float]:
        slope = self.ms_per_kb
        return [
            8.0 / (slope if slope > MIN_MS_PER_KB else MIN_MS_PER_KB),
            self.rtt_ms,
            self.transfer_mean_ms,
            self.transfer_spread_ms,
            now_s - self._transfer_s,
            now_s - self._failure_s,
            self.server_wait_ms,
            now_s - self._server_s,
            tail_left_ms,
            self.residual_ms,
            self.failures,
            queue_ms,
            *self.confidences,
            self.last_confidence,
            self.last_exit,
            self.agreement,
            self.answers,
            self.accuracy_credit,
            self.energy_left,
        ]

    def observe_stage(
        self,
        base: NDArray[np.float32],
        exits: Sequence[tuple[int, int, float]],
        compute_ms: float,
    ) -> NDArray[np.float32]:
        """The staged observation within a frame.

        Args:
            base: float32 (`OBS_DIM`,), the observation at the start of this frame.
            exits: (exit, prediction, confidence) of the exits evaluated on this frame so far.
            compute_ms: device compute already spent on this frame.

        Returns:
            float32 (`STAGED_OBS_DIM`,) in [-1, 1].
        """
        stage = self.scaled_stage(exits, compute_ms)
        return np.concatenate([base, np.array(stage, np.float32)])

    def scaled_stage(
        self, exits: Sequence[tuple[int, int, float]], compute_ms: float
    ) -> list[float]:
        """The stage elements of the staged observation, scaled, as a plain list."""
        stage = [-1.0] * N_EXITS
        confidence, track, frame = -1.0, 0.0, 0.0
        if exits:
            at, prediction, c = exits[-1]
            stage[at if at < N_EXITS else 0] = 1.0
            confidence = 2.0 * c - 1.0
            if self.last_prediction >= 0:
                track = 1.0 if prediction == self.last_prediction else -1.0
            if len(exits) > 1:
                frame = 1.0 if prediction == exits[-2][1] else -1.0
        else:
            stage[0] = 1.0
        return [*stage, confidence, track, frame, scale_one(STAGED_OBS_DIM - 1, compute_ms)]
