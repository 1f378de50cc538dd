"""`sliproad agent certify`: what is promised, what is refused, what the monitor sees."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from agents.careful import at_price, candidates, disagreement
from agents.certificate import signs_needed
from agents.certify import certify_policy
from agents.cli import agent_app
from agents.contenders import shipped_path
from agents.rollout import simulate
from agents.shift_alarm import Passes
from cnn.calibration_tracks import some_tracks
from cnn.common.errors import BundleError, ConfigError, SliproadError
from cnn.frame_table import FrameTable, embedded_table
from offload_env.episode import episode_keys
from offload_env.scenario import load_scenario, scenario_toml
from offload_env.world import build_world
from testbed.deploy.guarded_policy import Decision
from testbed.deploy.loss_monitor import EVIDENCE, MonitorTerms, PictureTerms
from testbed.deploy.picture_reference import PICTURES, PictureReference
from testbed.deploy.policy_monitor import PolicyMonitor
from testbed.policy.network_policy import policy_from_bundle
from testbed.policy.observation_fields import schema_of
from testbed.policy.policy_file import PolicyBundle
from testbed.records.measurement import Measurement
from testbed.records.record_file import measurement_schema

pytestmark = pytest.mark.slow(90)


@pytest.fixture(scope="module")
def shipped() -> PolicyBundle:
    return PolicyBundle.load(shipped_path("urban-5g"))


@pytest.fixture(scope="module")
def few() -> FrameTable:
    """Forty signs that no shipped policy has seen."""
    table = embedded_table("policy-test")
    return some_tracks(table, np.arange(table.n_tracks) < 40)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first scenario with drives of 60 frames."""
    scenario = load_scenario("urban-5g")
    path = tmp_path_factory.mktemp("scenario") / "urban-5g.toml"
    timing = replace(scenario.timing, n_frames=60)
    path.write_text(scenario_toml(replace(scenario, timing=timing)))
    return path


def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(agent_app, ["certify", *map(str, arguments), "--json"])
    lines = result.stdout.strip().splitlines()
    found = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    error = str(result.exception or "")
    return result.exit_code, found, error


def test_a_margin_that_the_signs_allow_is_certified_and_written(
    short: Path, few: FrameTable, tmp_path: Path
) -> None:
    few.save(tmp_path / "few.npz")
    # Answers as before, half of the confidence: whatever doubt the monitor sees is the shift's.
    doubtful = replace(few, confidence=few.confidence * np.float32(0.5))
    doubtful.save(tmp_path / "doubtful.npz")
    before = shipped_path("urban-5g", staged=True).read_bytes()
    code, found, _ = run(
        *("--scenario", short, "--frames", tmp_path / "few.npz", "--margin", 0.15),
        *("--shifted", tmp_path / "doubtful.npz", "--out", tmp_path / "x.policy"),
    )
    assert code == 0
    assert found["certified"] is True
    assert (found["margin"], found["level"], found["signs"]) == (0.15, 0.95, 40)
    right = few.correct[:, few.topology.main].reshape(40, -1).mean(1).mean()
    assert found["floor"] == pytest.approx(right - 0.15)
    assert 0.9 < found["cost_factor"] < 1.1
    assert found["splits"]["splits"] == 200
    assert found["broken_share"] <= 0.05
    assert found["alarm_frames_under_shift"] <= 300
    assert found["false_alarms_per_day"] <= 0.24
    assert shipped_path("urban-5g", staged=True).read_bytes() == before
    written = PolicyBundle.load(tmp_path / "x.policy")
    promise = written.manifest["certificate"]
    assert (promise["level"], promise["margin"], promise["signs"]) == (0.95, 0.15, 40)
    assert promise["price"] == found["price"]
    # What a device reads of it.
    terms = MonitorTerms.of_manifest(written.manifest)
    assert terms is not None
    assert terms.limits() == found["monitor"]["limits"]
    assert [*terms.limits()] == [EVIDENCE, PICTURES]
    assert terms.tracks_between == found["monitor"]["tracks_between"]
    code, _, error = run(
        *("--scenario", short, "--frames", tmp_path / "few.npz", "--margin", 0.15),
        *("--policy", tmp_path / "x.policy"),
    )
    assert code
    assert "was certified on" in error


def test_pictures_alone_raise_the_alarm(short: Path, few: FrameTable) -> None:
    """Fog that the network sees through: every answer as before, as sure as before."""
    foggy = few.features.copy()
    foggy[:, 0] = 0.9 + 0.1 * foggy[:, 0]
    foggy[:, 1:3] *= 0.1
    found = certify_policy(
        PolicyBundle.load(shipped_path("urban-5g", staged=True)),
        load_scenario(str(short)),
        few,
        level=0.95,
        margin=0.15,
        shifted=replace(few, features=foggy),
    )
    assert found.monitor.alarm_frames is not None
    assert found.monitor.alarm_frames <= 300
    assert found.monitor.false_alarms_per_day <= 0.24


