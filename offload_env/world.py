"""A scenario made concrete: every table, trace and random pool that a simulator reads.

A `World` is immutable and shared: single environments, batches, the bound and the
evaluation of every policy read the same one, so that they are compared on the same drives.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnn.calibration_tracks import some_tracks
from cnn.common.errors import ConfigError
from cnn.frame_table import Correct, FrameTable
from cnn.topology import Topology
from offload_env.episode import Keys, Plan, Plans, draw, draw_batch, unit, unit_batch
from offload_env.outcome import Number
from offload_env.scenario import SPLITS, Scenario, Split, load_scenario
from offload_env.server_load import CELL_MS
from offload_env.sources import (
    accuracy_floor,
    check_fit,
    load_cost,
    load_table,
    load_traces,
)
from offload_env.trace_pool import TracePool
from testbed.meters.cost_model import CostModel, jitter_pool, resumed_ms, standing_ms
from testbed.policy.observation_fields import schema_of
from testbed.policy.task_settings import Settings
from testbed.traces.trace import Trace

__all__ = [
    "POOL",
    "World",
    "build_world",
    "load_cost",
    "load_table",
    "load_traces",
    "world_on",
]

Floats = NDArray[np.float64]
Record = TypeVar("Record")
POOL: Final = 1 << 16
"""Length of the pools of jitter and server work; an episode reads a stretch of each."""

# Draw numbers of an episode's key.
_TRACE, _OFFSET, _SERVER, _JITTER, _HEAT, _TRACKS = 0, 1, 2, 3, 4, 8


@dataclass(frozen=True, eq=False, repr=False)
class World:
    """Everything that does not change within a scenario and split.

    Attributes:
        scenario, split: source of the world.
        table: the frames.
        cost: the cost model, with the scenario's slowdown and power profile.
        traces: the drives' link.
        pool: the same, laid out for simulation.
        server_work_ms: float64 (`POOL`,), unfinished work at the server, see `ServerLoad`.
        device_jitter, server_jitter: float64 (`POOL`,), factors on compute times, mean 1.
        accuracy_floor: required mean accuracy on this split.
        critical_floor: the same for the critical classes; 0 if there are none.
        settings: the device's task settings (with the floor of the training frames).
        delay_ref_ms, energy_ref_mj: full local processing without queueing.
        device_ms: float64 (A,), by action: head, encoder and local exit, slowdown included.
        fallback_ms: float64 (A,), finishing locally, slowdown included.
        server_ms: float64 (A,).
        sent_bytes: float64 (N, A), payload and framing on the uplink; 0 if local.
        standing_ms: float64 (n_blocks + 1,), spent on a frame when the device is after block
            p > 0: the frame's overhead and blocks 1..p, no exit; 0 for p = 0. Slowdown included.
        resumed_ms: float64 (n_blocks + 1,), the same when it resumes after an exchange that timed
            out.
        correct: (N, A), of the table: bool, or qualities in [0, 1] as float64. Mean accuracy is
            then mean quality.
        critical: bool (N,).
        features: float32 (N, 6), scaled as in the observation.
        track_start: int64 (n_tracks,), first row of each track.
        track_end: bool (N,), True at the last row of a track.
    """

    scenario: Scenario
    split: Split
    table: FrameTable
    cost: CostModel
    traces: tuple[Trace, ...]
    pool: TracePool
    server_work_ms: Floats
    device_jitter: Floats
    server_jitter: Floats
    accuracy_floor: float
    critical_floor: float
    settings: Settings
    delay_ref_ms: float
    energy_ref_mj: float
    device_ms: Floats
    fallback_ms: Floats
    server_ms: Floats
    sent_bytes: NDArray[np.float64]
    standing_ms: Floats
    resumed_ms: Floats
    correct: Correct
    critical: NDArray[np.bool_]
    features: NDArray[np.float32]
    track_start: NDArray[np.int64]
    track_end: NDArray[np.bool_]

    def __repr__(self) -> str:
        """Its name and split: Gymnasium prints the arguments of an environment it cannot make."""
        return f"World({self.scenario.name!r}, {self.split!r})"

    @property
    def topology(self) -> Topology:
        """Of the network whose answers the frames have; A is its number of actions."""
        return self.table.topology

    def plan(self, key: int) -> Plan:
        """The episode of one 64-bit key."""
        trace = draw(key, _TRACE) % len(self.pool)
        return Plan(
            key,
            trace,
            unit(draw(key, _OFFSET)) * float(self.pool.duration_ms[trace]),
            draw(key, _SERVER) % self._server_starts,
            draw(key, _JITTER) % POOL,
        )

    def plans(self, keys: Keys) -> Plans:
        """The episodes of many keys, uint64 (B,)."""
        trace = (draw_batch(keys, _TRACE) % np.uint64(len(self.pool))).astype(np.int64)
        return Plans(
            keys,
            trace,
            unit_batch(draw_batch(keys, _OFFSET)) * self.pool.duration_ms[trace],
            (draw_batch(keys, _SERVER) % np.uint64(self._server_starts)).astype(np.int64),
            (draw_batch(keys, _JITTER) % np.uint64(POOL)).astype(np.int64),
        )

    @property
    def _server_starts(self) -> int:
        """Cells at which an episode may start so that it ends within the series."""
        timing = self.scenario.timing
        return max(1, POOL - int((timing.n_frames + 20) * timing.period_ms / CELL_MS))

    def beginning_c(self, key: int) -> float:
        """Temperature of the processor at the start of an episode."""
        return float(self.scenario.heat.beginning_c(unit(draw(key, _HEAT))))

    def beginning_c_batch(self, keys: Keys) -> Floats:
        """`beginning_c` for arrays."""
        celsius: Floats = self.scenario.heat.beginning_c(unit_batch(draw_batch(keys, _HEAT)))
        return celsius

    def track(self, key: int, n: int) -> int:
        """First row of the n-th track (from 0) of an episode."""
        return int(self.track_start[draw(key, _TRACKS + n) % len(self.track_start)])

    def track_batch(self, keys: Keys, n: NDArray[np.int64]) -> NDArray[np.int64]:
        """`track` for arrays."""
        numbers = draw_batch(keys, (n + _TRACKS).astype(np.uint64))
        return self.track_start[(numbers % np.uint64(len(self.track_start))).astype(np.int64)]

    def rows(self, key: int, n_frames: int) -> NDArray[np.int64]:
        """Table rows of an episode's frames, int64 (n_frames,)."""
        rows = np.empty(n_frames, np.int64)
        row, track = self.track(key, 0), 1
        for i in range(n_frames):
            rows[i] = row
            if self.track_end[row]:
                row, track = self.track(key, track), track + 1
            else:
                row += 1
        return rows

    @property
    def delay_price(self) -> float:
        """Cost of a millisecond of delay."""
        return self.scenario.price.delay_weight / self.delay_ref_ms

    @property
    def energy_price(self) -> float:
        """Cost of a millijoule."""
        return self.scenario.price.energy_weight / self.energy_ref_mj

    def frame_cost(self, delay_ms: Number, energy_mj: Number, miss: Number) -> Number:
        """Cost of frames by the scenario's price (without the energy budget)."""
        return (
            self.delay_price * delay_ms
            + self.energy_price * energy_mj
            + self.scenario.price.miss * miss
        )


