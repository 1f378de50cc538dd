"""Load a scenario's frames, cost model and traces, and check that they fit together."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from cnn.common.errors import ConfigError, DataError
from cnn.frame_table import FrameTable, embedded_table
from offload_env.scenario import Scenario, Split
from testbed.meters.cost_model import CostModel
from testbed.meters.power import power_profile
from testbed.traces.trace import Trace


def load_table(scenario: Scenario, split: Split) -> FrameTable:
    """The frames of one split of a scenario."""
    name = scenario.frames.train if split == "train" else scenario.frames.test
    return FrameTable.load(Path(name)) if name.endswith(".npz") else embedded_table(name)


def load_cost(scenario: Scenario, cost: CostModel | None = None) -> CostModel:
    """The scenario's cost model with its slowdown and power profile applied."""
    device = scenario.device
    if cost is None and device.cost_model == "fitted":
        with resources.as_file(resources.files("testbed") / "assets" / "cost_model.json") as path:
            cost = CostModel.load(path)
    elif cost is None:
        cost = CostModel.load(Path(device.cost_model))
    slowdown = cost.slowdown * device.slowdown
    if device.full_local_ms:
        slowdown = device.full_local_ms / cost.device_ms[cost.topology.main]
    cost = replace(cost, slowdown=slowdown)
    if not device.power:
        return cost
    profile = power_profile(device.power)
    return replace(
        cost,
        idle_mw=profile.device.idle_mw,
        busy_mw=profile.device.busy_mw,
        power_source=f"published: {profile.device.source}",
        radio=profile.radio,
    )


def load_traces(scenario: Scenario, split: Split) -> list[Trace]:
    """The drives of one split of a scenario."""
    link = scenario.link
    if link.source == "measured":
        from testbed.traces.collection import load_traces as load_measured

        folder = link.folder or os.environ.get("SLIPROAD_DATA", "")
        if not folder:
            raise ConfigError(
                f"scenario {scenario.name} with measured traces",
                expected="a trace collection",
                hint="set SLIPROAD_DATA, or 'folder' in the scenario's [link]",
            )
        return load_measured(Path(folder), link.kind, split, period_s=link.period_s)
    from testbed.traces.generator import generate_trace

    return [
        generate_trace(link.kind, seed, link.duration_s, link.period_s)
        for seed in link.seeds(split)
    ]


def accuracy_floor(table: FrameTable, scenario: Scenario) -> float:
    """The main exit's local accuracy less the margin, or the explicit floor."""
    constraint = scenario.constraint
    if constraint.accuracy_floor > 0:
        return constraint.accuracy_floor
    return max(
        0.0, float(table.correct[:, table.topology.main].mean()) - constraint.accuracy_margin
    )


def check_fit(table: FrameTable, cost: CostModel) -> None:
    """Refuse a cost model of another network than the frames'.

    Raises:
        ConfigError: if it has other exits or splits.
        DataError: if it has other payloads.
    """
    table.topology.require_same(
        cost.topology, f"cost model {cost.name}", f"the frame table ({table.source})"
    )
    sent = table.payload_bytes
    mean = sent.mean(0)
    near = np.isclose(mean, cost.payload_bytes, rtol=0.1, atol=8)
    # Where frames differ in size, means of other frames may differ by more.
    within = (sent.min(0) <= cost.payload_bytes) & (cost.payload_bytes <= sent.max(0))
    if not (near | within).all():
        raise DataError(
            f"frame table of bundle {table.bundle_hash[:12]} sending {mean.round().tolist()} bytes "
            f"and cost model {cost.name} of bundle {cost.bundle_hash[:12]} with "
            f"{list(cost.payload_bytes)}",
            expected="a cost model whose actions send what the table's do",
            hint="fit the cost model with the same bundle",
        )