def test_too_few_signs_are_told_and_nothing_is_written(
    short: Path, few: FrameTable, tmp_path: Path
) -> None:
    few.save(tmp_path / "few.npz")
    arguments = (
        *("--scenario", short, "--frames", tmp_path / "few.npz"),
        *("--policy", shipped_path("urban-5g")),
    )
    code, found, _ = run(*arguments)
    assert code == 0
    assert (found["certified"], found["cost_factor"], found["price"]) == (False, None, None)
    assert found["margin"] == 0.005
    assert found["signs_needed"] > 598
    assert found["smallest_margin"] > 1 - 0.05 ** (1 / 40)
    assert found["alarm_frames_under_shift"] is None
    code, _, error = run(*arguments, "--out", tmp_path / "x.policy")
    assert code
    assert "nothing is written" in error
    assert not (tmp_path / "x.policy").exists()


def test_critical_classes_have_a_promise_of_their_own(
    short: Path, few: FrameTable, tmp_path: Path
) -> None:
    few.save(tmp_path / "few.npz")
    of_sign = few.label[few.track_starts()]
    number = int(np.bincount(of_sign).argmax())
    signs = int((of_sign == number).sum())
    scenario, path = load_scenario(str(short)), tmp_path / "critical.toml"
    constraint = replace(scenario.constraint, critical_classes=(number,))
    path.write_text(scenario_toml(replace(scenario, constraint=constraint)))
    arguments = (
        *("--scenario", path, "--frames", tmp_path / "few.npz", "--margin", 0.15),
        *("--policy", shipped_path("urban-5g"), "--out", tmp_path / "x.policy"),
        "--critical-margin",
    )
    code, found, _ = run(*arguments, 0.9)
    assert code == 0
    promise = found["critical"]
    assert (found["certified"], promise["classes"], promise["signs"]) == (True, [number], signs)
    right = few.correct[few.label == number, few.topology.main].mean()  # 30 frames each
    assert promise["floor"] == pytest.approx(right - 0.9)
    assert promise["smallest_margin"] > 1 - 0.05 ** (1 / signs)
    assert promise["signs_needed"] <= signs
    written = PolicyBundle.load(tmp_path / "x.policy").manifest["certificate"]["critical"]
    assert written == {k: promise[k] for k in ("classes", "margin", "floor", "signs")}
    # Forty signs would do for the other promise; so few of one class do not for this one.
    code, found, error = run(*arguments, 0.15)
    assert code
    assert found["certified"] is False
    assert found["critical"]["signs_needed"] > signs
    assert f"--critical-margin {found['critical']['smallest_margin']:.4f}" in error


def test_a_margin_of_critical_classes_must_be_of_some(
    shipped: PolicyBundle, few: FrameTable
) -> None:
    plain = load_scenario("urban-5g")
    label = int(few.label[0])
    critical = replace(plain, constraint=replace(plain.constraint, critical_classes=(label,)))
    missing = next(c for c in range(43) if c not in few.label)
    other = replace(plain, constraint=replace(plain.constraint, critical_classes=(missing,)))
    for scenario, margin, said in (
        (plain, 0.2, "of which urban-5g has none"),
        (critical, None, "margin 0 of critical"),
        (critical, 1.0, "margin 1 of critical"),
        (other, 0.2, "without a sign of the critical"),
    ):
        with pytest.raises(SliproadError, match=said):
            certify_policy(shipped, scenario, few, level=0.95, margin=0.15, critical_margin=margin)


def test_independent_images_are_signs_of_their_own(
    shipped: PolicyBundle, few: FrameTable, short: Path
) -> None:
    few = some_tracks(few, np.arange(few.n_tracks) < 10)
    n = len(few)
    single = replace(few, track=np.arange(n, dtype=np.int32), frame=np.zeros(n, np.int16))
    scenario = load_scenario(str(short))
    found = certify_policy(shipped, scenario, single, level=0.95, margin=0.02)
    assert found.signs == n
    assert found.signs_needed < n
    assert found.certified


def test_signs_needed_is_the_number_of_signs_without_loss() -> None:
    for margin, level in ((0.005, 0.95), (0.02, 0.95), (0.3, 0.9)):
        exact = math.ceil(math.log(1 - level) / math.log(1 - margin))
        # Half of the capital is on the best stake: at most one halving to make up for.
        twice = math.ceil(math.log((1 - level) / 2) / math.log(1 - margin))
        assert exact <= signs_needed(margin, level) <= twice


