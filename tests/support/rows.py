"""Rows of measurements that nobody measured."""

from __future__ import annotations

from typing import Any

from testbed.records.measurement import Measurement
from testbed.records.record_file import measurement_schema

FINISHED = Measurement(
    frame_id=0, track=0, frame_in_track=3, label=5, action=1, exit_used=1, captured_s=0.25,
    queue_ms=1.5, head_ms=2.5, encode_ms=None, transfer_ms=None, server_queue_ms=None,
    server_ms=None, fallback_ms=None, delay_ms=4.25, uplink_bytes=0, downlink_bytes=0,
    prediction=5, confidence=0.75, correct=True, compute_mj=1.0, radio_mj=0.0, idle_mj=0.5,
    energy_mj=1.5, energy_source="model:x", status="ok", reason="", uplink_mbps=None, rtt_ms=None,
)  # fmt: skip
"""A frame finished on the device at exit 1."""

_VALUES: dict[str, Any] = {"int64": 1, "double": 0.5, "string": "ok", "bool": True}


def full_row(**changed: object) -> Measurement:
    """A row in which no column is empty: 1, 0.5, ``ok`` and True, but for what is given."""
    values = {f.name: _VALUES[str(f.type)] for f in measurement_schema()}
    return Measurement(**values | changed)
