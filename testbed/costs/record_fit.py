"""The cost model of a deployed device, from its records and perhaps a base cost model.

The fit covers the times that the records identify. A time is identified if it follows from
measured times: for example, the head of e5s3 is that of e4s3, even if e5s3 was never taken. Other
times come from the base model, term by term, scaled by the median ratio of measured times to the
base's: one ratio for the device, one for the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.topology import ACTIONS, N_EXITS
from testbed.costs.record_samples import SPLIT, RecordSamples
from testbed.costs.terms import (
    IS_LOCAL,
    MIN_FRAMES,
    OVERHEAD,
    SEGMENTS,
    SEND,
    SERVER_TERMS,
    BaseTerms,
    Mask,
    Measured,
    design,
    fallback_terms,
    head_terms,
    server_terms,
    spread,
)
from testbed.meters.cost_model import CostModel, Floats

_HEADS: Final = design(head_terms, SEGMENTS)
_REST: Final = design(fallback_terms, SEGMENTS)
_SERVER: Final = design(server_terms, SERVER_TERMS)
_EXITS: Final = tuple(
    SEGMENTS.index("block5_exit5" if e == N_EXITS else f"exit{e}") for e in range(1, N_EXITS + 1)
)


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """Times of the device, milliseconds at slowdown 1.

    Attributes:
        segments: float64 (9,), of `SEGMENTS`.
        overhead_ms: of every frame.
        send_ms: of a frame that is sent, beside the exchange.
        encode_ms: float64 (5,), of the encoder of each split; none at split 0.
        known: bool (20,), whether an action's whole time was measured.
        rest_known: bool (20,), whether the time of finishing it after its split was measured.
        scale: measured over base; None without base or measurement.
    """

    segments: Floats
    overhead_ms: float
    send_ms: float
    encode_ms: Floats
    known: Mask
    rest_known: Mask
    scale: float | None

    @classmethod
    def fit(cls, samples: RecordSamples, slowdown: float, base: BaseTerms | None) -> Self:
        """Fit the measured times and take the rest from the base; without one the rest is 0."""
        heads = Measured.of(head_rows(samples), samples.head_ms / slowdown)
        rest_ms = (samples.compute_ms - samples.head_ms - samples.encode_ms) / slowdown
        local = IS_LOCAL[samples.action]
        alone, sending = _median(rest_ms[local]), _median(rest_ms[~local])
        split = np.where(local, 0, SPLIT[samples.action])
        encode = [0.0, *(_median(samples.encode_ms[split == s]) for s in range(1, N_EXITS))]
        scale = None if base is None else heads.scale(base.of_device(SEGMENTS))
        if base is not None and scale is None:  # only whole frames were sent
            told = base.device[OVERHEAD] + (0.0 if alone is not None else base.device[SEND])
            measured = alone if alone is not None else sending
            scale = None if measured is None else measured / told
        by = 1.0 if scale is None else scale

        def filled(name: str) -> float:
            return 0.0 if base is None else by * base.device[name]

        overhead = alone if alone is not None else min(filled(OVERHEAD), sending or np.inf)
        encoders = [
            (filled(f"enc{s}") if ms is None else ms / slowdown) if s else 0.0
            for s, ms in enumerate(encode)
        ]
        beside = np.where(
            IS_LOCAL,
            alone is not None,
            (sending is not None) & np.array([encode[s] is not None for s in SPLIT]),
        )
        return cls(
            segments=heads.fit(None if base is None else base.of_device(SEGMENTS, by)),
            overhead_ms=max(0.0, overhead),
            send_ms=filled(SEND) if sending is None else max(0.0, sending - overhead),
            encode_ms=np.array(encoders),
            known=heads.identify(_HEADS) & beside,
            rest_known=heads.identify(_REST),
            scale=scale,
        )

    def of_actions(self) -> Floats:
        """Time of every action without failures, float64 (20,)."""
        out: Floats = self._beside(np.arange(len(ACTIONS))) + _HEADS @ self.segments
        return out

    def of_frames(self, samples: RecordSamples) -> Floats:
        """Modelled compute of each frame, the evaluated exits included."""
        out: Floats = self._beside(samples.action) + head_rows(samples) @ self.segments
        return out

    def _beside(self, action: NDArray[np.int64]) -> Floats:
        sent = ~IS_LOCAL[action]
        out: Floats = self.overhead_ms + sent * (self.send_ms + self.encode_ms[SPLIT[action]])
        return out


@dataclass(frozen=True, slots=True)
class RecordFit:
    """Fitted costs and their origin.

    Attributes:
        device: times of the device.
        server_ms: float64 (20,), of the server.
        server_known: bool (20,), whether it follows from measurements.
        server_scale: measured over base; None without base or measurement.
        payload_bytes: float64 (20,).
        payload_known: bool (20,), whether a payload of that split was sent.
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
        """bool (20,): actions with every figure measured."""
        d = self.device
        return d.known & d.rest_known & self.server_known & self.payload_known

    @property
    def device_ms(self) -> Floats:
        """Time of every action on the device without failures, float64 (20,)."""
        return self.device.of_actions()

    @property
    def fallback_ms(self) -> Floats:
        """Time to finish every action after its split, float64 (20,)."""
        times: Floats = _REST @ self.device.segments
        return times

    @property
    def filled(self) -> tuple[str, ...]:
        """Figures that were not measured, such as ``server_ms e3s1``."""
        masks = {
            "device_ms": self.device.known,
            "fallback_ms": self.device.rest_known,
            "server_ms": self.server_known,
            "payload_bytes": self.payload_known,
        }
        figures = [f"{k} {ACTIONS[a].name}" for k, m in masks.items() for a in np.flatnonzero(~m)]
        return (*figures, "net_ms")


