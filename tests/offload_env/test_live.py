"""The live environment: real network, real processes, real sockets; few frames."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import offload_env
from cnn.action import ACTIONS, action_index
from cnn.bundle import load_bundle
from cnn.errors import ConfigError
from offload_env.live import OffloadLiveEnv
from offload_env.world import World
from testbed.traces.trace import Trace

offload_env.register()


@pytest.fixture(scope="module")
def live(make_world: Callable[..., World]) -> Iterator[OffloadLiveEnv]:
    """A live environment on a steady fast link, as fast as this machine is."""
    config = load_bundle().config
    payload = tuple(config.payload_bytes(a.exit, a.split) for a in ACTIONS)
    base = make_world()
    table = replace(base.table, payload_bytes=np.tile(np.array(payload), (len(base.table), 1)))
    world = make_world(
        traces=[Trace(np.full(50, 50.0), np.full(50, 10.0), 0.1, "steady", "5G", "generated")],
        table=table,
        cost=replace(base.cost, slowdown=1.0, payload_bytes=payload),
        timing=replace(
            base.scenario.timing, period_ms=150.0, timeout_ms=2000.0, max_queue_ms=5000.0
        ),
    )
    env = gym.make("sliproad/OffloadLive-v0", world=world, n_frames=8, slowdown=1.0).unwrapped
    assert isinstance(env, OffloadLiveEnv)
    with contextlib.closing(env):
        yield env


def test_every_step_is_a_real_frame(live: OffloadLiveEnv) -> None:
    observation, _ = live.reset(seed=1)
    assert live.observation_space.contains(observation)
    wanted = ["e1s1", "e5s0", "e3s3", "e5s5", "e2s0", "e1s1", "e5s0", "e4s4"]
    for i, name in enumerate(wanted):
        action = next(a.index for a in ACTIONS if a.name == name)
        observation, reward, terminated, truncated, info = live.step(action)
        row = info["measurement"]
        assert live.observation_space.contains(observation)
        assert (row.frame_id, info["action"], terminated) == (i, name, False)
        assert truncated == (i == len(wanted) - 1)
        assert info["accuracy"] == float(row.prediction == row.label)
        assert info["delay_ms"] == row.delay_ms > 0
        if ACTIONS[action].is_local:
            assert row.transfer_ms is None
        elif row.status == "ok":
            assert row.transfer_ms >= 10.0  # the link's round trip
        assert reward == pytest.approx(-info["cost"])


def test_what_was_sent_is_observed(live: OffloadLiveEnv) -> None:
    from testbed.decide.observation import FIELDS

    age = next(f.index for f in FIELDS if f.name == "transfer_age_s")
    observation, _ = live.reset(seed=2)
    assert observation[age] == 1.0  # never
    observation, *_ = live.step(action_index(1, 1))
    assert observation[age] == 1.0
    observation, *_, info = live.step(action_index(5, 0))
    if info["status"] == "ok":
        assert observation[age] < 0.5


def test_gymnasium_accepts_it(live: OffloadLiveEnv) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    with warnings.catch_warnings():
        # Observations are similar but not equal: real time has passed.
        warnings.filterwarnings("ignore", message=".*similar.*")
        check_env(live, skip_render_check=True)
        sb3_check_env(live)


def test_step_before_reset_is_an_error(world: World) -> None:
    with pytest.raises(ConfigError, match="reset"):
        OffloadLiveEnv(world=world).step(0)
