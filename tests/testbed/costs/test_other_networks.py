"""Costs of networks of other forms: known times are found again, and two networks never mix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS, SEVEN_EXITS, THREE_EXITS, TWO_EXITS, made_up_cost, network_id

from cnn.bundle import Bundle
from cnn.common.errors import ConfigError, DataError
from cnn.topology import SHIPPED, Action, Topology
from testbed.cli.cost_commands import _of_campaign
from testbed.costs.campaign import run_campaign
from testbed.costs.campaign_config import CampaignConfig, Condition
from testbed.costs.cost_fit import Fit, cost_model, fit_samples, predict
from testbed.costs.fit_check import bootstrap, hold_out
from testbed.costs.record_fit import fit_records
from testbed.costs.record_model import model_of_records
from testbed.costs.record_samples import RecordSamples
from testbed.costs.samples import Powers, Samples, samples_of, topology_of
from testbed.device.frame_sources import open_frames
from testbed.meters.cost_model import (
    SHIPPED_PROFILE,
    CostModel,
    Floats,
    derives_reached,
    standing_ms,
)
from testbed.meters.power import power_profile
from testbed.records.record_file import Records, read_records
from testbed.wire.protocol import WIRE_OVERHEAD_BYTES

NET_MS, WAIT_MS, SLOWDOWN = 1.25, 0.1, 4.0
LINKS = {"a": (2.0, 60.0), "b": (10.0, 20.0), "c": (50.0, 40.0)}
PROFILE = power_profile("jetson-nano+lte")
POWERS = Powers(PROFILE.device.idle_mw, PROFILE.device.busy_mw, PROFILE.radio, "test")

parametrised = pytest.mark.parametrize("topology", NETWORKS, ids=network_id)
ASSUMED = {TWO_EXITS: (), THREE_EXITS: (1, 3), SEVEN_EXITS: (1, 4, 6)}
"""Early exits that are no splits: whole frames never stop there without the exit."""


Frame = tuple[Action, tuple[int, ...]]
"""An action, and the exits looked at before."""


class Truth:
    """Random times of all parts of a network; ``at_server`` are those of the server."""

    def __init__(self, topology: Topology) -> None:
        rng = np.random.default_rng(7)
        self.topology = topology
        self.block, self.exit, self.code = rng.uniform(0.5, 3.0, (3, topology.n_blocks + 1))
        self.at_server = rng.uniform(0.1, 0.4, (3, topology.n_blocks + 1))
        self.overhead, self.send, self.server = 0.3, 1.1, 0.2
        self.payload = topology.payload_bytes.astype(float)

    def head(self, a: Action, looks: tuple[int, ...] = ()) -> float:
        exits = {*looks, a.exit} if a.is_local else {*looks}
        return float(self.block[1 : a.split + 1].sum() + self.exit[[*exits]].sum())

    def encode(self, a: Action) -> float:
        return 0.0 if a.is_local or a.split == 0 else float(self.code[a.split])

    def beside(self, a: Action) -> float:
        return self.overhead + (0.0 if a.is_local else self.send)

    def device(self, a: Action) -> float:
        return self.head(a) + self.encode(a) + self.beside(a)

    def fallback(self, a: Action) -> float:
        after = slice(a.split + 1, a.exit + 1)
        return 0.0 if a.is_local else float(self.block[after].sum() + self.exit[a.exit])

    def far(self, a: Action) -> float:
        block, exit, code = self.at_server
        decoder = code[a.split] if a.split else 0.0
        after = slice(a.split + 1, a.exit + 1)
        return (
            0.0 if a.is_local else float(self.server + decoder + block[after].sum() + exit[a.exit])
        )

    def reached(self) -> Floats:
        """Up to the last block but one: the last one's exit counts as a part of it."""
        times: Floats = self.overhead + np.cumsum([0.0, *self.block[1:-1]])
        return times

    def of_actions(self, part: Any) -> Floats:
        return np.array([part(a) for a in self.topology.actions])

    def stages(self, frames: list[Frame], by: float) -> dict[str, Any]:
        """Stages of `frames` on a link of 20 ms."""
        actions = [a for a, _ in frames]
        head = by * np.array([self.head(*frame) for frame in frames])
        encode = by * np.array([self.encode(a) for a in actions])
        compute = head + encode + by * np.array([self.beside(a) for a in actions])
        sent = np.array([not a.is_local for a in actions])
        far, wait = np.array([self.far(a) for a in actions]), WAIT_MS * sent
        return {
            "action": np.array([a.index for a in actions]),
            "head_ms": head,
            "encode_ms": encode,
            "compute_ms": compute,
            "transfer_ms": 20.0 * sent,
            "server_queue_ms": wait,
            "server_ms": far,
            "delay_ms": compute + 20.0 * sent + wait + far,
            "energy_mj": np.full(len(frames), np.nan),
            "topology": self.topology,
        }


