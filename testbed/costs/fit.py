"""From a campaign to the practical models of delay and energy.

Every term has a cause: blocks, exits, encoders and decoders take the same time in whatever
action they run; a payload takes its bits over the rate and one round trip. All terms are
non-negative. Times of computation are fitted by robust least squares (soft L1 on relative
residuals), since a busy machine now and then takes much longer and never much shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from cnn.action import ACTIONS, N_ACTIONS, N_EXITS, Action
from cnn.errors import DataError
from testbed.costs.cost_model import CostModel, RadioPower
from testbed.device.device import WIRE_OVERHEAD_BYTES
from testbed.records.parquet import Records

Floats = NDArray[np.float64]

OVERHEAD: Final = "overhead"
SEND: Final = "send"
"""What an exchange costs the device beyond the exchange: payload and answer pass its hands."""
SEGMENTS: Final = (
    "block1",
    "block2",
    "block3",
    "block4",
    "block5_exit5",
    *(f"exit{e}" for e in range(1, N_EXITS)),
)
"""Blocks and exits. Block 5 and exit 5 always run together, so they are one term."""
DEVICE_TERMS: Final = (OVERHEAD, SEND, *SEGMENTS, *(f"enc{s}" for s in range(1, N_EXITS)))
SERVER_TERMS: Final = (OVERHEAD, *SEGMENTS, *(f"dec{s}" for s in range(1, N_EXITS)))
IS_LOCAL: Final[NDArray[np.bool_]] = np.array([a.is_local for a in ACTIONS])
_SOFT: Final = 0.1
"""Relative residual beyond which soft L1 grows linearly: about the spread of a quiet CPU."""


def segment_terms(first: int, last: int, exit: int | None) -> list[str]:
    """Blocks `first`..`last`, and exit `exit` unless it is None."""
    blocks = [f"block{b}" for b in range(first, min(last, 4) + 1)]
    if exit is None:
        return blocks
    return [*blocks, "block5_exit5" if exit == N_EXITS else f"exit{exit}"]


def head_terms(action: Action) -> list[str]:
    """What runs on the device before the encoder."""
    return segment_terms(1, action.split, action.exit if action.is_local else None)


def device_terms(action: Action) -> list[str]:
    """What the device runs when all goes well."""
    send = [] if action.is_local else [SEND]
    encoder = [] if action.is_local or not action.split else [f"enc{action.split}"]
    return [OVERHEAD, *send, *head_terms(action), *encoder]


def fallback_terms(action: Action) -> list[str]:
    """What the device runs after a failed exchange."""
    return [] if action.is_local else segment_terms(action.split + 1, action.exit, action.exit)


def server_terms(action: Action) -> list[str]:
    """What the server runs."""
    if action.is_local:
        return []
    decoder = [f"dec{action.split}"] if action.split else []
    return [OVERHEAD, *decoder, *fallback_terms(action)]


_TIE: Final = 0.03
"""Square root of the prior's weight against the rows' (about a thousandth)."""


def design(terms: Callable[[Action], Sequence[str]], names: Sequence[str]) -> Floats:
    """float64 (20, n_terms): how often each term runs in each action."""
    table = np.zeros((N_ACTIONS, len(names)))
    for action in ACTIONS:
        for name in terms(action):
            table[action.index, names.index(name)] += 1
    return table


@dataclass(frozen=True, slots=True)
class Samples:
    """The frames of a campaign that count: answered as decided, warm-up excluded.

    All arrays have one element a frame; times in milliseconds at the campaign's slowdown.
    """

    action: NDArray[np.int64]
    condition: NDArray[np.str_]
    round: NDArray[np.int64]
    uplink_mbps: Floats
    rtt_ms: Floats
    head_ms: Floats
    encode_ms: Floats
    compute_ms: Floats
    transfer_ms: Floats
    server_queue_ms: Floats
    server_ms: Floats
    delay_ms: Floats
    energy_mj: Floats

    def __len__(self) -> int:
        return len(self.action)

    def take(self, rows: NDArray[Any]) -> Samples:
        """The rows `rows` (positions or mask)."""
        return Samples(*(getattr(self, name)[rows] for name in self.__slots__))


def samples_of(records: Records) -> Samples:
    """Read what a fit needs from campaign records.

    ``compute_ms`` is what the frame took beyond exchange and server: the device's own
    time, decision and Python overhead included, which no single stage shows.

    Raises:
        DataError: if this is no campaign, or an action or condition has no frame.
    """
    if records.source.get("kind") != "campaign":
        raise DataError(
            f"records of kind {records.source.get('kind')!r}",
            expected="records of `sliproad testbed campaign`",
            mend="run a campaign first",
        )
    use = (records.texts("status") == "ok") & ~np.array(records.table["warm_up"].to_pylist(), bool)
    away = [np.nan_to_num(records.numbers(n)) for n in ("transfer_ms", "server_queue_ms")]
    server_ms = np.nan_to_num(records.numbers("server_ms"))
    delay_ms = records.numbers("delay_ms") - records.numbers("queue_ms")
    samples = Samples(
        action=records.numbers("action").astype(np.int64),
        condition=records.texts("condition"),
        round=records.numbers("round").astype(np.int64),
        uplink_mbps=_by_condition(records, "uplink_mbps"),
        rtt_ms=_by_condition(records, "rtt_ms"),
        head_ms=records.numbers("head_ms"),
        encode_ms=np.nan_to_num(records.numbers("encode_ms")),
        compute_ms=delay_ms - away[0] - away[1] - server_ms,
        transfer_ms=away[0],
        server_queue_ms=away[1],
        server_ms=server_ms,
        delay_ms=delay_ms,
        energy_mj=records.numbers("energy_mj"),
    ).take(use)
    for condition in np.unique(samples.condition):
        seen = np.unique(samples.action[samples.condition == condition])
        if len(seen) < N_ACTIONS:
            raise DataError(
                f"condition {condition} with answered frames of {len(seen)} actions",
                expected=f"of all {N_ACTIONS}",
                mend="repeat the campaign with a longer --timeout-ms",
            )
    if not len(samples):
        raise DataError("no answered frames", expected="a campaign", mend="repeat the campaign")
    return samples


def _by_condition(records: Records, name: str) -> Floats:
    told = records.source["conditions"]
    return np.array([told[c][name] for c in records.texts("condition")], np.float64)


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted terms, milliseconds at slowdown 1.

    Attributes:
        device: by name in `DEVICE_TERMS`.
        server: by name in `SERVER_TERMS`.
        net_ms: constant of an exchange beyond transfer and round trip.
        server_wait_ms: median wait at the otherwise idle server.
        jitter: half the central 68 % interval of ln(measured / modelled) device compute.
    """

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
    table = design(device_terms, DEVICE_TERMS)
    device = _fit_device(samples, slowdown)
    sent = ~IS_LOCAL[samples.action]
    far_table = design(server_terms, SERVER_TERMS)
    far = _fit_server(samples.take(sent), device)
    known_ms = transfer_ms(samples, payload_bytes)[sent]
    device_ms = table @ device
    measured = samples.compute_ms / slowdown
    ratio = np.log(np.maximum(measured, 1e-6) / device_ms[samples.action])
    low, high = np.percentile(ratio, [15.87, 84.13])
    fallback = design(fallback_terms, DEVICE_TERMS) @ device
    return Fit(
        device=dict(zip(DEVICE_TERMS, device.tolist(), strict=True)),
        server=dict(zip(SERVER_TERMS, far.tolist(), strict=True)),
        net_ms=max(0.0, float(np.median(samples.transfer_ms[sent] - known_ms))),
        server_wait_ms=float(np.median(samples.server_queue_ms[sent])),
        jitter=float(high - low) / 2,
        device_ms=device_ms,
        fallback_ms=fallback,
        server_ms=far_table @ far,
    )


