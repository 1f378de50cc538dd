"""The settings of a device."""

from __future__ import annotations

from dataclasses import dataclass

from cnn.common.errors import ConfigError
from cnn.frame_codec import FrameEncoding
from testbed.device.link_checks import ProbePlan
from testbed.device.processor import Pace


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """Settings of a device.

    Attributes:
        period_ms: time between two camera frames; 0 captures the next frame as soon as
            the device is free (a closed loop, used by campaigns: nothing ever queues).
        timeout_ms: from sending until the device stops waiting for the answer.
        deadline_ms: a longer delay is a miss; only reported, never acted on.
        max_queue_ms: a frame that has waited longer is skipped.
        pause_ms: with period 0, idle time before each capture.
        pace: of an emulated slower device (`testbed.device.processor`); None: this machine.
        breaker_failures: failed exchanges in a row after which the device stays local until
            the server infers again (`testbed.device.link_checks`); with 0 (the default) it never
            does, as in the simulator.
        breaker_backoff_ms: first pause before it is asked again, doubled at each failure up to
            1250 (or this, if it is longer).
        seed: of the random spread of the back-off and of the pace.
        frame_encoding: how split 0 sends the frame: ``raw``, ``webp`` or ``jpeg[:quality]``.
        probe_budget_per_min: most probes a minute while idle (`testbed.device.link_checks`);
            0, the default, never probes, as in the simulator.
        probe_bytes: padding of a probe.
        probe_stale_s: age of the newest transfer from which a probe is worth its cost.
    """

    period_ms: float = 100.0
    timeout_ms: float = 250.0
    deadline_ms: float = 100.0
    max_queue_ms: float = 200.0
    pause_ms: float = 0.0
    pace: Pace | None = None
    breaker_failures: int = 0
    breaker_backoff_ms: float = 1000.0
    seed: int = 0
    frame_encoding: str = "raw"
    probe_budget_per_min: float = 0.0
    probe_bytes: int = 0
    probe_stale_s: float = 2.0

    def __post_init__(self) -> None:
        self.probe_plan()
        FrameEncoding.parse(self.frame_encoding)
        positive = min(self.timeout_ms, self.deadline_ms, self.breaker_backoff_ms) > 0
        others = (self.period_ms, self.max_queue_ms, self.pause_ms, self.breaker_failures)
        if not positive or min(others) < 0:
            raise ConfigError(
                f"{self}",
                expected="positive timeout, deadline and back-off, nothing negative",
                hint="correct the setting",
            )

    def probe_plan(self) -> ProbePlan:
        """The settings of probing."""
        return ProbePlan(self.probe_budget_per_min, self.probe_bytes, self.probe_stale_s)

    def describe(self) -> str:
        """How the device was emulated, for the records: ``as it is``, or its pace."""
        return "as it is" if self.pace is None else self.pace.describe()