def test_a_price_makes_answers_agree_with_the_main_exit(shipped: PolicyBundle) -> None:
    world = build_world("urban-5g")
    disagree, keys = disagreement(world), episode_keys(0, 16)
    assert disagree[world.topology.main] == 0.0
    quality = world.correct.astype(float)
    np.testing.assert_allclose(disagree, np.abs(quality - quality[:, [-1]]).mean(0))
    shares = []
    for price in (0.0, 500.0, 1e6):
        driven = simulate(world, policy_from_bundle(at_price(shipped, price, disagree)), keys)
        shares.append(float(disagree[driven.action].mean()))
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] == 0.0
    prices = [price for price, _ in candidates(shipped, world, keys)]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] == 0.0


def test_evidence_is_that_of_passes_counted_frame_by_frame(
    shipped: PolicyBundle, few: FrameTable
) -> None:
    world = build_world("urban-5g", "test", table=few)
    driven = simulate(world, policy_from_bundle(shipped), episode_keys(0, 3))
    passes = Passes.of(world, driven)
    expected: list[list[float]] = []
    for rows, confidences in zip(driven.row, driven.confidence, strict=True):
        for k, (row, c) in enumerate(zip(rows, confidences, strict=True)):
            if k == 0 or few.frame[row] == 0:
                expected.append([])
            if not np.isnan(c):
                expected[-1].append(math.sqrt(1 - float(c)))
    np.testing.assert_allclose(
        passes.evidence[:, 0], [float(np.mean(e)) for e in expected], atol=1e-6
    )
    assert passes.frames.tolist() == [len(e) for e in expected]


def test_bad_input_is_named(shipped: PolicyBundle, few: FrameTable, tmp_path: Path) -> None:
    scenario = load_scenario("urban-5g")
    learnt = embedded_table("policy-train")
    for table, level, margin, said in (
        (learnt, 0.95, 0.02, "learnt on"),
        (few, 1.0, 0.02, "level 1"),
        (few, 0.95, 0.0, "margin 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            certify_policy(shipped, scenario, table, level=level, margin=margin)
    wrong: tuple[Any, ...] = ([], {"level": 0.95}, {"level": 2.0, "margin": 0.1})
    for promise in wrong:
        path = tmp_path / "wrong.policy"
        replace(shipped, manifest={**shipped.manifest, "certificate": promise}).save(path)
        with pytest.raises(BundleError, match="certificate"):
            PolicyBundle.load(path)


@pytest.mark.parametrize("one_track", [False, True])
def test_the_device_sees_the_evidence_that_its_limit_is_made_of(
    shipped: PolicyBundle, few: FrameTable, one_track: bool
) -> None:
    """The monitor of the device, frame by frame, against the passes of the simulation."""
    if one_track:  # as a camera's, or as images that were imported
        n = len(few)
        few = replace(few, track=np.zeros(n, np.int32), frame=np.arange(n, dtype=np.int16))
    scenario = load_scenario("urban-5g")
    timing = replace(scenario.timing, max_queue_ms=5.0, n_frames=700)
    world = build_world(replace(scenario, timing=timing), table=few)
    rollout = simulate(world, policy_from_bundle(shipped), episode_keys(3, 4))
    skipped = np.isnan(rollout.confidence)
    assert 0 < skipped.sum() < skipped.size
    reference = PictureReference.of(world.features)
    assert reference is not None
    terms = MonitorTerms(0.1, 10**9, PictureTerms(0.05, reference))
    expected = terms.monitors()
    for evidence in Passes.of(world, rollout, reference).evidence:
        for monitor, seen in zip(expected, evidence.tolist(), strict=True):
            monitor.add(seen)
    device, track = PolicyMonitor(terms, "p"), -1
    values = {"int64": 0, "double": 1.0, "string": "", "bool": True}
    empty = Measurement(**{f.name: values[str(f.type)] for f in measurement_schema()})  # type: ignore[arg-type]
    observation = np.zeros(schema_of(world.topology).obs_dim, np.float32)
    for drive, confidences in zip(rollout.row, rollout.confidence, strict=True):
        track += 1
        for row, confidence in zip(drive.tolist(), confidences.tolist(), strict=True):
            frame = int(few.frame[row])
            track += frame == 0
            known = None if math.isnan(confidence) else confidence
            at = schema_of(world.topology).features_at
            observation[at : at + 6] = world.features[row]
            device.observe(
                replace(empty, track=track, frame_in_track=frame, confidence=known),
                Decision(0, 0, None, "policy", "p", "b", observation),
            )
    device.observe(replace(empty, track=track + 1, confidence=None), None)
    assert expected[0].units > (8 if one_track else 80)
    assert device.capital == pytest.approx(max(m.capital / m.between for m in expected))
