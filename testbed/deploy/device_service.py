"""The device as a program: from its configuration until its frames end or it is stopped.

The device loop is in `testbed.device.device_loop`; this module adds the parts around it. Between
two frames a new deployment may be installed; after each frame its measurement goes to the records,
the metrics, the guard and the log, all while the device waits for the next capture. Each of these
is off unless the configuration turns it on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import RemoteError
from testbed.common.signals import StopFlag, stop_on_signals
from testbed.deploy.assembly import (
    Warn,
    certificate_complaints,
    client_of,
    device_config_of,
    followed_config_of,
    frames_of,
    guard_of,
    log_warning,
    monitor_of,
    plug_ins_of,
    safe_action_of,
    sources_of,
    task_of,
)
from testbed.deploy.deployment import Deployment, load
from testbed.deploy.device_file import DeviceFile
from testbed.deploy.device_records import DeviceRecords, check_records, source_of
from testbed.deploy.guarded_policy import GuardedPolicy
from testbed.deploy.hot_swap import LiveRuntime, Swapper, Watcher
from testbed.deploy.log import event
from testbed.device.device_loop import Device
from testbed.device.frame_sources import CameraFrame, prepared
from testbed.device.processor import full_local_ms, keep_collector_short, speed_note
from testbed.meters.available import open_meter
from testbed.meters.meter import Meter, NoMeter
from testbed.meters.power import power_profile
from testbed.policy.exploration import ExploringPolicy
from testbed.policy.observer import Observer
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement
from testbed.records.run_summary import RunSummary
from testbed.wire.client import MecClient

if TYPE_CHECKING:
    from testbed.deploy.device_metrics import DeviceMetrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attended:
    """A run that a user waits for: started by flags, and over after some frames.

    It ends at once where an unattended device continues: its server must answer at the start, and
    closing the terminal (SIGHUP) ends it. Its bundles do not change while it runs.

    Attributes:
        warn: called with each line that the user should read.
        names: the name of each key where it was given, such as ``frames.period_ms``: ``--fps``.
        progress: passes on the rows and shows how many there were.
    """

    warn: Warn
    names: Mapping[str, str] = field(default_factory=dict)
    progress: Callable[[Iterable[Measurement]], Iterable[Measurement]] = iter


class _Stop(StopFlag):
    """Also ends the device's wait for the next capture."""

    unit: Device | None = None

    def set(self) -> None:
        """Ask to stop."""
        super().set()
        if self.unit is not None:
            self.unit.stop()


