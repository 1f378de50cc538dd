"""Replaying a run whose truth is known: one that the simulator itself made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cnn.action import ACTIONS
from cnn.errors import DataError
from cnn.frame_table import FrameTable, embedded_table
from offload_env.replay import Figures, measured, simulate
from offload_env.scenario import load_scenario
from offload_env.server_load import ServerLoad
from offload_env.simulator import STATUS, Simulator
from offload_env.world import Plan, build_world
from testbed.link.record import LinkRecord
from testbed.records.measurement import Measurement
from testbed.traces.model import generate_trace

N = 60
SCENARIO = load_scenario("urban-5g")


def _table() -> FrameTable:
    whole = embedded_table("policy-test")
    names = ("label", "track", "frame", "prediction", "confidence", "payload_bytes", "features")
    return replace(whole, **{name: getattr(whole, name)[:N] for name in names})


def _run(table: FrameTable, offset_s: float) -> tuple[list[Measurement], LinkRecord]:
    """A pretended live run: the simulator's own outcomes as measurements."""
    trace = generate_trace("urban-5g", 7)
    world = build_world(replace(SCENARIO, server=ServerLoad()), "test", traces=[trace], table=table)
    simulator = Simulator(world)
    simulator.reset(Plan(0, 0, offset_s * 1e3, 0, 0), range(N))
    rng, rows = np.random.default_rng(0), []
    for i in range(N):
        o = simulator.step(int(rng.integers(20)))
        skipped = STATUS[o.status] == "skipped"
        rows.append(
            Measurement(
                frame_id=i,
                track=int(table.track[i]),
                frame_in_track=int(table.frame[i]),
                label=int(table.label[i]),
                action=o.action,
                exit_used=ACTIONS[o.used].exit,
                captured_s=0.1 * i,
                queue_ms=o.queue_ms,
                head_ms=o.compute_ms,
                encode_ms=None,
                transfer_ms=o.transfer_ms,
                server_queue_ms=0.0,
                server_ms=0.0,
                fallback_ms=o.fallback_ms,
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
                status=STATUS[o.status],
                reason="",
                uplink_mbps=None,
                rtt_ms=None,
            )
        )
    return rows, LinkRecord(trace, 1000.0, offset_s - 3.0, None, (), "user-space")


def test_a_simulated_run_replays_to_itself() -> None:
    """The link started 3 s before the drive: its record and the start give the place."""
    table = _table()
    rows, link = _run(table, offset_s=20.0)
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


def test_runs_that_do_not_fit_are_refused() -> None:
    table = _table()
    rows, link = _run(table, 5.0)
    with pytest.raises(DataError, match="every frame"):
        simulate(SCENARIO, table, rows[:-1], link, 1003.0)
    with pytest.raises(DataError, match="cuts"):
        simulate(SCENARIO, table, rows, replace(link, cuts=((1.0, 2.0),)), 1003.0)
    with pytest.raises(DataError, match="without energy"):
        measured([replace(rows[0], energy_mj=None)])
    assert isinstance(measured(rows), Figures)
