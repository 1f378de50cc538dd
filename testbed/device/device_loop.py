"""The device: observe, decide, compute, send, receive, measure; one frame at a time.

The rules are those of "One frame on the device" in ``docs/architecture.md``; the simulator
follows the same. A frame is never lost to the network: if no answer comes, the device
resumes from the block that ran last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cnn.frame_table import frame_features
from cnn.runtime import SplitRuntime
from testbed.common.clock import wait_until
from testbed.device.device_config import DeviceConfig
from testbed.device.device_frame import DeviceFrame
from testbed.device.frame_record import FrameRecord, LinkTruth, measurement, tail_overlap_ms
from testbed.device.frame_sources import CameraFrame
from testbed.device.processor import PaceKept, Processor
from testbed.device.uplink import Exchanger, Uplink
from testbed.meters.meter import FrameActivity, Meter
from testbed.policy.decision_points import START
from testbed.policy.observer import Observer
from testbed.policy.policies import Feedback, Learner, Policy, decide_frame
from testbed.policy.task_settings import Settings
from testbed.records.measurement import Measurement

__all__ = ["Device", "DeviceConfig", "LinkTruth"]


class Device:
    """One device running one policy.

    `run` is the whole loop. Live environments step it themselves: `receive` a frame, carry out
    a decision with `frame` (`testbed.device.device_frame.DeviceFrame`), and read the frame's
    measurement from `finished` after the next `receive` (the modem's tail ends when the next
    frame starts) or `finish`.

    Args:
        runtime: the network; warm it before the first frame. Policy, observer and pace must be of
            the same one.
        client: connection to the MEC server; None makes every offloading action fall back.
        policy: decides in `run`.
        observer: keeps the device's estimates.
        meter: energy of each frame's window.
        config: settings.
        link_truth: the link's true state, for the records only.

    Raises:
        ConfigError: if policy, observer or pace are of another network.
    """

    def __init__(
        self,
        runtime: SplitRuntime,
        client: Exchanger | None,
        policy: Policy,
        observer: Observer,
        meter: Meter,
        config: DeviceConfig,
        *,
        link_truth: LinkTruth | None = None,
    ) -> None:
        of_network = {f"policy {policy.name!r}": policy.space.topology}
        of_network["observer"] = observer.topology
        if config.pace is not None:
            of_network[f"pace {config.pace.name!r}"] = config.pace.topology
        for given, topology in of_network.items():
            runtime.topology.require_same(topology, given, "the device's model bundle")
        self.config = config
        self.finished: Measurement | None = None
        self._topology = runtime.topology
        self._undecided = self._topology.actions[self._topology.local[0]]
        self._runtime, self._policy = runtime, policy
        self._observer, self._meter, self._link_truth = observer, meter, link_truth
        self._processor = Processor(config.pace, config.seed)
        self._uplink = Uplink(client, runtime, observer, self._processor, config)
        self._stop = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Start a new drive: reset the clock, the estimators and the breaker."""
        self.finished = None
        self._frame: DeviceFrame | None = None
        self._origin_s: float | None = None
        self._paced_from = (0, 0.0)
        self._adopting: tuple[DeviceConfig, Settings, Meter] | None = None
        self._count = 0
        self._track = -1
        self._tail_from_s = -np.inf
        self._uplink.reset()
        self._policy.reset()

    @property
    def origin_s(self) -> float | None:
        """`time.monotonic` of the first capture, where ``captured_s`` is 0; None before it."""
        return self._origin_s

    @property
    def pace_kept(self) -> PaceKept | None:
        """How well an emulated device's pace was kept so far; None without emulation."""
        return self._processor.kept

    def adopt(self, config: DeviceConfig, settings: Settings, meter: Meter) -> None:
        """Use these from the next frame on; the link estimates stay.

        The current frame ends with its own settings. The new period applies from the first frame
        that uses the new settings. The pace of an emulated device and the link settings stay.
        """
        self._adopting = config, settings, meter

    def _adopt(self, captured_s: float) -> None:
        """Use the requested settings from the frame captured at `captured_s` on."""
        if self._adopting is None:
            return
        (self.config, settings, self._meter), self._adopting = self._adopting, None
        self._observer.adopt(settings)
        self._uplink.follow(self.config)
        self._paced_from = self._count, captured_s

    def stop(self) -> None:
        """End `run` after the current frame, permanently (safe in a signal handler)."""
        self._stop.set()

    def run(self, frames: Iterable[CameraFrame]) -> Iterator[Measurement]:
        """Process frames until they end or `stop` is called; one measurement a frame.

        A frame's measurement comes while the device waits for a later frame, so the caller's
        work with it delays no frame.
        """
        self.reset()
        for frame in frames:
            observation = self.receive(frame)
            done = self.finished
            if done is not None and isinstance(self._policy, Learner):
                self._policy.learn(Feedback.of(done, self._topology))
            if observation is not None:
                decide_frame(self.frame, self._policy)
            if done is not None:
                yield done
            if self._stop.is_set():
                break
        last = self.finish()
        if last is not None:
            yield last

    @property
    def frame(self) -> DeviceFrame:
        """The current frame, skipped or not; raises `RuntimeError` if there is none."""
        if self._frame is None:
            raise RuntimeError("no current frame: call receive first")
        return self._frame

    @property
    def point(self) -> int:
        """Decision point of the current frame (`testbed.policy.decision_points`)."""
        return START if self._frame is None else self._frame.point

    def receive(self, frame: CameraFrame) -> NDArray[np.float32] | None:
        """Wait for this frame's capture; close the frame before it into `finished`.

        Returns:
            The observation, float32 (obs_dim,), or None if the frame was skipped because
            it waited longer than `max_queue_ms` or the camera failed, or `stop` was called
            while waiting.
        """
        captured_s = self._next_capture_s(frame.waited_s)
        self._finalise()
        self._uplink.while_idle(self._work, captured_s, self._stop)
        wait_until(captured_s, self._stop)
        if frame.refresh is not None:
            frame = frame.refresh()
        self.finished = None
        start_s = time.monotonic()
        if self._stop.is_set():
            self._close(start_s)
            return None
        if self._processor.pace is not None and self.config.period_ms > 0:
            # The pace of an emulated device's frame starts when the device is free. It includes the
            # time that this machine needs to wake up and to update its records.
            start_s = captured_s if self._work is None else max(captured_s, self._work.free_s)
        if self._origin_s is None:
            self._origin_s = captured_s
            self._paced_from = 0, captured_s
            self._observer.reset(start_s)
        if self.config.period_ms == 0:
            captured_s = start_s
        self._close(start_s)
        self._adopt(captured_s)
        self._meter.begin()
        self._processor.start(self._count, start_s)
        work = FrameRecord(frame, self._count, captured_s, start_s, start_s, self._undecided)
        self._count += 1
        if frame.track != self._track:
            self._track = frame.track
            self._observer.new_track()
        queue_ms = (start_s - captured_s) * 1e3
        if frame.fault or queue_ms > self.config.max_queue_ms:
            why = f"camera: {frame.fault}" if frame.fault else f"queued {queue_ms:.0f} ms"
            work.status, work.reason = "skipped", why
            self._observer.record_skipped()
            seen = None
        else:
            seen = self._observe(work, queue_ms)
        self._frame = DeviceFrame(
            work,
            seen,
            runtime=self._runtime,
            observer=self._observer,
            processor=self._processor,
            uplink=self._uplink,
            timeout_ms=self.config.timeout_ms,
        )
        return seen

    def finish(self) -> Measurement | None:
        """Close the last frame, as if the next one had started at its regular time."""
        work = self._work
        if work is None:
            return None
        self._finalise()
        next_s = max(work.captured_s + self.config.period_ms / 1e3, work.free_s)
        wait_until(next_s, self._stop)
        self._close(next_s)
        return self.finished

    def _next_capture_s(self, waited_s: float) -> float:
        """When the next frame is captured; later by the time spent waiting for a slow camera."""
        now_s = time.monotonic()
        if self.config.period_ms == 0:
            return now_s + self.config.pause_ms / 1e3
        if self._origin_s is None:
            return now_s
        first, first_s = self._paced_from
        captured_s = first_s + (self._count - first) * self.config.period_ms / 1e3
        if waited_s > 0 and now_s > captured_s:
            captured_s += min(waited_s, now_s - captured_s)
            self._paced_from = self._count, captured_s
        return captured_s

    @property
    def _work(self) -> FrameRecord | None:
        return None if self._frame is None else self._frame.work

    def _finalise(self) -> None:
        """Apply the current frame's pending updates and record it, while the device has time."""
        work = self._work
        if work is None or work.measured is not None:
            return
        for learn in work.pending_updates:
            learn()
        if work.prediction is not None and work.confidence is not None:
            self._observer.record_answer(work.answered_by, work.prediction, work.confidence)
        truth: tuple[float | None, float | None] = (None, None)
        if self._link_truth is not None and work.uplink_bytes:
            truth = self._link_truth(*work.exchanges[0])
        work.measured = measurement(work, self._origin_s or 0.0, truth)

    def _observe(self, work: FrameRecord, queue_ms: float) -> NDArray[np.float32]:
        f = work.frame
        features = frame_features(f.image, f.width_px, f.height_px, f.frame_in_track)
        tail_left_ms = self._meter.tail_ms - (work.start_s - self._uplink.exchange_end_s) * 1e3
        return self._observer.observe(work.start_s, features, queue_ms, max(0.0, tail_left_ms))

    def _close(self, end_s: float) -> None:
        """The current frame ends at `end_s`: read the meter, make its measurement."""
        work, self._frame = self._work, None
        if work is None:
            return
        # All the time for this frame except waiting for an answer.
        compute_ms = max(0.0, (work.free_s - work.start_s) * 1e3 - work.wait_ms)
        exchange_ms = sum(b - a for a, b in work.exchanges) * 1e3
        tail_ms = tail_overlap_ms(
            work.start_s, end_s, work.exchanges, self._tail_from_s, self._meter.tail_ms
        )
        if work.exchanges:
            self._tail_from_s = work.exchanges[-1][1]
        reading = self._meter.end(
            FrameActivity(
                work.start_s, end_s, compute_ms, work.wait_ms, exchange_ms, work.sent_bytes, tail_ms
            )
        )
        if reading.energy_mj is not None:
            self._observer.record_energy(reading.energy_mj)
        assert work.measured is not None
        self.finished = replace(
            work.measured,
            compute_mj=reading.compute_mj,
            radio_mj=reading.radio_mj,
            idle_mj=reading.idle_mj,
            energy_mj=reading.energy_mj,
            energy_source=reading.source,
            probes=work.probes,
            probe_bytes=work.probes * self._uplink.probe_bytes,
        )
