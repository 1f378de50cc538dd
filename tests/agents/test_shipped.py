"""The shipped policies: there for every scenario, for this network and these observations.

And decided on a device, from the file alone, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from agents.baselines.rules import full_local
from agents.cli import app
from agents.contenders import shipped_agents
from agents.evaluation import floor_on
from agents.export_policy import with_task
from agents.rollout import simulate
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.scenario import CLASSIC
from offload_env.simulator import Simulator
from offload_env.world import build_world
from testbed.meters.available import open_meter
from testbed.policy.decision_points import decision_points
from testbed.policy.network_policy import load_policy
from testbed.policy.observation_fields import schema_of
from testbed.policy.observer import Observer
from testbed.policy.policy_file import PolicyBundle
from testbed.policy.reference_profile import ReferenceProfile
from testbed.policy.task_settings import DEFAULT_TASK, Settings, effective_task
from testbed.records.record_file import read_records

POINTS = decision_points(SHIPPED)
SCHEMA = schema_of(SHIPPED)

ASSETS = Path(str(resources.files("agents"))) / "assets"


@pytest.mark.slow(5)
@pytest.mark.parametrize("name", CLASSIC)
def test_both_policies_fit_and_are_worth_having(name: str) -> None:
    """A file of another schema or network is refused, and would be missed silently."""
    world = build_world(name, "test")
    agents = shipped_agents(world)
    assert set(agents) == {"agent", "staged-agent"}
    keys = episode_keys(3, 12)
    local = simulate(world, full_local(world.topology), keys)
    floor = floor_on(world, np.concatenate(local.row))
    for policy in agents.values():
        driven = simulate(world, policy, keys)
        assert driven.cost.mean() < 0.6 * local.cost.mean()
        # On so few drives errors, which come by sign, scatter: no more than a coarse check.
        assert driven.correct.mean() > floor - 0.005


FILES = [(name, staged) for name in CLASSIC for staged in (False, True)]


def shipped_file(name: str, staged: bool) -> Path:
    return ASSETS / f"{name}{'.staged' if staged else ''}.policy"


@pytest.mark.parametrize(("name", "staged"), FILES)
def test_a_file_carries_the_task_of_its_scenario(name: str, staged: bool) -> None:
    """Also: written again from its scenario it is the same file, so nobody wrote it by hand."""
    bundle, world = PolicyBundle.load(shipped_file(name, staged)), build_world(name, "test")
    task = effective_task(bundle.task, {})
    assert task.settings() == world.settings
    timing = world.scenario.timing
    for field in ("period_ms", "timeout_ms", "deadline_ms", "max_queue_ms"):
        assert getattr(task, field) == getattr(timing, field)
    meter = open_meter("model", task.power)
    assert meter.tail_ms == world.cost.radio.tail_ms
    assert bundle.manifest["metrics"]["accuracy_floor"] == task.accuracy_floor
    assert ReferenceProfile.of_manifest(bundle.manifest) is not None
    again = with_task(bundle, build_world(name, "train"))
    assert again.content_hash == bundle.content_hash


class Listening(Observer):
    """The simulator's observer; the device's is told of the same events."""

    def __init__(self, settings: Settings, device: Observer) -> None:
        self.device: Observer | None = None
        super().__init__(settings)
        self.device = device
        self.stage: list[float] = []

    def reset(self, now_s: float) -> None:
        super().reset(now_s)
        if self.device is not None:
            self.device.reset(now_s)

    def new_track(self) -> None:
        super().new_track()
        if self.device is not None:
            self.device.new_track()

    def record_transfer(self, now_s: float, sent_bytes: float, transfer_ms: float) -> None:
        super().record_transfer(now_s, sent_bytes, transfer_ms)
        self.device.record_transfer(now_s, sent_bytes, transfer_ms)  # type: ignore[union-attr]

    def record_server(self, now_s: float, server_wait_ms: float) -> None:
        super().record_server(now_s, server_wait_ms)
        self.device.record_server(now_s, server_wait_ms)  # type: ignore[union-attr]

    def record_failure(self, now_s: float) -> None:
        super().record_failure(now_s)
        self.device.record_failure(now_s)  # type: ignore[union-attr]

    def record_exit(self, exit: int, confidence: float) -> None:
        super().record_exit(exit, confidence)
        self.device.record_exit(exit, confidence)  # type: ignore[union-attr]

    def record_answer(self, exit: int, prediction: int, confidence: float) -> None:
        super().record_answer(exit, prediction, confidence)
        self.device.record_answer(exit, prediction, confidence)  # type: ignore[union-attr]

    def record_skipped(self) -> None:
        super().record_skipped()
        self.device.record_skipped()  # type: ignore[union-attr]

    def scaled_stage(
        self,
        exits: Sequence[tuple[int, int, float]],
        block: int,
        spent_ms: float,
        timed_out: bool = False,
    ) -> list[float]:
        assert self.device is not None
        self.stage = self.device.scaled_stage(exits, block, spent_ms, timed_out)
        return super().scaled_stage(exits, block, spent_ms, timed_out)


def both_decide(
    name: str, staged: bool, device: Observer, frames: int, seed: int
) -> tuple[list[int], list[int]]:
    """Decisions of a shipped policy on one simulated drive: the simulator's, the device's.

    The device observes from raw features, as it would from a camera's frame, and decides one
    observation at a time; the simulator's decisions are carried out.
    """
    world = build_world(name, "test")
    simulator = Simulator(world)
    simulator.observer = Listening(world.settings, device)
    simulator.reset(world.plan(int(episode_keys(seed, 1)[0])))
    policy = load_policy(shipped_file(name, staged), world.table.bundle_hash)
    simulated: list[int] = []
    decided: list[int] = []

    def seen() -> NDArray[np.float32]:
        features = world.table.features[simulator.row]
        now_s, queue_ms = simulator.now_ms * 1e-3, simulator.queue_ms
        return device.observe(now_s, features, queue_ms, simulator.tail_left_ms)

    while simulator.frame < frames:
        if policy.space is POINTS.frame:
            simulated.append(int(policy.decide_batch(simulator.observe()[None])[0]))
            decided.append(policy.decide(seen()))
            simulator.settle(simulated[-1])
            continue
        outcome = None
        while outcome is None:
            point, base = simulator.point, seen()  # what the last look changed is in it
            batch = simulator.observe(POINTS.staged)[None], np.array([point])
            simulated.append(int(policy.decide_batch(*batch)[0]))
            stage = np.array(simulator.observer.stage, np.float32)
            decided.append(policy.decide(np.concatenate([base, stage]), point))
            outcome = simulator.advance(simulated[-1])
    return simulated, decided


@pytest.mark.slow(3)
@pytest.mark.parametrize(("name", "staged"), FILES)
def test_a_device_that_is_told_nothing_else_decides_as_the_simulator(
    name: str, staged: bool
) -> None:
    task = effective_task(PolicyBundle.load(shipped_file(name, staged)).task, {})
    for seed in (1, 2):
        simulated, decided = both_decide(name, staged, Observer(task.settings()), 120, seed)
        assert decided == simulated


def test_a_device_that_is_told_otherwise_does_not() -> None:
    """What the task is worth: the same drives with the settings of a device that knows none."""
    other = Observer(replace(DEFAULT_TASK, full_local_ms=80.0).settings())
    apart = []
    for seed in range(4):
        simulated, decided = both_decide("urban-5g", False, other, 120, seed)
        apart += [a != b for a, b in zip(simulated, decided, strict=True)]
    assert np.mean(apart) > 0.02


def run_device(*arguments: object) -> Result:
    command = ["testbed", "device", "--local-only", "--n-frames", 6, *arguments]
    result = CliRunner().invoke(app, [str(a) for a in command], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_the_deploy_command_needs_nothing_but_the_file(tmp_path: Path) -> None:
    path, out = shipped_file("fast-device", False), tmp_path / "rows.parquet"
    result = run_device("--policy", path, "--explore", 1e-9, "--out", out)
    assert "contradicts" not in result.stderr
    assert "format 1" not in result.stderr
    world, records = build_world("fast-device", "test"), read_records(out)
    source = records.source
    assert source["task"] == PolicyBundle.load(path).task.to_json()  # type: ignore[union-attr]
    assert (source["period_ms"], source["timeout_ms"], source["max_queue_ms"]) == (50, 35, 50)
    kept = records.table.filter(records.table["status"].combine_chunks().to_numpy(False) == "ok")
    seen = np.array(kept["observation"].to_pylist(), np.float32)
    assert len(seen)
    np.testing.assert_array_equal(
        seen[:, SCHEMA.constants_at :], np.tile(np.float32(world.settings.scaled()), (len(seen), 1))
    )
    policy = load_policy(path, world.table.bundle_hash)
    assert kept["action"].to_pylist() == policy.decide_batch(seen).tolist()


def test_flags_that_contradict_the_file_are_named_and_used(tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    flags = ("--accuracy-floor", 0.95, "--fps", 20, "--timeout-ms", 250, "--full-local-ms", 7.2)
    result = run_device("--policy", shipped_file("fast-device", True), *flags, "--out", out)
    assert [line for line in result.stderr.splitlines() if "warning" in line] == [
        "warning: --accuracy-floor 0.95 contradicts the policy's 0.98926; using 0.95",
        "warning: --timeout-ms 250 contradicts the policy's 35; using 250",
    ]
    source = read_records(out).source
    assert (source["timeout_ms"], source["task"]["accuracy_floor"]) == (250, 0.95)


@pytest.mark.slow(1)
def test_a_file_of_format_1_is_run_with_what_is_assumed_said_aloud(tmp_path: Path) -> None:
    old, out = tmp_path / "old.policy", tmp_path / "rows.parquet"
    bundle = PolicyBundle.load(shipped_file("fast-device", False))
    manifest = {key: value for key, value in bundle.manifest.items() if key != "task"}
    replace(bundle, manifest=manifest).save(old)
    result = run_device("--policy", old, "--timeout-ms", 35, "--out", out)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert "format 1" in line
    assert "accuracy_floor 0.95" in line
    assert "timeout_ms" not in line
    assert f"sliproad agent export --policy {old}" in line
    assert read_records(out).source["period_ms"] == 100.0
    run = CliRunner().invoke(app, ["agent", "export", "--policy", str(old), "--out", str(old)])
    assert run.exit_code == 0, run.output
    assert PolicyBundle.load(old).content_hash == bundle.content_hash
