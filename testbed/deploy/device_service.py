"""The device as a service: from a configuration file, unattended, until it is told to stop.

The device loop is `testbed.device.device_loop`'s own; this is what stands around it. Between two
frames a new loadout may be put in place; after each frame its measurement goes to the records, the
metrics, the guard and the log, all while the device waits for the next capture.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError, RemoteError
from cnn.common.outputs import check_folder
from cnn.topology import Action
from testbed.common.signals import StopFlag, stop_on_signals
from testbed.deploy import systemd
from testbed.deploy.assembly import (
    client_of,
    device_config_of,
    followed_config_of,
    guard_of,
    path_of,
    sources_of,
    task_of,
    tls_of,
)
from testbed.deploy.deployment import Deployment, load
from testbed.deploy.device_file import DeviceFile
from testbed.deploy.device_rows import extra_values, open_records
from testbed.deploy.guarded_policy import GuardedPolicy
from testbed.deploy.hot_swap import LiveRuntime, Swapper, Watcher
from testbed.deploy.log import dropped_lines, event
from testbed.deploy.record_rotation import RotatingRecords, lasting
from testbed.device.device_loop import Device
from testbed.device.frame_sources import CameraFrame, open_frames
from testbed.device.processor import full_local_ms, speed_note
from testbed.meters.available import open_meter
from testbed.meters.meter import Meter, NoMeter
from testbed.policy.observer import Observer, Settings
from testbed.records.measurement import Measurement
from testbed.records.record_file import provenance
from testbed.records.run_summary import RunSummary
from testbed.wire.client import MecClient

if TYPE_CHECKING:
    from testbed.deploy.device_metrics import DeviceMetrics

_log = logging.getLogger(__name__)
_MB = 1_000_000


class _Stop(StopFlag):
    """Also ends the device's wait for the next capture."""

    unit: Device | None = None

    def set(self) -> None:
        """Ask to stop."""
        super().set()
        if self.unit is not None:
            self.unit.stop()