def fit_records(samples: RecordSamples, slowdown: float, base: CostModel | None) -> RecordFit:
    """Fit the identified times and take the rest from the base.

    Raises:
        DataError: if the records do not identify everything and there is no base.
    """
    terms = None if base is None else BaseTerms.of(base)
    device = DeviceTimes.fit(samples, slowdown, terms)
    sent = ~IS_LOCAL[samples.action]
    far = Measured.of(_SERVER[samples.action[sent]], samples.server_ms[sent])
    scale = None if terms is None else far.scale(terms.of_server())
    server = far.fit(None if terms is None else terms.of_server(scale or 1.0))
    payload, payload_known = _payloads(samples)
    if base is not None:
        payload = np.where(payload_known, payload, np.array(base.payload_bytes, np.float64))
    fit = RecordFit(
        device=device,
        server_ms=_SERVER @ server,
        server_known=far.identify(_SERVER),
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
    """float64 (N, 9): which of `SEGMENTS` ran before a frame was sent or answered."""
    rows: Floats = _HEADS[samples.action].copy()
    for e, at in enumerate(_EXITS):
        rows[(samples.looks >> e) & 1 == 1, at] = 1.0
    return rows


def _payloads(samples: RecordSamples) -> tuple[Floats, Mask]:
    """Bytes of each action's payload, determined by its split, and whether they were sent."""
    local = IS_LOCAL[samples.action]
    sizes = [_median(samples.uplink_bytes[~local & (SPLIT[samples.action] == s)])
             for s in range(N_EXITS)]  # fmt: skip
    known = IS_LOCAL | np.array([sizes[s] is not None for s in SPLIT])
    return np.where(IS_LOCAL, 0.0, np.array([sizes[s] or 0.0 for s in SPLIT])), known


def _median(values: Floats) -> float | None:
    """The median; None for fewer values than a pattern needs."""
    return float(np.median(values)) if len(values) >= MIN_FRAMES else None


def _gaps(samples: RecordSamples, known: Mask) -> DataError:
    taken = [ACTIONS[a].name for a in np.unique(samples.action)]
    missing = [ACTIONS[a].name for a in np.flatnonzero(~known)]
    return DataError(
        f"records with frames of {', '.join(taken)}, from which the costs of "
        f"{', '.join(missing)} do not follow",
        expected=f"{MIN_FRAMES} or more frames of each of all 20 actions, or a base cost model",
        hint="give --base (`shipped` or a file), or record a device that explores",
    )
