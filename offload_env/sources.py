"""Load a scenario's frames, cost model and traces, and check that they fit together."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnn.common.errors import ConfigError, DataError
from cnn.frame_table import FrameTable, embedded_table
from offload_env.scenario import Link, Scenario, Split
from testbed.meters.cost_model import CostModel
from testbed.meters.power import power_profile
from testbed.traces.trace import Trace

if TYPE_CHECKING:
    from testbed.traces.joined import Collection
    from testbed.traces.measured import RoundTrips


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
        return measured_traces(scenario, split).traces
    from testbed.traces.generator import generate_trace

    return [
        generate_trace(link.kind, seed, link.duration_s, link.period_s)
        for seed in link.seeds(split)
    ]


def measured_traces(scenario: Scenario, split: Split) -> Collection:
    """Measured drives of one split of a scenario, and what was left out.

    A folder with an index and with drives of the scenario's kind is divided by the list of
    training drives (`testbed.traces.trace_kinds`), unless the scenario states a split. All other
    folders and files are divided by the scenario's rule.

    Raises:
        ConfigError: no traces are named, or the rule does not fit them.
        DataError: they cannot be read, or there are none.
    """
    from testbed.traces.collection import is_split
    from testbed.traces.own_traces import load_own

    link = scenario.link
    paths = [Path(name) for name in (*link.files, link.folder) if name]
    known = not paths or (not link.files and _has_kind(paths[0], link.kind))
    if not paths and os.environ.get("SLIPROAD_DATA"):
        paths = [Path(os.environ["SLIPROAD_DATA"])]
    if not paths:
        raise ConfigError(
            f"scenario {scenario.name} with measured traces",
            expected="a trace collection",
            hint="set SLIPROAD_DATA, or 'folder' or 'files' in the scenario's [link]",
        )
    if link.split or not known:
        return load_own(
            paths, split, link.rule, otherwise=_round_trips(link), period_s=link.period_s
        )
    if split == "train" and not is_split(paths[0]):
        raise ConfigError(
            f"{paths[0]}: other drives of {link.kind}, all of which test",
            expected="a rule that says which ones train",
            hint="state split = 'file' in the scenario's [link]",
        )
    return _of_kind(link, paths[0], split)


def traces_to_judge(scenario: Scenario, folder: Path) -> Collection:
    """Test drives of a folder of measured traces, and what was left out.

    If the scenario's own traces lie in it, they are the scenario's test drives. In a folder with
    an index and with drives of the scenario's kind they are those drives that are not in the list
    of training drives. Otherwise every trace in it is one.
    """
    from testbed.traces.own_traces import load_own

    link = scenario.link
    own = [Path(name).resolve() for name in (*link.files, link.folder) if name]
    if link.source == "measured" and any(
        path == folder.resolve() or folder.resolve() in path.parents for path in own
    ):
        return measured_traces(scenario, "test")
    if _has_kind(folder, link.kind):
        return _of_kind(link, folder, "test")
    otherwise = _round_trips(link)
    return load_own([folder], "all", link.rule, otherwise=otherwise, period_s=link.period_s)


def _has_kind(folder: Path, kind: str) -> bool:
    """Whether a folder is a collection with drives of a kind that selects from one."""
    from testbed.traces.collection import has_kind
    from testbed.traces.sample_files import is_collection
    from testbed.traces.trace_kinds import SELECTIONS

    return is_collection(folder) and kind in SELECTIONS and has_kind(folder, kind)


def _of_kind(link: Link, folder: Path, split: Split) -> Collection:
    from testbed.traces.collection import load_collection

    return load_collection(
        folder, link.kind, split, period_s=link.period_s, otherwise=_round_trips(link)
    )


def _round_trips(link: Link) -> RoundTrips:
    """Round trips of traces without their own."""
    from testbed.traces.generator import model_of, round_trips_of
    from testbed.traces.measured import constant_rtt

    if link.rtt_ms:
        return constant_rtt(link.rtt_ms)
    return round_trips_of(model_of(link.kind))


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
    mean = table.payload_bytes.mean(0)
    if not np.allclose(mean, cost.payload_bytes, rtol=0.1, atol=8):
        raise DataError(
            f"frame table of bundle {table.bundle_hash[:12]} sending {mean.round().tolist()} bytes "
            f"and cost model {cost.name} of bundle {cost.bundle_hash[:12]} with "
            f"{list(cost.payload_bytes)}",
            expected="a cost model whose actions send what the table's do",
            hint="fit the cost model with the same bundle",
        )
