"""Single frames against the cost model's formulas; radio, tail, queue and server by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cnn.topology import SHIPPED
from offload_env import make_simulator
from offload_env.server_load import CELL_MS, ServerLoad
from offload_env.simulator import FALLBACK, OK, SKIPPED, Simulator
from offload_env.world import POOL, World
from testbed.policy.decision_points import decision_points
from testbed.traces.trace import Trace

POINTS = decision_points(SHIPPED)

MakeWorld = Callable[..., World]


def _steady(
    make_world: MakeWorld,
    uplink: list[float],
    *,
    rtt: float = 20.0,
    tail_ms: float = 0.0,
    promotion_ms: float = 0.0,
    **more: object,
) -> World:
    """No jitter, no load, one trace of one-second samples."""
    base = make_world()
    cost = replace(base.cost, jitter=0.0, slowdown=2.0)
    modem = {"tail_ms": tail_ms, "tail_mw": 500.0, "promotion_ms": promotion_ms}
    cost = replace(cost, radio=replace(cost.radio, **modem))
    timing = replace(
        base.scenario.timing,
        period_ms=200.0,
        timeout_ms=150.0,
        deadline_ms=100.0,
        max_queue_ms=50.0,
    )
    trace = Trace(np.array(uplink), np.full(len(uplink), rtt), 1.0, "steady", "5G", "generated")
    price = replace(base.scenario.price, energy_budget_mj=0.0)
    return make_world(
        **{
            "traces": [trace],
            "cost": cost,
            "timing": timing,
            "server": ServerLoad(),
            "price": price,
            **more,
        }
    )


def _start(world: World, offset_ms: float = 0.0) -> Simulator:
    simulator = Simulator(world)
    simulator.reset(replace(world.plan(7), offset_ms=offset_ms))
    return simulator


@pytest.mark.slow(2)
@pytest.mark.parametrize("action", range(SHIPPED.n_actions))
@pytest.mark.parametrize("mbps", [5.0, 40.0])
def test_a_single_frame_costs_what_the_cost_model_says(
    action: int, mbps: float, make_world: MakeWorld
) -> None:
    """The formulas of `testbed.meters.cost_model`, written out again here."""
    world = _steady(make_world, [mbps])
    cost = world.cost
    outcome = _start(world).settle(action)
    compute = cost.slowdown * cost.device_ms[action]
    waiting = radio = 0.0
    if not SHIPPED.actions[action].is_local:
        sent = cost.payload_bytes[action] + cost.wire_overhead_bytes
        transfer = 8 * sent / (1000 * mbps) + 20.0 + cost.net_ms
        waiting = transfer + cost.server_ms[action]
        radio = cost.radio.exchange_mj(sent, waiting)
        assert outcome.transfer_ms == pytest.approx(transfer)
    energy = (cost.busy_mw * compute + cost.idle_mw * waiting) / 1000 + radio
    assert outcome.status == OK
    assert outcome.delay_ms == pytest.approx(compute + waiting)
    assert outcome.energy_mj == pytest.approx(energy)
    full_ms = cost.slowdown * cost.device_ms[SHIPPED.main]
    price = world.scenario.price
    expected = (
        price.delay_weight * outcome.delay_ms / full_ms
        + price.energy_weight * energy / (cost.busy_mw * full_ms / 1000)
        + price.miss * (outcome.delay_ms > 100.0)
    )
    assert outcome.cost == pytest.approx(expected)
    assert outcome.correct == (
        world.table.prediction[outcome.row, action] == world.table.label[outcome.row]
    )


def test_full_local_costs_one(make_world: MakeWorld) -> None:
    world = _steady(make_world, [10.0])
    assert _start(world).settle(SHIPPED.main).cost == pytest.approx(1.0)


def test_an_outage_times_out_and_the_device_finishes_by_itself(make_world: MakeWorld) -> None:
    world = _steady(make_world, [0.0, 0.0, 30.0])
    cost, action = world.cost, SHIPPED.index(4, 2)
    simulator = _start(world)
    outcome = simulator.settle(action)
    compute = cost.slowdown * cost.device_ms[action]
    fallback = cost.slowdown * cost.fallback_ms[action]
    assert outcome.status == FALLBACK
    assert outcome.used == SHIPPED.local[3]
    assert outcome.delay_ms == pytest.approx(compute + 150.0 + fallback)
    assert outcome.compute_mj == pytest.approx(cost.busy_mw * (compute + fallback) / 1e3)
    assert outcome.idle_mj == pytest.approx(cost.idle_mw * 150.0 / 1e3)
    sent = cost.payload_bytes[action] + cost.wire_overhead_bytes
    assert outcome.radio_mj == pytest.approx(cost.radio.exchange_mj(sent, 150.0))
    assert outcome.miss
    assert outcome.transfer_ms == outcome.server_wait_ms == 0
    assert simulator.observer.failures == 1


@pytest.mark.parametrize("tail_ms", [0.0, 250.0])
def test_giving_up_early_costs_the_wait_and_what_is_looked_at_after(
    make_world: MakeWorld, tail_ms: float
) -> None:
    """Looked at exit 1, sent from block 2, gave up, looked at exits 2 and 4."""
    world = _steady(make_world, [30.0, 0.0, 0.0], tail_ms=tail_ms)
    cost, action = world.cost, SHIPPED.index(5, 2)
    simulator = _start(world, offset_ms=790.0)
    before = simulator.settle(
        SHIPPED.index(1, 0)
    )  # before the outage: it learns how long that takes
    observer = simulator.observer
    usual = 2 * (observer.transfer_mean_ms + before.server_wait_ms)
    patience = usual + 4 * observer.transfer_spread_ms
    assert patience < 150.0
    simulator.evaluate_exit(1)
    assert simulator.send(action, early=True) is None
    assert simulator.point == POINTS.point[1, 2, 1]
    assert observer.failures == 1
    simulator.evaluate_exit(2)
    simulator.evaluate_exit(4)
    outcome = simulator.answer()
    head = 0.2 * cost.slowdown  # of an exit on the way, in the test's cost model
    computed = cost.slowdown * cost.device_ms[action] + head
    rest = head + cost.slowdown * cost.fallback_ms[SHIPPED.index(4, 2)]
    assert (outcome.status, outcome.action, outcome.used) == (FALLBACK, action, SHIPPED.local[3])
    assert outcome.exchange_ms == pytest.approx(patience)
    assert outcome.compute_ms == pytest.approx(computed)
    assert outcome.fallback_ms == pytest.approx(rest)
    assert outcome.delay_ms == pytest.approx(computed + patience + rest)
    assert outcome.compute_mj == pytest.approx(cost.busy_mw * (computed + rest) / 1e3)
    assert outcome.idle_mj == pytest.approx(cost.idle_mw * patience / 1e3)
    sent = cost.payload_bytes[action] + cost.wire_overhead_bytes
    quiet = 200.0 - before.delay_ms  # of the first frame's tail this much is over already
    tail = min(computed, max(0.0, tail_ms - quiet))
    tail += min(tail_ms, max(200.0, outcome.delay_ms) - computed - patience)
    radio = cost.radio.exchange_mj(sent, patience) + cost.radio.tail_mw * tail / 1e3
    assert outcome.radio_mj == pytest.approx(radio)
    # The payload given up still leaves before anything else.
    assert simulator.send(action) is None


def test_a_hurried_answer_that_comes_is_an_answer(make_world: MakeWorld) -> None:
    world = _steady(make_world, [30.0])
    patient, early = _start(world), _start(world)
    for simulator in (patient, early):
        simulator.settle(0)
    action = SHIPPED.index(4, 1)
    assert early.send(action, early=True) == patient.send(action)


def test_abandoned_bytes_leave_first(make_world: MakeWorld) -> None:
    """Nothing leaves for a second; then the first payload goes before the second."""
    world = _steady(make_world, [0.0, 1.0, 1.0, 1.0])
    action = SHIPPED.index(5, 0)
    cost = world.cost
    bits = 8 * (cost.payload_bytes[action] + cost.wire_overhead_bytes)
    simulator = _start(world, offset_ms=700.0)
    assert simulator.settle(action).status == FALLBACK  # sent at 0, link opens at 300
    outcome = simulator.settle(action)  # sent at 200, leaves after the first one
    first_left = 300.0 + bits / 1000.0
    assert first_left > 350.0
    # Its 57 ms of transmission start at 357 ms: beyond the time-out at 350 ms.
    assert outcome.status == FALLBACK
    third = simulator.settle(action)  # sent at 400: two payloads are ahead of it
    answer = 300.0 + 3 * bits / 1000.0 + 20.0 + cost.net_ms + cost.server_ms[action]
    if answer - 400.0 <= 150.0:
        assert third.delay_ms == pytest.approx(answer - 400.0)
    else:
        assert third.status == FALLBACK


def test_a_late_frame_is_skipped_and_the_next_one_is_not(make_world: MakeWorld) -> None:
    base = make_world()
    timing = replace(base.scenario.timing, period_ms=30.0, max_queue_ms=20.0, deadline_ms=200.0)
    world = _steady(make_world, [0.0, 10.0], timing=replace(timing, timeout_ms=40.0))
    simulator = _start(world)
    action = SHIPPED.index(5, 0)
    first = simulator.settle(action)
    busy_until = first.delay_ms
    assert busy_until == pytest.approx(40.0 + 2.0 * world.cost.fallback_ms[action])
    second = simulator.settle(action)  # captured at 30 ms
    queue = busy_until - 30.0
    assert queue > 20.0
    assert second.status == SKIPPED
    assert not second.correct
    assert second.miss
    assert second.delay_ms == second.queue_ms == pytest.approx(queue)
    assert second.energy_mj == 0.0
    third = simulator.settle(SHIPPED.local[0])  # captured at 60 ms
    assert third.status == OK
    assert third.queue_ms == pytest.approx(max(0.0, busy_until - 60.0))


def test_the_tail_is_paid_once_and_in_full(make_world: MakeWorld) -> None:
    """Send, stay local, send: tail time is capped by the tail and cut by the next exchange."""
    world = _steady(make_world, [40.0], tail_ms=250.0)
    cost = world.cost
    send, stay = SHIPPED.index(5, 0), SHIPPED.local[0]
    simulator = _start(world)
    outcomes = [simulator.settle(a) for a in (send, stay, stay, send, send)]
    no_tail = _start(_steady(make_world, [40.0]))
    plain = [no_tail.settle(a) for a in (send, stay, stay, send, send)]
    tail_ms = [
        (a.radio_mj - b.radio_mj) * 1e3 / cost.radio.tail_mw
        for a, b in zip(outcomes, plain, strict=True)
    ]
    exchange = plain[0].exchange_ms
    # Sent at 0; the tail runs from its end for 250 ms, over frame 0, 1 and into 2.
    assert tail_ms[0] == pytest.approx(200.0 - exchange)
    assert tail_ms[1] == pytest.approx(min(200.0, 250.0 - (200.0 - exchange)))
    assert sum(tail_ms[:3]) == pytest.approx(250.0)
    assert tail_ms[3] == pytest.approx(200.0 - plain[3].exchange_ms)
    assert tail_ms[4] == pytest.approx(200.0 - plain[4].exchange_ms)
    assert sum(o.energy_mj for o in outcomes) == pytest.approx(
        sum(o.compute_mj + o.radio_mj + o.idle_mj for o in outcomes)
    )


def test_tail_left_is_what_the_device_would_know(make_world: MakeWorld) -> None:
    world = _steady(make_world, [40.0], tail_ms=250.0)
    simulator = _start(world)
    assert simulator.tail_left_ms == 0.0
    outcome = simulator.settle(SHIPPED.index(5, 0))
    assert simulator.tail_left_ms == pytest.approx(250.0 - (200.0 - outcome.delay_ms))


def test_a_modem_connects_once_before_its_tail_runs(make_world: MakeWorld) -> None:
    """Send, send, stay twice, send: the first and the last exchange are longer by a promotion."""
    send, stay = SHIPPED.index(5, 0), SHIPPED.local[0]
    simulators = [
        _start(_steady(make_world, [40.0], tail_ms=250.0, promotion_ms=promotion))
        for promotion in (30.0, 0.0)
    ]
    drives = [[s.settle(a) for a in (send, send, stay, stay, send)] for s in simulators]
    for n, (slow, quick) in enumerate(zip(*drives, strict=True)):
        more = 30.0 if n in (0, 4) else 0.0
        assert slow.status == quick.status == OK
        assert slow.delay_ms == pytest.approx(quick.delay_ms + more)
        assert slow.transfer_ms == pytest.approx(quick.transfer_ms + more)
        assert slow.idle_mj == pytest.approx(
            quick.idle_mj + simulators[0].world.cost.idle_mw * more / 1e3
        )


def test_a_promotion_beyond_the_time_out_goes_on_and_the_payload_with_it(
    make_world: MakeWorld,
) -> None:
    """The frame after a time-out waits for what is left of both, and no longer."""
    world = _steady(make_world, [40.0], tail_ms=900.0, promotion_ms=260.0)
    action = SHIPPED.index(5, 0)
    simulator = _start(world)
    first, second, third = (simulator.settle(action) for _ in range(3))
    plain = _start(_steady(make_world, [40.0])).settle(action)
    assert (first.status, second.status, third.status) == (FALLBACK, OK, OK)
    sending = 8 * (world.cost.payload_bytes[action] + world.cost.wire_overhead_bytes) / 40e3
    started = max(200.0, first.delay_ms)
    assert second.exchange_ms == pytest.approx(plain.exchange_ms + 260.0 + sending - started)
    assert third.exchange_ms == pytest.approx(plain.exchange_ms)


def test_the_server_makes_us_wait_as_its_work_says(make_world: MakeWorld) -> None:
    world = _steady(make_world, [40.0], server=ServerLoad(0.7, 10.0, 0.5))
    simulator, calm = _start(world), _start(_steady(make_world, [40.0]))
    plan, action, waits = world.plan(7), SHIPPED.index(5, 0), []
    for _ in range(40):
        now = simulator.now_ms
        busy, free = simulator.settle(action), calm.settle(action)
        waits.append(busy.server_wait_ms)
        if busy.status != OK:
            continue
        arrive = now + free.delay_ms - world.cost.net_ms - world.cost.server_ms[action] - 10.0
        cell = int(arrive / CELL_MS)
        work = world.server_work_ms[plan.server_cell + cell]
        assert busy.server_wait_ms == pytest.approx(max(0.0, work - (arrive - cell * CELL_MS)))
        assert busy.delay_ms == pytest.approx(free.delay_ms + busy.server_wait_ms)
        assert simulator.observer.server_wait_ms == busy.server_wait_ms
    assert max(waits) > 0


def test_jitter_multiplies_compute_and_has_mean_one(make_world: MakeWorld) -> None:
    world = make_world()
    assert world.device_jitter.mean() == pytest.approx(1.0, abs=0.005)
    assert np.log(world.device_jitter).std() == pytest.approx(world.cost.jitter, rel=0.02)
    simulator, plan = _start(world), world.plan(7)
    for i in range(5):
        outcome = simulator.settle(SHIPPED.main)
        jitter = world.device_jitter[(plan.jitter_at + i) % POOL]
        if outcome.status == OK:
            assert outcome.compute_ms == pytest.approx(world.device_ms[SHIPPED.main] * jitter)


def test_staged_frames_add_up(make_world: MakeWorld) -> None:
    """Looking at exits 1 and 3 and then sending from 4 costs both heads and nothing twice."""
    world = _steady(make_world, [40.0])
    cost = world.cost
    simulator = _start(world)
    simulator.evaluate_exit(1)
    simulator.evaluate_exit(3)
    row = simulator.row
    seen = [(e, int(world.table.prediction[row, SHIPPED.local[e - 1]])) for e in (1, 3)]
    assert [(e, p) for e, p, _ in simulator.exits] == seen
    sent = simulator.send(SHIPPED.index(5, 4))
    assert sent is not None
    head = 0.2 * cost.slowdown
    assert sent.compute_ms == pytest.approx(2 * head + 2.0 * cost.device_ms[SHIPPED.index(5, 4)])
    simulator.evaluate_exit(2)
    answered = simulator.answer()
    assert answered.action == SHIPPED.local[1]
    assert answered.compute_ms == pytest.approx(2.0 * cost.device_ms[SHIPPED.local[1]])
    direct = _start(world)
    direct.settle(0)
    same = direct.settle(SHIPPED.local[1])
    assert same.cost == pytest.approx(answered.cost)


@pytest.mark.parametrize("last", [SHIPPED.index(2, 2), SHIPPED.index(5, 4)], ids=["answer", "send"])
def test_a_frame_pays_its_overhead_once(make_world: MakeWorld, last: int) -> None:
    """Capture, features and decision are not done again because the device looked."""
    plain = _steady(make_world, [40.0])
    slower = tuple(ms + 5.0 for ms in plain.cost.device_ms)
    dear = _steady(make_world, [40.0], cost=replace(plain.cost, device_ms=slower))
    spent = []
    for world in (plain, dear):
        simulator = _start(world)
        simulator.evaluate_exit(1)
        simulator.evaluate_exit(2)
        ended = simulator.answer() if last == SHIPPED.local[1] else simulator.send(last)
        assert ended is not None
        spent.append(ended.compute_ms)
    assert spent[1] - spent[0] == pytest.approx(5.0 * plain.cost.slowdown)


def test_explicit_rows_are_followed_and_break_tracks(world: World) -> None:
    simulator = Simulator(world)
    first, second = world.track_start[2], world.track_start[5]
    rows = [int(first), int(first) + 1, int(second), int(second) + 1]
    simulator.reset(world.plan(1), rows)
    seen = []
    for row in rows:
        assert simulator.row == row
        seen.append(simulator.observer.answers)
        simulator.settle(SHIPPED.main)
    assert seen == [0, 1, 0, 1]


def test_make_simulator_is_reproducible() -> None:
    one, two = make_simulator("urban-5g", "test", 3), make_simulator("urban-5g", "test", 3)
    np.testing.assert_array_equal(one.observe(), two.observe())
    assert one.settle(3) == two.settle(3)
