"""The device's configuration: one typed, checked TOML file, or the command line's flags.

The classes are the file's sections and their fields its keys, each with its default and range;
``docs/deploy.md`` documents every one of them (a test compares the two), and the flags of
``sliproad testbed device`` fill the same classes. An absent key has the default given here.
Relative paths of a file are taken from its own folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

from cnn.common.errors import require, shown
from testbed.common.toml_config import check_ranges, parse_toml, ranged, read_toml
from testbed.device.link_checks import MAX_PROBE_BYTES
from testbed.wire.address import parse_address, parse_host

LOG_FORMATS: Final = ("text", "json")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
PATHS: Final = {
    "server": ("tls_ca", "tls_cert", "tls_key"),
    "bundles": ("model", "policy", "shadow", "trusted_keys"),
    "frames": ("data",),
    "meter": (),
    "records": ("file", "folder"),
}
"""Keys of each section that are paths; a pace and a power profile may be or have one, too."""

_ACTION: Final = re.compile(r"\s*(e\d{1,2}s\d{1,2}|\d{1,5})\s*", re.ASCII | re.IGNORECASE)
"""Forms of an action; whether the network has it is known only with the bundle."""


@dataclass(frozen=True, slots=True)
class ServerSection:
    """The MEC server.

    Attributes:
        address: HOST:PORT; left out, the device computes everything itself.
        connect_timeout_s: how long the start waits for it. If the server does not answer, the
            device starts all the same and finishes its frames itself until the server answers.
        tls_ca: PEM authority of the server, or ``system`` for the public ones. Any ``tls_`` key
            turns TLS on; the default of this one is then ``system``.
        tls_cert: PEM certificate of this device.
        tls_key: its PEM private key.
        tls_name: name in the server's certificate, where it differs from the address.
        frame_encoding: how split 0 sends the frame: ``raw``, ``webp`` or ``jpeg[:quality]``.
        probe_budget_per_min: most probes of the link a minute while idle; 0 never probes.
        probe_bytes: padding of a probe; 0 measures the round trip alone.
        probe_stale_s: age of the newest transfer from which it is probed.
    """

    address: str | None = None
    connect_timeout_s: float = ranged(5.0, 0.1, 600)
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_name: str | None = None
    frame_encoding: str = "raw"
    probe_budget_per_min: float = ranged(0.0, 0, 600)
    probe_bytes: int = ranged(0, 0, MAX_PROBE_BYTES)
    probe_stale_s: float = ranged(2.0, 0, 1e9)

    def __post_init__(self) -> None:
        from cnn.frame_codec import FrameEncoding  # imports Pillow, which --help does not need

        check_ranges(self)
        FrameEncoding.parse(self.frame_encoding)
        if self.address is not None:
            parse_address(self.address, "address")
        if self.tls_name is not None:
            parse_host(self.tls_name, "tls_name")


@dataclass(frozen=True, slots=True)
class BundlesSection:
    """The network and policies of the device; see "Changing bundles" in docs/deploy.md.

    Attributes:
        model: model bundle folder; left out, the shipped one.
        policy: policy file, or a plug-in's name (a word without an ending); either this or
            `action`.
        action: one action for every frame instead, such as ``e3s1``.
        shadow: a second policy file that decides without acting.
        explore: share of frames whose action is drawn at random; records then hold the propensity
            and observation of every decision. Such a policy is not changed while it runs, and has
            no guard and no shadow.
        threads: of the device's runtime.
        providers: ONNX Runtime's execution providers, NAME[,NAME], in the order in which each part
            of the network is offered to them.
        watch_s: interval of the checks of the paths for a change; 0 checks only at SIGHUP.
        probation_frames: first frames after a swap, during which a failure rolls it back.
        trusted_keys: public key files; with these, only bundles signed by one of them are used
            (needs the extra ``signing``).
    """

    model: str | None = None
    policy: str | None = None
    action: str | None = None
    shadow: str | None = None
    explore: float = ranged(0.0, 0, 1)
    threads: int = ranged(1, 1, 256)
    providers: str = "CPUExecutionProvider"
    watch_s: float = ranged(5.0, 0, 86_400)
    probation_frames: int = ranged(50, 1, 100_000)
    trusted_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            (self.policy is None) != (self.action is None),
            "both policy and action" if self.policy else "neither policy nor action in [bundles]",
            "exactly one of the two",
        )
        _check_action("action", self.action)


@dataclass(frozen=True, slots=True)
class FramesSection:
    """The camera and the time limits of its frames; times as in docs/architecture.md.

    Four times have no fixed default: without a value they are the policy's own. The brackets give
    the value that applies without a policy file, or with one that has no task.

    Attributes:
        source: ``gtsrb:PART``, ``folder:PATH``, ``render``, ``camera:0``, or a plug-in's
            ``NAME[:SETTING]``.
        data: GTSRB folder for ``gtsrb:``; left out, the one in SLIPROAD_DATA.
        seed: order of tracks, spread of back-offs.
        count: frames to process; 0 runs until stopped.
        period_ms: between two frames; 0 takes the next one as soon as the device is free (100).
        deadline_ms: a frame answered later than this is a miss (100).
        timeout_ms: an exchange times out after this (250).
        max_queue_ms: a frame that has waited longer is skipped (200).
        pace: emulates a slower device: a device profile's file, or ``shipped``, scaled to the full
            local time of the policy's task; left out, no emulation.
        slowdown: no longer used; 1 is still read.
        breaker_failures: failed exchanges in a row that stop offloading until the server answers
            such an exchange again, in the background; 0 never does.
        breaker_backoff_ms: first pause before it is asked again, doubled at each failure up to 1250
            (or this, if it is longer).
    """

    source: str = "render"
    data: str | None = None
    seed: int = ranged(0, 0, 2**63 - 1)
    count: int = ranged(0, 0, 2**63 - 1)
    period_ms: float | None = ranged(None, 0, 3_600_000)
    deadline_ms: float | None = ranged(None, 0.1, 600_000)
    timeout_ms: float | None = ranged(None, 1, 600_000)
    max_queue_ms: float | None = ranged(None, 0, 3_600_000)
    pace: str | None = None
    slowdown: float = 1.0
    breaker_failures: int = ranged(5, 0, 1_000_000)
    breaker_backoff_ms: float = ranged(1000.0, 1, 3_600_000)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.slowdown == 1,
            f"slowdown {self.slowdown:g}",
            "1 (a device is emulated by its pace: pace = 'shipped', or a device profile's file)",
        )


@dataclass(frozen=True, slots=True)
class DriveSection:
    """The task settings of the policy.

    A key that is left out has the value of the policy's file. The brackets give the value that
    applies without a policy file, or with one that has no task.

    Attributes:
        tech: radio technology, ``5G`` or ``LTE`` (5G).
        accuracy_floor: mean accuracy required, 0..1 (0.95).
        delay_share: weight of delay against energy, 0..1 (0.5).
        full_local_ms: time of full local processing (measured at the start).
    """

    tech: str | None = None
    accuracy_floor: float | None = ranged(None, 0, 1)
    delay_share: float | None = ranged(None, 0, 1)
    full_local_ms: float | None = ranged(None, 0.01, 100_000)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(self.tech in (None, "5G", "LTE"), f"tech {shown(self.tech)}", "5G or LTE")


@dataclass(frozen=True, slots=True)
class MeterSection:
    """The source of energy figures.

    Attributes:
        name: energy meter, as ``sliproad testbed doctor`` lists them, or ``none``; a plug-in's
            ``NAME[:SETTING]``.
        power: power profile of the model meter, DEVICE+MODEM, each a shipped name or a file; left
            out, the policy's (jetson-nano+5g-nsa-lowband).
    """

    name: str = "model"
    power: str | None = None


@dataclass(frozen=True, slots=True)
class RecordsSection:
    """One row a frame on disk; see "Records" in docs/deploy.md.

    Attributes:
        file: one Parquet file, written whole when the run ends; a disk without room ends it.
        folder: instead, where files of bounded size go; no disk ends the run.
        file_mb: at this size a file is finished and the next begun, megabytes.
        file_s: or at this age, seconds.
        total_mb: limit of the whole folder; the oldest files are deleted first.
        flush_s: longest time that rows wait in memory; a kill loses only these.
        observations: also keep the policy's observations (about 35 more numbers a row).
    """

    file: str | None = None
    folder: str | None = None
    file_mb: float = ranged(8.0, 0.01, 4096)
    file_s: float = ranged(3600.0, 1, 7 * 86_400)
    total_mb: float = ranged(512.0, 0.04, 1e9)
    flush_s: float = ranged(5.0, 0.1, 3600)
    observations: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.total_mb >= 4 * self.file_mb,
            f"total_mb {self.total_mb} with file_mb {self.file_mb}",
            "room for at least four files",
        )
        require(self.file is None or self.folder is None, "both file and folder", "one of the two")


@dataclass(frozen=True, slots=True)
class MetricsSection:
    """Prometheus over HTTP (needs the extra ``server``).

    Attributes:
        port: TCP port; left out, no endpoint; 0 takes any free one.
        host: address to listen on.
    """

    port: int | None = ranged(None, 0, 65_535)
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        check_ranges(self)
        parse_host(self.host, "host")


@dataclass(frozen=True, slots=True)
class GuardSection:
    """Conditions under which the policy is not trusted; see "Guard" in docs/deploy.md.

    Attributes:
        enabled: whether the guard acts.
        safe_action: a local action, taken for every frame while the policy is not trusted; left
            out, full local processing.
        window: frames whose mean is compared with the limits; a reference profile has its own.
        margin: share beyond the profile's limit that is still accepted before the fall.
        patience: frames in a row beyond the limit that make the policy fall.
        cooldown_frames: first pause before the policy is tried again for one window, in
            which the profile's limits apply without the margin; it doubles at every failed
            trial, up to 16 times.
        act_on_drift: fall also when rate, round trip, confidence or the mix of actions
            are outside the range in training; otherwise that is only reported.
        max_delay_ms: own limit on the mean delay, instead of the profile's.
        max_energy_mj: likewise on the mean energy.
        min_confidence: likewise on the mean calibrated confidence.
        max_miss_rate: likewise on the share of missed deadlines.
    """

    enabled: bool = False
    safe_action: str | None = None
    window: int = ranged(30, 1, 100_000)
    margin: float = ranged(0.2, 0, 10)
    patience: int = ranged(5, 1, 100_000)
    cooldown_frames: int = ranged(200, 1, 1_000_000)
    act_on_drift: bool = False
    max_delay_ms: float | None = ranged(None, 0.001, 1e9)
    max_energy_mj: float | None = ranged(None, 0.001, 1e9)
    min_confidence: float | None = ranged(None, 0, 1)
    max_miss_rate: float | None = ranged(None, 0, 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_action("safe_action", self.safe_action)


@dataclass(frozen=True, slots=True)
class LogSection:
    """The log on standard error.

    Attributes:
        format: ``text`` or ``json`` (one object a line).
        level: ``debug``, ``info``, ``warning`` or ``error``.
        every_s: interval of a line with the figures of the frames since the last one; 0 for none.
    """

    format: str = "text"
    level: str = "info"
    every_s: float = ranged(60.0, 0, 86_400)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(
            self.format in LOG_FORMATS, f"format {shown(self.format)}", " or ".join(LOG_FORMATS)
        )
        require(self.level in LOG_LEVELS, f"level {shown(self.level)}", " or ".join(LOG_LEVELS))


@dataclass(frozen=True, slots=True)
class DeviceFile:
    """The whole file, checked.

    Attributes: one for each section, see their classes. Only ``bundles`` has no usable default:
    it must name a policy or an action.
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

    def __post_init__(self) -> None:
        beside = "a guard" if self.guard.enabled else "a shadow" if self.bundles.shadow else ""
        require(
            not (self.bundles.explore and beside),
            f"explore {self.bundles.explore:g} with {beside}",
            "no guard and no shadow: neither knows what was drawn at random",
        )


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