def build_world(
    scenario: Scenario | str | Path,
    split: Split = "train",
    *,
    traces: Sequence[Trace] | None = None,
    table: FrameTable | None = None,
    cost: CostModel | None = None,
) -> World:
    """Load a scenario's frames, cost model and traces, and derive the rest.

    Args:
        scenario: a scenario, its name, or the path of its file.
        split: ``train`` or ``test``: frames by track, traces by seed or drive.
        traces: instead of the scenario's.
        table: instead of the scenario's frames. Given for ``train`` it also sets the floor
            that the device knows; for ``test`` that stays the scenario's training floor.
        cost: instead of the scenario's cost model (its slowdown and power still apply).

    Raises:
        ConfigError: if the split is unknown, the scenario wrong, or frames and cost model are of
            networks with other exits or splits.
        DataError: if a table, model or trace cannot be read, or they do not fit together.
    """
    scenario = load_scenario(scenario)
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}", expected="train or test", hint="correct it")
    if traces is None and table is None and cost is None:
        return _cached_world(scenario, split)
    return _assemble(
        scenario,
        split,
        list(traces) if traces is not None else load_traces(scenario, split),
        table if table is not None else load_table(scenario, split),
        load_cost(scenario, cost),
        table if split == "train" else None,
    )


@lru_cache(maxsize=16)
def _cached_world(scenario: Scenario, split: Split) -> World:
    """Worlds are immutable, so environments of one process share them."""
    traces, table = load_traces(scenario, split), load_table(scenario, split)
    return _assemble(scenario, split, traces, table, load_cost(scenario), None)


