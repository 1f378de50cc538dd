"""Learn-then-Test over signs, losses from drives, promises over resampled signs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from agents.certificate import Critical, certify, resampled, sign_losses, sign_means
from agents.loss_bounds import p_value
from agents.rollout import simulate
from cnn.common.errors import ConfigError, DataError
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from offload_env.world import World, world_on
from testbed.policy.policies import StaticPolicy

MakeWorld = Callable[..., World]


def few_signs(make_world: MakeWorld) -> World:
    """Ten signs; every policy is in time."""
    world = make_world(50.0, n_frames=60)
    return world_on(world, np.arange(world.table.n_tracks) < 10)


def test_losses_of_signs_are_those_counted_frame_by_frame(make_world: MakeWorld) -> None:
    world = few_signs(make_world)
    early = StaticPolicy(SHIPPED.action(1, 1))
    rollout = simulate(world, early, episode_keys(0, 40))
    of_sign = defaultdict(list)
    for row, right in zip(rollout.row.ravel(), rollout.correct.ravel(), strict=True):
        whole = bool(world.table.prediction[row, SHIPPED.main] == world.table.label[row])
        of_sign[int(world.table.track[row])].append(whole - int(right))
    expected = [np.mean(of_sign[sign]) for sign in range(10)]
    np.testing.assert_allclose(sign_losses(world, rollout), expected)


def test_full_local_loses_nothing(make_world: MakeWorld) -> None:
    world = few_signs(make_world)
    rollout = simulate(world, StaticPolicy(SHIPPED.main), episode_keys(0, 40))
    assert not sign_losses(world, rollout).any()


def test_a_sign_that_no_drive_passed_is_an_error(make_world: MakeWorld) -> None:
    world = few_signs(make_world)
    with pytest.raises(DataError, match="drives past 1 of 10 signs"):
        sign_means(world, np.array([0, 1]), np.array([1.0, 1.0]))


def test_testing_stops_at_the_first_that_fails_and_the_cheapest_is_taken() -> None:
    losses = np.zeros((5, 100))
    losses[3] = 0.5
    costs = np.array([5.0, 2.0, 3.0, 1.0, 0.5])
    found = certify(losses, costs, margin=0.05, level=0.95)
    assert found.chosen == 1
    assert len(found.p_values) == 4
    assert found.p_values[3] > 0.05 >= max(found.p_values[:3])
    assert (found.signs, found.possible) == (100, True)


def test_too_few_signs_certify_nothing_and_say_so() -> None:
    found = certify(np.zeros((1, 100)), np.ones(1), margin=0.005, level=0.95)
    assert found.chosen is None
    assert not found.possible


@pytest.mark.slow(2)
def test_any_broken_promise_is_as_rare_as_said() -> None:
    """The more careful half keeps the margin; certifying any other one is wrong."""
    rng = np.random.default_rng(0)
    means = np.linspace(0.02, 0.3, 12)
    margin, level, runs, wrong = 0.1, 0.9, 500, 0
    for _ in range(runs):
        losses = (rng.random((12, 80)) < means[:, None]).astype(float)
        tested = certify(losses, -np.arange(12.0), margin, level)
        wrong += tested.chosen is not None and means[tested.chosen] > margin
    assert wrong / runs <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)


def test_a_promise_for_some_signs_must_hold_beside_the_one_for_all() -> None:
    losses = np.zeros((3, 400))
    losses[1, 3], losses[2, ::40] = 1.0, 1.0  # ten of the critical ones
    signs = np.arange(400) % 8 == 0
    costs = np.array([3.0, 2.0, 1.0])
    assert certify(losses, costs, 0.06, 0.95).chosen == 2
    found = certify(losses, costs, 0.06, 0.95, critical=Critical(signs, 0.1))
    assert found.chosen == 1
    for tested, of_one in zip(found.p_values, losses, strict=True):
        both = p_value(of_one, 0.06), p_value(of_one[signs], 0.1)
        assert tested == max(both)
    none = certify(losses, costs, 0.06, 0.95, critical=Critical(np.zeros(400, np.bool_), 0.1))
    assert none.chosen is None


@pytest.mark.slow(2)
@pytest.mark.parametrize(("mean", "kept"), [(0.101, False), (0.002, True)])
def test_both_promises_together_are_broken_as_rarely_as_said(mean: float, kept: bool) -> None:
    """The promise for all signs is kept; that for critical ones is just broken, or kept, too."""
    rng = np.random.default_rng(3)
    signs, runs, certified = np.arange(200) < 60, 200, 0
    means, critical = np.where(signs, mean, 0.0), Critical(signs, 0.1)
    for _ in range(runs):
        losses = (rng.random((1, 200)) < means).astype(float)
        certified += certify(losses, np.ones(1), 0.2, 0.9, critical=critical).chosen is not None
    if kept:
        assert certified / runs > 0.8
    else:
        assert certified / runs <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)


@pytest.mark.slow(2)
def test_divisions_look_at_both_promises() -> None:
    losses, signs = np.zeros((1, 200)), np.arange(200) < 40
    losses[0, :20] = 1.0

    def divided(critical: Critical | None) -> tuple[float, float]:
        found = resampled(losses, np.ones(1), 0.5, 0.95, calibration=100, critical=critical)
        return found.certified_share, found.broken_share

    assert divided(None) == (1.0, 0.0)
    assert divided(Critical(signs, 0.55))[0] < 0.1  # a half of them is lost
    certified, broken = divided(Critical(signs, 0.99))
    assert certified > 0.8  # some twenty signs: a few more than half may be lost among them
    assert broken == 0.0
    assert divided(Critical(~signs, 0.3)) == (1.0, 0.0)
    assert Critical(signs, 0.4).broken(losses[0])
    assert not Critical(signs, 0.5).broken(losses[0])


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.slow(3)
def test_promises_are_kept_on_the_other_signs(margin: float | None) -> None:
    rng = np.random.default_rng(1)
    share = np.array([0.0, 0.02, 0.05, 0.1])
    losses = np.where(rng.random((4, 200)) < share[:, None], rng.random(200), 0.0)
    costs = np.array([1.0, 0.8, 0.7, 0.6])
    found = resampled(losses, costs, margin, 0.95, calibration=100)
    assert found.splits == 200
    assert found.broken_share <= 0.05
    assert found.certified_share == 1.0
    if margin is None:
        assert 0.029 < found.margin < 0.1  # nothing lost in 100 signs, 100 more to come
        assert found.cost == 1.0
    else:
        assert found.margin == pytest.approx(margin)
        assert 0.6 <= found.cost < 1.0


def test_a_bare_mean_breaks_its_promise_often() -> None:
    """What the bound is for: the mean of some signs, promised for others, fails often."""
    rng = np.random.default_rng(2)
    losses = np.where(rng.random(200) < 0.05, rng.random(200), 0.0)
    broken = 0
    for _ in range(200):
        order = rng.permutation(200)
        known, others = losses[order[:100]], losses[order[100:]]
        broken += others.mean() > known.mean()
        assert p_value(known, float(known.mean()), fresh=100) > 0.05
    assert broken > 60


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="one row of losses"):
        certify(np.zeros(5), np.zeros(5), 0.1, 0.95)
    with pytest.raises(ConfigError, match="level 1"):
        certify(np.zeros((1, 5)), np.zeros(1), 0.1, 1.0)
    with pytest.raises(ConfigError, match="5 of 5 signs"):
        resampled(np.zeros((1, 5)), np.zeros(1), 0.1, 0.95, calibration=5)
