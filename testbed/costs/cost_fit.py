"""From a campaign to the practical models of delay and energy.

Every term has a cause: blocks, exits, encoders and decoders take the same time in every action; a
payload takes its bits over the rate and one round trip. All terms are non-negative. Times of
computation are fitted by robust least squares (`testbed.costs.terms`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cnn.topology import Topology
from testbed.costs.samples import Powers, Samples
from testbed.costs.terms import OVERHEAD, SEND, Measured, fit_terms, spread, terms_of
from testbed.meters.cost_model import CostModel, Floats
from testbed.wire.protocol import WIRE_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted terms, milliseconds at slowdown 1.

    Attributes:
        device: by name in `Terms.device`.
        server: by name in `Terms.server`.
        net_ms: constant of an exchange beyond transfer and round trip.
        server_wait_ms: median wait at the otherwise idle server.
        jitter: `spread` of device compute.
        topology: of the network.
        device_ms, fallback_ms, server_ms: float64 (n_actions,), of every action, as in `CostModel`.
        reached_ms: float64 (n_blocks + 1,) or empty, as in `CostModel`.
        filled: figures of `reached_ms` that rest on an assumption (`Terms.fit_segments`).
    """

    device: dict[str, float]
    server: dict[str, float]
    net_ms: float
    server_wait_ms: float
    jitter: float
    topology: Topology
    device_ms: Floats = field(repr=False)
    fallback_ms: Floats = field(repr=False)
    server_ms: Floats = field(repr=False)
    reached_ms: Floats = field(repr=False)
    filled: tuple[str, ...] = ()

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
        payload_bytes: (n_actions,), uplink payload of each action.
    """
    terms = terms_of(samples.topology)
    heads = _heads(samples, slowdown)
    device = _fit_device(samples, slowdown, heads)
    sent = ~samples.topology.is_local[samples.action]
    far = _fit_server(samples.take(sent), device)
    known_ms = transfer_ms(samples, payload_bytes)[sent]
    times = np.array(list(device.values()))
    device_ms = terms.device_rows @ times
    segments = np.array([device[name] for name in terms.segments])
    return Fit(
        device=device,
        server=dict(zip(terms.server, far.tolist(), strict=True)),
        net_ms=max(0.0, _median(samples.transfer_ms[sent] - known_ms)),
        server_wait_ms=_median(samples.server_queue_ms[sent]),
        jitter=spread(samples.compute_ms / slowdown, device_ms[samples.action]),
        topology=samples.topology,
        device_ms=device_ms,
        fallback_ms=terms.fallback_rows @ times,
        server_ms=terms.server_rows @ far,
        reached_ms=terms.reached_ms(device[OVERHEAD], segments),
        filled=terms.reached_filled(heads),
    )


def _heads(samples: Samples, slowdown: float) -> Measured:
    """Times of what ran before the encoder; nothing ran in a frame that was sent whole."""
    rows = terms_of(samples.topology).head_rows[samples.action]
    runs = rows.any(axis=1)
    return Measured(rows[runs], samples.head_ms[runs] / slowdown)


def _fit_device(samples: Samples, slowdown: float, heads: Measured) -> dict[str, float]:
    """Device terms in the order of `Terms.device`, from the timed stages of each row."""
    terms = terms_of(samples.topology)
    rest_ms = samples.compute_ms - samples.head_ms - samples.encode_ms
    local = samples.topology.is_local[samples.action]
    overhead = _median(rest_ms[local]) / slowdown
    times = {OVERHEAD: overhead, SEND: _median(rest_ms[~local]) / slowdown - overhead}
    segments = terms.fit_segments(heads)
    times |= dict(zip(terms.segments, segments.tolist(), strict=True))
    split = terms.sent_split[samples.action]
    for s in set(samples.topology.splits) - {0}:
        times[f"enc{s}"] = _median(samples.encode_ms[split == s]) / slowdown
    return {name: max(0.0, times[name]) for name in terms.device}


def _median(values: Floats) -> float:
    """0 in a network that sends nothing."""
    return float(np.median(values)) if len(values) else 0.0


def _fit_server(sent: Samples, device: dict[str, float]) -> Floats:
    """Server terms in the order of `Terms.server`.

    A server reports one time for decoder, blocks and exit together. The sum of every action
    follows from it, but not every term. Terms that cannot be separated are taken in the
    proportion that they have on the device.
    """
    terms = terms_of(sent.topology)
    alike = np.array([0.0 if n == OVERHEAD else device.get(n, 0.0) for n in terms.server])
    if not len(sent):
        return 0.0 * alike
    most = terms.sent_split[sent.action] == min(sent.topology.splits)  # of the whole frame
    speed = np.median(sent.server_ms[most] / (terms.server_rows @ alike)[sent.action[most]])
    return fit_terms(terms.server_rows[sent.action], sent.server_ms, prior=speed * alike)


def transfer_ms(samples: Samples, payload_bytes: Floats) -> Floats:
    """Time of the link alone: the payload's bits over the rate, and the round trip."""
    bits = 8 * (payload_bytes[samples.action] + WIRE_OVERHEAD_BYTES)
    out: Floats = bits / (1e3 * samples.uplink_mbps) + samples.rtt_ms
    return out


def predict(
    samples: Samples, fit: Fit, slowdown: float, payload_bytes: Floats, powers: Powers
) -> tuple[Floats, Floats]:
    """Modelled delay (ms) and energy (mJ) of every sample, from action and condition alone.

    Raises:
        ConfigError: if the fit is of another network.
    """
    samples.topology.require_same(fit.topology, "a fit", "the frames it predicts")
    action = samples.action
    local = samples.topology.is_local[action]
    compute = slowdown * fit.device_ms[action]
    away = transfer_ms(samples, payload_bytes) + fit.net_ms + fit.server_wait_ms
    away = np.where(local, 0.0, away + fit.server_ms[action])
    sent = np.where(local, 0.0, payload_bytes[action] + WIRE_OVERHEAD_BYTES)
    return compute + away, powers.energy_mj(compute, away, sent)


class FittedTimes(Protocol):
    """The part of a fit that a cost model needs, as in `CostModel`; times at slowdown 1."""

    @property
    def topology(self) -> Topology: ...
    @property
    def device_ms(self) -> Floats: ...
    @property
    def fallback_ms(self) -> Floats: ...
    @property
    def server_ms(self) -> Floats: ...
    @property
    def reached_ms(self) -> Floats: ...
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
    machine: str = "",
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
        topology=fit.topology,
        reached_ms=rounded(fit.reached_ms),
        machine=machine,
    )