class DeviceService:
    """A device made from its configuration.

    Args:
        file: the checked configuration.
        attended: settings of a run that a user waits for; None is an unattended device.

    Raises:
        SliproadError: if a bundle, the meter or a port cannot be used, the files are of different
            networks, or the records' place can never be used. A folder's disk that cannot be
            written to now does not count.
    """

    def __init__(self, file: DeviceFile, attended: Attended | None = None) -> None:
        self.file = file
        self._attended = attended
        self._warn = log_warning if attended is None else attended.warn
        self._reported_s = time.monotonic()
        self._image: NDArray[np.uint8] | None = None
        self._metrics: DeviceMetrics | None = None
        self._meter: Meter = NoMeter()
        self._records: DeviceRecords | None = None
        self._stop = _Stop()
        check_records(file)
        deployment = load(sources_of(file))
        self.task = task_of(
            file, deployment, self._warn, {} if attended is None else attended.names
        )
        self._topology = deployment.model.topology
        self.summary = RunSummary(self.task.deadline_ms, self._topology)
        self._since_report = RunSummary(self.task.deadline_ms, self._topology)
        self._full_local_ms: float | None = None
        self._guard = guard_of(file, deployment, self.task)
        self._monitor = monitor_of(file, deployment, self._warn)
        self._config = device_config_of(file, self.task, self._topology)
        safe = safe_action_of(file, self._topology)
        model_hash = deployment.model.hash[:12]
        self._guarded = GuardedPolicy(
            deployment.policy, deployment.policy_hash, model_hash, safe, deployment.shadow
        )
        self._guarded.trusted = self._trusted
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
        """Run until the frames end or a signal comes; returns the figures of the run.

        SIGTERM and SIGINT end it after the current frame, with every row written; a second one
        ends it at once. SIGHUP makes an unattended device check for changed bundles and TLS
        files. Must be called by the main thread.
        """
        with contextlib.ExitStack() as stack:
            self._take_signals(stack)
            stack.callback(notify, "STOPPING=1")
            frames = self._frames()
            if self._client is not None:
                stack.callback(self._client.close)
                self._greet_server(self._client)
            self._meter = stack.enter_context(open_meter(self.file.meter.name, self.task.power))
            self._open_metrics(stack)
            self._measure_speed()
            policy = self._guarded.policy
            explorer = policy if isinstance(policy, ExploringPolicy) else None
            source = source_of(
                self.file,
                self.task,
                self._config,
                self._settings().full_local_ms,
                self._source(),
                self._topology,
            )
            self._records = DeviceRecords(self.file.records, source, explorer)
            stack.enter_context(self._records.writer or contextlib.nullcontext())
            self._stop.unit = unit = Device(
                self._runtime,
                self._client,
                self._guarded,
                Observer(self._settings(), self._topology),
                self._meter,
                self._config,
            )
            if self._attended is None:
                self._watcher.start()
                stack.callback(self._watcher.stop)
            keep_collector_short()
            event(_log, logging.INFO, "running", **self._what())
            notify("READY=1")
            rows = unit.run(frames if explorer is None else explorer.following(frames))
            for row in rows if self._attended is None else self._attended.progress(rows):
                self._measured(row)
            self._records.finish(unit)
        result = self._result(unit)
        event(_log, logging.INFO, "stopped", **result)
        return result

    def camera(self) -> Iterator[CameraFrame]:
        """The device's frames; overridden where they come from elsewhere.

        Frames without a camera are made before the start: all frames of a limited run, the first
        ones of an unlimited run.
        """
        f = self.file.frames
        frames = frames_of(self.file, self._swapper.deployment.model)
        if f.source.startswith("camera:"):
            return frames
        return prepared(frames) if f.count else prepared(frames, 1)

    def _frames(self) -> Iterator[CameraFrame]:
        """The camera's frames, with the work between two frames; the camera is opened at once."""
        camera = self.camera()

        def frames() -> Iterator[CameraFrame]:
            for number, frame in enumerate(camera):
                if self._stop.is_set():
                    return
                ready = self._watcher.take()
                if ready is not None:
                    self._swapper.install(ready, number)
                self._guarded.begin(number)
                self._image = frame.image
                yield frame

        return frames()

    def _measured(self, row: Measurement) -> None:
        decision = self._guarded.take(row.frame_id)
        self.summary.add(row)
        self._since_report.add(row)
        self._swapper.observe(row)
        guard = self._guard
        if self._records is not None:
            self._records.write(row, decision, self._guard_state())
        if guard is not None and not self._monitor.alarm:
            guard.observe(row, decision)
        self._monitor.observe(row, decision)
        if self._metrics is not None:
            self._metrics.frame(row, decision)
            self._metrics.guard(self._guard_state(), 0 if guard is None else len(guard.drift))
        self._report_if_due()
        notify("WATCHDOG=1")

    def _trusted(self) -> bool:
        """Whether the policy may act on the next frame."""
        return not self._monitor.alarm and (self._guard is None or self._guard.trusted())

    def _guard_state(self) -> str | None:
        """The guard's state, or ``alarm``; None if neither guard nor monitor is on."""
        if self._monitor.alarm:
            return "alarm"
        if self._guard is not None:
            return self._guard.state
        return "policy" if self._monitor.is_on else None

    def _report_if_due(self) -> None:
        every_s, now_s = self.file.log.every_s, time.monotonic()
        if every_s and now_s - self._reported_s >= every_s:
            event(_log, logging.INFO, "frames", **self._since_report.result())
            self._since_report = RunSummary(self.task.deadline_ms, self._topology)
            self._reported_s = now_s

    def _result(self, unit: Device) -> dict[str, Any]:
        records, guard = self._records, self._guard
        rows = 0 if records is None else records.rows
        return {
            **self._what(),
            **self.summary.result(),
            "providers": list(self._runtime.providers),
            "pace": None if unit.pace_kept is None else unit.pace_kept.to_json(),
            "swaps": self._swapper.swaps,
            "rollbacks": self._swapper.rollbacks,
            "swaps_refused": self._watcher.failures,
            "policy_errors": self._guarded.errors,
            "guard_falls": None if guard is None else guard.falls,
            "monitor_alarms": self._monitor.alarms,
            "records": records.place if records is not None and rows else None,
            "rows_written": None if records is None or records.place is None else rows,
            "rows_dropped": None if records is None or records.place is None else records.dropped,
        }

    def _what(self) -> dict[str, Any]:
        deployment = self._swapper.deployment
        return {
            "policy": deployment.policy.name,
            "policy_hash": deployment.policy_hash,
            "bundle_hash": deployment.model.hash[:12],
            "server": self.file.server.address,
        }

    def _source(self) -> dict[str, Any]:
        """What the records say of this run beside its file, task and loop."""
        deployment, plug_ins = self._swapper.deployment, plug_ins_of(self.file)
        return {
            **self._what(),
            **({"plug_ins": plug_ins} if plug_ins else {}),
            "bundle_hash": deployment.model.hash,
            "providers": list(deployment.runtime.providers),
            **({} if self.file.meter.name != "model" else power_profile(self.task.power).to_json()),
        }

    def _changed(self, deployment: Deployment) -> None:
        """Use another deployment from now on, and its task from the next frame on.

        Steps that can fail come first, so that an unsuitable task changes nothing.
        """
        task = task_of(self.file, deployment)
        settings, config = task.settings(self._full_local_ms), followed_config_of(self.file, task)
        meter = self._meter
        if self.file.meter.name == "model":  # only it has a profile, and it holds nothing open
            meter = open_meter("model", task.power)
        if self._guard is not None:
            self._guard.watch(deployment.reference, task.deadline_ms)
        self._monitor.watch(deployment.monitor, deployment.policy_hash)
        self.task, self._meter = task, meter
        self.summary.deadline_ms = self._since_report.deadline_ms = task.deadline_ms
        self._say_speed()
        if self._stop.unit is not None:
            unit = self._stop.unit
            # The device itself stays the same, also if it is emulated.
            unit.adopt(replace(config, pace=unit.config.pace), settings, meter)
        if self._metrics is not None:
            self._metrics.runs(deployment.model.hash[:12], deployment.policy_hash)

    def _settings(self) -> Settings:
        """The task as the observation shows it."""
        return self.task.settings(self._full_local_ms)

    def _measure_speed(self) -> None:
        """Measure this device's speed, unless its file gives the policy's value."""
        if self._config.pace is not None:
            self._full_local_ms = self._config.pace.full_local_ms
        elif self.file.drive.full_local_ms is None:
            self._full_local_ms = full_local_ms(self._runtime)
        self._say_speed()

    def _say_speed(self) -> None:
        """Warn if the policy was trained for a device of another speed."""
        note = speed_note(self._full_local_ms, self.task.full_local_ms)
        if note is not None:
            self._warn(note)

    def _greet_server(self, client: MecClient) -> None:
        for line in certificate_complaints(self.file):
            if self._attended is None:
                event(_log, logging.WARNING, "certificate out of date", certificate=line)
            else:
                self._warn(line)
        try:
            client.connect(self.file.server.connect_timeout_s)
        except RemoteError as error:
            if self._attended is not None:
                raise
            # The device works without one, and keeps trying.
            event(_log, logging.WARNING, "starting without a server", error=str(error))

    def _open_metrics(self, stack: contextlib.ExitStack) -> None:
        section = self.file.metrics
        if section.port is None:
            return
        from testbed.deploy.device_metrics import DeviceMetrics
        from testbed.server.server_metrics import MetricsEndpoint

        self._metrics = metrics = DeviceMetrics(self._topology)
        metrics.watch_parts(
            self._swapper,
            self._watcher,
            self._guarded,
            self._monitor,
            self._client,
            lambda: 0 if self._records is None else self._records.dropped,
        )
        endpoint = stack.enter_context(MetricsEndpoint(metrics, section.host, section.port))
        event(_log, logging.INFO, "metrics", host=section.host, port=endpoint.port)

    def _take_signals(self, stack: contextlib.ExitStack) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.getsignal(number))
        stop_on_signals(self._stop)
        if self._attended is None:
            signal.signal(signal.SIGHUP, self._on_hup)

    def _on_hup(self, number: int, frame: FrameType | None) -> None:
        self._watcher.asked = True


def notify(state: str) -> None:
    """Tell systemd ``READY=1``, ``WATCHDOG=1`` or ``STOPPING=1``, if it asks for that.

    One datagram to the socket that ``NOTIFY_SOCKET`` names (sd_notify,
    https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html); without that variable
    nothing is sent.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(name)
        sender.send(state.encode())
