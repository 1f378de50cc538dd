"""Energy in several ways, against sums by hand and the simulator's own parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.energy_figures import energy_figures, with_tail
from agents.rollout import simulate
from cnn.topology import SHIPPED
from offload_env.episode import episode_keys
from testbed.meters.power import RadioPower, power_profile
from testbed.policy.policies import RandomPolicy, StaticPolicy

LOCAL = StaticPolicy(SHIPPED.action(5, 5))


def test_full_local_processing_by_hand(make_world) -> None:
    """81 ms of 4 W in every 100 ms, 2 W in the rest."""
    world = make_world(20.0, full_local_ms=80.0, jitter=0.0)
    found = energy_figures(world, simulate(world, LOCAL, episode_keys(1, 2)))
    assert found.active == pytest.approx(324.0)
    assert found.whole == pytest.approx(324.0 + 38.0)
    assert found.above_idle == pytest.approx(162.0)
    assert (found.modem, found.modem_with_tail) == (0.0, None)


def test_a_device_that_is_always_late_is_never_idle(make_world) -> None:
    world = make_world(20.0, full_local_ms=400.0, n_frames=30)
    found = energy_figures(world, simulate(world, LOCAL, episode_keys(1, 2)))
    assert found.whole == pytest.approx(found.active)


@pytest.mark.parametrize("tail_ms", [40.0, 150.0, 10_000.0])
def test_the_modem_with_and_without_its_tail(make_world, tail_ms: float) -> None:
    """With outages, fallbacks and frames between that send nothing."""
    world = make_world([20.0, 0.0, 3.0], n_frames=80)
    radio = RadioPower("made up", 10.0, 500.0, 300.0, tail_ms, "made up for tests")
    world = replace(world, cost=replace(world.cost, radio=radio))
    driven = simulate(world, RandomPolicy(2), episode_keys(4, 6))
    assert len(np.unique(driven.status)) > 1
    found = energy_figures(world, driven)
    sent = world.sent_bytes[driven.row, driven.action] * (driven.exchange_ms > 0)
    exchanges = 500.0 * driven.exchange_ms / 1e3 + 10.0 * 8e-6 * sent
    assert found.modem == pytest.approx(exchanges.mean())
    assert found.modem_with_tail == pytest.approx(driven.radio_mj.mean())
    assert found.modem_with_tail > found.modem


def test_a_shipped_modem_without_tail_has_one_of_its_name_with() -> None:
    plain = power_profile("jetson-nano+lte").radio
    tailed = with_tail(plain)
    assert tailed is not None
    assert (tailed.tail_ms, tailed.active_mw) == (10_000, plain.active_mw)
    assert with_tail(tailed) is tailed
    assert with_tail(replace(plain, name="mine.toml")) is None
