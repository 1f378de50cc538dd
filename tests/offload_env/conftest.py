"""A small synthetic world: quick to build, with outages, a tail, load and every status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cnn.frame_table import FrameTable
from cnn.topology import SHIPPED
from offload_env.scenario import Constraint, Price, Scenario, Timing
from offload_env.server_load import ServerLoad
from offload_env.world import World, build_world
from testbed.meters.cost_model import CostModel
from testbed.meters.power import RadioPower
from testbed.traces.trace import Trace

SCENARIO = Scenario(
    name="synthetic",
    server=ServerLoad(utilisation=0.5, service_ms=6.0, swing=0.8),
    timing=Timing(n_frames=40, period_ms=60.0, timeout_ms=70.0, deadline_ms=55.0, max_queue_ms=30),
    price=Price(0.6, 0.4, 0.7, energy_budget_mj=4000.0, over_budget=0.1),
    constraint=Constraint(critical_classes=(1, 3), critical_margin=0.001),
)


def synthetic_table(seed: int = 0, tracks: int = 12) -> FrameTable:
    """Frames whose later exits are right more often, with confidences that tell so."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, tracks)
    n = int(lengths.sum())
    label = np.repeat(rng.integers(0, 6, tracks), lengths).astype(np.int16)
    chance = np.array([0.6 + 0.08 * a.exit - 0.01 * (a.exit - a.split) for a in SHIPPED.actions])
    right = rng.random((n, SHIPPED.n_actions)) < chance
    wrong = (label[:, None] + rng.integers(1, 6, (n, SHIPPED.n_actions))) % 6
    confidence = np.clip(np.where(right, 0.85, 0.5) + rng.normal(0, 0.1, right.shape), 0.05, 0.99)
    frame = np.concatenate([np.arange(k) for k in lengths])
    features = np.column_stack(
        [
            rng.random(n),
            rng.random(n) * 0.3,
            rng.random(n) * 0.2,
            20 + 4 * frame,
            22 + 4 * frame,
            frame,
        ]
    )
    return FrameTable(
        label=label,
        track=np.repeat(np.arange(tracks), lengths).astype(np.int32),
        frame=frame.astype(np.int16),
        prediction=np.where(right, label[:, None], wrong).astype(np.int16),
        confidence=confidence.astype(np.float32),
        payload_bytes=np.tile(SHIPPED.payload_bytes, (n, 1)),
        features=features.astype(np.float32),
        bundle_hash="synthetic",
        source="synthetic",
    )


def synthetic_cost(jitter: float = 0.1, tail_ms: float = 150.0) -> CostModel:
    """Blocks of 1 ms times slowdown 5; heads 0.2 ms, encoders 0.1 ms."""
    block = (2.0, 3.0, 2.5, 1.5, 1.0)
    ran = (0.0, *np.cumsum(block).tolist())
    return CostModel(
        name="synthetic",
        source="synthetic",
        bundle_hash="synthetic",
        slowdown=5.0,
        device_ms=tuple(
            ran[a.split] + (0.2 if a.is_local else 0.1 if a.split else 0.0) for a in SHIPPED.actions
        ),
        fallback_ms=tuple(
            0.0 if a.is_local else ran[a.exit] - ran[a.split] + 0.2 for a in SHIPPED.actions
        ),
        server_ms=tuple(
            0.0 if a.is_local else 0.3 * (ran[a.exit] - ran[a.split]) for a in SHIPPED.actions
        ),
        payload_bytes=tuple(SHIPPED.payload_bytes.tolist()),
        wire_overhead_bytes=250.0,
        net_ms=1.5,
        jitter=jitter,
        idle_mw=2000.0,
        busy_mw=3200.0,
        power_source="synthetic",
        radio=RadioPower("synthetic", 32.2, 800.0, 600.0, tail_ms, "synthetic"),
    )


def synthetic_traces(seed: int = 5) -> list[Trace]:
    """Three traces of different periods, with outages, slow and fast stretches."""
    rng = np.random.default_rng(seed)
    traces = []
    for i, (length, period_s) in enumerate(((40, 0.1), (17, 0.25), (9, 1.0))):
        uplink = rng.choice([0.0, 0.4, 2.0, 15.0, 60.0], length, p=[0.15, 0.15, 0.2, 0.3, 0.2])
        uplink[0] = 5.0
        rtt = rng.uniform(8, 40, length)
        traces.append(Trace(uplink, rtt, period_s, f"synthetic-{i}", "5G", "generated"))
    return traces


@pytest.fixture(scope="session")
def make_table() -> Callable[..., FrameTable]:
    """See `synthetic_table`."""
    return synthetic_table


@pytest.fixture(scope="session")
def make_world() -> Callable[..., World]:
    """Builds the synthetic world; keyword arguments replace parts of it."""

    def make(
        scenario: Scenario = SCENARIO,
        traces: list[Trace] | None = None,
        table: FrameTable | None = None,
        cost: CostModel | None = None,
        **changes: object,
    ) -> World:
        return build_world(
            replace(scenario, **changes),  # type: ignore[arg-type]
            "train",
            traces=traces or synthetic_traces(),
            table=table or synthetic_table(),
            cost=cost or synthetic_cost(),
        )

    return make


@pytest.fixture(scope="session")
def world(make_world: Callable[..., World]) -> World:
    """The synthetic world."""
    return make_world()
