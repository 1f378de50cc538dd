"""The frames of a campaign that a fit uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import DataError
from cnn.topology import N_ACTIONS
from testbed.costs.terms import Floats
from testbed.records.record_file import Records


@dataclass(frozen=True, slots=True)
class Samples:
    """The frames of a campaign that count: answered as decided, warm-up excluded.

    All arrays have one element a frame; times in milliseconds as measured.
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
            hint="run a campaign first",
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
                hint="repeat the campaign with a longer --timeout-ms",
            )
    if not len(samples):
        raise DataError("no answered frames", expected="a campaign", hint="repeat the campaign")
    return samples


def _by_condition(records: Records, name: str) -> Floats:
    told = records.source["conditions"]
    return np.array([told[c][name] for c in records.texts("condition")], np.float64)


def payloads_of(records: Records) -> Floats:
    """Payload bytes that each action really sent, float64 (20,)."""
    action = records.numbers("action").astype(np.int64)
    sent = records.numbers("uplink_bytes")
    return np.array([sent[action == a].max(initial=0.0) for a in range(N_ACTIONS)])
