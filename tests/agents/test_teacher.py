"""A run that begins at a planner: it decides like it, and its values are worth its rewards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.baselines.planner import PlannerPolicy
from agents.baselines.rules import static_policies
from agents.rollout import simulate
from agents.supervisor import greedy_policy
from agents.teacher import _Stretch, imitate, teacher_of
from agents.train_config import MARGIN, STAGED_SETTINGS, TrainConfig
from agents.training import _make, adapter_of, train
from cnn.common.errors import ConfigError
from offload_env.batch_simulator import BatchSimulator
from offload_env.episode import episode_keys
from offload_env.scenario import load_scenario
from offload_env.world import World, build_world
from testbed.policy.decision_points import decision_points
from testbed.policy.policies import CommitOnce, Policy

SETTINGS = {
    **STAGED_SETTINGS,
    "env": "staged",
    "algo": "maskable-ppo",
    "teacher": "planner",
    "teacher_steps": 200_000,
    "n_envs": 64,
    "steps": 8192,
    "validate_drives": 4,
}


@pytest.fixture(scope="module")
def world() -> World:
    scenario = load_scenario("city-camera")
    timing = replace(scenario.timing, n_frames=100)
    return build_world(replace(scenario, timing=timing), "train")


@pytest.mark.slow(30)
def test_it_decides_like_its_teacher_and_costs_as_little(world: World) -> None:
    config = TrainConfig(**SETTINGS).of(world.topology)
    adapter = adapter_of(config, world)
    adapter.seed(0)
    model = _make(config, adapter)
    keys = episode_keys(9, 24)
    before = greedy_policy(model, config, world.topology)
    teacher, price = teacher_of(config, world)
    imitate(model, adapter, teacher, price, config)
    after = greedy_policy(model, config, world.topology)
    cost = {p: simulate(world, p, keys).cost.mean() for p in (before, after, teacher)}
    assert cost[after] < 1.1 * cost[teacher] < 0.8 * cost[before]
    assert agreement(world, before, teacher) < 0.4
    assert agreement(world, after, teacher) > 0.85


@pytest.mark.parametrize("kind", ["planner", "mpc"])
def test_a_bonus_that_is_given_is_the_teachers(kind: str, world: World) -> None:
    config = TrainConfig(**{**SETTINGS, "teacher": kind, "teacher_bonus": 2.5})
    teacher, price = teacher_of(config, world)
    assert isinstance(teacher, PlannerPolicy)
    assert (teacher.freshness_bonus, teacher.error_price) == (2.5, price)


@pytest.mark.slow(20)
@pytest.mark.parametrize(
    ("name", "kind"), [("motorway-camera", CommitOnce), ("city-camera", PlannerPolicy)]
)
def test_the_best_teacher_costs_least(name: str, kind: type) -> None:
    """A static pair where sending every frame is best, a planner where looking ahead is."""
    scenario = load_scenario(name)
    timing = replace(scenario.timing, n_frames=30)
    world = build_world(replace(scenario, timing=timing), "train")
    named = {t: TrainConfig(**{**SETTINGS, "teacher": t}) for t in ("best", "mpc", "planner")}
    best, mpc, planner = (teacher_of(config, world)[0] for config in named.values())
    assert isinstance(best, kind)
    assert isinstance(mpc, PlannerPolicy)
    keys, floor, price = episode_keys(0, 64), world.accuracy_floor + MARGIN, mpc.error_price

    def charged(policy: Policy) -> float:
        driven = simulate(world, policy, keys)
        return float(driven.cost.mean() + price * max(0.0, floor - driven.correct.mean()))

    statics = [CommitOnce(policy) for policy in static_policies(world.topology)]
    kept = [p for p in statics if simulate(world, p, keys).correct.mean() >= floor]
    assert charged(best) <= min(map(charged, (mpc, planner, *kept))) + 1e-12


def agreement(world: World, policy: Policy, teacher: Policy) -> float:
    """Share of the teacher's own states in which a policy decides as it does."""
    simulator, space = BatchSimulator(world, 16), decision_points(world.topology).staged
    simulator.reset(episode_keys(4, 16))
    same = []
    for _ in range(100):
        seen, points = simulator.observe(space), simulator.point.copy()
        wanted = teacher.decide_batch(seen, points)
        same.append((policy.decide_batch(seen, points) == wanted).mean())
        simulator.advance(wanted)
    return float(np.mean(same))


def test_returns_are_discounted_by_frame(world: World) -> None:
    """Two decisions of one frame, then a frame of one decision, then the drive ends."""
    adapter = adapter_of(TrainConfig(**SETTINGS).of(world.topology), world)
    adapter.reset()
    stretch = _Stretch(4, adapter)
    stretch.rewards[:, 0] = (0.0, 1.0, 2.0, 4.0)
    stretch.ended[:, 0] = (False, True, True, True)
    stretch.done[:, 0] = (False, False, True, False)
    found = stretch.returns(np.full(adapter.num_envs, 8.0, np.float32), 0.5)[:, 0]
    assert found.tolist() == [1.0 + 0.5 * 2.0, 1.0 + 0.5 * 2.0, 2.0, 4.0 + 0.5 * 8.0]


@pytest.mark.slow(20)
def test_two_runs_of_one_seed_end_alike(world: World, tmp_path: Path) -> None:
    config = TrainConfig(**{**SETTINGS, "teacher_steps": 8192})
    one, two = (train(config, tmp_path / n, world=world).bundle.arrays for n in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "changed",
    [{"teacher": "parrot"}, {"env": "frame", "algo": "ppo"}, {"actions": (0, 19)}],
)
def test_an_impossible_teacher_is_refused(changed: dict[str, object], world: World) -> None:
    with pytest.raises(ConfigError, match="teacher"):
        TrainConfig(**{**SETTINGS, **changed}).of(world.topology)
