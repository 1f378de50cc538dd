"""Networks of other forms than the shipped one, with frames and costs made up from a seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cnn.frame_table import FEATURES, FrameTable
from cnn.topology import Topology
from offload_env.scenario import Scenario, load_scenario
from testbed.meters.cost_model import CostModel
from testbed.meters.power import power_profile

TWO_EXITS: Final = Topology(2, (1, 2), (0, 1), ((8, 8, 3), (2, 4, 4)))
THREE_EXITS: Final = Topology(4, (1, 3, 4), (0, 2), ((8, 8, 3), (3, 2, 2)))
"""An early exit where it cannot be cut, and a cut where there is no exit."""
SEVEN_EXITS: Final = Topology(
    7, (1, 2, 3, 4, 5, 6, 7), (0, 2, 3, 5), ((8, 8, 3), (4, 2, 2), (2, 2, 2), (1, 2, 2))
)
NETWORKS: Final = (TWO_EXITS, THREE_EXITS, SEVEN_EXITS)
N_CLASSES: Final = 4


def network_id(topology: Topology) -> str:
    """For test names."""
    return f"{topology.n_exits}-exits"


def made_up_table(topology: Topology, seed: int = 0, n_tracks: int = 12) -> FrameTable:
    """Tracks of 2 to 5 frames; deeper exits are right more often."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 6, n_tracks)
    n, n_actions = int(lengths.sum()), topology.n_actions
    label = np.repeat(rng.integers(0, N_CLASSES, n_tracks), lengths)
    right = rng.random((n, n_actions)) < 0.6 + 0.4 * topology.exit_of / topology.n_blocks
    others = (label[:, None] + rng.integers(1, N_CLASSES, (n, n_actions))) % N_CLASSES
    features = rng.random((n, len(FEATURES))).astype(np.float32)
    return FrameTable(
        label=label.astype(np.int16),
        track=np.repeat(np.arange(n_tracks), lengths).astype(np.int32),
        frame=np.concatenate([np.arange(length) for length in lengths]).astype(np.int16),
        prediction=np.where(right, label[:, None], others).astype(np.int16),
        confidence=(np.where(right, 0.9, 0.5) - 0.1 * rng.random((n, n_actions))).astype(
            np.float32
        ),
        payload_bytes=np.tile(topology.payload_bytes, (n, 1)),
        features=features * np.array([1, 0.4, 1, 100, 100, 10], np.float32),
        bundle_hash="0" * 64,
        source=f"made up from seed {seed}",
        topology=topology,
    )


def made_up_cost(topology: Topology, seed: int = 0) -> CostModel:
    """Each block takes 1 to 3 ms on the device, exits and encoders less, the server a tenth."""
    rng = np.random.default_rng(seed)
    reached = np.concatenate([[0.2], 0.2 + np.cumsum(rng.uniform(1, 3, topology.n_blocks))])
    head = rng.uniform(0.1, 0.5, topology.n_blocks + 1)
    encoder = rng.uniform(0.05, 0.2, topology.n_blocks + 1)
    exit, split, local = topology.exit_of, topology.split_of, topology.is_local
    to_exit = reached[exit] - reached[np.where(local, 0, split)] + head[exit]
    return CostModel(
        name=f"made up from seed {seed}",
        source="made up",
        bundle_hash="0" * 64,
        slowdown=1.0,
        device_ms=_figures(local, reached[exit] + head[exit], reached[split] + encoder[split]),
        fallback_ms=_figures(local, 0.0, to_exit),
        server_ms=_figures(local, 0.0, to_exit / 10),
        payload_bytes=tuple(topology.payload_bytes.tolist()),
        wire_overhead_bytes=300.0,
        net_ms=1.0,
        jitter=0.1,
        idle_mw=2000.0,
        busy_mw=5000.0,
        power_source="made up",
        radio=power_profile("raspberry-pi-4+lte-tail").radio,
        topology=topology,
        reached_ms=tuple(reached.tolist()),
    )


def _figures(where: NDArray[np.bool_], yes: Any, no: Any) -> tuple[float, ...]:
    return tuple(np.where(where, yes, no).tolist())


def scenario_of(topology: Topology, folder: Path, seed: int = 0) -> Scenario:
    """`urban-5g` with frames and costs of that network, written to `folder`."""
    train, test = made_up_table(topology, seed), made_up_table(topology, seed + 1)
    train.save(folder / "train.npz")
    test.save(folder / "test.npz")
    made_up_cost(topology, seed).save(folder / "cost.json")
    shipped = load_scenario("urban-5g")
    frames = replace(shipped.frames, train=str(folder / "train.npz"), test=str(folder / "test.npz"))
    device = replace(
        shipped.device, cost_model=str(folder / "cost.json"), full_local_ms=0.0, power=""
    )
    link = replace(shipped.link, train_traces=4, test_traces=4, duration_s=30.0)
    return replace(
        shipped,
        name=f"made-up-{topology.n_exits}-exits",
        frames=frames,
        device=device,
        link=link,
        constraint=replace(shipped.constraint, accuracy_margin=0.05),
    )


def with_quality(table: FrameTable, seed: int = 0) -> FrameTable:
    """The table of a detector: no classes, answers of any quality, payloads of any size."""
    rng = np.random.default_rng(seed)
    topology, shape = table.topology, table.confidence.shape
    quality = rng.random(shape) * (0.5 + 0.5 * topology.exit_of / topology.n_blocks)
    return replace(
        table,
        label=np.full(len(table), -1, np.int16),
        prediction=np.zeros(shape, np.int16),
        payload_bytes=(table.payload_bytes * rng.uniform(0.5, 1.5, shape)).astype(np.int32),
        quality=quality.astype(np.float32),
    )


def right_as_quality(table: FrameTable) -> FrameTable:
    """The same table with right answers as qualities of 1, and wrong ones of 0."""
    return replace(table, quality=table.correct.astype(np.float32))
