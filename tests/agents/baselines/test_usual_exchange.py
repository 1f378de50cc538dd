"""What an exchange usually takes, against closed forms and against the costs that it stands for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.baselines.answer_odds import AnswerOdds
from agents.baselines.cost_ahead import CostAhead
from agents.baselines.planner import PlannerPolicy
from agents.baselines.seen import Seen
from agents.baselines.usual_exchange import UsualExchange
from agents.rollout import simulate
from offload_env.episode import episode_keys
from offload_env.server_load import CELL_MS
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
        rate = renewed(rng, (4.0, 60.0), 20_000, np.exp(-period_s / MEMORY_S))
        traces.append(Trace(rate, np.full(len(rate), 8.0), period_s, str(k), "5G", "test"))
    return build_world(
        world.scenario, "train", traces=tuple(traces), table=world.table, cost=world.cost
    )


def renewed(rng: np.random.Generator, values: tuple[float, ...], n: int, kept: float) -> np.ndarray:
    """A series that keeps its value with probability `kept` at every step, else draws one anew."""
    series = rng.choice(values, n)
    for i in range(1, n):
        if rng.random() < kept:
            series[i] = series[i - 1]
    return series


def sends(world: World) -> list[int]:
    return np.flatnonzero(~world.topology.is_local).tolist()


def known(world: World, **raw: float) -> Seen:
    """An observation in the middle of all ranges, with some elements as given."""
    space = decision_points(world.topology).staged
    middle = CostAhead(world).read(np.zeros(space.obs_dim, np.float32))
    return middle._replace(failures=0.0, server_wait_ms=0.0, queue_ms=0.0, **raw)


def test_the_memories_are_those_of_link_and_load(changing: World) -> None:
    rng, cells = np.random.default_rng(1), len(changing.server_work_ms)
    work = renewed(rng, (0.0, 30.0), cells, np.exp(-CELL_MS / 4000.0))
    usual = UsualExchange(replace(changing, server_work_ms=work))
    assert usual.link_memory_s == pytest.approx(MEMORY_S, rel=0.15)
    assert usual.wait_memory_s == pytest.approx(4.0, rel=0.25)


def test_on_a_link_that_never_changes_the_usual_is_what_it_takes(make_world) -> None:
    world = make_world(20.0, rtt_ms=8.0)
    exchange_ms = UsualExchange(world).exchange_ms
    takes_ms = 8e-3 * world.sent_bytes.mean(0) / 20.0 + 8.0 + world.cost.net_ms + world.server_ms
    assert exchange_ms == pytest.approx(np.broadcast_to(takes_ms, exchange_ms.shape))


def test_the_servers_load_is_part_of_it(changing: World) -> None:
    idle = UsualExchange(changing).exchange_ms
    waits = replace(changing, server_work_ms=np.full_like(changing.server_work_ms, 7.0))
    assert UsualExchange(waits).exchange_ms - idle == pytest.approx(7.0)


@pytest.mark.parametrize("link_age_s", [0.0, 1.0, 60.0])
@pytest.mark.parametrize("wait_age_s", [0.0, 0.1, 60.0])
def test_a_cost_is_the_mean_over_what_may_be(
    changing: World, link_age_s: float, wait_age_s: float
) -> None:
    """Link and load as last seen or as usual, each by how much of it is forgotten."""
    work = np.resize([0.0, 0.0, 25.0], len(changing.server_work_ms))
    world = replace(changing, server_work_ms=work)
    usual, plain = UsualExchange(world), CostAhead(world)
    seen = known(world, transfer_age_s=link_age_s, server_age_s=wait_age_s)
    seen = seen._replace(uplink_mbps=30.0, rtt_ms=12.0, server_wait_ms=9.0)
    mixed = CostAhead(world, usual=usual).of(seen, START, 0.0)[0]
    news = np.exp(-link_age_s / usual.link_memory_s)
    load = np.exp(-wait_age_s / usual.wait_memory_s)
    for a in sends(world):
        sending_ms = 8e-3 * world.sent_bytes[:, a].mean() / 30.0

        def cost(link_ms: float, wait_ms: float, a: int = a, sent: float = sending_ms) -> float:
            there = seen._replace(rtt_ms=link_ms - sent, server_wait_ms=wait_ms)
            return float(plain.of(there, START, 0.0)[0][a])

        link_ms, links = sending_ms + 12.0, usual.link_ms[:, a]
        both = usual.exchange_ms[:, a] - world.server_ms[a]
        expected = (
            news * load * cost(link_ms, 9.0)
            + news * (1.0 - load) * np.mean([cost(link_ms, wait) for wait in usual.wait_ms])
            + (1.0 - news) * load * np.mean([cost(link, 9.0) for link in links])
            + (1.0 - news) * (1.0 - load) * np.mean([cost(whole, 0.0) for whole in both])
        )
        assert mixed[a] == pytest.approx(expected)
    local = world.topology.is_local
    assert mixed[local] == pytest.approx(plain.of(seen, START, 0.0)[0][local])


def test_that_the_link_is_dead_is_not_forgotten(changing: World) -> None:
    dead = known(changing, transfer_age_s=60.0)._replace(failures=1.0, failure_age_s=0.2)
    mixed = CostAhead(changing, usual=UsualExchange(changing)).of(dead, START, 0.0)[0]
    assert mixed == pytest.approx(CostAhead(changing).of(dead, START, 0.0)[0])


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
