"""The device's configuration file: one typed, checked TOML file for an unattended device.

The classes below are the file's sections and their fields its keys; ``docs/deploy.md``
documents every one of them (a test compares the two). Whatever is left out has the default
that stands here. Relative paths are taken from the file's own folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

from cnn.action import Action
from cnn.errors import ConfigError
from cnn.frame_codec import FrameEncoding
from testbed.device.probing import ProbePlan
from testbed.service.typed_toml import parse_toml, read_toml

LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_PATHS: Final = {
    "server": ("tls_ca", "tls_cert", "tls_key"),
    "bundles": ("model", "policy", "shadow", "trusted_keys"),
    "frames": ("data",),
    "records": ("folder",),
}


@dataclass(frozen=True, slots=True)
class ServerSection:
    """The MEC server.

    Attributes:
        address: HOST:PORT; left out, the device computes everything itself.
        connect_timeout_s: how long the start waits for it. A device whose server does not
            answer starts all the same and finishes its frames itself until one does.
        tls_ca: PEM authority of the server.
        tls_cert: PEM certificate of this device.
        tls_key: its PEM private key.
        tls_name: name in the server's certificate, where it differs from the address.
        frame_encoding: how split 0 sends the frame: ``raw``, ``webp`` or ``jpeg[:quality]``.
        probe_budget_per_min: most probes of the link a minute while idle; 0 never probes.
        probe_bytes: padding of a probe; 0 measures the round trip alone.
        probe_stale_s: age of the newest transfer from which it is probed.
    """

    address: str | None = None
    connect_timeout_s: float = 5.0
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_name: str | None = None
    frame_encoding: str = "raw"
    probe_budget_per_min: float = 0.0
    probe_bytes: int = 0
    probe_stale_s: float = 2.0

    def __post_init__(self) -> None:
        FrameEncoding.parse(self.frame_encoding)
        ProbePlan(self.probe_budget_per_min, self.probe_bytes, self.probe_stale_s)
        _in_range("connect_timeout_s", self.connect_timeout_s, 0.1, 600)
        if self.address is not None:
            host, _, port = self.address.rpartition(":")
            _require(
                bool(host) and port.isdigit() and 0 < int(port) < 65536,
                f"address {self.address!r}",
                "HOST:PORT",
            )


@dataclass(frozen=True, slots=True)
class BundlesSection:
    """What the device runs; see "Changing bundles" in docs/deploy.md.

    Attributes:
        model: model bundle folder; left out, the shipped one.
        policy: policy file; either this or `action`.
        action: one action for every frame instead, such as ``e3s1``.
        shadow: a second policy file that decides without acting.
        threads: of the device's runtime.
        watch_s: how often the paths are looked at for a change; 0 only at SIGHUP.
        probation_frames: first frames after a swap, during which a failure rolls it back.
        trusted_keys: public key files; if any, only bundles signed by one of them are used
            (needs the extra ``signing``).
    """

    model: str | None = None
    policy: str | None = None
    action: str | None = None
    shadow: str | None = None
    threads: int = 1
    watch_s: float = 5.0
    probation_frames: int = 50
    trusted_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(
            (self.policy is None) != (self.action is None),
            f"policy {self.policy!r} and action {self.action!r}",
            "exactly one of the two",
        )
        if self.action is not None:
            Action.parse(self.action)
        _in_range("threads", self.threads, 1, 256)
        _in_range("watch_s", self.watch_s, 0, 86_400)
        _in_range("probation_frames", self.probation_frames, 1, 100_000)


@dataclass(frozen=True, slots=True)
class FramesSection:
    """The camera and the patience with it; times as in docs/architecture.md.

    Attributes:
        source: ``gtsrb:PART``, ``folder:PATH``, ``render`` or ``camera:0``.
        data: GTSRB folder for ``gtsrb:``; left out, the one in SLIPROAD_DATA.
        seed: order of tracks, spread of back-offs.
        count: frames to process; 0 runs until told to stop.
        period_ms: between two frames; 0 takes the next when the device is free.
        deadline_ms: a frame answered later than this is a miss.
        timeout_ms: an answer is given up after this.
        max_queue_ms: a frame that has waited longer is skipped.
        slowdown: emulates a slower device by this factor.
        breaker_failures: failed exchanges in a row that stop offloading until a probe is
            answered; 0 never does.
        breaker_backoff_ms: first pause before such a probe.
    """

    source: str = "render"
    data: str | None = None
    seed: int = 0
    count: int = 0
    period_ms: float = 100.0
    deadline_ms: float = 100.0
    timeout_ms: float = 250.0
    max_queue_ms: float = 200.0
    slowdown: float = 1.0
    breaker_failures: int = 5
    breaker_backoff_ms: float = 1000.0

    def __post_init__(self) -> None:
        _in_range("seed", self.seed, 0, 2**63 - 1)
        _in_range("count", self.count, 0, 2**63 - 1)
        _in_range("period_ms", self.period_ms, 0, 60_000)
        _in_range("deadline_ms", self.deadline_ms, 0.1, 600_000)
        _in_range("timeout_ms", self.timeout_ms, 1, 600_000)
        _in_range("max_queue_ms", self.max_queue_ms, 0, 3_600_000)
        _in_range("slowdown", self.slowdown, 1, 1000)
        _in_range("breaker_failures", self.breaker_failures, 0, 1_000_000)
        _in_range("breaker_backoff_ms", self.breaker_backoff_ms, 1, 3_600_000)


@dataclass(frozen=True, slots=True)
class DriveSection:
    """What the policy is told about its task.

    Attributes:
        tech: radio technology, ``5G`` or ``LTE``.
        accuracy_floor: accuracy that is owed on average, 0..1.
        delay_share: weight of delay against energy, 0..1.
        full_local_ms: time of full local processing; left out, measured at the start.
    """

    tech: str = "5G"
    accuracy_floor: float = 0.95
    delay_share: float = 0.5
    full_local_ms: float | None = None

    def __post_init__(self) -> None:
        _require(self.tech in ("5G", "LTE"), f"tech {self.tech!r}", "5G or LTE")
        _in_range("accuracy_floor", self.accuracy_floor, 0, 1)
        _in_range("delay_share", self.delay_share, 0, 1)
        if self.full_local_ms is not None:
            _in_range("full_local_ms", self.full_local_ms, 0.01, 100_000)


@dataclass(frozen=True, slots=True)
class MeterSection:
    """Where energy figures come from.

    Attributes:
        name: ``model``, ``rapl``, ``jetson``, ``battery``, ``nvml`` or ``none``.
        power: power profile of the model meter, DEVICE+MODEM.
    """

    name: str = "model"
    power: str = "jetson-nano+5g-nsa-lowband"


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
        _in_range("file_mb", self.file_mb, 0.01, 4096)
        _in_range("file_s", self.file_s, 1, 7 * 86_400)
        _in_range("flush_s", self.flush_s, 0.1, 3600)
        _require(
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
            _in_range("port", self.port, 0, 65_535)


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
        _require(
            Action.parse(self.safe_action).is_local,
            f"safe_action {self.safe_action!r}",
            "a local action (split = exit), which no network can fail",
        )
        _in_range("window", self.window, 1, 100_000)
        _in_range("margin", self.margin, 0, 10)
        _in_range("patience", self.patience, 1, 100_000)
        _in_range("cooldown_frames", self.cooldown_frames, 1, 1_000_000)
        for name in ("max_delay_ms", "max_energy_mj"):
            if getattr(self, name) is not None:
                _in_range(name, getattr(self, name), 0.001, 1e9)
        for name in ("min_confidence", "max_miss_rate"):
            if getattr(self, name) is not None:
                _in_range(name, getattr(self, name), 0, 1)


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
        _require(self.format in LOG_FORMATS, f"format {self.format!r}", f"one of {LOG_FORMATS}")
        _require(self.level in LOG_LEVELS, f"level {self.level!r}", f"one of {LOG_LEVELS}")
        _in_range("every_s", self.every_s, 0, 86_400)


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """The whole file, checked.

    Attributes: one for each section, see their classes. Only ``bundles`` has no default
    that would do: it must name a policy or an action.
    """

    bundles: BundlesSection = field(default_factory=BundlesSection)
    server: ServerSection = field(default_factory=ServerSection)
    frames: FramesSection = field(default_factory=FramesSection)
    drive: DriveSection = field(default_factory=DriveSection)
    meter: MeterSection = field(default_factory=MeterSection)
    records: RecordsSection = field(default_factory=RecordsSection)
    metrics: MetricsSection = field(default_factory=MetricsSection)
    guard: GuardSection = field(default_factory=GuardSection)
    log: LogSection = field(default_factory=LogSection)


def load_device_file(path: Path) -> DeviceFile:
    """Read and check a configuration file.

    Raises:
        ConfigError: if it cannot be read, or a key is unknown, of the wrong type or
            impossible.
    """
    return _resolved(read_toml(path, DeviceFile), path.parent)


def parse_device_file(text: str, where: str = "device.toml", folder: Path = Path()) -> DeviceFile:
    """The text of such a file; relative paths are taken from `folder`."""
    return _resolved(parse_toml(text, DeviceFile, where), folder)


def keys() -> list[str]:
    """Every key as ``section.key``, in the order of the classes."""
    sections = get_type_hints(DeviceFile)
    return [f"{name}.{key.name}" for name, kind in sections.items() for key in fields(kind)]


def _resolved(file: DeviceFile, folder: Path) -> DeviceFile:
    changed: dict[str, Any] = {}
    for name, path_keys in _PATHS.items():
        section = getattr(file, name)
        given = {key: getattr(section, key) for key in path_keys}
        paths = {key: _joined(folder, value) for key, value in given.items() if value is not None}
        changed[name] = replace(section, **paths)
    return replace(file, **changed)


def _joined(folder: Path, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(str(folder / each) for each in value)
    return str(folder / value)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    _require(math.isfinite(value) and low <= value <= high, f"{name} {value}", f"{low:g}..{high:g}")


def _require(ok: bool, given: str, expected: str) -> None:
    if not ok:
        raise ConfigError(given, expected=expected, mend="correct the configuration file")
