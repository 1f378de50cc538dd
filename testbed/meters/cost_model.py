"""The practical models of delay and energy: the costs of a frame for each action.

Single frame, given the network state ``(uplink_mbps r, rtt_ms, server_wait_ms)``::

    compute_ms  = slowdown * device_ms[a]                        (head, encoder, exit)
    transfer_ms = 8 * (payload_bytes[a] + wire_overhead_bytes) / (1000 r) + rtt + net_ms
    delay_ms    = compute_ms + [a offloads] (transfer_ms + server_wait_ms + server_ms[a])
    energy_mj   = (busy_mw * compute_ms + idle_mw * waiting_ms + radio) / 1000

with the radio terms of `RadioPower`. Times are milliseconds, powers milliwatts.

The model implies the times of a frame's parts and their spread: the simulator adds them up, and
an emulated device waits for them (`standing_ms`, `resumed_ms`, `jitter_pool`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError, DataError, shown
from cnn.common.files import write_text
from cnn.common.outside import MAX_JSON_BYTES, file_bytes, json_object, refusing
from cnn.topology import N_ACTIONS, N_EXITS, action_index
from testbed.meters.power import RadioPower, is_amount

Floats = NDArray[np.float64]

MAX_JITTER: Final = 10.0
"""A factor of e^10; the value of a machine is below 0.5."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Fitted (or published) costs of all 20 actions for one device, server and modem.

    Attributes:
        name: such as ``pi4-class``.
        source: ``measured`` with the campaign's file hash, or ``published`` with a source.
        bundle_hash: model bundle whose segments were timed.
        slowdown: factor on `device_ms`; 1 is the measured device itself.
        device_ms: 20 figures: head, encoder and (local) exit on the device at slowdown 1.
        fallback_ms: 20 figures: finishing the action's exit locally after its split, slowdown 1.
        server_ms: 20 figures: decoder and tail on the server (0 where local).
        payload_bytes: 20 figures: uplink payload.
        wire_overhead_bytes: bytes of framing on the uplink beside a payload.
        net_ms: fixed cost of one exchange beyond transfer and round trip.
        jitter: spread of ln(measured / modelled) of compute times, for simulation.
        idle_mw: device power while it waits, without the modem.
        busy_mw: device power while it computes, without the modem.
        power_source: publication, file or meter of `idle_mw` and `busy_mw`.
        radio: modem power.
        filled: figures that were not measured but taken from a base model, such as
            ``server_ms e3s1`` (`testbed.costs.record_fit`).

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

    def __post_init__(self) -> None:
        for name in ("device_ms", "fallback_ms", "server_ms", "payload_bytes"):
            values = getattr(self, name)
            if len(values) != N_ACTIONS or not all(map(is_amount, values)):
                raise ConfigError(
                    f"cost model {shown(self.name)}: {name} = {shown(values)}",
                    expected=f"{N_ACTIONS} figures, none negative",
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
        texts = (self.name, self.source, self.bundle_hash, self.power_source, *self.filled)
        if not all(isinstance(text, str) for text in texts):
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
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

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
            for name in ("device_ms", "fallback_ms", "server_ms", "payload_bytes"):
                raw[name] = tuple(raw[name])
            raw["filled"] = tuple(raw.get("filled", ()))
            return cls(**raw)


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
    """Device time of blocks 1..p without any exit or encoder, p = 0..5, and the overhead.

    Finishing exit 5 from the frame takes blocks 1..5 and the exit; from block p it takes the
    blocks after p and the exit: the difference is blocks 1..p. The overhead (capture, features,
    decision) is the time of a local action beyond finishing from the frame. A frame has it
    once, whatever its number of decisions.

    Returns:
        float64 (6,), the cost model's slowdown included.
    """
    overhead = max(0.0, float(_beyond_finishing(cost).min()))
    whole = cost.fallback_ms[action_index(N_EXITS, 0)]
    parts = [whole - cost.fallback_ms[action_index(N_EXITS, p)] for p in range(N_EXITS)]
    times = np.maximum.accumulate(np.array([*parts, max(whole, *parts)]))
    times = np.maximum(times, 0.0)
    times[1:] += overhead
    return cost.slowdown * times


def resumed_ms(cost: CostModel) -> Floats:
    """As `standing_ms`, for resuming from block p after an exchange, float64 (6,).

    It has the overhead at p = 0, too. Evaluating an exit then takes its local time minus this.
    """
    times = standing_ms(cost)
    times[0] = cost.slowdown * max(0.0, float(_beyond_finishing(cost).min()))
    return times


def _beyond_finishing(cost: CostModel) -> Floats:
    """Time of each local action beyond finishing its exit from the frame, float64 (5,)."""
    exits = range(1, N_EXITS + 1)
    local = np.array([cost.device_ms[action_index(e, e)] for e in exits])
    finish = np.array([cost.fallback_ms[action_index(e, 0)] for e in exits])
    beyond: Floats = local - finish
    return beyond
