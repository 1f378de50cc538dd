"""The fit recovers known terms from synthetic campaigns and refuses what is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls

from cnn.common.errors import DataError
from cnn.model_config import ModelConfig
from cnn.topology import SHIPPED
from testbed.costs.campaign import EXTRA_COLUMNS
from testbed.costs.cost_fit import cost_model, fit_samples, predict
from testbed.costs.fit_check import bootstrap, hold_out, mape, r_squared
from testbed.costs.samples import Powers, Samples, payloads_of, powers_of, samples_of
from testbed.costs.terms import fit_terms, terms_of
from testbed.meters.cost_model import CostModel
from testbed.meters.meter import FrameActivity
from testbed.meters.power import ModelMeter, RadioPower, power_profile
from testbed.records.measurement import Measurement
from testbed.records.record_file import RecordWriter, read_records
from testbed.wire.protocol import WIRE_OVERHEAD_BYTES

CONFIG = ModelConfig()
TERMS, ACTIONS = terms_of(SHIPPED), SHIPPED.actions
PAYLOAD = np.array([CONFIG.payload_bytes(a.exit, a.split) for a in ACTIONS], float)
LINKS = {"a": (2.0, 60.0), "b": (10.0, 20.0), "c": (50.0, 40.0)}
rng = np.random.default_rng(7)
PARTS = [term for term in TERMS.device if term != "send"]
DRAWN = dict(zip(PARTS, rng.uniform(0.2, 3.0, len(PARTS)), strict=True)) | {"send": 1.1}
DEVICE = {term: DRAWN[term] for term in TERMS.device}
SERVER = dict(zip(TERMS.server, rng.uniform(0.1, 1.5, len(TERMS.server)), strict=True))
NET_MS, WAIT_MS = 1.25, 0.1
PROFILE = power_profile("jetson-nano+lte")
POWERS = Powers(PROFILE.device.idle_mw, PROFILE.device.busy_mw, PROFILE.radio, "test")


def synthetic(n: int, noise: float, seed: int, slowdown: float = 1.0) -> Samples:
    """`n` frames of every action under every link; lognormal noise and rare long stalls."""
    r = np.random.default_rng(seed)
    rows = [(c, a, k) for c in LINKS for a in ACTIONS for k in range(n)]

    def noisy(value: float) -> float:
        stall = 10.0 if r.random() < 0.02 * (noise > 0) else 1.0
        return value * float(np.exp(noise * r.standard_normal())) * stall

    names = ("head", "encode", "compute", "move", "server", "energy")
    columns: dict[str, list[float]] = {name: [] for name in names}
    meter = ModelMeter(PROFILE)
    for c, a, _ in rows:
        rate, rtt = LINKS[c]
        head = slowdown * noisy(sum(DEVICE[t] for t in TERMS.of_head(a)))
        coded = [t for t in TERMS.of_device(a) if t.startswith("enc")]
        encode = slowdown * noisy(sum(DEVICE[t] for t in coded))
        rest = DEVICE["overhead"] + (0.0 if a.is_local else DEVICE["send"])
        compute = head + encode + slowdown * noisy(rest)
        sent = 0.0 if a.is_local else PAYLOAD[a.index] + WIRE_OVERHEAD_BYTES
        move = 0.0 if a.is_local else 8 * sent / (1e3 * rate) + rtt + NET_MS
        far = 0.0 if a.is_local else noisy(sum(SERVER[t] for t in TERMS.of_server(a)))
        away = 0.0 if a.is_local else move + far + WAIT_MS
        activity = FrameActivity(0, 1, compute, away, away, sent, 0)
        columns["head"].append(head)
        columns["encode"].append(encode)
        columns["compute"].append(compute)
        columns["move"].append(move)
        columns["server"].append(far)
        columns["energy"].append(meter.end(activity).energy_mj or 0.0)
    action = np.array([a.index for _, a, _ in rows])
    local = np.array([a.is_local for _, a, _ in rows])
    got = {k: np.array(v) for k, v in columns.items()}
    wait = np.where(local, 0.0, WAIT_MS)
    return Samples(
        action=action,
        condition=np.array([c for c, _, _ in rows]),
        round=np.array([k % 3 for _, _, k in rows]),
        uplink_mbps=np.array([LINKS[c][0] for c, _, _ in rows]),
        rtt_ms=np.array([LINKS[c][1] for c, _, _ in rows]),
        head_ms=got["head"],
        encode_ms=got["encode"],
        compute_ms=got["compute"],
        transfer_ms=got["move"],
        server_queue_ms=wait,
        server_ms=got["server"],
        delay_ms=got["compute"] + got["move"] + got["server"] + wait,
        energy_mj=got["energy"],
    )


def test_every_action_runs_every_block_of_its_exit_exactly_once() -> None:
    for a in ACTIONS:
        both = TERMS.of_device(a) + TERMS.of_server(a)
        blocks = [f"block{b}" for b in range(1, min(a.exit, 4) + 1)]
        assert sorted(t for t in both if t in ("block1", "block2", "block3", "block4")) == blocks
        assert both.count("block5_exit5" if a.exit == 5 else f"exit{a.exit}") == 1
        coded = 0 < a.split < a.exit
        assert (f"enc{a.split}" in both) == (f"dec{a.split}" in both) == coded
        finished = set(TERMS.of_head(a)) | set(TERMS.of_fallback(a))
        assert finished == set(TERMS.of_head(SHIPPED.action(a.exit, a.exit)))
        assert set(TERMS.of_head(a)).isdisjoint(TERMS.of_fallback(a))


def test_without_noise_what_actions_cost_is_recovered_exactly() -> None:
    fit = fit_samples(synthetic(1, 0.0, 0, slowdown=4.0), 4.0, PAYLOAD)
    expected = TERMS.device_rows @ np.array(list(DEVICE.values()))
    np.testing.assert_allclose(fit.device_ms, expected, rtol=1e-3)
    expected = TERMS.server_rows @ np.array(list(SERVER.values()))
    np.testing.assert_allclose(fit.server_ms, expected, rtol=1e-3, atol=1e-9)
    assert fit.net_ms == pytest.approx(NET_MS)
    assert fit.server_wait_ms == pytest.approx(WAIT_MS)
    assert fit.jitter == pytest.approx(0, abs=1e-3)


def test_with_noise_and_stalls_it_stays_close_and_plain_least_squares_does_not() -> None:
    samples = synthetic(30, 0.05, 1)
    fit = fit_samples(samples, 1.0, PAYLOAD)
    table = TERMS.device_rows
    truth = table @ np.array(list(DEVICE.values()))
    robust = np.abs(fit.device_ms / truth - 1)
    plain = np.abs(table @ nnls(table[samples.action], samples.compute_ms)[0] / truth - 1)
    assert robust.max() < 0.03
    assert robust.max() < plain.max()
    assert fit.jitter == pytest.approx(0.05, rel=0.3)
    assert min(*fit.device.values(), *fit.server.values(), fit.net_ms) >= 0


def test_terms_never_go_negative() -> None:
    r = np.random.default_rng(0)
    rows = np.array([[1.0, 0.0], [1.0, 1.0]])[r.integers(0, 2, 200)]
    values = np.where(rows[:, 1] > 0, 1.0, 1.2) * np.exp(0.01 * r.standard_normal(200))
    x = fit_terms(rows, values)
    assert x.min() >= 0
    assert x[1] < 0.01


def test_errors_on_held_out_conditions() -> None:
    samples = synthetic(20, 0.03, 2)
    held_out = hold_out(samples, 1.0, PAYLOAD, POWERS)
    assert held_out.condition == ["a", "b", "c"]
    assert held_out.delay_mape < 0.02
    assert held_out.energy_mape < 0.02
    assert r_squared(held_out.delay_ms, held_out.delay_model_ms) > 0.999
    assert set(held_out.by_action()) == {a.name for a in ACTIONS}
    with pytest.raises(DataError, match="held out"):
        hold_out(samples.take(samples.condition == "a"), 1.0, PAYLOAD, POWERS)


def test_held_out_energy_is_that_of_the_frames_that_have_one() -> None:
    samples = synthetic(3, 0.0, 2)
    energy = samples.energy_mj.copy()
    energy[::3] = np.nan  # one frame of three was not read
    energy[(samples.condition == "a") & (samples.action == 4)] = np.nan  # all of one cell
    patchy = dataclasses.replace(samples, energy_mj=energy)
    held_out = hold_out(patchy, 1.0, PAYLOAD, POWERS)
    (unknown,) = np.flatnonzero(np.isnan(held_out.energy_mj))
    assert (held_out.condition[held_out.of[unknown]], held_out.action[unknown]) == ("a", 4)
    whole = hold_out(samples, 1.0, PAYLOAD, POWERS)
    assert held_out.energy_mape == pytest.approx(whole.energy_mape, abs=1e-3)


def test_a_held_out_condition_that_breaks_the_model_shows() -> None:
    samples = synthetic(5, 0.0, 2)
    slower = np.where(samples.condition == "a", 2.0, 1.0)
    worse = dataclasses.replace(samples, delay_ms=samples.delay_ms * slower)
    assert hold_out(worse, 1.0, PAYLOAD, POWERS).delay_mape > 0.1


@pytest.mark.slow(1)
def test_bootstrap_intervals_hold_the_truth_of_identifiable_terms() -> None:
    intervals = bootstrap(synthetic(9, 0.03, 3), 1.0, PAYLOAD, n=40, seed=0)
    low, high = intervals["net_ms"]
    assert low <= NET_MS <= high + 1e-9
    for name, truth in DEVICE.items():
        low, high = intervals[f"device_{name}_ms"]
        assert low - 0.03 * truth <= truth <= high + 0.03 * truth
        assert high - low < 0.2 * max(truth, 1)


def test_device_terms_are_told_apart() -> None:
    fit = fit_samples(synthetic(1, 0.0, 0), 1.0, PAYLOAD)
    assert fit.device == pytest.approx(DEVICE, rel=1e-3)


def test_prediction_is_the_cost_models_formula() -> None:
    samples = synthetic(1, 0.0, 0)
    fit = fit_samples(samples, 1.0, PAYLOAD)
    model = cost_model(
        fit, PAYLOAD, POWERS, name="x", source="measured: test", bundle_hash="0" * 64
    )
    delay, energy = predict(samples, fit, 1.0, PAYLOAD, POWERS)
    for i in range(0, len(samples), 7):
        a = ACTIONS[samples.action[i]]
        compute = model.device_ms[a.index]
        sent = model.payload_bytes[a.index] + model.wire_overhead_bytes
        away = 0.0
        if not a.is_local:
            away = 8 * sent / (1e3 * samples.uplink_mbps[i]) + samples.rtt_ms[i] + model.net_ms
            away += fit.server_wait_ms + model.server_ms[a.index]
        assert delay[i] == pytest.approx(compute + away, rel=1e-4)
        mj = (model.busy_mw * compute + model.idle_mw * away) / 1e3
        if not a.is_local:
            mj += model.radio.exchange_mj(sent, away)
        assert energy[i] == pytest.approx(mj, rel=1e-4)


def to_records(path: Path, samples: Samples, **source: object) -> Path:
    told = {
        "kind": "campaign",
        "slowdown": 1.0,
        "conditions": {c: {"uplink_mbps": r, "rtt_ms": t} for c, (r, t) in LINKS.items()},
        "config": {"meter": "model"},
        "device_power": dataclasses.asdict(PROFILE.device),
        "radio_power": dataclasses.asdict(PROFILE.radio),
        **source,
    }
    with RecordWriter(path, told, EXTRA_COLUMNS) as writer:
        for i in range(len(samples)):
            a = ACTIONS[samples.action[i]]
            sent = None if a.is_local else 1
            row = Measurement(
                frame_id=i, track=0, frame_in_track=0, label=None, action=a.index,
                exit_used=a.exit, captured_s=float(i), queue_ms=0.0,
                head_ms=float(samples.head_ms[i]), encode_ms=float(samples.encode_ms[i]) or None,
                transfer_ms=sent and float(samples.transfer_ms[i]),
                server_queue_ms=sent and float(samples.server_queue_ms[i]),
                server_ms=sent and float(samples.server_ms[i]), fallback_ms=None,
                delay_ms=float(samples.delay_ms[i]), uplink_bytes=int(PAYLOAD[a.index]),
                downlink_bytes=0, prediction=1, confidence=0.5, correct=None, compute_mj=None,
                radio_mj=None, idle_mj=None, energy_mj=float(samples.energy_mj[i]),
                energy_source="model:x", status="ok", reason="", uplink_mbps=None, rtt_ms=None,
            )  # fmt: skip
            writer.write(row, condition=str(samples.condition[i]), round=0, warm_up=False)
            spoiled = dataclasses.replace(row, delay_ms=1e6)
            writer.write(spoiled, condition=str(samples.condition[i]), round=0, warm_up=True)
            failed = dataclasses.replace(spoiled, status="fallback")
            writer.write(failed, condition=str(samples.condition[i]), round=0, warm_up=False)
    return path


def test_records_are_read_without_warm_up_and_failures(tmp_path: Path) -> None:
    samples = synthetic(2, 0.02, 5)
    records = read_records(to_records(tmp_path / "c.parquet", samples))
    back = samples_of(records)
    assert len(back) == len(samples)
    for name in ("action", "delay_ms", "compute_ms", "transfer_ms", "uplink_mbps", "rtt_ms"):
        np.testing.assert_allclose(getattr(back, name), getattr(samples, name), atol=1e-9)
    np.testing.assert_array_equal(payloads_of(records), PAYLOAD)
    powers = powers_of(records, back)
    assert (powers.busy_mw, powers.radio.name) == (PROFILE.device.busy_mw, "lte")


def test_powers_are_fitted_where_a_meter_measured(tmp_path: Path) -> None:
    samples = synthetic(3, 0.02, 5)
    away_ms = samples.delay_ms - samples.compute_ms
    metered = dataclasses.replace(samples, energy_mj=(5.0 * samples.compute_ms + 1.5 * away_ms))
    path = to_records(tmp_path / "c.parquet", metered, config={"meter": "rapl"})
    records = read_records(path)
    powers = powers_of(records, samples_of(records))
    assert powers.busy_mw == pytest.approx(5000, rel=1e-3)
    assert powers.idle_mw == pytest.approx(1500, rel=1e-3)
    assert powers.radio == RadioPower("none", 0, 0, 0, 0, "the meter sees no modem")


def test_what_is_no_campaign_is_a_clear_error(tmp_path: Path) -> None:
    samples = synthetic(1, 0.0, 5)
    path = to_records(tmp_path / "c.parquet", samples, kind="device")
    with pytest.raises(DataError, match="campaign"):
        samples_of(read_records(path))
    lacking = samples.take((samples.action != 3) | (samples.condition != "b"))
    path = to_records(tmp_path / "d.parquet", lacking)
    with pytest.raises(DataError, match="condition b"):
        samples_of(read_records(path))


def test_a_cost_model_survives_its_file(tmp_path: Path) -> None:
    fit = fit_samples(synthetic(2, 0.02, 1), 1.0, PAYLOAD)
    model = cost_model(fit, PAYLOAD, POWERS, name="x", source="s", bundle_hash="h")
    model.save(tmp_path / "m.json")
    assert CostModel.load(tmp_path / "m.json") == model
    assert len(model.device_ms) == SHIPPED.n_actions


def test_error_measures_by_hand() -> None:
    measured, modelled = np.array([1.0, 2.0, np.nan]), np.array([1.1, 1.8, 5.0])
    assert mape(measured, modelled) == pytest.approx(0.1)
    assert r_squared(measured, modelled) == pytest.approx(1 - 0.05 / 0.5)
    assert np.isnan(mape(measured[2:], modelled[2:]))
