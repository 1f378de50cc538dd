"""Records of a simulated device become the link it drove on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agents.from_records import (
    device_speed,
    exchanges_of,
    log_of,
    read_all,
    traces_of,
    world_from_records,
)
from cnn.common.errors import DataError
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.world import World
from testbed.records.record_file import read_records


def recovered(world: World, path: Path):
    cost = world.cost
    found = exchanges_of(read_records(path), cost.wire_overhead_bytes, cost.net_ms)
    traces = traces_of(found, "test", "5G")
    return found, traces


def test_a_constant_link_is_found_again(make_world, drive, tmp_path: Path) -> None:
    world = make_world(12.0, rtt_ms=9.0, n_frames=300, jitter=0.0)
    _, (trace,) = recovered(world, drive(world, tmp_path / "r.parquet", 1))
    assert trace.duration_s == pytest.approx(30, abs=1)
    assert np.median(trace.uplink_mbps) == pytest.approx(12.0, rel=0.1)
    assert np.median(trace.rtt_ms) == pytest.approx(9.0, abs=1.0)


def test_steps_and_outages_are_where_they_were(make_world, drive, tmp_path: Path) -> None:
    rates = [40.0] * 10 + [0.0] * 5 + [4.0] * 15
    world = make_world(rates, rtt_ms=6.0, n_frames=600, jitter=0.0)
    simulator_key = int(episode_keys(2, 1)[0])
    offset_s = world.plan(simulator_key).offset_ms / 1e3
    _, (trace,) = recovered(world, drive(world, tmp_path / "r.parquet", 2))
    at_s = offset_s + trace.period_s * np.arange(len(trace.uplink_mbps))
    truth = np.resize(np.array(rates), 120)[np.floor(at_s).astype(int) % 120]
    inside = np.abs(at_s % 1 - 0.5) < 0.3  # away from the steps
    dead = inside & (truth == 0)
    assert (trace.uplink_mbps[dead] < 0.5).mean() > 0.8
    slow, fast = inside & (truth == 4.0), inside & (truth == 40.0)
    assert np.median(trace.uplink_mbps[slow]) == pytest.approx(4.0, rel=0.25)
    assert np.median(trace.uplink_mbps[fast]) > 5 * np.median(trace.uplink_mbps[slow])


def test_a_replay_takes_the_measured_time(make_world, drive, tmp_path: Path) -> None:
    world = make_world([30.0, 8.0, 15.0], rtt_ms=7.0, n_frames=200, jitter=0.0)
    found, (trace,) = recovered(world, drive(world, tmp_path / "r.parquet", 3))
    at = ((found.sent_s - found.sent_s[0]) / trace.period_s).astype(int)
    bits = 8 * found.sent_bytes
    replayed = trace.rtt_ms[at] + bits / (1e3 * np.maximum(trace.uplink_mbps[at], 1e-3))
    heard = np.isfinite(found.transfer_ms)
    error = np.abs(replayed - found.transfer_ms)[heard] / found.transfer_ms[heard]
    assert np.median(error) < 0.05


def test_long_silence_cuts_the_trace(make_world, drive, tmp_path: Path) -> None:
    world = make_world(12.0, n_frames=600)
    found, _ = recovered(world, drive(world, tmp_path / "r.parquet", 4))
    quiet = found.take((found.sent_s < 20) | (found.sent_s > 40))
    traces = traces_of(quiet, "run", "LTE")
    assert [t.name for t in traces] == ["run:0", "run:1"]
    assert all(t.tech == "LTE" for t in traces)
    assert traces_of(found.take(slice(0, 3)), "run", "5G") == []


def test_a_training_world_from_records(make_world, drive, tmp_path: Path) -> None:
    slow = make_world([12.0, 30.0], n_frames=400, full_local_ms=160.0, jitter=0.0)
    fast = make_world([12.0, 30.0], n_frames=400, full_local_ms=80.0, jitter=0.0)
    for seed in (1, 2):
        drive(slow, tmp_path / f"r{seed}.parquet", seed)
    runs = read_all(tmp_path)
    # A full local time of 160 ms against 80, plus heads and encoders that are the same.
    offloads = [a.index for a in SHIPPED.actions if not a.is_local and a.split]
    expected = np.median(slow.device_ms[offloads] / fast.device_ms[offloads])
    assert device_speed(runs, fast) == pytest.approx(expected, rel=0.05)
    world = world_from_records("urban-5g", tmp_path)
    assert len(world.pool) == 2
    assert world.split == "train"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        read_all(tmp_path / "empty")
    path = drive(make_world(0.001, n_frames=60), tmp_path / "empty" / "dead.parquet", 3)
    with pytest.raises(DataError, match="exchanges"):
        world_from_records("urban-5g", path)


def test_the_log_is_what_was_recorded(make_world, drive, tmp_path: Path) -> None:
    world = make_world(20.0, n_frames=400)
    path = drive(world, tmp_path / "r.parquet", 5, explore=0.2)
    log = log_of(read_all(path), world)
    records = read_records(path)
    decided = np.isfinite(records.numbers("propensity"))
    assert len(log.action) == decided.sum()
    np.testing.assert_array_equal(log.action, records.numbers("action")[decided])
    np.testing.assert_allclose(log.outcomes["delay_ms"], records.numbers("delay_ms")[decided])
    assert log.observation.shape == (len(log.action), 33)
    assert set(log.outcomes) == {"delay_ms", "energy_mj", "miss", "cost", "confidence", "correct"}
    plain = drive(world, tmp_path / "plain.parquet", 5)
    with pytest.raises(DataError, match="propensity"):
        log_of(read_all(plain), world)


def rewritten(source: Path, target: Path, change) -> Path:
    """The same record file with its table changed."""
    table = pq.read_table(source)
    pq.write_table(change(table), target)
    return target


def test_speed_is_judged_by_frames_that_computed(make_world, drive, tmp_path: Path) -> None:
    """A device of 160 ms that nearly always sends the frame is not taken for a fast one."""
    slow = make_world([12.0, 30.0], n_frames=400, full_local_ms=160.0, jitter=0.0)
    fast = make_world([12.0, 30.0], n_frames=400, full_local_ms=80.0, jitter=0.0)
    split = np.array([a.split for a in SHIPPED.actions])

    def mostly_sent(table):
        """Every sending frame as quick as on a desktop; of the computing ones each tenth."""
        computed = split[table["action"].to_numpy()] > 0
        keep = ~computed | (np.arange(len(computed)) % 10 == 0)
        head = np.where(computed, table["head_ms"].to_numpy(), 0.01)
        at = table.column_names.index("head_ms")
        return table.set_column(at, "head_ms", pa.array(head)).filter(pa.array(keep))

    path = rewritten(drive(slow, tmp_path / "all.parquet", 1), tmp_path / "r.parquet", mostly_sent)
    table = pq.read_table(path)
    assert (split[table["action"].to_numpy()] == 0).mean() > 0.6
    speed = device_speed([read_records(path)], fast)
    assert speed is not None
    assert speed * 80.0 == pytest.approx(160.0, rel=0.05)


def test_speed_is_unknown_if_nothing_computed(make_world, drive, tmp_path: Path) -> None:
    world = make_world([12.0, 30.0], n_frames=300, jitter=0.0)
    split = np.array([a.split for a in SHIPPED.actions])

    def only_sent(table):
        sent = (split[table["action"].to_numpy()] == 0) & (
            np.array(table["status"].to_pylist()) == "ok"
        )
        return table.filter(pa.array(sent))

    path = rewritten(drive(world, tmp_path / "all.parquet", 1), tmp_path / "r.parquet", only_sent)
    assert device_speed([read_records(path)], world) is None


def test_a_local_finish_after_a_lost_exchange_counts(make_world, drive, tmp_path: Path) -> None:
    """A device that only sends, over a dead link, computes every frame after all."""
    slow = make_world(0.001, n_frames=300, full_local_ms=60.0, jitter=0.0)
    fast = make_world(0.001, n_frames=300, full_local_ms=30.0, jitter=0.0)
    split = np.array([a.split for a in SHIPPED.actions])

    def sent(table):
        return table.filter(pa.array(split[table["action"].to_numpy()] == 0))

    path = rewritten(drive(slow, tmp_path / "all.parquet", 1), tmp_path / "r.parquet", sent)
    speed = device_speed([read_records(path)], fast)
    assert speed == pytest.approx(2.0, rel=0.05)
