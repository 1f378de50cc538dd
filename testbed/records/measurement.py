"""One frame's measurement, and its Parquet form.

Durations come from a monotonic clock. A figure that could not be measured is None
(null in Parquet), never 0. ``energy_source`` says which meter made the energy figures. Actions and
exits are those of one network: a row means something only together with its topology.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.topology import Topology

if TYPE_CHECKING:
    import pyarrow as pa

STATUSES: Final = ("ok", "fallback", "skipped")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Costs and result of one frame.

    Attributes:
        frame_id: running number of the frame in its run, from 0.
        track: running track number in its run, from 0.
        frame_in_track: frame number within its track, from 0.
        label: true class if known, for scoring only.
        action: canonical number of the action decided, in its network.
        exit_used: exit that gave the answer (differs from the action's after a fallback).
        captured_s: capture time since the start of the run, seconds.
        queue_ms: wait for the device to be free.
        head_ms: blocks (and exit head if local) on the device.
        encode_ms: bottleneck or frame encoder on the device; None if none ran.
        transfer_ms: last byte handed to the socket until the answer is read, less
            `server_queue_ms` and `server_ms`; None if nothing was sent.
        server_queue_ms: wait at the server, as the server reports it.
        server_ms: decoder and tail at the server, as the server reports it.
        fallback_ms: local compute after the link or server failed; None if not needed.
        delay_ms: total processing delay, capture until the answer is known.
        uplink_bytes: payload bytes handed to the transport (0 if local).
        downlink_bytes: answer bytes.
        prediction: class answered; None if the frame was skipped.
        confidence: calibrated probability of that class.
        correct: prediction equals label; None without a label.
        compute_mj: device energy of computing, millijoules.
        radio_mj: modem energy: sending, waiting, receiving and tail until the next frame.
        idle_mj: device energy while it waits for this frame's answer.
        energy_mj: sum of the three; None if one is None.
        energy_source: name of the meter(s), such as ``model:pi4-class``.
        status: ``ok``, ``fallback`` or ``skipped``.
        reason: why, where status is not ``ok``; otherwise empty.
        uplink_mbps: true mean uplink capacity of the link while this frame was sent, if
            the link says so; None otherwise (never part of an observation).
        rtt_ms: true base round trip of the link at that time, likewise.
        probes: probes sent before the next frame (`testbed.device.link_checks`);
            their modem energy is in `radio_mj`.
        probe_bytes: bytes they put on the uplink, framing included.
        looks: exits that a staged policy looked at on the device, bit e - 1 for the exit behind
            block e; 0 if the frame was decided in one go.
    """

    frame_id: int
    track: int
    frame_in_track: int
    label: int | None
    action: int
    exit_used: int
    captured_s: float
    queue_ms: float
    head_ms: float
    encode_ms: float | None
    transfer_ms: float | None
    server_queue_ms: float | None
    server_ms: float | None
    fallback_ms: float | None
    delay_ms: float
    uplink_bytes: int
    downlink_bytes: int
    prediction: int | None
    confidence: float | None
    correct: bool | None
    compute_mj: float | None
    radio_mj: float | None
    idle_mj: float | None
    energy_mj: float | None
    energy_source: str
    status: str
    reason: str
    uplink_mbps: float | None
    rtt_ms: float | None
    probes: int = 0
    probe_bytes: int = 0
    looks: int = 0


MAX_AMOUNT: Final = 1e12
"""Beyond any figure of a frame or device: 30,000 years in seconds, 30 years in milliseconds, a
terabyte, a gigawatt in milliwatts. Sums of it stay finite."""
_COUNT: Final = (0.0, MAX_AMOUNT)
_FIGURE: Final = (-MAX_AMOUNT, MAX_AMOUNT)
_CLASS: Final = (-1.0, 2.0**31)
_ACTIONS: Final = ("action", "policy_action", "shadow_action")
_RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(("frame_id", "track", "frame_in_track", "uplink_bytes"), _COUNT),
    **dict.fromkeys(("downlink_bytes", "probes", "probe_bytes"), _COUNT),
    **dict.fromkeys(("label", "prediction"), _CLASS),
    "confidence": (0.0, 1.0 + 1e-6),  # a float32 softmax may end a little above 1
    **dict.fromkeys(("queue_ms", "head_ms", "delay_ms", "uplink_mbps", "rtt_ms"), _COUNT),
    **dict.fromkeys(("captured_s", "encode_ms", "transfer_ms", "server_queue_ms"), _FIGURE),
    **dict.fromkeys(("server_ms", "fallback_ms"), _FIGURE),
    **dict.fromkeys(("compute_mj", "radio_mj", "idle_mj", "energy_mj"), _FIGURE),
}
"""Smallest and largest possible value of each number that means the same in every network."""
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "status": STATUSES,
    "decided_by": ("policy", "guard", "safe"),
}


