"""What a world derives from a scenario's table and cost model: its floor, and that they fit."""

from __future__ import annotations

from typing import Final

import numpy as np

from cnn.common.errors import DataError
from cnn.frame_table import FrameTable
from cnn.topology import N_EXITS, action_index
from offload_env.scenario import Scenario
from testbed.costs.cost_model import CostModel

POOL: Final = 1 << 16
"""Length of the pools of jitter and server work; an episode reads a stretch of each."""
LOCAL: Final = tuple(action_index(e, e) for e in range(1, N_EXITS + 1))
"""Canonical numbers of the five local actions, by exit."""
MAIN: Final = LOCAL[-1]
"""Full local processing, e5s5."""


def accuracy_floor(table: FrameTable, scenario: Scenario) -> float:
    """The main exit's local accuracy less the margin, or the explicit floor."""
    constraint = scenario.constraint
    if constraint.accuracy_floor > 0:
        return constraint.accuracy_floor
    return max(0.0, float(table.correct[:, MAIN].mean()) - constraint.accuracy_margin)


def check_fit(table: FrameTable, cost: CostModel) -> None:
    """Refuse a cost model whose payloads are not those of the frames (another network)."""
    mean = table.payload_bytes.mean(0)
    if not np.allclose(mean, cost.payload_bytes, rtol=0.1, atol=8):
        raise DataError(
            f"frame table of bundle {table.bundle_hash[:12]} sending {mean.round().tolist()} bytes "
            f"and cost model {cost.name} of bundle {cost.bundle_hash[:12]} with "
            f"{list(cost.payload_bytes)}",
            expected="a cost model whose actions send what the table's do",
            hint="fit the cost model with the same bundle",
        )
