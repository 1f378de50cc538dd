"""The elements of the observation: names, units, ranges, and their scaling.

The range of every element becomes [-1, 1]. Settings, and times that may be long on a slow device,
also keep distinct values beyond that range (`Field.reach`); measured elements are clipped to it.
docs/environment.md lists both kinds.

`Schema` lists them for one network: `Schema.fields` for one decision a frame,
`Schema.staged_fields` for the staged decision.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.common.errors import ConfigError
from cnn.topology import Topology

MAX_RATE_MBPS: Final = 300.0
MIN_MS_PER_KB: Final = 8.0 / MAX_RATE_MBPS
NEVER_S: Final = 60.0
"""An age at or above this reads as "never"."""
RECENT: Final = 8
"""Number of past answers of the current track in the agreement."""


@dataclass(frozen=True, slots=True)
class Field:
    """One element of the observation.

    Attributes:
        index: position in the vector.
        name: with its unit as suffix.
        unit: of the raw value; ``1`` is a pure number.
        low: raw value that becomes -1.
        high: raw value that becomes +1.
        scale: ``linear`` or ``log`` between the two, and beyond.
        source: where the device gets it from.
        reach: smallest and largest raw values that stay distinct, at or beyond `low` and `high`,
            on the same scale; values beyond are clipped. None: `low` and `high`.
    """

    index: int
    name: str
    unit: str
    low: float
    high: float
    scale: Literal["linear", "log"]
    source: str
    reach: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        is_within = self.least <= self.low < self.high <= self.most
        if not is_within or (self.scale == "log" and self.least <= 0):
            raise ConfigError(
                f"observation field {self.name}: {self.least}..{self.low}..{self.high}.."
                f"{self.most} {self.scale}",
                expected="low < high within the reach, all above 0 on a log scale",
                hint="correct the field",
            )

    @property
    def least(self) -> float:
        """Smallest raw value that is not clipped."""
        return self.low if self.reach is None else self.reach[0]

    @property
    def most(self) -> float:
        """Largest raw value that is not clipped."""
        return self.high if self.reach is None else self.reach[1]


MAX_MS: Final = 100_000.0
"""Times of a frame and its exchange stay distinct up to here, also beyond 1 s (their +1)."""
_REACH: Final[dict[str, tuple[float, float]]] = {
    "rtt_ms": (2.0, MAX_MS),
    "transfer_mean_ms": (2.0, MAX_MS),
    "transfer_spread_ms": (0.1, MAX_MS),
    "server_wait_ms": (0.1, MAX_MS),
    "tail_left_ms": (1.0, MAX_MS),
    "accuracy_floor": (0.0, 1.0),
    "full_local_ms": (0.01, MAX_MS),
    "stage_spent_ms": (0.1, MAX_MS),
}
"""Reach of settings: all values that `Settings` accepts. -1 and +1 stay as policies learnt them."""

# (name, unit, low, high, scale, source).
_Row = tuple[str, str, float, float, Literal["linear", "log"], str]

# The logarithmic network fields come first so that the batch simulator takes one logarithm of
# one contiguous block.
_NETWORK_ROWS: Final[tuple[_Row, ...]] = (
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
)
N_LOG: Final = sum(row[4] == "log" for row in _NETWORK_ROWS)
"""Leading dynamic fields on a log scale."""
_FEATURE_ROWS: Final[tuple[_Row, ...]] = (
    ("brightness", "1", 0.0, 1.0, "linear", "mean luma of the crop"),
    ("contrast", "1", 0.0, 0.4, "linear", "spread of luma"),
    ("sharpness", "1", 0.001, 1.0, "log", "RMS difference of neighbours' luma"),
    ("width_px", "px", 10.0, 300.0, "log", "width of the original crop"),
    ("height_px", "px", 10.0, 300.0, "log", "height of the original crop"),
    ("frame_in_track", "1", 0.0, 30.0, "linear", "frames of this track already seen"),
)
_SETTING_ROWS: Final[tuple[_Row, ...]] = (
    ("radio_5g", "1", 0.0, 1.0, "linear", "1 on 5G, 0 on LTE: the modem says so"),
    ("accuracy_floor", "1", 0.8, 1.0, "linear", "the constraint, a setting"),
    ("delay_share", "1", 0.0, 1.0, "linear", "w_delay / (w_delay + w_energy), a setting"),
    ("full_local_ms", "ms", 1.0, 1000.0, "log", "full local processing on this device"),
)


def features_in(observation: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cheap features of the frame, scaled: float32 (6,), a view.

    Args:
        observation: float32 (obs_dim,), of the frame space and any network.
    """
    end = len(observation) - len(_SETTING_ROWS)
    return observation[end - len(_FEATURE_ROWS) : end]