def campaign(truth: Truth) -> Samples:
    """Two frames of every action on every link, slowed down."""
    rows = [(c, a, k) for c in LINKS for a in truth.topology.actions for k in range(2)]
    found = truth.stages([(a, ()) for _, a, _ in rows], SLOWDOWN)
    rate, rtt = np.array([LINKS[c] for c, _, _ in rows]).T
    sent = ~truth.topology.is_local[found["action"]]
    bytes_ms = 8 * (truth.payload[found["action"]] + WIRE_OVERHEAD_BYTES) / (1e3 * rate)
    move = np.where(sent, bytes_ms + rtt + NET_MS, 0.0)
    found["delay_ms"] += move - found["transfer_ms"]
    return Samples(
        **{**found, "transfer_ms": move},
        condition=np.array([c for c, _, _ in rows]),
        round=np.array([k for _, _, k in rows]),
        uplink_mbps=rate,
        rtt_ms=rtt,
    )


def recorded(truth: Truth, frames: list[Frame]) -> RecordSamples:
    """Six frames of each of `frames`, as a device records them."""
    every = 6 * frames
    found = truth.stages(every, SLOWDOWN)
    return RecordSamples(
        **found,
        looks=np.array([sum(1 << (e - 1) for e in looks) for _, looks in every]),
        window_ms=np.full(len(every), np.nan),
        uplink_bytes=truth.payload[found["action"]],
    )


def whole(topology: Topology) -> list[Frame]:
    """Every action, decided in one go."""
    return [(a, ()) for a in topology.actions]


def model_of(fit: Fit, truth: Truth) -> CostModel:
    return cost_model(fit, truth.payload, POWERS, name="x", source="s", bundle_hash="h")


@parametrised
def test_a_campaign_gives_back_the_times_of_every_action(
    topology: Topology, tmp_path: Path
) -> None:
    truth = Truth(topology)
    samples = campaign(truth)
    fit = fit_samples(samples, SLOWDOWN, truth.payload)
    model = model_of(fit, truth)
    for found, part in (
        (model.device_ms, truth.device),
        (model.fallback_ms, truth.fallback),
        (model.server_ms, truth.far),
    ):
        np.testing.assert_allclose(found, truth.of_actions(part), rtol=1e-3, atol=1e-5)
    assert (model.net_ms, fit.server_wait_ms) == pytest.approx((NET_MS, WAIT_MS))
    delay, _ = predict(samples, fit, SLOWDOWN, truth.payload, POWERS)
    np.testing.assert_allclose(delay, samples.delay_ms, rtol=2e-3)
    assert model.topology == topology
    model.save(tmp_path / "model.json")
    assert CostModel.load(tmp_path / "model.json") == model


