"""The timing that suits a device: the shipped scenarios, and the rule's own promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from networks import NETWORKS, made_up_cost, network_id

from cnn.common.errors import ConfigError
from cnn.topology import Topology
from offload_env.scenario import Timing, load_scenario
from offload_env.sources import load_cost
from offload_env.timing_rule import timing_for


@pytest.mark.parametrize("name", ["urban-5g", "busy-edge", "highway-lte"])
def test_shipped_scenarios_have_the_timing_of_the_rule(name: str) -> None:
    scenario = load_scenario(name)
    assert timing_for(load_cost(scenario))[0] == scenario.timing


@pytest.mark.parametrize(
    ("name", "timeout_ms"),
    [
        # Full local 356 ms; exit 1 after the frame was sent (0.06302 + 0.19679) / 0.59625 of it,
        # 155 ms and a tenth: 400 - 171 = 229 ms, in steps of 20 ms.
        ("slow-device", 220.0),
        # 48 ms of 200 and 3 of 50 would leave more than twelve twentieths.
        ("poor-coverage", 120.0),
        ("fast-device", 30.0),
    ],
)
def test_the_others_have_other_cameras_and_a_time_out_not_far_from_theirs(
    name: str, timeout_ms: float
) -> None:
    scenario = load_scenario(name)
    timing, why = timing_for(load_cost(scenario), scenario.timing.period_ms)
    assert timing == replace(scenario.timing, timeout_ms=timeout_ms)
    assert why[0].endswith("as given")
    assert abs(timeout_ms - scenario.timing.timeout_ms) <= 0.2 * timing.period_ms


@pytest.mark.parametrize("topology", NETWORKS, ids=network_id)
@pytest.mark.parametrize("slowdown", [0.1, 3.0, 17.0, 60.0])
def test_full_local_keeps_up_and_a_shallow_exit_meets_the_deadline(
    topology: Topology, slowdown: float
) -> None:
    for seed in range(5):
        cost = replace(made_up_cost(topology, seed), slowdown=slowdown)
        timing, _ = timing_for(cost)
        period = timing.period_ms
        assert period >= 100
        assert period % 50 == 0
        assert period >= 1.1 * slowdown * cost.device_ms[-1] - 1e-9
        assert timing.deadline_ms == timing.max_queue_ms == period
        assert 0.4 * period <= timing.timeout_ms <= 0.6 * period
        after = [
            slowdown * (cost.device_ms[a.index] + cost.fallback_ms[a.index]) + timing.timeout_ms
            for a in topology.actions
            if a.split < a.exit
        ]
        assert min(after) <= period


def test_a_network_that_sends_nothing_and_a_period_that_is_too_short() -> None:
    alone = made_up_cost(Topology(3, (2, 3), (), ()))
    timing, why = timing_for(alone)
    assert timing == Timing(timeout_ms=60.0, max_queue_ms=100.0)
    assert "sends nothing" in why[2]
    cost = made_up_cost(NETWORKS[1])
    timing, why = timing_for(cost, 2.0)
    assert timing.timeout_ms == 0.8
    assert "MISSES" in why[2]
    with pytest.raises(ConfigError, match="period_ms"):
        timing_for(cost, 0.0)