class DeviceService:
    """A device made from its configuration file.

    Args:
        file: the checked configuration.

    Raises:
        SliproadError: if a bundle, the meter or a port cannot be used, or the records' folder can
            never be; a disk that cannot be written to now is none of these.
    """

    def __init__(self, file: DeviceFile) -> None:
        self.file = file
        self._reported_s = time.monotonic()
        self._image: NDArray[np.uint8] | None = None
        self._metrics: DeviceMetrics | None = None
        self._meter: Meter = NoMeter()
        self._records: RotatingRecords | None = None
        self._stop = _Stop()
        if file.records.folder is not None:
            _check_records(Path(file.records.folder))
        deployment = load(sources_of(file))
        self.task = task_of(file, deployment)
        self.summary = RunSummary(self.task.deadline_ms)
        self._since_report = RunSummary(self.task.deadline_ms)
        self._full_local_ms: float | None = None
        self._guard = guard_of(file, deployment, self.task)
        safe = Action.parse(file.guard.safe_action).index
        model_hash = deployment.model.hash[:12]
        self._guarded = GuardedPolicy(
            deployment.policy, deployment.policy_hash, model_hash, safe, deployment.shadow
        )
        if self._guard is not None:
            self._guarded.trusted = self._guard.trusted
        self._runtime = LiveRuntime(deployment.runtime)
        self._client = client_of(file, deployment)
        self._swapper = Swapper(
            deployment,
            self._guarded,
            self._runtime,
            self._client,
            file.bundles.probation_frames,
            self._changed,
        )
        self._watcher = Watcher(
            sources_of(file),
            lambda: self._swapper.deployment,
            self._guarded.observations,
            lambda: self._image,
            self._client,
            file.bundles.watch_s,
            self._client.renew_tls if self._client is not None else lambda: None,
        )

    def run(self) -> dict[str, Any]:
        """Run until the frames end or a signal comes; figures of the run.

        SIGTERM and SIGINT end it after the frame in hand, with every row written; SIGHUP
        looks for changed bundles and TLS files. Must be called by the main thread.
        """
        with contextlib.ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.getsignal(number))
            stop_on_signals(self._stop)
            signal.signal(signal.SIGHUP, self._on_hup)
            stack.callback(systemd.notify, "STOPPING=1")
            if self._client is not None:
                stack.callback(self._client.close)
                self._greet_server(self._client)
            self._meter = open_meter(self.file.meter.name, self.task.power)
            stack.enter_context(self._meter)
            self._open_metrics(stack)
            self._measure_speed()
            self._open_records(stack)
            unit = Device(
                self._runtime,
                self._client,
                self._guarded,
                Observer(self._settings()),
                self._meter,
                device_config_of(self.file, self.task),
            )
            self._stop.unit = unit
            self._watcher.start()
            stack.callback(self._watcher.stop)
            event(_log, logging.INFO, "running", **self._what())
            systemd.notify("READY=1")
            for row in unit.run(self._frames()):
                self._measured(row)
        result = self._result()
        event(_log, logging.INFO, "stopped", **result)
        return result

    def complaints(self) -> list[str]:
        """What an operator should know before the start: certificates that are out of date."""
        tls = tls_of(self.file)
        return [] if tls is None else tls.complaints()

    def runs(self) -> str:
        """What it decides with, for people."""
        what = self._what()
        return f"policy {what['policy']}, model bundle {what['bundle_hash']}"

    def camera(self) -> Iterator[CameraFrame]:
        """What the device sees; overridden where frames come from elsewhere."""
        f = self.file.frames
        size = self._swapper.deployment.model.config.input_size
        return open_frames(f.source, size, seed=f.seed, data=path_of(f.data), n=f.count or None)

    def _frames(self) -> Iterator[CameraFrame]:
        """The camera, with what happens between two frames."""
        for number, frame in enumerate(self.camera()):
            if self._stop.is_set():
                return
            ready = self._watcher.take()
            if ready is not None:
                self._swapper.install(ready, number)
            self._guarded.begin(number)
            self._image = frame.image
            yield frame

    def _measured(self, row: Measurement) -> None:
        decision = self._guarded.take(row.frame_id)
        self.summary.add(row)
        self._since_report.add(row)
        self._swapper.observe(row)
        guard = self._guard
        if self._records is not None:
            state = None if guard is None else guard.state
            self._records.write(
                row, **extra_values(decision, state, self.file.records.observations)
            )
        if guard is not None:
            guard.observe(row, decision)
        if self._metrics is not None:
            self._metrics.frame(row, decision)
            if guard is not None:
                self._metrics.guard(guard.state, len(guard.drift))
        self._report_if_due()
        systemd.notify("WATCHDOG=1")

    def _report_if_due(self) -> None:
        every_s, now_s = self.file.log.every_s, time.monotonic()
        if every_s and now_s - self._reported_s >= every_s:
            event(_log, logging.INFO, "frames", **self._since_report.result())
            self._since_report = RunSummary(self.task.deadline_ms)
            self._reported_s = now_s

    def _result(self) -> dict[str, Any]:
        records, guard = self._records, self._guard
        return {
            **self._what(),
            **self.summary.result(),
            "swaps": self._swapper.swaps,
            "rollbacks": self._swapper.rollbacks,
            "swaps_refused": self._watcher.failures,
            "policy_errors": self._guarded.errors,
            "guard_falls": None if guard is None else guard.falls,
            "rows_written": None if records is None else records.rows,
            "rows_dropped": None if records is None else records.dropped,
        }

    def _what(self) -> dict[str, Any]:
        deployment = self._swapper.deployment
        return {
            "policy": deployment.policy.name,
            "policy_hash": deployment.policy_hash,
            "bundle_hash": deployment.model.hash[:12],
            "server": self.file.server.address,
        }

    def _changed(self, deployment: Deployment) -> None:
        """Another loadout runs from now on, and its task with the next frame.

        What can fail comes first, so that a task which fits nothing here changes nothing.
        """
        task = task_of(self.file, deployment)
        settings, config = task.settings(self._full_local_ms), followed_config_of(self.file, task)
        meter = self._meter
        if self.file.meter.name == "model":  # it alone follows a profile, and holds nothing open
            meter = open_meter("model", task.power)
        if self._guard is not None:
            self._guard.watch(deployment.reference, task.deadline_ms)
        self.task, self._meter = task, meter
        self.summary.deadline_ms = self._since_report.deadline_ms = task.deadline_ms
        self._say_speed()
        if self._stop.unit is not None:
            unit = self._stop.unit
            # The device is no other one, also if it is emulated.
            unit.adopt(replace(config, pace=unit.config.pace), settings, meter)
        if self._metrics is not None:
            self._metrics.runs(deployment.model.hash[:12], deployment.policy_hash)

    def _settings(self) -> Settings:
        """What the observation says of the task."""
        return self.task.settings(self._full_local_ms)

    def _measure_speed(self) -> None:
        """How fast this device is, unless its file says what the policy is to be told."""
        pace = device_config_of(self.file, self.task).pace
        if pace is not None:
            self._full_local_ms = pace.full_local_ms
        elif self.file.drive.full_local_ms is None:
            self._full_local_ms = full_local_ms(self._runtime)
        self._say_speed()

    def _say_speed(self) -> None:
        """Say if the policy was trained for a device of another speed."""
        note = speed_note(self._full_local_ms, self.task.full_local_ms)
        if note is not None:
            event(_log, logging.WARNING, note)

    def _greet_server(self, client: MecClient) -> None:
        for line in self.complaints():
            event(_log, logging.WARNING, "certificate out of date", certificate=line)
        try:
            client.connect(self.file.server.connect_timeout_s)
        except RemoteError as error:  # the device works without one, and goes on asking
            event(_log, logging.WARNING, "starting without a server", error=str(error))

    def _open_metrics(self, stack: contextlib.ExitStack) -> None:
        section = self.file.metrics
        if section.port is None:
            return
        from testbed.deploy.device_metrics import DeviceMetrics
        from testbed.server.server_metrics import MetricsEndpoint, watch_certificates

        self._metrics = metrics = DeviceMetrics()
        swapper, watcher, guarded = self._swapper, self._watcher, self._guarded
        metrics.watch("swaps", "Bundles put in place.", lambda: swapper.swaps)
        metrics.watch("rollbacks", "Bundles taken back.", lambda: swapper.rollbacks)
        metrics.watch("swaps_refused", "New bundles not used.", lambda: watcher.failures)
        metrics.watch("policy_errors", "Decisions that failed.", lambda: guarded.errors)
        metrics.watch("rows_dropped", "Rows the disk had no room for.", self._dropped)
        metrics.watch("log_lines_dropped", "Log lines that nobody took.", dropped_lines)
        if self._client is not None and self._client.tls_watch is not None:
            name = "sliproad_device_certificate_not_after_timestamp_seconds"
            watch_certificates(metrics.registry, name, self._client.tls_watch.not_after)
        metrics.runs(swapper.deployment.model.hash[:12], swapper.deployment.policy_hash)
        endpoint = stack.enter_context(MetricsEndpoint(metrics, section.host, section.port))
        event(_log, logging.INFO, "metrics", host=section.host, port=endpoint.port)

    def _dropped(self) -> float:
        return 0 if self._records is None else self._records.dropped

    def _open_records(self, stack: contextlib.ExitStack) -> None:
        if self.file.records.folder is not None:
            source = provenance(kind="device", frames=self.file.frames.source, **self._source())
            records = open_records(Path(self.file.records.folder), self.file.records, source)
            self._records = stack.enter_context(records)

    def _source(self) -> dict[str, Any]:
        config, deployment = device_config_of(self.file, self.task), self._swapper.deployment
        return {
            **self._what(),
            "bundle_hash": deployment.model.hash,
            "emulation": config.describe(),
            "period_ms": config.period_ms,
            "timeout_ms": config.timeout_ms,
            "deadline_ms": config.deadline_ms,
            "max_queue_ms": config.max_queue_ms,
            "task": {**self.task.to_json(), "full_local_ms": self._settings().full_local_ms},
            "seed": config.seed,
        }

    def _on_hup(self, number: int, frame: FrameType | None) -> None:
        self._watcher.asked = True


def _check_records(folder: Path) -> None:
    """Refuse, before all else, a folder that can never be one; a disk may be full or read-only."""
    try:
        check_folder(folder, room=0)
    except DataError as error:
        if lasting(error):
            raise
