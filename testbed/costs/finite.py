"""Records that a fit may believe: every figure a finite number that a device can have measured."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cnn.common.errors import DataError
from cnn.topology import N_ACTIONS, N_EXITS
from testbed.records.measurement import MAX_AMOUNT
from testbed.records.record_file import Records

_NEEDED: Final = ("action", "queue_ms", "head_ms", "delay_ms", "uplink_bytes", "captured_s")
"""Figures of every row; of the others a row may have none (null)."""
_RANGES: Final = {
    "action": (0, N_ACTIONS - 1),
    "looks": (0, 2**N_EXITS - 1),
    "frame_id": (0, 2**63 - 1),
    "round": (0, 2**63 - 1),
}


def check_finite(records: Records, where: str) -> None:
    """Raise `DataError` unless every figure is finite, in its range, and there where it must be.

    Args:
        records: of a campaign or a device.
        where: named in the error.
    """
    for name in records.table.column_names:
        column = records.table[name]
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            low, high = _RANGES.get(name, (-MAX_AMOUNT, MAX_AMOUNT))
            known = pc.drop_null(column).to_numpy()
            wrong = known[~((known >= low) & (known <= high))]  # also what is NaN
            missing = column.null_count if name in _NEEDED else 0
            if wrong.size or missing:
                given = f"{wrong.size} such as {wrong[0]:g}" if wrong.size else f"{missing} missing"
                raise DataError(
                    f"records {where}: {name} with impossible figures ({given})",
                    expected=f"finite numbers from {low:g} to {high:g}",
                    hint="leave these rows or this file out, or measure again",
                )
    _check_source(records, where)


def _check_source(records: Records, where: str) -> None:
    """What a campaign's header says of its links and of the emulation."""
    try:
        source = records.source
        figures = [float(source.get("slowdown", 1.0))]
        if source.get("kind") == "campaign":
            told = source["conditions"]
            for condition in np.unique(records.texts("condition")).tolist():
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
