"""What a planner reads of a staged observation, in units, in few operations."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnn.topology import Topology
from testbed.policy.observation_fields import schema_of

_LOG: Final = (
    *("uplink_mbps", "rtt_ms", "transfer_mean_ms", "transfer_age_s", "failure_age_s"),
    *("server_wait_ms", "server_age_s", "tail_left_ms", "stage_spent_ms", "full_local_ms"),
)
_LINEAR: Final = (
    *("failures", "queue_ms", "last_confidence", "last_exit"),
    *("stage_confidence", "stage_agrees_track"),
)


class Seen(NamedTuple):
    """Elements of an observation in their units: floats of one, arrays (B, 1) of many.

    `tail_left_ms` is 0 if the modem sleeps.
    """

    uplink_mbps: Any
    rtt_ms: Any
    transfer_mean_ms: Any
    transfer_age_s: Any
    failure_age_s: Any
    server_wait_ms: Any
    server_age_s: Any
    tail_left_ms: Any
    stage_spent_ms: Any
    full_local_ms: Any
    failures: Any
    queue_ms: Any
    last_confidence: Any
    last_exit: Any
    stage_confidence: Any
    stage_agrees_track: Any


class SeenReader:
    """Reads the staged observations of one network."""

    def __init__(self, topology: Topology) -> None:
        staged = {field.name: field for field in schema_of(topology).staged_fields}
        read = [staged[name] for name in (*_LOG, *_LINEAR)]
        self._at = np.array([field.index for field in read])
        low = np.array([np.log(f.low) if f.scale == "log" else f.low for f in read])
        high = np.array([np.log(f.high) if f.scale == "log" else f.high for f in read])
        self._low, self._half = low, 0.5 * (high - low)
        self._tail, self._asleep_ms = _LOG.index("tail_left_ms"), staged["tail_left_ms"].low

    def __call__(self, observation: NDArray[np.float32]) -> Seen:
        """One staged observation, float32 (obs_dim,), or many, (B, obs_dim)."""
        values = self._low + (observation[..., self._at].astype(np.float64) + 1.0) * self._half
        log = values[..., : len(_LOG)]
        np.exp(log, out=log)
        # A tail at the field's low end, up to rounding, means that the modem sleeps.
        values[..., self._tail] *= values[..., self._tail] > self._asleep_ms * (1.0 + 1e-6)
        if observation.ndim == 1:
            return Seen._make(values.tolist())
        return Seen._make(np.moveaxis(values[..., None], 1, 0))
