"""benchmarks/present_knowledge.py: observations that tell how link and server are just then."""

from __future__ import annotations

import numpy as np

from offload_env.batch_simulator import BatchSimulator
from offload_env.episode import episode_keys
from offload_env.exchange import Exchanges
from offload_env.world import build_world
from testbed.policy.observation_fields import schema_of
from tests.support.scripts import benchmark


def test_what_is_told_is_what_a_payload_would_meet() -> None:
    """Against the scalar link and server, in every drive, after some frames."""
    told = benchmark("present_knowledge").Told
    world = build_world("city-rrc", "test")
    keys = episode_keys(0, 6)
    batch = BatchSimulator(world, len(keys))
    batch.reset(keys)
    for _ in range(9):
        batch.settle(np.full(len(keys), world.topology.main))
    seen = told(world, len(keys)).observe(batch.lanes)
    exchanges = Exchanges(world)
    names = {f.name: f for f in schema_of(world.topology).fields}

    def raw(lane: int, name: str) -> float:
        field = names[name]
        share = (float(seen[lane, field.index]) + 1) / 2
        assert field.scale == "log"
        return float(field.low * (field.high / field.low) ** share)

    for lane, key in enumerate(keys.tolist()):
        plan, now = world.plan(key), float(batch.lanes.start[lane])
        exchanges.start(plan)
        wait_ms = exchanges.of(now, now, 0.0, 0.0).wait_ms
        rtt_ms = 2 * world.pool.sender(plan.trace).one_way(now + plan.offset_ms)
        assert np.isclose(raw(lane, "server_wait_ms"), max(wait_ms, 0.1), rtol=1e-3)
        assert np.isclose(raw(lane, "rtt_ms"), rtt_ms + world.cost.net_ms, rtol=1e-3)
        assert raw(lane, "transfer_age_s") <= 0.01 * (1 + 1e-6)
