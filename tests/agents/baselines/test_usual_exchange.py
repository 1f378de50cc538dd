"""What an exchange usually takes, against closed forms and against the costs that it stands for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.baselines.answer_odds import AnswerOdds
from agents.baselines.cost_ahead import CostAhead, Seen
from agents.baselines.planner import PlannerPolicy
from agents.baselines.usual_exchange import UsualExchange
from agents.rollout import simulate
from offload_env.episode import episode_keys
from offload_env.world import World, build_world
from testbed.policy.decision_points import START, decision_points
from testbed.traces.trace import Trace

MEMORY_S = 2.0


@pytest.fixture(scope="module")
def changing(make_world) -> World:
    """Over links that now and then become as at any other time: a renewal process."""
    world, rng, period_s = make_world(20.0, rtt_ms=8.0), np.random.default_rng(0), 0.1
    traces = []
    for k in range(6):
        rate = rng.choice([4.0, 60.0], 20_000)
        for i in range(1, len(rate)):
            if rng.random() < np.exp(-period_s / MEMORY_S):
                rate[i] = rate[i - 1]
        traces.append(Trace(rate, np.full(len(rate), 8.0), period_s, str(k), "5G", "test"))
    return build_world(
        world.scenario, "train", traces=tuple(traces), table=world.table, cost=world.cost
    )


def sends(world: World) -> list[int]:
    return np.flatnonzero(~world.topology.is_local).tolist()


def known(world: World, **raw: float) -> Seen:
    """An observation in the middle of all ranges, with some elements as given."""
    space = decision_points(world.topology).staged
    middle = CostAhead(world).read(np.zeros(space.obs_dim, np.float32))
    return middle._replace(failures=0.0, server_wait_ms=0.0, queue_ms=0.0, **raw)


def test_the_memory_is_the_links(changing: World) -> None:
    assert UsualExchange(changing).memory_s == pytest.approx(MEMORY_S, rel=0.15)


def test_on_a_link_that_never_changes_the_usual_is_what_it_takes(make_world) -> None:
    world = make_world(20.0, rtt_ms=8.0)
    exchange_ms = UsualExchange(world).exchange_ms
    takes_ms = 8e-3 * world.sent_bytes.mean(0) / 20.0 + 8.0 + world.cost.net_ms + world.server_ms
    assert exchange_ms == pytest.approx(np.broadcast_to(takes_ms, exchange_ms.shape))


def test_the_servers_load_is_part_of_it(changing: World) -> None:
    idle = UsualExchange(changing).exchange_ms
    waits = replace(changing, server_work_ms=np.full_like(changing.server_work_ms, 7.0))
    assert UsualExchange(waits).exchange_ms - idle == pytest.approx(7.0)


@pytest.mark.parametrize("age_s", [0.0, 1.0, 60.0])
def test_a_cost_is_the_mean_over_what_may_be(changing: World, age_s: float) -> None:
    """Of the exchange last seen and of all usual ones, by how much of the first is forgotten."""
    usual, plain = UsualExchange(changing), CostAhead(changing)
    seen = known(changing, transfer_age_s=age_s, uplink_mbps=30.0, rtt_ms=12.0)
    mixed = CostAhead(changing, usual=usual).of(seen, START, 0.0)[0]
    as_seen = plain.of(seen, START, 0.0)[0]
    forgotten = 1.0 - np.exp(-age_s / usual.memory_s)
    for a in sends(changing):
        # A link on which this pair's exchange takes as long as one of the usual ones.
        there = 8e-3 * changing.sent_bytes[:, a].mean() / 30.0 + changing.server_ms[a]
        costs = [
            plain.of(seen._replace(rtt_ms=float(takes - there)), START, 0.0)[0][a]
            for takes in usual.exchange_ms[:, a]
        ]
        expected = as_seen[a] + forgotten * (np.mean(costs) - as_seen[a])
        assert mixed[a] == pytest.approx(expected)
    local = changing.topology.is_local
    assert mixed[local].tolist() == as_seen[local].tolist()


def test_that_the_link_is_dead_is_not_forgotten(changing: World) -> None:
    dead = known(changing, transfer_age_s=60.0)._replace(failures=1.0, failure_age_s=0.2)
    mixed = CostAhead(changing, usual=UsualExchange(changing)).of(dead, START, 0.0)[0]
    assert mixed.tolist() == CostAhead(changing).of(dead, START, 0.0)[0].tolist()


@pytest.mark.slow(3)
def test_it_begins_to_send_without_a_bonus() -> None:
    """The estimate before the first exchange is a prior, by which sending does not pay."""
    city = build_world("city-camera", "train")
    keys, odds = episode_keys(3, 16), AnswerOdds(city)
    believing, expecting = (
        simulate(city, PlannerPolicy(city, 2.0, 0.0, odds, 8, usual), keys, frames=200)
        for usual in (None, UsualExchange(city))
    )
    assert expecting.cost.mean() < 0.95 * believing.cost.mean()
    assert expecting.correct.mean() > believing.correct.mean()