def _answer_rows(topology: Topology) -> tuple[_Row, ...]:
    return (
        *(
            (f"confidence_exit{e}", "1", 0.0, 1.0, "linear", "last seen on this track; 0 unknown")
            for e in topology.exits
        ),
        ("last_confidence", "1", 0.0, 1.0, "linear", "of the last answer on this track; 0 none"),
        (
            *("last_exit", "1", 0.0, float(topology.n_blocks), "linear"),
            "exit of the last answer on this track; 0 none",
        ),
        (
            *("agreement", "1", 0.0, 1.0, "linear"),
            f"share of the last {RECENT} answers equal to the last",
        ),
        ("answers_on_track", "1", 0.0, 30.0, "linear", "answers given on this track"),
        (
            *("accuracy_credit", "1", -0.1, 0.1, "linear"),
            "mean calibrated confidence less the floor",
        ),
        (
            *("energy_left", "1", 0.0, 1.0, "linear"),
            "share of the energy budget left; 1 without one",
        ),
    )


def _stage_rows(topology: Topology) -> tuple[_Row, ...]:
    return (
        *(
            (f"stands_at_{p}", "1", 0.0, 1.0, "linear", f"1 if the device stands after block {p}")
            for p in stopping_blocks(topology)
        ),
        ("stage_confidence", "1", 0.0, 1.0, "linear", "of the exit just evaluated; 0 none"),
        (
            "stage_agrees_track",
            "1",
            0.0,
            1.0,
            "linear",
            "same class as the track's last answer; 0.5",
        ),
        ("stage_agrees_frame", "1", 0.0, 1.0, "linear", "same class as the exit before; 0.5 none"),
        ("stage_gave_up", "1", 0.0, 1.0, "linear", "1 after giving up waiting on this frame"),
        ("stage_spent_ms", "ms", 0.1, 1000.0, "log", "computed and waited on this frame so far"),
    )


def stopping_blocks(topology: Topology) -> tuple[int, ...]:
    """Blocks behind which a device may decide, ascending: 0, all splits, and all early exits."""
    return tuple(sorted({0, *topology.splits, *topology.exits[:-1]}))


@dataclass(frozen=True)
class Schema:
    """The elements of both observations of one network.

    Attributes:
        topology: of the network: there is a confidence for each of its exits.
    """

    topology: Topology

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The observation of the frame space."""
        return _numbered(
            (*_NETWORK_ROWS, *_answer_rows(self.topology), *_FEATURE_ROWS, *_SETTING_ROWS)
        )

    @cached_property
    def staged_fields(self) -> tuple[Field, ...]:
        """The observation of the staged space: `fields`, and what this frame has shown so far."""
        return (*self.fields, *_numbered(_stage_rows(self.topology), self.obs_dim))

    @cached_property
    def obs_dim(self) -> int:
        """Elements of the frame space's observation."""
        return len(self.fields)

    @cached_property
    def staged_obs_dim(self) -> int:
        """Elements of the staged space's observation."""
        return len(self.staged_fields)

    @cached_property
    def features_at(self) -> int:
        """Index of the first cheap frame feature (columns of `FrameTable.features`)."""
        return self.constants_at - len(_FEATURE_ROWS)

    @cached_property
    def constants_at(self) -> int:
        """Index of the first of the four settings that do not change within a drive."""
        return self.obs_dim - len(_SETTING_ROWS)

    @cached_property
    def stop_place(self) -> tuple[int, ...]:
        """Place of a block's element among `stopping_blocks`, by block from 0 to n_blocks.

        A frame that has reached the last block is over: as at its start.
        """
        stops = stopping_blocks(self.topology)
        blocks = range(self.topology.n_blocks + 1)
        return tuple(stops.index(b) if b in stops else 0 for b in blocks)

    @cached_property
    def hash(self) -> str:
        """`schema_hash` of `fields`."""
        return schema_hash(self.fields)

    @cached_property
    def staged_hash(self) -> str:
        """`schema_hash` of `staged_fields`."""
        return schema_hash(self.staged_fields)

    @cached_property
    def transforms(self) -> tuple[Transform, ...]:
        """Scaling of each of `staged_fields`, for `scale`."""
        return tuple(transform_of(field) for field in self.staged_fields)

    def scale_one(self, index: int, value: float) -> float:
        """One raw value of field `index`, scaled: low is -1, high is +1; clipped to its reach."""
        return scale(self.transforms[index], value)

    def normalise(self, raw: ArrayLike, first: int = 0) -> NDArray[np.float32]:
        """Raw field values -> float32, low is -1 and high is +1; clipped to each field's reach.

        Args:
            raw: (..., n), values of the fields `first` .. `first` + n - 1, in order.
            first: index of the first field given; 0 takes whole vectors (n = `obs_dim`).

        Raises:
            ConfigError: if there are more values than fields.
        """
        values = np.asarray(raw, dtype=np.float64)
        fields = self.staged_fields[first : first + values.shape[-1]]
        if len(fields) != values.shape[-1]:
            raise ConfigError(
                f"{values.shape[-1]} raw values from field {first}",
                expected=f"at most {self.staged_obs_dim - first}",
                hint="give values in the order of the fields",
            )
        return _normalised(fields, values)


