"""The practical models of delay and energy: the costs of a frame for each action.

Single frame, given the network state ``(uplink_mbps r, rtt_ms, server_wait_ms)``::

    compute_ms  = slowdown * device_ms[a]                        (head, encoder, exit)
    transfer_ms = 8 * (payload_bytes[a] + wire_overhead_bytes) / (1000 r) + rtt + net_ms
    delay_ms    = compute_ms + [a offloads] (transfer_ms + server_wait_ms + server_ms[a])
    energy_mj   = (busy_mw * compute_ms + idle_mw * waiting_ms + radio) / 1000

with the radio terms of `RadioPower`. Times are milliseconds, powers milliwatts.

The model implies the times of a frame's parts and their spread: the simulator adds them up, and
an emulated device waits for them (`standing_ms`, `resumed_ms`, `jitter_pool`).

Its file is the device's profile: times, powers, modem, machine and origin. Scenarios, the pace of
an emulated device and power profiles take it by path.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, DataError, shown
from cnn.common.files import write_text
from cnn.common.outside import MAX_JSON_BYTES, file_bytes, json_object, refusing
from cnn.topology import SHIPPED, Topology
from testbed.meters.power import RadioPower, is_amount

Floats = NDArray[np.float64]

SHIPPED_PROFILE: Final = "shipped"
"""Name of the profile of the shipped network's device."""
SHIPPED_PROFILES: Final = {
    SHIPPED_PROFILE: "cost_model.json",
    "ladder-cifar10": "ladder-cifar10.json",
    "ladder-dusk": "ladder-dusk.json",
}
"""Files of the device profiles that the package carries, by name; each is of one network."""
MAX_JITTER: Final = 10.0
"""A factor of e^10; the value of a machine is below 0.5."""
_OF_ACTIONS: Final = ("device_ms", "fallback_ms", "server_ms", "payload_bytes")


@dataclass(frozen=True, slots=True)
class CostModel:
    """Fitted (or published) costs of all actions of a network for one device, server and modem.

    There is one figure for each action, in canonical order.

    Attributes:
        name: such as ``pi4-class``.
        source: ``measured`` with the campaign's file hash, or ``published`` with a source.
        bundle_hash: model bundle whose segments were timed.
        slowdown: factor on `device_ms`; 1 is the measured device itself.
        device_ms: head, encoder and (local) exit on the device at slowdown 1.
        fallback_ms: finishing the action's exit locally after its split, slowdown 1.
        server_ms: decoder and tail on the server (0 where local).
        payload_bytes: uplink payload.
        wire_overhead_bytes: bytes of framing on the uplink beside a payload.
        net_ms: fixed cost of one exchange beyond transfer and round trip.
        jitter: spread of ln(measured / modelled) of compute times, for simulation.
        idle_mw: device power while it waits, without the modem.
        busy_mw: device power while it computes, without the modem.
        power_source: publication, file or meter of `idle_mw` and `busy_mw`.
        radio: modem power.
        filled: figures that were not measured but taken from a base model or assumed, such as
            ``server_ms e3s1`` (`testbed.costs.record_fit`).
        topology: of the network.
        reached_ms: n_blocks + 1 figures: device time until a frame is after block p, p = 0, 1, ...,
            without any exit or encoder, slowdown 1; at p = 0 the overhead alone. Empty: derived
            from `device_ms` and `fallback_ms`, for a network that can be cut at 0 and at every
            early exit.
        machine: where the times were measured: processor, system, execution providers, and the
            server if it was another machine. Empty: unknown.

    Raises:
        ConfigError: if a figure is not a finite number, or out of its range.
    """

    name: str
    source: str
    bundle_hash: str
    slowdown: float
    device_ms: tuple[float, ...]
    fallback_ms: tuple[float, ...]
    server_ms: tuple[float, ...]
    payload_bytes: tuple[int, ...]
    wire_overhead_bytes: float
    net_ms: float
    jitter: float
    idle_mw: float
    busy_mw: float
    power_source: str
    radio: RadioPower
    filled: tuple[str, ...] = ()
    topology: Topology = SHIPPED
    reached_ms: tuple[float, ...] = ()
    machine: str = ""

    def __post_init__(self) -> None:
        stated = self.reached_ms or not derives_reached(self.topology)
        n_reached = self.topology.n_blocks + 1 if stated else 0
        lengths = dict.fromkeys(_OF_ACTIONS, self.topology.n_actions) | {"reached_ms": n_reached}
        for name, length in lengths.items():
            values = getattr(self, name)
            if len(values) != length or not all(map(is_amount, values)):
                raise ConfigError(
                    f"cost model {shown(self.name)}: {name} = {shown(values)}",
                    expected=f"{length} figures, none negative",
                    hint="fit it again with `sliproad testbed fit`",
                )
        times = (self.wire_overhead_bytes, self.net_ms, self.slowdown, self.jitter)
        amounts = (*times, self.idle_mw, self.busy_mw)
        sound = all(map(is_amount, amounts)) and self.slowdown > 0 and self.jitter <= MAX_JITTER
        if not sound or self.busy_mw < self.idle_mw:
            raise ConfigError(
                f"cost model {shown(self.name)}: slowdown {shown(self.slowdown)}, "
                f"idle {shown(self.idle_mw)} mW, busy {shown(self.busy_mw)} mW, "
                f"net {shown(self.net_ms)} ms, jitter {shown(self.jitter)}, "
                f"overhead {shown(self.wire_overhead_bytes)} bytes",
                expected="finite figures, none negative, slowdown > 0 and idle <= busy",
                hint="correct the device profile",
            )
        texts = (self.name, self.source, self.bundle_hash, self.power_source, self.machine)
        if not all(isinstance(text, str) for text in (*texts, *self.filled)):
            raise ConfigError(
                "cost model with a name, source or hash that is no text",
                expected="text",
                hint="correct the device profile",
            )

    @property
    def exchange_mw(self) -> float:
        """Power during an exchange: of the waiting device and of its modem."""
        return self.idle_mw + self.radio.active_mw

    def save(self, path: Path) -> None:
        """Write as JSON; written whole or not at all."""
        write_text(path, json.dumps(self.to_json(), indent=1) + "\n")

    def to_json(self) -> dict[str, Any]:
        """Plain values that `load` reads."""
        raw = asdict(self) | {"topology": self.topology.to_json()}
        if self.topology == SHIPPED and not self.reached_ms:
            del raw["topology"], raw["reached_ms"]  # as before there were other networks
        if not self.machine:
            del raw["machine"]  # as before it was kept
        return raw

    @classmethod
    def load(cls, path: Path) -> CostModel:
        """Read a model written by `save`; raises `DataError` if it cannot be read."""
        with refusing(
            DataError,
            f"cost model {path}",
            expected="a file written by `sliproad testbed fit`",
            hint="fit it again, or give another path",
        ):
            raw = json_object(file_bytes(path, MAX_JSON_BYTES))
            raw["radio"] = RadioPower(**raw["radio"])
            for name in (*_OF_ACTIONS, "filled", "reached_ms"):
                raw[name] = tuple(raw[name] if name in _OF_ACTIONS else raw.get(name, ()))
            raw["topology"] = Topology.stored_in(raw)
            return cls(**raw)