@lru_cache(maxsize=64)
def _possible(topology: Topology) -> dict[str, NDArray[np.bool_]]:
    """Whether each number 0, 1, ... is possible in columns that mean something in one network."""
    looked_at = sum(1 << (exit - 1) for exit in topology.exits)
    return {
        **dict.fromkeys(_ACTIONS, np.ones(topology.n_actions, np.bool_)),
        "exit_used": np.isin(np.arange(topology.n_blocks + 1), (0, *topology.exits)),
        "looks": (np.arange(1 << topology.n_blocks) & ~looked_at) == 0,
    }


def impossible(
    rows: pa.Table | pa.RecordBatch, topology: Topology
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Rows that no device can have measured: the offending column, and its rows, bool (N,).

    A number must be finite and within its range, actions and exits must be those of the network,
    a status must be known, and a value that is always measured must be present. Absent columns
    are not checked.

    Args:
        rows: N rows of `Measurement`, perhaps with a service's further columns.
        topology: of the device's network.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    def mask(values: Any) -> NDArray[np.bool_]:
        return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)

    def figures(column: Any, none: float = 0.0) -> NDArray[np.float64]:
        numbers = pc.fill_null(column.cast(pa.float64()), none)
        return np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)

    possible = _possible(topology)
    for field in rows.schema:
        column = rows[field.name]
        if field.name in _RANGES:
            low, high = _RANGES[field.name]
            values = figures(column, max(low, 0.0))
            bad = ~((values >= low) & (values <= high))  # NaN is outside
        elif field.name in possible:
            values, table = figures(column), possible[field.name]
            inside = (values >= 0) & (values < len(table))
            bad = ~(inside & table[np.where(inside, values, 0).astype(np.intp)])
        elif field.name in _WORDS:
            known = pa.array(_WORDS[field.name], column.type)
            bad = ~mask(pc.or_(pc.is_in(column, known), pc.is_null(column)))
        else:
            bad = np.zeros(rows.num_rows, np.bool_)
        if field.name in _ALWAYS:
            bad |= mask(pc.is_null(column))
        if bad.any():
            yield field.name, bad


def only_possible(rows: pa.RecordBatch, topology: Topology) -> pa.RecordBatch:
    """The rows of a batch without the `impossible` ones."""
    import pyarrow as pa

    keep = np.ones(rows.num_rows, np.bool_)
    for _, bad in impossible(rows, topology):
        keep &= ~bad
    return rows if keep.all() else rows.filter(pa.array(keep))


def check_header(rows: pa.Table, source: Mapping[str, Any], where: str) -> None:
    """Raise `DataError` unless a record file's header holds possible figures of its links.

    Args:
        rows: of a campaign or a device.
        source: the header: ``slowdown`` (absent: 1), and of a campaign ``uplink_mbps`` and
            ``rtt_ms`` of every condition.
        where: named in the error.
    """
    try:
        figures = [float(source.get("slowdown", 1.0))]
        if source.get("kind") == "campaign":
            told = source["conditions"]
            for condition in set(rows["condition"].to_pylist()):
                rate, rtt = (float(told[condition][name]) for name in ("uplink_mbps", "rtt_ms"))
                figures += [rate, 1.0 if rtt == 0 else rtt]
        sound = all(0 < figure <= MAX_AMOUNT for figure in figures)
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise DataError(
            f"records {where}: a header without the links' figures, or with impossible ones",
            expected="slowdown, and uplink_mbps and rtt_ms of every condition",
            hint="measure again, or give another file",
        )


_ALWAYS: Final = frozenset(
    name for name, kind in Measurement.__annotations__.items() if "None" not in str(kind)
)
"""Columns that have a value for every frame."""
