"""A scenario made concrete: every table, trace and random pool that a simulator reads.

A `World` is immutable and shared: single environments, batches, the bound and the
evaluation of every policy read the same one, so that they are compared on the same drives.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_EXITS, action_index
from cnn.errors import ConfigError, DataError
from cnn.frame_table import FrameTable, embedded_table
from offload_env.hashing import Keys, draw, draw_batch, unit, unit_batch
from offload_env.scenario import SPLITS, Scenario, Split, load_scenario
from offload_env.server_load import CELL_MS
from offload_env.trace_pool import TracePool
from testbed.costs.cost_model import CostModel
from testbed.costs.power import power_profile
from testbed.decide.observation import FEATURES_AT, Settings, normalise
from testbed.traces.trace import Trace

Floats = NDArray[np.float64]

POOL: Final = 1 << 16
"""Length of the pools of jitter and server work; an episode reads a stretch of each."""
LOCAL: Final = tuple(action_index(e, e) for e in range(1, N_EXITS + 1))
"""Canonical numbers of the five local actions, by exit."""
MAIN: Final = LOCAL[-1]
"""Full local processing, e5s5."""

# Draw numbers of an episode's key.
_TRACE, _OFFSET, _SERVER, _JITTER, _TRACKS = 0, 1, 2, 3, 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What one episode meets, before any decision.

    Attributes:
        key: the episode's 64-bit key; tracks are drawn from it.
        trace: number of the trace in the pool.
        offset_ms: where in the trace the drive starts.
        server_cell: where in the server's work it starts.
        jitter_at: where in the jitter pools it starts.
    """

    key: int
    trace: int
    offset_ms: float
    server_cell: int
    jitter_at: int


@dataclass(frozen=True, slots=True)
class Plans:
    """`Plan` for many episodes: arrays of one element each."""

    key: Keys
    trace: NDArray[np.int64]
    offset_ms: Floats
    server_cell: NDArray[np.int64]
    jitter_at: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class World:
    """Everything that does not change within a scenario and split.

    Attributes:
        scenario, split: what it was built from.
        table: the frames.
        cost: the cost model, with the scenario's slowdown and power profile.
        traces: the drives' link.
        pool: the same, laid out for simulation.
        server_work_ms: float64 (`POOL`,), unfinished work at the server, see `ServerLoad`.
        device_jitter, server_jitter: float64 (`POOL`,), factors on compute times, mean 1.
        accuracy_floor: what this split's mean accuracy is held to.
        critical_floor: the same for the critical classes; 0 if there are none.
        settings: what the device knows from the start (floor of the training frames).
        delay_ref_ms, energy_ref_mj: full local processing without queueing.
        device_ms: float64 (20,), head, encoder and local exit, slowdown included.
        fallback_ms: float64 (20,), finishing locally, slowdown included.
        server_ms: float64 (20,).
        sent_bytes: float64 (N, 20), payload and framing on the uplink; 0 if local.
        standing_ms: float64 (6,), spent on a frame when the device stands after block p > 0:
            the frame's overhead and blocks 1..p, no exit; 0 for p = 0. Slowdown included.
        correct, critical: bool (N, 20) and (N,).
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
    correct: NDArray[np.bool_]
    critical: NDArray[np.bool_]
    features: NDArray[np.float32]
    track_start: NDArray[np.int64]
    track_end: NDArray[np.bool_]

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

    def frame_cost(self, delay_ms: Floats, energy_mj: Floats, miss: Floats) -> Floats:
        """Cost of frames by the scenario's price (without the energy budget)."""
        price = self.scenario.price
        return (
            (price.delay_weight / self.delay_ref_ms) * delay_ms
            + (price.energy_weight / self.energy_ref_mj) * energy_mj
            + price.miss * miss
        )


def build_world(
    scenario: Scenario | str | Path,
    split: Split = "train",
    *,
    traces: Sequence[Trace] | None = None,
    table: FrameTable | None = None,
    cost: CostModel | None = None,
) -> World:
    """Read what a scenario names and derive the rest.

    Args:
        scenario: a scenario, its name, or the path of its file.
        split: ``train`` or ``test``: frames by track, traces by seed or drive.
        traces: instead of the scenario's.
        table: instead of the scenario's frames. Given for ``train`` it also sets the floor
            that the device knows; for ``test`` that stays the scenario's training floor.
        cost: instead of the scenario's cost model (its slowdown and power still apply).

    Raises:
        ConfigError: if the split is unknown or the scenario wrong.
        DataError: if a table, model or trace cannot be read, or they do not fit together.
    """
    scenario = load_scenario(scenario)
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}", expected="train or test", mend="correct it")
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
        slowdown = device.full_local_ms / cost.device_ms[MAIN]
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
                mend="set SLIPROAD_DATA, or 'folder' in the scenario's [link]",
            )
        return load_measured(Path(folder), link.kind, split, period_s=link.period_s)
    from testbed.traces.model import generate_trace

    return [
        generate_trace(link.kind, seed, link.duration_s, link.period_s)
        for seed in link.seeds(split)
    ]


