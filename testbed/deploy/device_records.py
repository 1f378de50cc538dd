"""The records of a device's frames: in one file, or in a folder of bounded size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cnn.common.errors import DataError
from cnn.common.outputs import ROOM, check_file, check_folder
from cnn.topology import Topology
from testbed.common.output_kinds import RECORDS
from testbed.deploy.device_file import DeviceFile, RecordsSection
from testbed.deploy.guarded_policy import Decision
from testbed.deploy.record_rotation import RotatingRecords, Rotation, lasting
from testbed.device.device_loop import Device, DeviceConfig
from testbed.policy.exploration import ExploringPolicy
from testbed.policy.observation_fields import schema_of
from testbed.policy.task_settings import Task
from testbed.records.measurement import Measurement
from testbed.records.record_file import RecordWriter, provenance

_MB: Final = 1_000_000
_ROW_BYTES: Final = 400
"""Bytes of one frame in a file, exploration columns included (measured: 373 of random figures)."""

_DECISION: Final = {
    "policy_action": pa.int64(),
    "policy_open": pa.bool_(),
    "shadow_action": pa.int64(),
    "shadow_open": pa.bool_(),
    "decided_by": pa.string(),
    "policy_hash": pa.string(),
    "bundle_hash": pa.string(),
}
EXTRA_COLUMNS: Final = {**_DECISION, "guard_state": pa.string()}
"""Columns of a folder beside `Measurement`; empty for a skipped frame."""


_CONFIG: Final = (
    *("period_ms", "timeout_ms", "deadline_ms", "max_queue_ms", "seed", "frame_encoding"),
    *("probe_budget_per_min", "probe_bytes", "probe_stale_s"),
)
"""Settings of the loop that are stored in records."""


def check_records(file: DeviceFile, now: bool = False) -> None:
    """Refuse, before anything else, a place that can never take the records of a run.

    Args:
        file: configuration.
        now: also refuse a folder on a disk that is full or read-only at the moment.

    Raises:
        DataError: if the place cannot be used; a single file must be writable until the run ends.
    """
    if file.records.file is not None:
        check_file(Path(file.records.file), RECORDS, room=_ROW_BYTES * file.frames.count)
    if file.records.folder is not None:
        try:
            check_folder(Path(file.records.folder), room=ROOM if now else 0)
        except DataError as error:
            if now or lasting(error):
                raise


def source_of(
    file: DeviceFile,
    task: Task,
    config: DeviceConfig,
    full_local_ms: float,
    run: Mapping[str, Any],
    topology: Topology,
) -> dict[str, Any]:
    """Provenance of a run's records.

    Args:
        file: configuration.
        task: of the device.
        config: settings of its loop.
        full_local_ms: full local processing in the policy's settings.
        run: policy, bundle and server in use.
        topology: of the bundle.
    """
    return provenance(
        topology,
        kind="device",
        frames=file.frames.source,
        **run,
        emulation=config.describe(),
        task={**task.to_json(), "full_local_ms": full_local_ms},
        **{name: getattr(config, name) for name in _CONFIG},
    )


class DeviceRecords:
    """Takes a row for each frame.

    Args:
        section: the place, and the kind of records.
        source: provenance, JSON-able; it states the topology if that is not the shipped one.
        explorer: the policy, if it explores: its columns of each frame are also recorded.

    Attributes:
        place: file or folder; None records nothing.
        writer: a context manager that keeps the rows measured so far; None without records.

    Raises:
        DataError: if the place cannot be used.
    """

    def __init__(
        self,
        section: RecordsSection,
        source: Mapping[str, Any],
        explorer: ExploringPolicy | None = None,
    ) -> None:
        self._observations, self._explorer = section.observations, explorer
        self._obs_dim = schema_of(Topology.stored_in(source)).obs_dim
        self._started = (source["started_unix_s"], source["started_monotonic_s"])
        self.place = section.file or section.folder
        extra = {} if section.folder is None else dict(EXTRA_COLUMNS)
        if section.observations:
            extra["observation"] = pa.list_(pa.float32(), self._obs_dim)
        if explorer is not None:
            extra |= explorer.column_types()
        self.writer: RecordWriter | RotatingRecords | None = None
        if section.file is not None:
            self.writer = RecordWriter(Path(section.file), dict(source), extra)
        elif section.folder is not None:
            rotation = Rotation(
                file_bytes=int(section.file_mb * _MB),
                file_s=section.file_s,
                total_bytes=int(section.total_mb * _MB),
                flush_s=section.flush_s,
            )
            self.writer = RotatingRecords(Path(section.folder), source, rotation, extra)

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return 0 if self.writer is None else self.writer.rows

    @property
    def dropped(self) -> int:
        """Rows that could not be written to a folder's disk."""
        return self.writer.dropped if isinstance(self.writer, RotatingRecords) else 0

    def write(self, row: Measurement, decision: Decision | None, guard_state: str | None) -> None:
        """Add a frame's row; raises `DataError` if it cannot be written to a file's disk."""
        extra: dict[str, Any] = {}
        if isinstance(self.writer, RotatingRecords) and decision is not None:
            extra = {name: getattr(decision, name) for name in _DECISION}
            extra["guard_state"] = guard_state
        if self._observations and decision is not None:
            extra["observation"] = decision.observation
        elif self._observations and isinstance(self.writer, RecordWriter):
            extra["observation"] = np.zeros(self._obs_dim, np.float32)
        if self._explorer is not None:
            extra |= self._explorer.columns(row.frame_id)
        if self.writer is not None:
            self.writer.write(row, **extra)

    def finish(self, unit: Device) -> None:
        """The run has ended: a file also stores its start time, and how well the pace was kept."""
        if isinstance(self.writer, RecordWriter) and unit.origin_s is not None:
            started_unix_s, started_s = self._started
            kept = {} if unit.pace_kept is None else unit.pace_kept.to_source()
            first_s = started_unix_s + (unit.origin_s - started_s)
            self.writer.close(first_capture_unix_s=first_s, **kept)
