"""Sections of a device's file that say how it is watched: records, metrics, guard, log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cnn.common.errors import shown
from cnn.topology import Action
from testbed.common.value_checks import in_range, require
from testbed.wire.address import parse_host

LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class RecordsSection:
    """One row a frame on disk, bounded; see "Records" in docs/deploy.md.

    Attributes:
        folder: where the files go; left out, nothing is recorded.
        file_mb: a file is finished and the next begun at this size, megabytes.
        file_s: or at this age, seconds.
        total_mb: everything in the folder together; the oldest files go first.
        flush_s: rows that wait in memory at most so long; a kill loses these alone.
        observations: keep what the policy saw, too (35 or so more numbers a row).
    """

    folder: str | None = None
    file_mb: float = 8.0
    file_s: float = 3600.0
    total_mb: float = 512.0
    flush_s: float = 5.0
    observations: bool = False

    def __post_init__(self) -> None:
        in_range("file_mb", self.file_mb, 0.01, 4096)
        in_range("file_s", self.file_s, 1, 7 * 86_400)
        in_range("flush_s", self.flush_s, 0.1, 3600)
        in_range("total_mb", self.total_mb, 0.04, 1e9)
        require(
            self.total_mb >= 4 * self.file_mb,
            f"total_mb {self.total_mb} with file_mb {self.file_mb}",
            "room for at least four files",
        )


@dataclass(frozen=True, slots=True)
class MetricsSection:
    """Prometheus over HTTP (needs the extra ``server``).

    Attributes:
        port: TCP port; left out, no endpoint; 0 takes any free one.
        host: address to listen on.
    """

    port: int | None = None
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if self.port is not None:
            in_range("port", self.port, 0, 65_535)
        parse_host(self.host, "host")


@dataclass(frozen=True, slots=True)
class GuardSection:
    """When the policy is no longer trusted; see "Guard" in docs/deploy.md.

    Attributes:
        enabled: whether the guard acts.
        safe_action: taken for every frame while the policy is not trusted.
        window: frames whose mean is compared with the limits; a promise brings its own.
        margin: share beyond the promised limit that is still borne before the fall.
        patience: frames in a row beyond the limit that make the policy fall.
        cooldown_frames: first pause before the policy is tried again for one window, in
            which the promise must hold without the margin; it doubles at every failed
            trial, up to 16 times.
        act_on_drift: fall also when rate, round trip, confidence or the mix of actions
            lie outside what training saw; otherwise that is only reported.
        max_delay_ms: own limit on the mean delay, instead of the promised one.
        max_energy_mj: likewise on the mean energy.
        min_confidence: likewise on the mean calibrated confidence.
        max_miss_rate: likewise on the share of missed deadlines.
    """

    enabled: bool = False
    safe_action: str = "e5s5"
    window: int = 30
    margin: float = 0.2
    patience: int = 5
    cooldown_frames: int = 200
    act_on_drift: bool = False
    max_delay_ms: float | None = None
    max_energy_mj: float | None = None
    min_confidence: float | None = None
    max_miss_rate: float | None = None

    def __post_init__(self) -> None:
        require(
            Action.parse(self.safe_action).is_local,
            f"safe_action {shown(self.safe_action)}",
            "a local action (split = exit), which no network can fail",
        )
        in_range("window", self.window, 1, 100_000)
        in_range("margin", self.margin, 0, 10)
        in_range("patience", self.patience, 1, 100_000)
        in_range("cooldown_frames", self.cooldown_frames, 1, 1_000_000)
        for name in ("max_delay_ms", "max_energy_mj"):
            if getattr(self, name) is not None:
                in_range(name, getattr(self, name), 0.001, 1e9)
        for name in ("min_confidence", "max_miss_rate"):
            if getattr(self, name) is not None:
                in_range(name, getattr(self, name), 0, 1)


@dataclass(frozen=True, slots=True)
class LogSection:
    """What goes to standard error.

    Attributes:
        format: ``text`` or ``json`` (one object a line).
        level: ``debug``, ``info``, ``warning`` or ``error``.
        every_s: a line with the figures of the frames since the last one, so often; 0 none.
    """

    format: str = "text"
    level: str = "info"
    every_s: float = 60.0

    def __post_init__(self) -> None:
        require(
            self.format in LOG_FORMATS, f"format {shown(self.format)}", " or ".join(LOG_FORMATS)
        )
        require(self.level in LOG_LEVELS, f"level {shown(self.level)}", " or ".join(LOG_LEVELS))
        in_range("every_s", self.every_s, 0, 86_400)
