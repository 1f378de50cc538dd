"""What a deployed device records of each frame beside its measurement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from testbed.deploy.guarded_policy import Decision
from testbed.deploy.record_rotation import RotatingRecords, Rotation
from testbed.deploy.sections_watch import RecordsSection
from testbed.policy.observer import OBS_DIM

_MB: Final = 1_000_000

EXTRA_COLUMNS: Final = {
    "policy_action": pa.int64(),
    "policy_open": pa.bool_(),
    "shadow_action": pa.int64(),
    "shadow_open": pa.bool_(),
    "decided_by": pa.string(),
    "policy_hash": pa.string(),
    "bundle_hash": pa.string(),
    "guard_state": pa.string(),
}
"""What a deployed device records beside `Measurement`; empty for a skipped frame."""


def open_records(
    folder: Path, section: RecordsSection, source: Mapping[str, Any]
) -> RotatingRecords:
    """Records of a device in `folder`, bounded as its configuration says; raises `DataError`."""
    extra = dict(EXTRA_COLUMNS)
    if section.observations:
        extra["observation"] = pa.list_(pa.float32(), OBS_DIM)
    rotation = Rotation(
        file_bytes=int(section.file_mb * _MB),
        file_s=section.file_s,
        total_bytes=int(section.total_mb * _MB),
        flush_s=section.flush_s,
    )
    return RotatingRecords(folder, source, rotation, extra)


def extra_values(
    decision: Decision | None, guard_state: str | None, observations: bool
) -> dict[str, Any]:
    """Values of `EXTRA_COLUMNS` for one frame; none if nothing was decided on it."""
    if decision is None:
        return {}
    extra: dict[str, Any] = {
        "policy_action": decision.policy_action,
        "policy_open": decision.policy_open,
        "shadow_action": decision.shadow_action,
        "shadow_open": decision.shadow_open,
        "decided_by": decision.decided_by,
        "policy_hash": decision.policy_hash,
        "bundle_hash": decision.bundle_hash,
        "guard_state": guard_state,
    }
    if observations:
        extra["observation"] = decision.observation
    return extra
