"""A lane with preferences of its own is a plain environment under those preferences."""

from __future__ import annotations

import numpy as np
import pytest

from cnn.common.errors import ConfigError
from cnn.topology import SHIPPED
from offload_env.preferences import ConditionedVectorEnv, Preferences, preferring
from offload_env.vector_env import OffloadVectorEnv

KEYS = np.arange(5, 9, dtype=np.uint64) * np.uint64(1_234_567_890_123)


def test_each_lane_is_the_plain_environment_under_its_preferences(world) -> None:
    env = ConditionedVectorEnv(4, world=world, preferences=Preferences((0.5, 0.9)))
    seen, _ = env.reset(options={"keys": KEYS})
    floor, share = env.floor.copy(), env.delay_share.copy()
    assert len(set(floor)) == len(set(share)) == 4
    rng = np.random.default_rng(0)
    plain = []
    for k in range(4):
        one = OffloadVectorEnv(1, world=preferring(world, floor[k], share[k]))
        first, _ = one.reset(options={"keys": KEYS[k : k + 1]})
        np.testing.assert_array_equal(seen[k], first[0])
        plain.append(one)
    for _ in range(world.scenario.timing.n_frames):
        actions = rng.integers(0, 20, 4)
        seen, reward, _, truncated, info = env.step(actions)
        for k, one in enumerate(plain):
            other, reward1, _, truncated1, info1 = one.step(actions[k : k + 1])
            assert reward[k] == reward1[0]
            for name in ("cost", "cost_delay", "cost_energy", "cost_miss", "delay_ms"):
                assert info[name][k] == info1[name][0], name
            assert truncated[k] == truncated1[0]
            if not truncated[k]:
                np.testing.assert_array_equal(seen[k], other[0])
    # The last step ended the drives: its figures are those of the old preferences.
    np.testing.assert_array_equal(info["final_info"]["accuracy_floor"], floor)
    assert not (env.floor == floor).any()


def test_preferences_follow_from_the_key_and_fill_the_range() -> None:
    asked = Preferences((0.9, 0.95), (0.2, 0.4))
    keys = np.random.default_rng(1).integers(0, 2**64, 20_000, dtype=np.uint64)
    floor, share = asked.draw(keys)
    np.testing.assert_array_equal(asked.draw(keys[:7])[0], floor[:7])
    assert 0.9 <= floor.min() < 0.9001 < 0.9499 < floor.max() < 0.95
    assert share.mean() == pytest.approx(0.3, abs=0.005)
    assert abs(np.corrcoef(floor, share)[0, 1]) < 0.03
    with pytest.raises(ConfigError):
        Preferences((0.9, 0.8))


def test_floors_that_bind_and_can_be_kept(world) -> None:
    asked = Preferences.of(world, 0.01)
    accuracy = world.correct.mean(0)
    assert asked.floor == pytest.approx((accuracy.min() - 0.01, accuracy[SHIPPED.main] - 0.01))
    assert asked.delay_share == (0.0, 1.0)


def test_another_floor_moves_the_worlds_own_by_as_much(world) -> None:
    other = preferring(world, world.settings.accuracy_floor - 0.02, 0.3)
    assert other.accuracy_floor == pytest.approx(world.accuracy_floor - 0.02)
    before, after = world.scenario.constraint, other.scenario.constraint
    assert after.accuracy_margin == pytest.approx(before.accuracy_margin + 0.02)
    price = other.scenario.price
    assert price.delay_weight == pytest.approx(0.3)
    assert price.delay_weight + price.energy_weight == pytest.approx(1.0)
