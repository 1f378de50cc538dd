"""From a campaign to the practical models of delay and energy.

Every term has a cause: blocks, exits, encoders and decoders take the same time in every action; a
payload takes its bits over the rate and one round trip. All terms are non-negative. Times of
computation are fitted by robust least squares (`testbed.costs.terms`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from cnn.topology import ACTIONS, N_EXITS
from testbed.costs.samples import Powers, Samples
from testbed.costs.terms import (
    DEVICE_TERMS,
    IS_LOCAL,
    OVERHEAD,
    SEGMENTS,
    SEND,
    SERVER_TERMS,
    design,
    device_terms,
    fallback_terms,
    fit_terms,
    head_terms,
    server_terms,
    spread,
)
from testbed.meters.cost_model import CostModel, Floats
from testbed.wire.protocol import WIRE_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted terms, milliseconds at slowdown 1.

    Attributes:
        device: by name in `DEVICE_TERMS`.
        server: by name in `SERVER_TERMS`.
        net_ms: constant of an exchange beyond transfer and round trip.
        server_wait_ms: median wait at the otherwise idle server.
        jitter: `spread` of device compute.
        device_ms, fallback_ms, server_ms: float64 (20,), of every action, as in `CostModel`.
    """

    filled: ClassVar[tuple[str, ...]] = ()

    device: dict[str, float]
    server: dict[str, float]
    net_ms: float
    server_wait_ms: float
    jitter: float
    device_ms: Floats = field(repr=False)
    fallback_ms: Floats = field(repr=False)
    server_ms: Floats = field(repr=False)

    def coefficients(self) -> dict[str, float]:
        """Every coefficient by a name with its unit."""
        return {
            **{f"device_{name}_ms": value for name, value in self.device.items()},
            **{f"server_{name}_ms": value for name, value in self.server.items()},
            "net_ms": self.net_ms,
            "server_wait_ms": self.server_wait_ms,
            "jitter": self.jitter,
        }


def fit_samples(samples: Samples, slowdown: float, payload_bytes: Floats) -> Fit:
    """Fit every term.

    Args:
        samples: frames of a campaign.
        slowdown: emulated slowdown of its device.
        payload_bytes: (20,), uplink payload of each action.
    """
    device = _fit_device(samples, slowdown)
    sent = ~IS_LOCAL[samples.action]
    far_table = design(server_terms, SERVER_TERMS)
    far = _fit_server(samples.take(sent), device)
    known_ms = transfer_ms(samples, payload_bytes)[sent]
    device_ms = design(device_terms, DEVICE_TERMS) @ device
    return Fit(
        device=dict(zip(DEVICE_TERMS, device.tolist(), strict=True)),
        server=dict(zip(SERVER_TERMS, far.tolist(), strict=True)),
        net_ms=max(0.0, float(np.median(samples.transfer_ms[sent] - known_ms))),
        server_wait_ms=float(np.median(samples.server_queue_ms[sent])),
        jitter=spread(samples.compute_ms / slowdown, device_ms[samples.action]),
        device_ms=device_ms,
        fallback_ms=design(fallback_terms, DEVICE_TERMS) @ device,
        server_ms=far_table @ far,
    )


def _fit_device(samples: Samples, slowdown: float) -> Floats:
    """Device terms in the order of `DEVICE_TERMS`, from the timed stages of each row."""
    action = samples.action
    rest_ms = samples.compute_ms - samples.head_ms - samples.encode_ms
    local = IS_LOCAL[action]
    overhead = float(np.median(rest_ms[local])) / slowdown
    times: dict[str, float] = {
        OVERHEAD: overhead,
        SEND: float(np.median(rest_ms[~local])) / slowdown - overhead,
    }
    heads = design(head_terms, SEGMENTS)
    runs = heads[action].any(axis=1)
    segments = fit_terms(heads[action[runs]], samples.head_ms[runs] / slowdown)
    times |= dict(zip(SEGMENTS, segments.tolist(), strict=True))
    split = np.array([0 if a.is_local else a.split for a in ACTIONS])[action]
    for s in range(1, N_EXITS):
        times[f"enc{s}"] = float(np.median(samples.encode_ms[split == s])) / slowdown
    return np.array([max(0.0, times[name]) for name in DEVICE_TERMS])


