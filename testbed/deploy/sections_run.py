"""Sections of a device's file that say what it runs: server, bundles, frames, drive, meter."""

from __future__ import annotations

from dataclasses import dataclass

from cnn.common.errors import shown
from cnn.frame_codec import FrameEncoding
from cnn.topology import Action
from testbed.common.value_checks import if_given, in_range, require
from testbed.device.link_checks import ProbePlan
from testbed.wire.address import parse_address, parse_host


@dataclass(frozen=True, slots=True)
class ServerSection:
    """The MEC server.

    Attributes:
        address: HOST:PORT; left out, the device computes everything itself.
        connect_timeout_s: how long the start waits for it. A device whose server does not
            answer starts all the same and finishes its frames itself until one does.
        tls_ca: PEM authority of the server, or ``system`` for the public ones. Any ``tls_`` key
            means TLS; without this one, ``system`` is meant.
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
        in_range("connect_timeout_s", self.connect_timeout_s, 0.1, 600)
        if self.address is not None:
            parse_address(self.address, "address")
        if self.tls_name is not None:
            parse_host(self.tls_name, "tls_name")


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
        require(
            (self.policy is None) != (self.action is None),
            "both policy and action" if self.policy else "neither policy nor action in [bundles]",
            "exactly one of the two",
        )
        if self.action is not None:
            Action.parse(self.action)
        in_range("threads", self.threads, 1, 256)
        in_range("watch_s", self.watch_s, 0, 86_400)
        in_range("probation_frames", self.probation_frames, 1, 100_000)


@dataclass(frozen=True, slots=True)
class FramesSection:
    """The camera and the patience with it; times as in docs/architecture.md.

    The four times that have no default are the policy's own if they are left out; in brackets
    what stands in where there is no policy file, or one that does not say.

    Attributes:
        source: ``gtsrb:PART``, ``folder:PATH``, ``render`` or ``camera:0``.
        data: GTSRB folder for ``gtsrb:``; left out, the one in SLIPROAD_DATA.
        seed: order of tracks, spread of back-offs.
        count: frames to process; 0 runs until told to stop.
        period_ms: between two frames; 0 takes the next when the device is free (100).
        deadline_ms: a frame answered later than this is a miss (100).
        timeout_ms: an answer is given up after this (250).
        max_queue_ms: a frame that has waited longer is skipped (200).
        pace: emulates a slower device: a cost model's file, or ``shipped``, scaled to the full
            local time that the policy is told; left out, the machine as it is.
        slowdown: no longer used; 1 is still read.
        breaker_failures: failed exchanges in a row that stop offloading until the server answers
            such an exchange again, in the background; 0 never does.
        breaker_backoff_ms: first pause before it is asked to; doubled at each failure, up to 1250
            (or this, if it is longer).
    """

    source: str = "render"
    data: str | None = None
    seed: int = 0
    count: int = 0
    period_ms: float | None = None
    deadline_ms: float | None = None
    timeout_ms: float | None = None
    max_queue_ms: float | None = None
    pace: str | None = None
    slowdown: float = 1.0
    breaker_failures: int = 5
    breaker_backoff_ms: float = 1000.0

    def __post_init__(self) -> None:
        in_range("seed", self.seed, 0, 2**63 - 1)
        in_range("count", self.count, 0, 2**63 - 1)
        if_given("period_ms", self.period_ms, 0, 60_000)
        if_given("deadline_ms", self.deadline_ms, 0.1, 600_000)
        if_given("timeout_ms", self.timeout_ms, 1, 600_000)
        if_given("max_queue_ms", self.max_queue_ms, 0, 3_600_000)
        require(
            self.slowdown == 1,
            f"slowdown {self.slowdown:g}",
            "1 (a device is emulated by its pace: pace = 'shipped', or a cost model's file)",
        )
        in_range("breaker_failures", self.breaker_failures, 0, 1_000_000)
        in_range("breaker_backoff_ms", self.breaker_backoff_ms, 1, 3_600_000)


@dataclass(frozen=True, slots=True)
class DriveSection:
    """What the policy is told about its task.

    What is left out is as the policy's file says; in brackets what stands in where there is no
    policy file, or one that does not say.

    Attributes:
        tech: radio technology, ``5G`` or ``LTE`` (5G).
        accuracy_floor: accuracy that is owed on average, 0..1 (0.95).
        delay_share: weight of delay against energy, 0..1 (0.5).
        full_local_ms: time of full local processing (measured at the start).
    """

    tech: str | None = None
    accuracy_floor: float | None = None
    delay_share: float | None = None
    full_local_ms: float | None = None

    def __post_init__(self) -> None:
        require(self.tech in (None, "5G", "LTE"), f"tech {shown(self.tech)}", "5G or LTE")
        if_given("accuracy_floor", self.accuracy_floor, 0, 1)
        if_given("delay_share", self.delay_share, 0, 1)
        if_given("full_local_ms", self.full_local_ms, 0.01, 100_000)


@dataclass(frozen=True, slots=True)
class MeterSection:
    """Where energy figures come from.

    Attributes:
        name: ``model``, ``rapl``, ``jetson``, ``battery``, ``nvml`` or ``none``.
        power: power profile of the model meter, DEVICE+MODEM; left out, the policy's
            (jetson-nano+5g-nsa-lowband).
    """

    name: str = "model"
    power: str | None = None