def _fit_device(samples: Samples, slowdown: float) -> Floats:
    """Device terms in the order of `DEVICE_TERMS`, from the stages that each row times."""
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

    A server reports one time for decoder, blocks and exit together, from which the sum of
    every action follows, but not every term. Where terms cannot be told apart they are
    taken in the proportion that they have on the device.
    """
    table = design(server_terms, SERVER_TERMS)
    on_device = dict(zip(DEVICE_TERMS, device.tolist(), strict=True))
    alike = np.array([on_device.get(name, 0.0) for name in SERVER_TERMS])
    alike[SERVER_TERMS.index(OVERHEAD)] = 0.0
    whole = np.array([a.is_full_offload for a in ACTIONS])[sent.action]
    speed = np.median(sent.server_ms[whole] / (table @ alike)[sent.action[whole]])
    return fit_terms(table[sent.action], sent.server_ms, prior=speed * alike)


def fit_terms(rows: Floats, values: Floats, prior: Floats | None = None) -> Floats:
    """Non-negative x with rows @ x near `values`, robust against values that are too large.

    Args:
        rows: float64 (N, n_terms).
        values: float64 (N,), positive.
        prior: float64 (n_terms,), decides in directions that the rows leave open; its
            weight is that of a thousandth of the rows. Terms with prior 0 have none.
    """
    patterns, which = np.unique(rows, axis=0, return_inverse=True)
    which = which.ravel()
    scale = np.array([np.median(values[which == k]) for k in range(len(patterns))])
    weight = 1 / np.maximum(scale, 1e-3)[which]
    matrix = rows * (weight / _SOFT)[:, None]
    target = values * weight / _SOFT
    if prior is not None:
        held = np.flatnonzero(prior > 0)
        tie = np.zeros((len(held), rows.shape[1]))
        tie[np.arange(len(held)), held] = _TIE * np.sqrt(len(rows)) / prior[held]
        matrix = np.concatenate([matrix, tie])
        target = np.concatenate([target, tie @ prior])

    def residuals(x: Floats) -> Floats:
        out: Floats = matrix @ x - target
        return out

    solution = least_squares(
        residuals,
        np.full(rows.shape[1], 0.1 * float(np.median(values))),
        jac=lambda x: matrix,
        bounds=(0, np.inf),
        loss="soft_l1",
    )
    fitted: Floats = solution.x
    return fitted


def transfer_ms(samples: Samples, payload_bytes: Floats) -> Floats:
    """What the link alone takes: the payload's bits over the rate, and the round trip."""
    bits = 8 * (payload_bytes[samples.action] + WIRE_OVERHEAD_BYTES)
    out: Floats = bits / (1e3 * samples.uplink_mbps) + samples.rtt_ms
    return out