def _fit_server(sent: Samples, device: Floats) -> Floats:
    """Server terms in the order of `SERVER_TERMS`.

    A server reports one time for decoder, blocks and exit together. The sum of every action
    follows from it, but not every term. Terms that cannot be separated are taken in the
    proportion that they have on the device.
    """
    table = design(server_terms, SERVER_TERMS)
    on_device = dict(zip(DEVICE_TERMS, device.tolist(), strict=True))
    alike = np.array([on_device.get(name, 0.0) for name in SERVER_TERMS])
    alike[SERVER_TERMS.index(OVERHEAD)] = 0.0
    whole = np.array([a.is_full_offload for a in ACTIONS])[sent.action]
    speed = np.median(sent.server_ms[whole] / (table @ alike)[sent.action[whole]])
    return fit_terms(table[sent.action], sent.server_ms, prior=speed * alike)


def transfer_ms(samples: Samples, payload_bytes: Floats) -> Floats:
    """Time of the link alone: the payload's bits over the rate, and the round trip."""
    bits = 8 * (payload_bytes[samples.action] + WIRE_OVERHEAD_BYTES)
    out: Floats = bits / (1e3 * samples.uplink_mbps) + samples.rtt_ms
    return out


def predict(
    samples: Samples, fit: Fit, slowdown: float, payload_bytes: Floats, powers: Powers
) -> tuple[Floats, Floats]:
    """Modelled delay (ms) and energy (mJ) of every sample, from action and condition alone."""
    action = samples.action
    local = IS_LOCAL[action]
    compute = slowdown * fit.device_ms[action]
    away = transfer_ms(samples, payload_bytes) + fit.net_ms + fit.server_wait_ms
    away = np.where(local, 0.0, away + fit.server_ms[action])
    sent = np.where(local, 0.0, payload_bytes[action] + WIRE_OVERHEAD_BYTES)
    return compute + away, powers.energy_mj(compute, away, sent)


class FittedTimes(Protocol):
    """The part of a fit that a cost model needs, as in `CostModel`; times at slowdown 1."""

    @property
    def device_ms(self) -> Floats: ...
    @property
    def fallback_ms(self) -> Floats: ...
    @property
    def server_ms(self) -> Floats: ...
    @property
    def net_ms(self) -> float: ...
    @property
    def jitter(self) -> float: ...
    @property
    def filled(self) -> tuple[str, ...]: ...


def cost_model(
    fit: FittedTimes,
    payload_bytes: Floats,
    powers: Powers,
    *,
    name: str,
    source: str,
    bundle_hash: str,
) -> CostModel:
    """The fit as the `CostModel` that environments read; its slowdown is 1."""

    def rounded(values: Floats) -> tuple[float, ...]:
        return tuple(round(v, 5) for v in values.tolist())

    return CostModel(
        name=name,
        source=source,
        bundle_hash=bundle_hash,
        slowdown=1.0,
        device_ms=rounded(fit.device_ms),
        fallback_ms=rounded(fit.fallback_ms),
        server_ms=rounded(fit.server_ms),
        payload_bytes=tuple(int(v) for v in payload_bytes),
        wire_overhead_bytes=float(WIRE_OVERHEAD_BYTES),
        net_ms=round(fit.net_ms, 5),
        jitter=round(fit.jitter, 5),
        idle_mw=powers.idle_mw,
        busy_mw=powers.busy_mw,
        power_source=powers.source,
        radio=powers.radio,
        filled=fit.filled,
    )
