"""Costs from the records of deployed devices: what they identify, and what a base fills in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cnn.bundle import load_bundle
from cnn.common.errors import DataError
from cnn.model_config import ModelConfig
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Action
from testbed.costs.campaign import EXTRA_COLUMNS
from testbed.costs.cost_fit import fit_samples
from testbed.costs.record_fit import head_rows
from testbed.costs.record_model import model_of_records
from testbed.costs.record_samples import device_records
from testbed.costs.samples import samples_of
from testbed.costs.terms import MIN_FRAMES, Measured, terms_of
from testbed.device.frame_sources import open_frames
from testbed.meters.cost_model import SHIPPED_PROFILE, CostModel, load_profile
from testbed.meters.power import power_profile
from testbed.records.measurement import Measurement
from testbed.records.record_file import RecordWriter, read_all
from testbed.server.server_process import ServerProcess
from testbed.wire.protocol import WIRE_OVERHEAD_BYTES

HASH = "ab" * 32
CONFIG = ModelConfig()
POWER = power_profile("jetson-nano+lte")
DRAW = np.random.default_rng(11)
TERMS, ACTIONS = terms_of(SHIPPED), SHIPPED.actions
DEVICE = dict(zip(TERMS.device, DRAW.uniform(0.3, 3.0, len(TERMS.device)), strict=True))
SERVER = dict(zip(TERMS.server, DRAW.uniform(0.2, 1.5, len(TERMS.server)), strict=True))
NET_MS = 1.7
Path_ = tuple[Action, Sequence[int]]
"""An action and the exits looked at before."""


def payload(action: Action) -> int:
    return CONFIG.payload_bytes(action.exit, action.split)


def base_model(
    device: Mapping[str, float], server: Mapping[str, float], bundle_hash: str = HASH
) -> CostModel:
    """The cost model of these terms."""

    def total(
        terms: Callable[[Action], list[str]], table: Mapping[str, float]
    ) -> tuple[float, ...]:
        return tuple(float(sum(table[t] for t in terms(a))) for a in ACTIONS)

    return CostModel(
        name="base",
        source="measured: made up",
        bundle_hash=bundle_hash,
        slowdown=1.0,
        device_ms=total(TERMS.of_device, device),
        fallback_ms=total(TERMS.of_fallback, device),
        server_ms=total(TERMS.of_server, server),
        payload_bytes=tuple(payload(a) for a in ACTIONS),
        wire_overhead_bytes=float(WIRE_OVERHEAD_BYTES),
        net_ms=NET_MS,
        jitter=0.1,
        idle_mw=POWER.device.idle_mw,
        busy_mw=POWER.device.busy_mw,
        power_source="published",
        radio=POWER.radio,
    )


def frame(
    number: int, path: Path_, rng: np.random.Generator, noise: float, slowdown: float
) -> Measurement:
    """One frame on a link whose state nobody wrote down."""
    action, looks = path

    def took(terms: Sequence[str], table: Mapping[str, float], by: float = 1.0) -> float:
        return by * sum(table[t] for t in terms) * float(np.exp(noise * rng.standard_normal()))

    seen = [TERMS.exit_term(e) for e in looks]
    head = took(sorted({*TERMS.of_head(action), *seen}), DEVICE, slowdown)
    sent = not action.is_local
    coded = sent and action.split > 0
    encode = took([f"enc{action.split}"], DEVICE, slowdown) if coded else 0.0
    beside = took(["overhead", "send"] if sent else ["overhead"], DEVICE, slowdown)
    server = took(TERMS.of_server(action), SERVER) if sent else 0.0
    transfer = float(rng.uniform(20, 60)) if sent else 0.0
    wait = 0.4 if sent else 0.0
    away = transfer + wait + server
    compute = head + encode + beside
    bits = 8e-6 * (payload(action) + WIRE_OVERHEAD_BYTES) if sent else 0.0
    mj = (POWER.device.busy_mw * compute + POWER.device.idle_mw * away) / 1e3
    mj += POWER.radio.active_mw * away / 1e3 + POWER.radio.tx_mw_per_mbps * bits
    return Measurement(
        frame_id=number, track=0, frame_in_track=0, label=None, action=action.index,
        exit_used=action.exit, captured_s=0.1 * number, queue_ms=3.0, head_ms=head,
        encode_ms=encode if coded else None, transfer_ms=transfer if sent else None,
        server_queue_ms=wait if sent else None, server_ms=server if sent else None,
        fallback_ms=None, delay_ms=3.0 + compute + away, uplink_bytes=payload(action) * sent,
        downlink_bytes=0, prediction=1, confidence=0.9, correct=None, compute_mj=None,
        radio_mj=None, idle_mj=None, energy_mj=mj, energy_source=f"model:{POWER.name}",
        status="ok", reason="", uplink_mbps=None, rtt_ms=None,
        looks=sum(1 << (e - 1) for e in looks),
    )  # fmt: skip


def record(
    file: Path,
    paths: Sequence[Path_],
    *,
    n: int = 30,
    noise: float = 0.0,
    slowdown: float = 1.0,
    change: Callable[[Measurement], Measurement] = lambda row: row,
    network: str | None = None,
    **source: Any,
) -> Path:
    """A device's file with `n` frames of every path, one after the other again and again."""
    rng = np.random.default_rng(3)
    told = {"kind": "device", "bundle_hash": HASH, "slowdown": slowdown, "cpu": "c", **source}
    extra = None if network is None else {"bundle_hash": pa.string()}
    with RecordWriter(file, told, extra) as writer:
        for number in range(n * len(paths)):
            row = frame(number, paths[number % len(paths)], rng, noise, slowdown)
            writer.write(change(row), **({} if network is None else {"bundle_hash": network}))
    return file


