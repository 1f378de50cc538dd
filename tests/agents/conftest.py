"""A small world with a known best answer: constant link, published-like device figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.train_config import TrainConfig
from cnn.frame_table import FrameTable, embedded_table
from cnn.model_config import ModelConfig
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.scenario import Constraint, Scenario, Timing
from offload_env.simulator import FALLBACK, SKIPPED, Simulator
from offload_env.world import World, build_world
from testbed.meters.cost_model import CostModel
from testbed.meters.power import RadioPower
from testbed.policy.exploration import ExploringPolicy
from testbed.policy.policies import RandomPolicy
from testbed.records.measurement import Measurement
from testbed.records.record_file import RecordWriter
from testbed.traces.trace import Trace

MakeWorld = Callable[..., World]


def made_cost_model(table: FrameTable, full_local_ms: float, jitter: float) -> CostModel:
    """Device times in proportion to MACs, a server ten times as fast."""
    config = ModelConfig()
    macs = np.cumsum([0, *(config.block_macs(b) for b in range(1, 6))])
    ms = macs / macs[-1] * full_local_ms
    return CostModel(
        name="made up for tests",
        source="made up for tests",
        bundle_hash=table.bundle_hash,
        slowdown=1.0,
        device_ms=tuple(float(ms[a.split]) + (1.0 if a.is_local else 0.2) for a in SHIPPED.actions),
        fallback_ms=tuple(float(ms[a.exit] - ms[a.split]) + 1.0 for a in SHIPPED.actions),
        server_ms=tuple(
            0.0 if a.is_local else float(ms[a.exit] - ms[a.split]) / 10 + 0.2
            for a in SHIPPED.actions
        ),
        payload_bytes=tuple(int(b) for b in table.payload_bytes[0]),
        wire_overhead_bytes=400.0,
        net_ms=1.0,
        jitter=jitter,
        idle_mw=2000.0,
        busy_mw=4000.0,
        power_source="made up for tests",
        radio=RadioPower("made up", 10.0, 500.0, 300.0, 0.0, "made up for tests"),
    )


FEW = {
    "THRESHOLDS": (0.6, 0.9, 0.99),
    "PRICES": (1.0, 30.0),
    "BUDGETS": (0.6, 1.0),
    "BANDIT_PRICES": (5.0, 30.0),
    "DEPTHS": (0.6, 1.0),
    "OPTIMISM_MS": (0.0, 4.0),
    "KEEP": (0.97, 0.9),
    "ERROR_PRICES": (0.5, 2.0),
    "FRESHNESS_BONUSES": (0.0, 0.4),
    "LOOKAHEAD_BONUSES": (0.0, 0.4),
    "LOOKAHEAD_PRICES": (1.0, 2.0, 4.0),
}
"""Smaller grids for `agents.baselines.tuning`."""


@pytest.fixture(scope="module", autouse=True)
def few_candidates() -> Iterator[None]:
    """Baselines are tuned on a quarter of their candidates; whole grids take ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, values in FEW.items():
            patch.setattr(f"agents.baselines.tuning.{name}", values)
        yield


@pytest.fixture(scope="session")
def make_world() -> MakeWorld:
    """Worlds over the embedded training frames and one trace with a sample a second."""
    table = embedded_table("policy-train")

    def make(
        uplink_mbps: float | Sequence[float],
        rtt_ms: float = 4.0,
        full_local_ms: float = 80.0,
        floor: float = 0.5,
        n_frames: int = 60,
        jitter: float = 0.05,
    ) -> World:
        rates = np.resize(np.asarray(uplink_mbps, float), 120)
        trace = Trace(rates, np.full(120, rtt_ms), 1.0, "made up", "5G", "made up")
        scenario = replace(
            Scenario("toy"),
            timing=Timing(n_frames=n_frames),
            constraint=Constraint(accuracy_floor=floor),
        )
        cost = made_cost_model(table, full_local_ms, jitter)
        return build_world(scenario, "train", traces=[trace], table=table, cost=cost)

    return make


STATUS = {FALLBACK: "fallback", SKIPPED: "skipped"}


def recorded_drive(world: World, path: Path, seed: int, explore: float | None = None) -> Path:
    """One simulated drive with random offloads, written as a device writes its records."""
    topology = world.topology
    base = RandomPolicy(seed, np.flatnonzero(~topology.is_local).tolist(), topology)
    policy = ExploringPolicy(base, explore or 0.0, seed)
    simulator = Simulator(world)
    simulator.reset(world.plan(int(episode_keys(seed, 1)[0])))
    period_s = world.scenario.timing.period_ms / 1e3
    extra = policy.column_types() if explore is not None else None
    source = {"bundle_hash": world.table.bundle_hash, "topology": topology.to_json()}
    with RecordWriter(path, source, extra) as writer:
        frames = range(world.scenario.timing.n_frames)
        for i in policy.following(frames):  # type: ignore[arg-type, assignment]
            action = policy.decide(simulator.observe())
            out = simulator.settle(action)
            sent = out.status != SKIPPED and not topology.is_local[action]
            answered = sent and out.status != FALLBACK
            server_ms = out.exchange_ms - out.transfer_ms - out.server_wait_ms
            row = Measurement(
                **dict.fromkeys(Measurement.__slots__)
                | {
                    "frame_id": i,
                    "track": 0,
                    "frame_in_track": i,
                    "action": action,
                    "exit_used": topology.actions[action].exit,
                    "captured_s": i * period_s,
                    "queue_ms": out.queue_ms,
                    "head_ms": out.compute_ms,
                    "transfer_ms": out.transfer_ms if answered else None,
                    "server_queue_ms": out.server_wait_ms if answered else None,
                    "server_ms": server_ms if answered else None,
                    "fallback_ms": out.fallback_ms or None,
                    "delay_ms": out.delay_ms,
                    "uplink_bytes": int(
                        world.sent_bytes[out.row, action] - world.cost.wire_overhead_bytes
                    )
                    if sent
                    else 0,
                    "downlink_bytes": 0,
                    "energy_mj": out.energy_mj,
                    "energy_source": "simulated",
                    "confidence": float(world.table.confidence[out.row, out.used]),
                    "correct": bool(out.correct),
                    "status": STATUS.get(out.status, "ok"),
                    "reason": "timeout" if out.status == FALLBACK else "",
                    "probes": 0,
                    "probe_bytes": 0,
                    "looks": 0,
                }
            )
            writer.write(row, **(policy.columns(i) if explore is not None else {}))
    return path


@pytest.fixture(scope="session")
def drive() -> Callable[..., Path]:
    """See `recorded_drive`."""
    return recorded_drive


@pytest.fixture(scope="session")
def small_run() -> TrainConfig:
    """Settings of a training of eight rollouts of 256 frames; a checkpoint after every fourth."""
    return TrainConfig(
        scenario="toy",
        steps=8 * 256,
        n_envs=16,
        n_steps=16,
        batch_size=128,
        epochs=2,
        hidden=16,
        validate_every=1024,
        validate_drives=2,
        checkpoint_every=1024,
        seed=5,
    )


class PowerCutError(Exception):
    """Ends a training where it stands."""


def cut_off_training(
    config: TrainConfig, out: Path, world: World, at: int, *, resume: bool = False
) -> None:
    """A training that ends abruptly after so many steps."""
    from agents.training import train

    def stop(step: int, row: dict[str, float]) -> None:
        if step >= at:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train(config, out, world=world, resume=resume, report=stop)


@pytest.fixture(scope="session")
def cut_off() -> Callable[..., None]:
    """See `cut_off_training`."""
    return cut_off_training