def _assemble(
    scenario: Scenario,
    split: Split,
    traces: Sequence[Trace],
    table: FrameTable,
    cost: CostModel,
    train_table: FrameTable | None,
) -> World:
    check_fit(table, cost)
    # Environments give the world to callers, who must not edit what it shares.
    table, traces = _read_only(table), [_read_only(trace) for trace in traces]
    if train_table is None:
        train_table = table if split == "train" else load_table(scenario, "train")
    topology, main = table.topology, table.topology.main
    topology.require_same(
        train_table.topology,
        f"training frames ({train_table.source})",
        f"the frame table ({table.source})",
    )
    pool = TracePool(traces)
    delay_ref = cost.slowdown * cost.device_ms[main]
    price, constraint = scenario.price, scenario.constraint
    settings = Settings(
        radio_5g=pool.is_5g,
        accuracy_floor=accuracy_floor(train_table, scenario),
        delay_share=price.delay_weight / (price.delay_weight + price.energy_weight),
        full_local_ms=delay_ref,
        energy_budget_mj=price.energy_budget_mj,
    )
    # The noise belongs to the scenario: the same for every seed and every policy.
    rng = np.random.default_rng([zlib.crc32(scenario.name.encode()), SPLITS.index(split)])
    arrays: dict[str, Any] = {
        "server_work_ms": scenario.server.work_ms(rng, POOL),
        "device_jitter": jitter_pool(rng, cost.jitter, POOL),
        "server_jitter": jitter_pool(rng, cost.jitter, POOL),
        "device_ms": cost.slowdown * np.array(cost.device_ms),
        "fallback_ms": cost.slowdown * np.array(cost.fallback_ms),
        "server_ms": np.array(cost.server_ms, np.float64),
        "standing_ms": standing_ms(cost),
        "resumed_ms": resumed_ms(cost),
    }
    known = np.union1d(table.label, train_table.label)
    unknown = [c for c in constraint.critical_classes if c < 0 or c not in known]
    if unknown:
        raise ConfigError(
            f"scenario {scenario.name}: critical class {unknown[0]}",
            expected=f"classes of its frames, such as {int(known[-1])}"
            if known[-1] >= 0
            else "none: its frames have no classes",
            hint="correct [constraint] critical_classes",
        )
    world = World(
        scenario=scenario,
        split=split,
        cost=cost,
        traces=tuple(traces),
        pool=pool,
        settings=settings,
        delay_ref_ms=delay_ref,
        energy_ref_mj=cost.busy_mw * delay_ref / 1e3,
        **_of_frames(table, cost, scenario),
        **arrays,
    )
    return _read_only(world)


def _of_frames(table: FrameTable, cost: CostModel, scenario: Scenario) -> dict[str, Any]:
    """The attributes of a world that follow from its frames."""
    topology, schema = table.topology, schema_of(table.topology)
    critical = np.isin(table.label, scenario.constraint.critical_classes)
    right = table.correct[critical, topology.main]
    return {
        "table": table,
        "accuracy_floor": accuracy_floor(table, scenario),
        "critical_floor": (
            float(right.mean()) - scenario.constraint.critical_margin if len(right) else 0.0
        ),
        "sent_bytes": np.where(
            topology.is_local, 0.0, table.payload_bytes + cost.wire_overhead_bytes
        ),
        "correct": table.correct,
        "critical": critical,
        "features": schema.normalise(table.features, schema.features_at),
        "track_start": table.track_starts().astype(np.int64),
        "track_end": np.diff(table.track, append=-1) != 0,
    }


def world_on(world: World, keep: NDArray[np.bool_]) -> World:
    """The same world on some of its tracks, such as those that do not calibrate.

    Link, server, noise, costs and what the device is told (`World.settings`) stay as they are, so a
    policy sees both worlds alike. The required accuracy follows from the tracks that are left.

    Args:
        world: any world.
        keep: bool (n_tracks,), as `cnn.calibration_tracks.calibration_tracks` gives it.

    Raises:
        DataError: if no track is left, or `keep` has another length.
    """
    table = _read_only(some_tracks(world.table, keep))
    return _read_only(replace(world, **_of_frames(table, world.cost, world.scenario)))


def _read_only(record: Record) -> Record:
    """A dataclass with its arrays replaced by views that cannot be written to."""
    of: Any = record
    views = {
        field.name: value.view()
        for field in fields(of)
        if isinstance(value := getattr(of, field.name), np.ndarray)
    }
    for view in views.values():
        view.setflags(write=False)
    changed: Record = replace(of, **views)
    return changed
