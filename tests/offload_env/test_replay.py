"""Replaying a run whose truth is known: one that the simulator itself made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cnn.common.errors import DataError
from cnn.frame_table import FrameTable, embedded_table
from cnn.topology import SHIPPED
from offload_env.episode import Plan
from offload_env.replay import Figures, computed_times, measured, repeat, simulate
from offload_env.scenario import Scenario, load_scenario
from offload_env.server_load import ServerLoad
from offload_env.simulator import STATUS, Outcome, Simulator
from offload_env.world import build_world
from testbed.link.transfer import LinkRecord
from testbed.records.measurement import Measurement
from testbed.traces.generator import generate_trace

N = 60
SCENARIO = load_scenario("urban-5g")
HURRIED = replace(
    SCENARIO, timing=replace(SCENARIO.timing, period_ms=60.0, timeout_ms=22.0, max_queue_ms=9.0)
)
"""Falls back and skips, too."""


def _table() -> FrameTable:
    whole = embedded_table("policy-test")
    names = ("label", "track", "frame", "prediction", "confidence", "payload_bytes", "features")
    return replace(whole, **{name: getattr(whole, name)[:N] for name in names})


def _run(
    table: FrameTable, offset_s: float, jitter_at: int = 0, scenario: Scenario = SCENARIO
) -> tuple[list[Measurement], LinkRecord, list[Outcome]]:
    """A pretended live run: the simulator's own outcomes as measurements."""
    trace = generate_trace("urban-5g", 7)
    world = build_world(replace(scenario, server=ServerLoad()), "test", traces=[trace], table=table)
    simulator = Simulator(world)
    simulator.reset(Plan(0, 0, offset_s * 1e3, 0, jitter_at), range(N))
    rng = np.random.default_rng(0)
    outcomes = [simulator.settle(int(rng.integers(20))) for _ in range(N)]
    rows = [_measurement(scenario, table, i, o) for i, o in enumerate(outcomes)]
    return rows, LinkRecord(trace, 1000.0, offset_s - 3.0, None, (), "user-space"), outcomes


def _measurement(scenario: Scenario, table: FrameTable, i: int, o: Outcome) -> Measurement:
    status = STATUS[o.status]
    skipped, fell = status == "skipped", status == "fallback"
    answered = status == "ok" and not SHIPPED.actions[o.action].is_local
    return Measurement(
        frame_id=i,
        track=int(table.track[i]),
        frame_in_track=int(table.frame[i]),
        label=int(table.label[i]),
        action=o.action,
        exit_used=SHIPPED.actions[o.used].exit,
        captured_s=scenario.timing.period_ms / 1e3 * i,
        queue_ms=o.queue_ms,
        head_ms=o.compute_ms,
        encode_ms=None,
        transfer_ms=o.transfer_ms if answered else None,
        server_queue_ms=o.server_wait_ms if answered else None,
        server_ms=o.exchange_ms - o.transfer_ms - o.server_wait_ms if answered else None,
        fallback_ms=o.fallback_ms if fell else None,
        delay_ms=o.delay_ms,
        uplink_bytes=0,
        downlink_bytes=0,
        prediction=None if skipped else int(table.prediction[i, o.used]),
        confidence=None,
        correct=None if skipped else bool(o.correct),
        compute_mj=o.compute_mj,
        radio_mj=o.radio_mj,
        idle_mj=o.idle_mj,
        energy_mj=o.energy_mj,
        energy_source="synthetic",
        status=status,
        reason="timeout" if fell else "",
        uplink_mbps=None,
        rtt_ms=None,
    )


def test_a_simulated_run_replays_to_itself() -> None:
    """The link started 3 s before the drive: its record and the start give the place."""
    table = _table()
    rows, link, _ = _run(table, offset_s=20.0)
    truth = measured(rows)
    again = simulate(SCENARIO, table, rows, link, 1003.0, draws=1)
    assert again.delay_ms == pytest.approx(truth.delay_ms)
    assert again.energy_mj == pytest.approx(truth.energy_mj)
    assert (again.accuracy, again.fallback, again.skipped) == (
        truth.accuracy,
        truth.fallback,
        truth.skipped,
    )
    assert simulate(SCENARIO, table, rows, link, 1031.0, draws=1) != again  # another place


def test_a_run_repeats_to_itself_whatever_its_jitter() -> None:
    """`repeat` takes compute times from the measurements, and draws none."""
    table = _table()
    rows, link, outcomes = _run(table, offset_s=33.0, jitter_at=777, scenario=HURRIED)
    assert {row.status for row in rows} == {"ok", "fallback", "skipped"}
    assert simulate(HURRIED, table, rows, link, 1003.0, draws=1) != measured(rows)
    for o, again in zip(outcomes, repeat(HURRIED, table, rows, link, 1003.0), strict=True):
        assert (again.status, again.used, again.correct) == (o.status, o.used, o.correct)
        assert again.delay_ms == pytest.approx(o.delay_ms)
        assert again.energy_mj == pytest.approx(o.energy_mj)


def test_a_stall_between_two_frames_is_repeated() -> None:
    table = _table()
    rows, link, _ = _run(table, offset_s=33.0)
    calm = next(i for i in range(1, N) if rows[i].queue_ms == 0 and rows[i].status == "ok")
    late = replace(
        rows[calm], queue_ms=rows[calm].queue_ms + 40.0, delay_ms=rows[calm].delay_ms + 40.0
    )
    stalled = [*rows[:calm], late, *rows[calm + 1 :]]
    computed = computed_times(stalled, SCENARIO.timing.timeout_ms)
    assert computed[calm].stall_ms == pytest.approx(40.0)
    assert computed[calm].device_ms == pytest.approx(rows[calm].head_ms)
    again = repeat(SCENARIO, table, stalled, link, 1003.0)
    assert again[calm].queue_ms == pytest.approx(40.0)
    assert [o.queue_ms for o in again[:calm]] == pytest.approx([r.queue_ms for r in rows[:calm]])


def test_runs_that_do_not_fit_are_refused() -> None:
    table = _table()
    rows, link, _ = _run(table, 5.0)
    with pytest.raises(DataError, match="every frame"):
        simulate(SCENARIO, table, rows[:-1], link, 1003.0)
    with pytest.raises(DataError, match="cuts"):
        simulate(SCENARIO, table, rows, replace(link, cuts=((1.0, 2.0),)), 1003.0)
    with pytest.raises(DataError, match="without energy"):
        measured([replace(rows[0], energy_mj=None)])
    assert isinstance(measured(rows), Figures)