@lru_cache(maxsize=64)
def schema_of(topology: Topology) -> Schema:
    """The schema of one network; the same object for equal topologies."""
    return Schema(topology)


def _numbered(rows: Sequence[_Row], first: int = 0) -> tuple[Field, ...]:
    return tuple(Field(i, *row, reach=_REACH.get(row[0])) for i, row in enumerate(rows, first))


def schema_hash(fields: Sequence[Field]) -> str:
    """Sixteen hex digits that change when any field's place or scale changes.

    A reach does not move any value within the earlier range, so it is left out: policy files
    from before it was introduced are still read.
    """
    rows = [{k: v for k, v in asdict(field).items() if k != "reach"} for field in fields]
    text = json.dumps(rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Transform = tuple[float, float, float, bool, float, float]
"""Least, most, high, whether on a log scale, and offset and gain of a field's scaling."""


def transform_of(field: Field) -> Transform:
    """The scaling of a field, for `scale`."""
    log = field.scale == "log"
    low = math.log(field.low) if log else field.low
    high = math.log(field.high) if log else field.high
    return field.least, field.most, field.high, log, low, 2.0 / (high - low)


def scale(transform: Transform, value: float) -> float:
    """One raw value, scaled: low is -1, high is +1; clipped to the field's reach."""
    least, most, high, log, base, gain = transform
    if value <= least:
        value = least
    elif value >= most:
        value = most
    if value == high:
        return 1.0  # exactly, the formula may be off by rounding
    return ((math.log(value) if log else value) - base) * gain - 1.0


def scaled_bounds(
    fields: Sequence[Field],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest scaled value of each field, float32 (n,) each.

    -1 and 1; where a field's reach goes further, the next hundredth beyond it, so that no
    rounding leaves the bounds.
    """
    low = np.array([scale(transform_of(f), f.least) for f in fields])
    high = np.array([scale(transform_of(f), f.most) for f in fields])
    wider = (np.ceil(low * 100) - 1) / 100, (np.floor(high * 100) + 1) / 100
    low = np.where([f.least < f.low for f in fields], wider[0], -1.0)
    high = np.where([f.most > f.high for f in fields], wider[1], 1.0)
    return low.astype(np.float32), high.astype(np.float32)


def _normalised(fields: Sequence[Field], values: NDArray[np.float64]) -> NDArray[np.float32]:
    log = np.array([field.scale == "log" for field in fields])
    low = np.array([field.low for field in fields])
    high = np.array([field.high for field in fields])
    values = np.clip(values, [f.least for f in fields], [f.most for f in fields])
    values = np.where(log, np.log(np.where(log, values, 1.0)), values)
    base = np.where(log, np.log(np.where(log, low, 1.0)), low)
    top = np.where(log, np.log(np.where(log, high, 1.0)), high)
    return ((values - base) * (2.0 / (top - base)) - 1.0).astype(np.float32)


SETTING_FIELDS: Final = _numbered(_SETTING_ROWS)
"""The four settings at the end of `Schema.fields`, the same for every network."""
