"""Settings of a campaign: links, blocks and their order."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError
from cnn.ort import CPU_PROVIDER
from cnn.topology import Topology
from testbed.wire.address import parse_address

DISTURBED: Final = 1.15
"""A neighbour on the same core takes a third and more; the spread of quiet blocks is 5 %."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A constant link.

    Attributes:
        uplink_mbps: capacity, Mbit/s.
        rtt_ms: base round trip, milliseconds.
    """

    uplink_mbps: float
    rtt_ms: float

    def __post_init__(self) -> None:
        if not (0.05 <= self.uplink_mbps <= 1000 and 0 <= self.rtt_ms <= 2000):
            raise ConfigError(
                f"condition {self.name}",
                expected="0.05..1000 Mbit/s and 0..2000 ms",
                hint="correct the condition",
            )

    @property
    def name(self) -> str:
        """Such as ``8mbps-80ms``."""
        return f"{self.uplink_mbps:g}mbps-{self.rtt_ms:g}ms"

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``RATE/RTT``, such as ``8/80``; raises `ConfigError`."""
        rate, _, rtt = text.partition("/")
        try:
            return cls(float(rate), float(rtt))
        except ValueError as error:
            raise ConfigError(
                f"condition {text!r}", expected="MBPS/RTT_MS, such as 8/80", hint="correct it"
            ) from error


DEFAULT_CONDITIONS: Final = (
    Condition(1.5, 45),
    Condition(4, 80),
    Condition(10, 20),
    Condition(30, 55),
    Condition(90, 10),
)
"""From poor coverage to good 5G. Round trips do not simply fall as rates rise, so that the
two effects can be told apart. The range is that of measured drives: rates with a median of
34 Mbit/s and a 95th percentile of 105 (sa24), round trips of 10 to 100 ms (cicv5g, memu22,
sa24)."""


@dataclass(frozen=True, slots=True)
class CampaignConfig:
    """Settings of a campaign.

    Attributes:
        conditions: links, at least one, all different.
        rounds: blocks for each condition.
        repetitions: frames for each action in a block.
        warm_up: frames at the start of a block that are recorded as warm-up.
        pause_ms: idle time before every frame. A device that waits for its camera computes
            with colder caches than one that never rests, and takes markedly longer.
        timeout_ms: of the device; long, since a fallback is not a measurement.
        power: power profile of the model meter (`testbed.meters.power`).
        meter: energy meter.
        device_threads: threads of the device's runtime.
        server_threads: threads of the campaign's own server for one batch.
        providers: ONNX Runtime's execution providers of the device's runtime.
        server: HOST:PORT of a running server, on another machine; None starts one here.
        repeats: how often blocks with a disturbed machine are measured again (median of full
            local processing at least `DISTURBED` times that of the fastest block).
        seed: of all orders.
    """

    conditions: tuple[Condition, ...] = DEFAULT_CONDITIONS
    rounds: int = 3
    repetitions: int = 10
    warm_up: int = 10
    pause_ms: float = 50.0
    timeout_ms: float = 5000.0
    power: str = "jetson-nano+5g-nsa-lowband"
    meter: str = "model"
    device_threads: int = 1
    server_threads: int = 1
    providers: tuple[str, ...] = (CPU_PROVIDER,)
    server: str | None = None
    repeats: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.server is not None:
            parse_address(self.server, "--server")
        names = [condition.name for condition in self.conditions]
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f"conditions {names}", expected="at least one, all different", hint="correct them"
            )
        if min(self.rounds, self.repetitions) < 1 or min(self.warm_up, self.pause_ms) < 0:
            raise ConfigError(
                f"{self.rounds} rounds, {self.repetitions} repetitions, {self.warm_up} warm-up, "
                f"{self.pause_ms} ms pause",
                expected="at least 1, 1, 0 and 0",
                hint="correct them",
            )

    def n_frames(self, topology: Topology) -> int:
        """Frames in all of a campaign with this network, warm-up included."""
        return len(self.blocks()) * (self.warm_up + self.repetitions * topology.n_actions)

    def blocks(self) -> list[Block]:
        """Every condition `rounds` times, in random order."""
        every = [Block(c, r) for r in range(self.rounds) for c in self.conditions]
        order = np.random.default_rng([self.seed, 1]).permutation(len(every))
        return [every[i] for i in order]

    def fingerprint(self, bundle_hash: str) -> str:
        """Changes with any setting that affects the measurement."""
        text = json.dumps([asdict(self), bundle_hash], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Block:
    """One condition in one round."""

    condition: Condition
    round: int

    @property
    def name(self) -> str:
        """Name of the block's file, without suffix."""
        return f"{self.condition.name}-round{self.round}"