def _check_action(key: str, text: str | None) -> None:
    is_one = text is None or _ACTION.fullmatch(text) is not None
    require(is_one, f"{key} {shown(text)}", "a name such as 'e3s1', or an action's number")


def _resolved(file: DeviceFile, folder: Path) -> DeviceFile:
    # These import numpy and gRPC, which --help does not need.
    from testbed.meters.cost_model import SHIPPED_PROFILES
    from testbed.meters.power import in_folder
    from testbed.policy.plugged_policy import names_plug_in
    from testbed.wire.tls import SYSTEM

    changed: dict[str, Any] = {}
    for name, path_keys in PATHS.items():
        section = getattr(file, name)
        given = {key: getattr(section, key) for key in path_keys}
        paths = {
            key: _joined(folder, value)
            for key, value in given.items()
            if value is not None
            and (key, value) != ("tls_ca", SYSTEM)
            and not (key == "policy" and names_plug_in(value, folder))
        }
        if name == "frames" and section.pace not in (None, *SHIPPED_PROFILES):
            paths["pace"] = _joined(folder, section.pace)
        if name == "meter" and section.power is not None:
            paths["power"] = in_folder(section.power, folder)
        changed[name] = replace(section, **paths)
    return replace(file, **changed)


def _joined(folder: Path, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(str(folder / each) for each in value)
    return str(folder / value)