@pytest.fixture
def save_base(tmp_path: Path) -> Callable[[CostModel], str]:
    """The path of a base cost model, as the command line takes it."""

    def save(base: CostModel) -> str:
        base.save(tmp_path / "base.json")
        return str(tmp_path / "base.json")

    return save


def scaled(table: Mapping[str, float], by: float) -> dict[str, float]:
    return {name: by * value for name, value in table.items()}


EVERY: list[Path_] = [(a, ()) for a in ACTIONS]
TRUTH = base_model(DEVICE, SERVER)


def test_a_device_that_took_every_action_needs_no_base(tmp_path: Path) -> None:
    path = record(tmp_path / "r.parquet", EVERY, slowdown=4.0)
    model, result = model_of_records(path, read_all(path), None, "own")
    np.testing.assert_allclose(model.device_ms, TRUTH.device_ms, rtol=1e-3)
    np.testing.assert_allclose(model.fallback_ms, TRUTH.fallback_ms, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(model.server_ms, TRUTH.server_ms, rtol=1e-3)
    assert model.payload_bytes == TRUTH.payload_bytes
    assert model.filled == ("net_ms",)  # no record tells it from the round trip
    assert (model.net_ms, model.bundle_hash, model.slowdown) == (0.0, HASH, 1.0)
    assert result["from_base"] == []
    assert (model.busy_mw, model.radio) == (POWER.device.busy_mw, POWER.radio)
    assert result["held_out_times"]["delay_mape"] < 1e-3
    assert result["held_out_times"]["energy_mape"] < 1e-3
    assert result["held_out_times"]["groups"] == 5 * 20
    assert result["held_out_actions"] is None


def test_the_same_frames_as_a_campaign_give_the_same_times(tmp_path: Path) -> None:
    path = record(tmp_path / "r.parquet", EVERY, noise=0.1, slowdown=2.0)
    (run,) = read_all(path)
    model, _ = model_of_records(path, [run], None, "own")
    link = {"uplink_mbps": 10.0, "rtt_ms": 20.0}
    told = {**run.source, "kind": "campaign", "conditions": {"a": link}}
    with RecordWriter(tmp_path / "c.parquet", told, EXTRA_COLUMNS) as writer:
        for row in run.rows():
            writer.write(row, condition="a", round=0, warm_up=False)
    samples = samples_of(read_all(tmp_path / "c.parquet")[0])
    fit = fit_samples(samples, 2.0, np.array(TRUTH.payload_bytes, float))
    np.testing.assert_allclose(model.device_ms, fit.device_ms, rtol=2e-3)
    np.testing.assert_allclose(model.fallback_ms, fit.fallback_ms, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(model.server_ms, fit.server_ms, rtol=2e-3, atol=1e-6)
    assert model.jitter == pytest.approx(fit.jitter, rel=0.01)


FEW: list[Path_] = [
    (SHIPPED.action(1, 1), ()),
    (SHIPPED.action(3, 1), ()),
    (SHIPPED.action(4, 3), ()),
]


def test_what_was_never_taken_comes_from_the_base_scaled(
    tmp_path: Path, save_base: Callable[[CostModel], str]
) -> None:
    path = record(tmp_path / "r.parquet", FEW, n=50)
    base = base_model(scaled(DEVICE, 1 / 2.5), scaled(SERVER, 1 / 0.7))
    model, result = model_of_records(path, read_all(path), save_base(base), "own")
    # Every time of this device is 2.5 times the base's, every one of its server 0.7 times.
    assert result["device_scale"] == pytest.approx(2.5, rel=1e-3)
    assert result["server_scale"] == pytest.approx(0.7, rel=1e-3)
    np.testing.assert_allclose(model.device_ms, TRUTH.device_ms, rtol=2e-3)
    np.testing.assert_allclose(model.fallback_ms, TRUTH.fallback_ms, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(model.server_ms, TRUTH.server_ms, rtol=2e-3)
    assert model.payload_bytes == TRUTH.payload_bytes
    assert model.net_ms == NET_MS
    assert "base base times 2.500 (device) and 0.700 (server)" in model.source
    assert set(result["measured"]) == {"e1s1"}
    kept = {
        # Heads of e1s1, e3s1 and e4s3; of a frame that is sent whole nothing but the overhead.
        "device_ms": {a.name for a in ACTIONS if a.split in (0, 1, 3) and a.name != "e3s3"},
        "server_ms": {"e3s1", "e4s3", *(a.name for a in ACTIONS if a.is_local)},
        "fallback_ms": {"e1s0", *(a.name for a in ACTIONS if a.is_local)},
        "payload_bytes": {a.name for a in ACTIONS if a.is_local or a.split in (1, 3)},
    }
    expected = {f"{k} {a.name}" for k, known in kept.items() for a in ACTIONS
                if a.name not in known}  # fmt: skip
    assert set(model.filled) == {*expected, "net_ms"}
    assert CostModel.load(model_path(tmp_path, model)) == model


def model_path(folder: Path, model: CostModel) -> Path:
    model.save(folder / "model.json")
    return folder / "model.json"


def test_what_was_measured_does_not_follow_a_base_of_another_shape(
    tmp_path: Path, save_base: Callable[[CostModel], str]
) -> None:
    path = record(tmp_path / "r.parquet", FEW, n=50)
    rng = np.random.default_rng(5)
    base = base_model(
        {k: v * rng.uniform(0.3, 3) for k, v in DEVICE.items()},
        {k: v * rng.uniform(0.3, 3) for k, v in SERVER.items()},
    )
    model, _ = model_of_records(path, read_all(path), save_base(base), "own")
    for name, truth in (("device_ms", TRUTH.device_ms), ("server_ms", TRUTH.server_ms)):
        for a in ACTIONS:
            if f"{name} {a.name}" not in model.filled:
                assert getattr(model, name)[a.index] == pytest.approx(truth[a.index], rel=0.02)


def test_what_is_identified_is_what_the_rank_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = rng.integers(0, 2, (rng.integers(1, 7), len(TERMS.segments))).astype(float)
        sums = rng.integers(0, 2, (30, len(TERMS.segments))).astype(float)
        many = np.repeat(rows, MIN_FRAMES, axis=0)
        known = Measured.of(many, np.ones(len(many))).identify(sums)
        rank = np.linalg.matrix_rank
        expected = [rank(np.vstack([rows, s])) == rank(np.vstack([rows, 0 * s])) for s in sums]
        np.testing.assert_array_equal(known, expected)


def test_exits_that_a_staged_policy_looked_at_are_told_apart(
    tmp_path: Path, save_base: Callable[[CostModel], str]
) -> None:
    paths: list[Path_] = [
        (SHIPPED.action(1, 1), (1,)),
        (SHIPPED.action(3, 3), (1, 3)),
        (SHIPPED.action(3, 3), (3,)),
        (SHIPPED.action(4, 1), (1,)),
        (SHIPPED.action(4, 2), (1,)),
        (SHIPPED.action(5, 5), (1, 5)),
    ]
    path = record(tmp_path / "r.parquet", paths, n=40)
    samples = device_records(read_all(path)).samples
    assert head_rows(samples)[1].sum() == 3 + 2  # blocks 1..3 and two exits
    base = base_model(scaled(DEVICE, 0.5), scaled(SERVER, 0.5))
    model, _ = model_of_records(path, read_all(path), save_base(base), "own")
    for a in (SHIPPED.action(1, 1), SHIPPED.action(3, 3)):
        assert model.device_ms[a.index] == pytest.approx(TRUTH.device_ms[a.index], rel=2e-3)
        assert f"device_ms {a.name}" not in model.filled
    # Exit 1 was looked at on every way that led further.
    assert "device_ms e4s4" in model.filled


def test_too_little_without_a_base_is_refused_and_named(tmp_path: Path) -> None:
    path = record(tmp_path / "r.parquet", [p for p in EVERY if p[0].name not in ("e2s0", "e4s4")])
    # The time of e2s0 at the server is a sum of others; nothing shows exit 4 on the device.
    with pytest.raises(DataError) as caught:
        model_of_records(path, read_all(path), None, "own")
    assert "costs of e4s0, e4s1, e4s2, e4s3, e4s4 do not follow" in str(caught.value)
    assert "--base" in str(caught.value)


@pytest.mark.slow(1)
def test_noise_and_time_show_in_the_errors(
    tmp_path: Path, save_base: Callable[[CostModel], str]
) -> None:
    base = save_base(base_model(scaled(DEVICE, 0.5), scaled(SERVER, 0.5)))
    quiet = record(tmp_path / "a.parquet", FEW, n=200, noise=0.05)
    _, result = model_of_records(quiet, read_all(quiet), base, "own")
    assert result["held_out_times"]["groups"] == 5 * len(FEW)
    assert result["held_out_times"]["delay_mape"] < 0.01
    assert result["held_out_actions"]["groups"] == len(FEW)
    assert result["held_out_actions"]["delay_mape"] < 0.02  # the base's proportions are right
    assert result["jitter"] == pytest.approx(0.03, abs=0.02)

    def later_slower(row: Measurement) -> Measurement:
        late = row.frame_id > 480
        return (
            replace(row, head_ms=row.head_ms * 3, delay_ms=row.delay_ms + 2 * row.head_ms)
            if (late)
            else row
        )

    path = record(tmp_path / "b.parquet", FEW, n=200, noise=0.05, change=later_slower)
    _, worse = model_of_records(path, read_all(path), base, "own")
    assert worse["held_out_times"]["delay_mape"] > 3 * result["held_out_times"]["delay_mape"]
    wrong = {**scaled(DEVICE, 0.5), "block2": 30.0, "block3": 30.0}
    bad = save_base(base_model(wrong, scaled(SERVER, 0.5)))
    _, other = model_of_records(quiet, read_all(quiet), bad, "own")
    assert other["held_out_actions"]["delay_mape"] > 0.1  # a base of wrong proportions is seen
    assert other["held_out_times"]["delay_mape"] < 0.01


def test_frames_that_say_nothing_of_costs_are_left_out(tmp_path: Path) -> None:
    def spoil(row: Measurement) -> Measurement:
        late = replace(row, delay_ms=1e6, head_ms=1e5)
        kind = row.frame_id // 20 % 4
        if kind == 1:
            return replace(late, status="fallback", reason="timeout")
        if kind == 2:
            return replace(late, status="skipped", reason="queued 900 ms")
        if kind == 3 and ACTIONS[row.action].is_full_offload:
            return replace(late, encode_ms=1e5, uplink_bytes=100)
        return row

    path = record(tmp_path / "r.parquet", EVERY, n=60, change=spoil)
    model, result = model_of_records(path, read_all(path), None, "own")
    assert result["left_out"] == {"fallback": 300, "skipped": 300, "encoded frame": 75}
    np.testing.assert_allclose(model.device_ms, TRUTH.device_ms, rtol=1e-3)
    assert model.payload_bytes == TRUTH.payload_bytes


def test_only_the_network_that_ran_last_counts(tmp_path: Path) -> None:
    folder = tmp_path / "rec"

    def slower(row: Measurement) -> Measurement:
        return replace(row, head_ms=9 * row.head_ms, delay_ms=row.delay_ms + 8 * row.head_ms)

    record(folder / "1.parquet", EVERY, change=slower, network="c" * 12, bundle_hash="c" * 64)
    record(folder / "2.parquet", EVERY, network=HASH[:12], bundle_hash=HASH)
    model, result = model_of_records(folder, read_all(folder), None, "own")
    assert result["left_out"] == {"another network": 600}
    np.testing.assert_allclose(model.device_ms, TRUTH.device_ms, rtol=1e-3)
    # Changed while it ran: the file still names the network that it began with.
    record(folder / "3.parquet", EVERY, network="d" * 12, bundle_hash=HASH)
    with pytest.raises(DataError, match="whole hash"):
        model_of_records(folder, read_all(folder), None, "own")


def test_powers_of_a_hardware_meter_are_fitted_over_whole_windows(tmp_path: Path) -> None:
    def metered(row: Measurement) -> Measurement:
        away = (row.transfer_ms or 0) + (row.server_queue_ms or 0) + (row.server_ms or 0)
        compute_ms = row.delay_ms - row.queue_ms - away
        mj = 5.0 * compute_ms + 1.5 * (100.0 - compute_ms)  # frames come every 100 ms
        return replace(row, energy_mj=mj, energy_source="rapl")

    path = record(tmp_path / "r.parquet", EVERY, noise=0.05, change=metered)
    model, result = model_of_records(path, read_all(path), None, "own")
    assert model.busy_mw == pytest.approx(5000, rel=1e-3)
    assert model.idle_mw == pytest.approx(1500, rel=1e-3)
    assert model.radio.name == "none"
    assert result["held_out_times"]["energy_mape"] < 0.02


@pytest.mark.slow(1)
def test_without_energies_the_base_s_powers_are_taken_or_it_is_refused(
    tmp_path: Path, save_base: Callable[[CostModel], str]
) -> None:
    path = record(
        tmp_path / "r.parquet",
        EVERY,
        change=lambda row: replace(row, energy_mj=None, energy_source=""),
    )
    model, _ = model_of_records(path, read_all(path), save_base(TRUTH), "own")
    assert model.busy_mw == TRUTH.busy_mw
    assert model.power_source == "base cost model base: published"
    with pytest.raises(DataError, match="energy figure"):
        model_of_records(path, read_all(path), None, "own")


def test_records_that_do_not_belong_together_are_refused(
    tmp_path: Path, save_base: Callable[[CostModel], str]
) -> None:
    folder = tmp_path / "rec"
    record(folder / "1.parquet", FEW)
    other = save_base(base_model(DEVICE, SERVER, bundle_hash="f" * 64))
    with pytest.raises(DataError, match="of network ffff"):
        model_of_records(folder, read_all(folder), other, "own")
    record(folder / "2.parquet", FEW, slowdown=3.0)
    with pytest.raises(DataError, match="slowed down by 1, 3"):
        model_of_records(folder, read_all(folder), None, "own")
    record(folder / "2.parquet", FEW, kind="campaign")
    with pytest.raises(DataError, match="of kind campaign, device"):
        model_of_records(folder, read_all(folder), None, "own")
    nothing = record(tmp_path / "n.parquet", FEW, change=lambda row: replace(row, status="skipped"))
    with pytest.raises(DataError, match="ran as decided"):
        model_of_records(nothing, read_all(nothing), None, "own")


@pytest.mark.slow(6)
def test_a_folder_with_damaged_files_is_fitted_without_them_and_says_so(
    tmp_path: Path, save_base: Callable[[CostModel], str]
) -> None:
    base, folder = save_base(base_model(DEVICE, SERVER)), tmp_path / "rec"
    folder.mkdir()
    record(folder / "a.parquet", FEW)
    whole = (folder / "a.parquet").read_bytes()

    def fit() -> tuple[str, dict[str, Any]]:
        command = [sys.executable, "-m", "testbed", "fit", "--records", "rec", "--base", base]
        done = subprocess.run(
            [*command, "--out", "own.json", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr, json.loads(done.stdout.splitlines()[-1])

    silent, expected = fit()
    assert silent == ""
    (folder / "b.parquet").write_bytes(b"")  # what a power cut leaves
    (folder / "c.parquet").write_bytes(whole[:-100])
    said, found = fit()
    assert said.startswith("warning: records left out: 2 of 3 files in rec: b.parquet (empty), c.")
    assert len(said.splitlines()) == 1
    assert (found["frames"], found["actions"]) == (expected["frames"], expected["actions"])


@pytest.mark.slow(10)
def test_a_real_device_s_folder_becomes_a_cost_model(
    tmp_path: Path, write_staged_policy: Callable[..., str]
) -> None:
    """Real network, device and server processes: half of the frames look, the others send."""
    runtime, look = SplitRuntime(load_bundle()), SHIPPED.action(2, 2)
    frames = open_frames("render", runtime.bundle.config.input_size, seed=0, n=150)
    sure = float(np.median([runtime.local(frame.image, look.exit)[1] for frame in frames]))
    write_staged_policy(
        tmp_path / "a.policy", runtime.bundle.hash, look, SHIPPED.action(4, 3), sure
    )

    def testbed(*words: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "testbed", *map(str, words), "--json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    with ServerProcess() as server:
        (tmp_path / "device.toml").write_text(
            f'[server]\naddress = "{server.target}"\n[bundles]\npolicy = "a.policy"\n'
            "[frames]\nperiod_ms = 20\ncount = 150\ntimeout_ms = 5000\nmax_queue_ms = 60000\n"
            '[records]\nfolder = "rec"\nfile_s = 1\nflush_s = 0.2\n'
        )
        testbed("device", "--config", "device.toml")
    assert len(list((tmp_path / "rec").glob("*.parquet"))) > 1
    result = testbed("fit", "--records", "rec", "--base", SHIPPED_PROFILE, "--out", "own.json")
    assert result["frames"] == 150
    assert set(result["actions"]) == {"e2s2", "e4s3"}
    assert min(result["actions"].values()) > 10
    assert "e2s2" in result["measured"]
    model, shipped = CostModel.load(tmp_path / "own.json"), load_profile(SHIPPED_PROFILE)
    assert model.bundle_hash == shipped.bundle_hash
    assert model.payload_bytes == shipped.payload_bytes
    assert "server_ms e4s3" not in model.filled
    # Exit 2 was looked at in every frame that went on: no head of e4s3 ran without it.
    assert {"device_ms e4s3", "device_ms e5s5", "server_ms e5s0", "net_ms"} <= set(model.filled)
    heads = [
        row.head_ms
        for run in read_all(tmp_path / "rec")
        for row in run.rows()
        if row.action == SHIPPED.action(2, 2).index
    ]
    own = SHIPPED.action(2, 2).index
    assert 0.5 * np.median(heads) < model.device_ms[own] < 3 * np.median(heads) + 2