@parametrised
def test_a_device_stands_behind_its_blocks(topology: Topology) -> None:
    truth, n = Truth(topology), topology.n_blocks
    fit = fit_samples(campaign(truth), SLOWDOWN, truth.payload)
    model = model_of(fit, truth)
    standing = standing_ms(model)
    blocks = [fit.device[f"block{b}"] for b in range(1, n)] + [fit.device[f"block{n}_exit{n}"]]
    sums = np.array([0.0, *(fit.device["overhead"] + np.cumsum(blocks))])
    stated = np.isfinite(standing)
    np.testing.assert_allclose(standing[stated], sums[stated], rtol=1e-3)
    assert bool(model.reached_ms) == (not derives_reached(topology))
    # Measured ones are right, and the others are named.
    assert fit.filled == tuple(f"reached_ms {p}" for p in ASSUMED[topology])
    known = [p for p in range(1, n) if p not in ASSUMED[topology] and stated[p]]
    np.testing.assert_allclose(standing[known], truth.reached()[known], rtol=2e-3)
    assert (np.diff(standing) > 0).all()


@parametrised
def test_errors_and_intervals_cover_every_action(topology: Topology) -> None:
    truth = Truth(topology)
    samples = campaign(truth)
    held_out = hold_out(samples, SLOWDOWN, truth.payload, POWERS)
    assert set(held_out.by_action()) == {a.name for a in topology.actions}
    assert held_out.delay_mape < 1e-3
    intervals = bootstrap(samples, SLOWDOWN, truth.payload, n=3, seed=0)
    assert intervals.keys() == fit_samples(samples, 1.0, truth.payload).coefficients().keys()


@parametrised
def test_a_device_that_looks_measures_what_a_campaign_does_not(topology: Topology) -> None:
    truth = Truth(topology)
    main = topology.actions[topology.main]
    looking: list[Frame] = [(main, (e,)) for e in topology.exits[:-1]]
    frames = whole(topology)
    fit = fit_records(recorded(truth, frames + looking), SLOWDOWN, None)
    np.testing.assert_allclose(fit.device_ms, truth.of_actions(truth.device), rtol=1e-3)
    np.testing.assert_allclose(fit.payload_bytes, truth.payload)
    assert fit.filled == ("net_ms",)
    if not derives_reached(topology):
        np.testing.assert_allclose(fit.reached_ms[:-1], truth.reached(), rtol=1e-3)
    assert "reached_ms 1" in fit_records(recorded(truth, frames), SLOWDOWN, None).filled or (
        not ASSUMED[topology]
    )


@parametrised
def test_what_a_device_never_did_comes_from_the_base(topology: Topology) -> None:
    """Half of the device's times and two thirds of the server's, as the base has them."""
    truth, base = Truth(topology), Truth(topology)
    for name in ("block", "exit", "code", "overhead", "send"):
        setattr(base, name, getattr(truth, name) / 2)
    base.at_server, base.server = truth.at_server / 1.5, truth.server / 1.5
    fitted = fit_records(recorded(base, whole(topology)), SLOWDOWN, None)
    reached: tuple[float, ...] = ()
    if not derives_reached(topology):
        reached = (*base.reached().tolist(), float(fitted.reached_ms[-1]))
    model = cost_model(fitted, base.payload, POWERS, name="b", source="s", bundle_hash="h")
    model = dataclasses.replace(model, reached_ms=reached)
    some: list[Frame] = [(topology.actions[a], ()) for a in (topology.main, topology.local[0], 0)]
    fit = fit_records(recorded(truth, some), SLOWDOWN, model)
    assert fit.device.scale == pytest.approx(2.0, rel=2e-3)
    assert fit.server_scale == pytest.approx(1.5, rel=2e-3)
    np.testing.assert_allclose(fit.device_ms, truth.of_actions(truth.device), rtol=5e-3)
    np.testing.assert_allclose(fit.server_ms, truth.of_actions(truth.far), rtol=5e-3, atol=1e-6)
    np.testing.assert_array_equal(fit.payload_bytes, truth.payload)
    if reached:
        np.testing.assert_allclose(fit.reached_ms[:-1], truth.reached(), rtol=5e-3)


