"""The cost model of a deployed device, from its records and perhaps a base cost model.

The fit covers the times that the records identify. A time is identified if it follows from
measured times: for example, the head of e5s3 is that of e4s3, even if e5s3 was never taken. Other
times come from the base model, term by term, scaled by the median ratio of measured times to the
base's: one ratio for the device, one for the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.topology import Topology
from testbed.costs.record_samples import RecordSamples
from testbed.costs.terms import (
    MIN_FRAMES,
    OVERHEAD,
    SEND,
    BaseTerms,
    Mask,
    Measured,
    Terms,
    spread,
    terms_of,
)
from testbed.meters.cost_model import CostModel, Floats


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """Times of the device, milliseconds at slowdown 1.

    Attributes:
        terms: of the network.
        segments: float64 (n_segments,), of `Terms.segments`.
        overhead_ms: of every frame.
        send_ms: of a frame that is sent, beside the exchange.
        encode_ms: float64 (n_blocks,), of the encoder of each split; none at split 0.
        known: bool (n_actions,), whether an action's whole time was measured.
        rest_known: bool (n_actions,), whether the time of finishing it after its split was
            measured.
        reached_filled: names of the figures of `reached_ms` that were not.
        scale: measured over base; None without base or measurement.
    """

    terms: Terms
    segments: Floats
    overhead_ms: float
    send_ms: float
    encode_ms: Floats
    known: Mask
    rest_known: Mask
    reached_filled: tuple[str, ...]
    scale: float | None

    @classmethod
    def fit(cls, samples: RecordSamples, slowdown: float, base: BaseTerms | None) -> Self:
        """Fit the measured times and take the rest from the base; without one it is assumed."""
        terms = terms_of(samples.topology)
        is_local, sent_split = samples.topology.is_local, terms.sent_split
        heads = Measured.of(head_rows(samples), samples.head_ms / slowdown)
        rest_ms = (samples.compute_ms - samples.head_ms - samples.encode_ms) / slowdown
        local, split = is_local[samples.action], sent_split[samples.action]
        alone, sending = _median(rest_ms[local]), _median(rest_ms[~local])
        cuts = set(samples.topology.splits) - {0}
        encode = {0: 0.0} | {s: _median(samples.encode_ms[split == s]) for s in cuts}
        scale = None if base is None else heads.scale(base.of_device(terms.segments))
        if base is not None and scale is None:  # only whole frames were sent
            told = base.device[OVERHEAD] + (0.0 if alone is not None else base.device[SEND])
            measured = alone if alone is not None else sending
            scale = None if measured is None else measured / told
        by = 1.0 if scale is None else scale

        def filled(name: str) -> float:
            return 0.0 if base is None else by * base.device[name]

        overhead = alone if alone is not None else min(filled(OVERHEAD), sending or np.inf)
        encoders = np.zeros(samples.topology.n_blocks)
        for s, ms in encode.items():
            encoders[s] = filled(f"enc{s}") if ms is None else ms / slowdown
        beside = np.where(
            is_local,
            alone is not None,
            (sending is not None) & np.array([encode[s] is not None for s in sent_split]),
        )
        prior = None if base is None else base.of_device(terms.segments, by)
        return cls(
            terms=terms,
            segments=terms.fit_segments(heads, prior),
            overhead_ms=max(0.0, overhead),
            send_ms=filled(SEND) if sending is None else max(0.0, sending - overhead),
            encode_ms=encoders,
            known=heads.identify(terms.head_rows) & beside,
            rest_known=heads.identify(terms.rest_rows),
            reached_filled=terms.reached_filled(heads),
            scale=scale,
        )

    def of_actions(self) -> Floats:
        """Time of every action without failures, float64 (n_actions,)."""
        every = np.arange(self.terms.topology.n_actions)
        out: Floats = self._beside(every) + self.terms.head_rows @ self.segments
        return out

    def of_frames(self, samples: RecordSamples) -> Floats:
        """Modelled compute of each frame, the evaluated exits included."""
        out: Floats = self._beside(samples.action) + head_rows(samples) @ self.segments
        return out

    def _beside(self, action: NDArray[np.int64]) -> Floats:
        sent, split = ~self.terms.topology.is_local[action], self.terms.sent_split[action]
        out: Floats = self.overhead_ms + sent * (self.send_ms + self.encode_ms[split])
        return out


@dataclass(frozen=True, slots=True)
class RecordFit:
    """Fitted costs and their origin.

    Attributes:
        device: times of the device.
        server_ms: float64 (n_actions,), of the server.
        server_known: bool (n_actions,), whether it follows from measurements.
        server_scale: measured over base; None without base or measurement.
        payload_bytes: float64 (n_actions,).
        payload_known: bool (n_actions,), whether a payload of that split was sent.
        net_ms: the base's. Records do not separate it from the round trip: without a base it is
            0, and the round trips of traces recovered with this model then include it.
        jitter: `spread` of device compute.
        server_wait_ms: median wait at the server; None if nothing was sent.
    """

    device: DeviceTimes
    server_ms: Floats
    server_known: Mask
    server_scale: float | None
    payload_bytes: Floats
    payload_known: Mask
    net_ms: float
    jitter: float
    server_wait_ms: float | None

    @property
    def known(self) -> Mask:
        """bool (n_actions,): actions with every figure measured."""
        d = self.device
        return d.known & d.rest_known & self.server_known & self.payload_known

    @property
    def device_ms(self) -> Floats:
        """Time of every action on the device without failures, float64 (n_actions,)."""
        return self.device.of_actions()

    @property
    def fallback_ms(self) -> Floats:
        """Time to finish every action after its split, float64 (n_actions,)."""
        times: Floats = self.device.terms.rest_rows @ self.device.segments
        return times

    @property
    def reached_ms(self) -> Floats:
        """As in `CostModel`, float64 (n_blocks + 1,) or empty."""
        return self.device.terms.reached_ms(self.device.overhead_ms, self.device.segments)

    @property
    def topology(self) -> Topology:
        """Of the network."""
        return self.device.terms.topology

    @property
    def filled(self) -> tuple[str, ...]:
        """Figures that were not measured, such as ``server_ms e3s1``."""
        masks = {
            "device_ms": self.device.known,
            "fallback_ms": self.device.rest_known,
            "server_ms": self.server_known,
            "payload_bytes": self.payload_known,
        }
        figures = [
            f"{figure} {self.topology.actions[a].name}"
            for figure, known in masks.items()
            for a in np.flatnonzero(~known)
        ]
        return (*figures, *self.device.reached_filled, "net_ms")


def fit_records(samples: RecordSamples, slowdown: float, base: CostModel | None) -> RecordFit:
    """Fit the identified times and take the rest from the base.

    Raises:
        DataError: if the records do not identify everything and there is no base.
        ConfigError: if the base is of another network.
    """
    if base is not None:
        samples.topology.require_same(base.topology, f"base cost model {base.name}", "the records")
    terms = None if base is None else BaseTerms.of(base)
    device = DeviceTimes.fit(samples, slowdown, terms)
    server_rows = terms_of(samples.topology).server_rows
    sent = ~samples.topology.is_local[samples.action]
    far = Measured.of(server_rows[samples.action[sent]], samples.server_ms[sent])
    scale = None if terms is None else far.scale(terms.of_server())
    server = far.fit(None if terms is None else terms.of_server(scale or 1.0))
    payload, payload_known = _payloads(samples)
    if base is not None:
        payload = np.where(payload_known, payload, np.array(base.payload_bytes, np.float64))
    fit = RecordFit(
        device=device,
        server_ms=server_rows @ server,
        server_known=far.identify(server_rows),
        server_scale=scale,
        payload_bytes=payload,
        payload_known=payload_known,
        net_ms=0.0 if base is None else base.net_ms,
        jitter=spread(samples.compute_ms / slowdown, device.of_frames(samples)),
        server_wait_ms=_median(samples.server_queue_ms[sent]),
    )
    if base is None and not fit.known.all():
        raise _gaps(samples, fit.known)
    return fit


def head_rows(samples: RecordSamples) -> Floats:
    """float64 (N, n_segments): what of `Terms.segments` ran before a frame was sent or answered."""
    terms = terms_of(samples.topology)
    rows: Floats = terms.head_rows[samples.action]
    for exit, at in zip(samples.topology.exits, terms.exit_at, strict=True):
        rows[(samples.looks >> (exit - 1)) & 1 == 1, at] = 1.0
    return rows


def _payloads(samples: RecordSamples) -> tuple[Floats, Mask]:
    """Bytes of each action's payload, determined by its split, and whether they were sent."""
    is_local, split_of = samples.topology.is_local, samples.topology.split_of
    sent, split = ~is_local[samples.action], split_of[samples.action]
    sizes = [
        _median(samples.uplink_bytes[sent & (split == s)])
        for s in range(samples.topology.n_blocks + 1)
    ]
    known = is_local | np.array([sizes[s] is not None for s in split_of])
    return np.where(is_local, 0.0, np.array([sizes[s] or 0.0 for s in split_of])), known


def _median(values: Floats) -> float | None:
    """The median; None for fewer values than a pattern needs."""
    return float(np.median(values)) if len(values) >= MIN_FRAMES else None


def _gaps(samples: RecordSamples, known: Mask) -> DataError:
    actions = samples.topology.actions
    taken = [actions[a].name for a in np.unique(samples.action)]
    missing = [actions[a].name for a in np.flatnonzero(~known)]
    return DataError(
        f"records with frames of {', '.join(taken)}, from which the costs of "
        f"{', '.join(missing)} do not follow",
        expected=f"{MIN_FRAMES} or more frames of each of all {len(actions)} actions, or a base "
        "cost model",
        hint="give --base (`shipped` or a file), or record a device that explores",
    )