def load_profile(name: str) -> CostModel:
    """A device profile: the path of its file, or one of `SHIPPED_PROFILES`; raises `DataError`."""
    if name not in SHIPPED_PROFILES:
        return CostModel.load(Path(name))
    file = resources.files("testbed") / "assets" / SHIPPED_PROFILES[name]
    with resources.as_file(file) as path:
        return CostModel.load(path)


def derives_reached(topology: Topology) -> bool:
    """Whether `CostModel.reached_ms` follows from the figures of the actions."""
    return {0, *topology.exits[:-1]} <= set(topology.splits)


def jitter_pool(rng: np.random.Generator, spread: float, n: int) -> Floats:
    """Lognormal factors with mean 1, so that mean costs equal the cost model's formulas.

    Args:
        rng: of the factors.
        spread: standard deviation of their logarithm.
        n: how many.

    Returns:
        float64 (n,).
    """
    return np.exp(spread * rng.standard_normal(n) - spread * spread / 2)


def standing_ms(cost: CostModel) -> Floats:
    """Device time of blocks 1..p without any exit or encoder, p = 0..n_blocks, and the overhead.

    The overhead (capture, features, decision) is there from the first block on. A frame has it
    once, whatever its number of decisions.

    Where the cost model states no `CostModel.reached_ms`: finishing the main exit from the frame
    takes all blocks and the exit; from block p it takes the blocks after p and the exit: the
    difference is blocks 1..p. The overhead is the time of a local action beyond finishing from the
    frame.

    Returns:
        float64 (n_blocks + 1,), the cost model's slowdown included; NaN where the device cannot
        stop.
    """
    times = resumed_ms(cost)
    times[0] = 0.0
    return times


def resumed_ms(cost: CostModel) -> Floats:
    """As `standing_ms`, for resuming from block p after an exchange, float64 (n_blocks + 1,).

    It has the overhead at p = 0, too. Evaluating an exit then takes its local time minus this.
    """
    if cost.reached_ms:
        return cost.slowdown * np.array(cost.reached_ms)
    at = cost.topology
    whole = cost.fallback_ms[at.index(at.n_blocks, 0)]
    stops = [*at.splits, at.n_blocks]
    parts = [whole - cost.fallback_ms[at.index(at.n_blocks, p)] for p in at.splits]
    parts.append(max(whole, *parts))
    times = np.full(at.n_blocks + 1, np.nan)
    times[stops] = np.maximum(np.maximum.accumulate(parts), 0.0) + _overhead_ms(cost)
    return cost.slowdown * times


def _overhead_ms(cost: CostModel) -> float:
    """Least time of a local action beyond finishing its exit from the frame, slowdown 1."""
    at = cost.topology
    local = np.array([cost.device_ms[a] for a in at.local])
    finish = np.array([cost.fallback_ms[at.index(e, 0)] for e in at.exits])
    return max(0.0, float((local - finish).min()))