def test_costs_of_another_network_are_refused() -> None:
    truth, other = Truth(THREE_EXITS), Truth(SEVEN_EXITS)
    fit = fit_samples(campaign(other), SLOWDOWN, other.payload)
    with pytest.raises(ConfigError, match="a fit of a network with 7 blocks"):
        predict(campaign(truth), fit, SLOWDOWN, truth.payload, POWERS)
    frames = recorded(truth, whole(THREE_EXITS))
    with pytest.raises(ConfigError, match=r"base cost model made up .* of a network with 7 blocks"):
        fit_records(frames, SLOWDOWN, made_up_cost(SEVEN_EXITS))
    with pytest.raises(ConfigError, match="expected 8 figures"):
        dataclasses.replace(made_up_cost(SHIPPED), topology=THREE_EXITS)


def test_the_shipped_network_s_file_is_as_before() -> None:
    truth = Truth(SHIPPED)
    model = model_of(fit_samples(campaign(truth), SLOWDOWN, truth.payload), truth)
    assert {"topology", "reached_ms"}.isdisjoint(model.to_json())
    assert model.filled == ()
    np.testing.assert_allclose(standing_ms(model)[1:-1], truth.reached()[1:], rtol=1e-3)


@pytest.mark.slow(5)
def test_a_real_campaign_of_a_network_of_another_form(
    tmp_path: Path, tiny_bundle: Callable[..., Bundle]
) -> None:
    """Real processes; the one block in each condition may be repeated."""
    bundle, out = tiny_bundle(THREE_EXITS), tmp_path / "campaign.parquet"
    links = (Condition(40, 5), Condition(20, 10))
    config = CampaignConfig(links, rounds=1, repetitions=2, warm_up=1, pause_ms=0, repeats=1,
                            timeout_ms=20_000)  # fmt: skip
    rows = run_campaign(config, bundle, open_frames("render", 8), out)
    assert rows == config.n_frames(THREE_EXITS) == 2 * (1 + 2 * 8)
    records = read_records(out)
    assert topology_of(records) == THREE_EXITS
    assert records.source["actions"] == [a.name for a in THREE_EXITS.actions]
    samples = samples_of(records)
    for link in links:
        actions = samples.action[samples.condition == link.name]
        np.testing.assert_array_equal(np.bincount(actions), np.full(8, 2))
    file, report = tmp_path / "model.json", tmp_path / "report"
    result = _of_campaign(out, records, file, "x", report, 2, 0)
    assert result["by_action"].keys() == {a.name for a in THREE_EXITS.actions}
    text = (report / "fit.md").read_text()
    assert "reached_ms 1, reached_ms 3: rest on an assumption" in text
    model = CostModel.load(file)
    assert (model.topology, model.bundle_hash) == (THREE_EXITS, bundle.hash)
    np.testing.assert_array_equal(model.payload_bytes, THREE_EXITS.payload_bytes)
    assert len(model.reached_ms) == THREE_EXITS.n_blocks + 1
    assert (np.diff(standing_ms(model)) >= 0).all()
    with pytest.raises(DataError, match="network 10913c394eac"):
        model_of_records(out, [device_file(records)], SHIPPED_PROFILE, "own")


def device_file(records: Records) -> Records:
    """The same rows as a device's file."""
    return Records(records.table, {**records.source, "kind": "device"})


def test_a_network_that_sends_nothing_has_costs() -> None:
    truth = Truth(Topology(3, (1, 3), (), ()))
    fit = fit_samples(campaign(truth), SLOWDOWN, truth.payload)
    np.testing.assert_allclose(fit.device_ms, truth.of_actions(truth.device), rtol=2e-3)
    assert (fit.net_ms, *fit.server_ms) == (0.0, 0.0, 0.0)