@dataclass(frozen=True, slots=True)
class Powers:
    """Powers in the energy model, milliwatts, with their source."""

    idle_mw: float
    busy_mw: float
    radio: RadioPower
    source: str


def powers_of(records: Records, samples: Samples) -> Powers:
    """Powers that the energy model uses.

    With the model meter they are the published ones that made the energy figures. With a
    hardware meter the device's two powers are fitted, and no modem is accounted for.

    Raises:
        DataError: if the campaign has no energy figures.
    """
    told = records.source
    if told["config"]["meter"] == "model":
        device, radio = told["device_power"], RadioPower(**told["radio_power"])
        source = f"published: {device['source']}"
        return Powers(device["idle_mw"], device["busy_mw"], radio, source)
    known = np.isfinite(samples.energy_mj)
    if not known.any():
        raise DataError(
            f"a campaign with meter {told['config']['meter']!r} and no energy figure",
            expected="energy of at least some frames",
            mend="use --meter model, or see `sliproad testbed doctor`",
        )
    columns = np.stack([samples.compute_ms, samples.delay_ms], 1)[known] / 1e3
    # busy = idle + extra with extra >= 0, so that busy is never below idle.
    extra_mw, idle_mw = nnls(columns, samples.energy_mj[known])[0].tolist()
    none = RadioPower("none", 0.0, 0.0, 0.0, 0.0, "the meter sees no modem")
    return Powers(idle_mw, idle_mw + extra_mw, none, f"fitted to {told['config']['meter']}")


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
    energy = (powers.busy_mw * compute + powers.idle_mw * away) / 1e3
    energy += powers.radio.active_mw * away / 1e3 + powers.radio.tx_mw_per_mbps * 8e-6 * sent
    return compute + away, energy


def cost_model(
    fit: Fit, payload_bytes: Floats, powers: Powers, *, name: str, source: str, bundle_hash: str
) -> CostModel:
    """The fit as the `CostModel` that environments read; its slowdown is 1."""
    return CostModel(
        name=name,
        source=source,
        bundle_hash=bundle_hash,
        slowdown=1.0,
        device_ms=tuple(round(v, 5) for v in fit.device_ms.tolist()),
        fallback_ms=tuple(round(v, 5) for v in fit.fallback_ms.tolist()),
        server_ms=tuple(round(v, 5) for v in fit.server_ms.tolist()),
        payload_bytes=tuple(int(v) for v in payload_bytes),
        wire_overhead_bytes=float(WIRE_OVERHEAD_BYTES),
        net_ms=round(fit.net_ms, 5),
        jitter=round(fit.jitter, 5),
        idle_mw=powers.idle_mw,
        busy_mw=powers.busy_mw,
        power_source=powers.source,
        radio=powers.radio,
    )


def payloads_of(records: Records) -> Floats:
    """Payload bytes that each action really sent, float64 (20,)."""
    action = records.numbers("action").astype(np.int64)
    sent = records.numbers("uplink_bytes")
    return np.array([sent[action == a].max(initial=0.0) for a in range(N_ACTIONS)])