def _assemble(
    scenario: Scenario,
    split: Split,
    traces: Sequence[Trace],
    table: FrameTable,
    cost: CostModel,
    train_table: FrameTable | None,
) -> World:
    _check_fit(table, cost)
    if train_table is None:
        train_table = table if split == "train" else load_table(scenario, "train")
    pool = TracePool(traces)
    delay_ref = cost.slowdown * cost.device_ms[MAIN]
    price, constraint = scenario.price, scenario.constraint
    settings = Settings(
        radio_5g=pool.techs[0] == "5G",
        accuracy_floor=_floor(train_table, scenario),
        delay_share=price.delay_weight / (price.delay_weight + price.energy_weight),
        full_local_ms=delay_ref,
        energy_budget_mj=price.energy_budget_mj,
    )
    # The noise of a scenario is part of it: the same for every seed and every policy.
    rng = np.random.default_rng([zlib.crc32(scenario.name.encode()), SPLITS.index(split)])
    arrays: dict[str, NDArray[np.float64]] = {
        "server_work_ms": scenario.server.work_ms(rng, POOL),
        "device_jitter": _jitter(rng, cost.jitter),
        "server_jitter": _jitter(rng, cost.jitter),
        "device_ms": cost.slowdown * np.array(cost.device_ms),
        "fallback_ms": cost.slowdown * np.array(cost.fallback_ms),
        "server_ms": np.array(cost.server_ms, np.float64),
        "sent_bytes": np.where(
            [a.is_local for a in ACTIONS], 0.0, table.payload_bytes + cost.wire_overhead_bytes
        ),
        "standing_ms": _standing_ms(cost),
    }
    for array in arrays.values():
        array.setflags(write=False)
    critical = np.isin(table.label, constraint.critical_classes)
    return World(
        scenario=scenario,
        split=split,
        table=table,
        cost=cost,
        traces=tuple(traces),
        pool=pool,
        accuracy_floor=_floor(table, scenario),
        critical_floor=(
            float(table.correct[critical, MAIN].mean()) - constraint.critical_margin
            if critical.any()
            else 0.0
        ),
        settings=settings,
        delay_ref_ms=delay_ref,
        energy_ref_mj=cost.busy_mw * delay_ref / 1e3,
        correct=table.correct,
        critical=critical,
        features=normalise(table.features, FEATURES_AT),
        track_start=table.track_starts().astype(np.int64),
        track_end=np.diff(table.track, append=-1) != 0,
        **arrays,
    )


def _floor(table: FrameTable, scenario: Scenario) -> float:
    """The main exit's local accuracy less the margin, or the explicit floor."""
    constraint = scenario.constraint
    if constraint.accuracy_floor > 0:
        return constraint.accuracy_floor
    return max(0.0, float(table.correct[:, MAIN].mean()) - constraint.accuracy_margin)


def _jitter(rng: np.random.Generator, spread: float) -> Floats:
    """Lognormal factors with mean 1, so that mean costs equal the cost model's formulas."""
    return np.exp(spread * rng.standard_normal(POOL) - spread * spread / 2)


def _standing_ms(cost: CostModel) -> Floats:
    """Device time of blocks 1..p without any exit or encoder, p = 0..5, and the overhead.

    Finishing exit 5 from the frame costs blocks 1..5 and the exit, from block p it costs
    the blocks after p and the exit: the difference is blocks 1..p. The overhead (capture,
    features, decision) is what a local action costs beyond finishing from the frame: a frame
    pays it once, however often it is decided about.
    """
    local = [cost.device_ms[a] for a in LOCAL]
    finish = [cost.fallback_ms[action_index(e, 0)] for e in range(1, N_EXITS + 1)]
    overhead = max(0.0, min(a - b for a, b in zip(local, finish, strict=True)))
    whole = cost.fallback_ms[action_index(N_EXITS, 0)]
    parts = [whole - cost.fallback_ms[action_index(N_EXITS, p)] for p in range(N_EXITS)]
    times = np.maximum.accumulate(np.array([*parts, max(whole, *parts)]))
    times = np.maximum(times, 0.0)
    times[1:] += overhead
    return cost.slowdown * times


def _check_fit(table: FrameTable, cost: CostModel) -> None:
    """Refuse a cost model whose payloads are not those of the frames (another network)."""
    mean = table.payload_bytes.mean(0)
    if not np.allclose(mean, cost.payload_bytes, rtol=0.1, atol=8):
        raise DataError(
            f"frame table of bundle {table.bundle_hash[:12]} sending {mean.round().tolist()} bytes "
            f"and cost model {cost.name} of bundle {cost.bundle_hash[:12]} with "
            f"{list(cost.payload_bytes)}",
            expected="a cost model whose actions send what the table's do",
            mend="fit the cost model with the same bundle",
        )
