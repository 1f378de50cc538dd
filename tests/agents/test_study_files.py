"""The studies in `benchmarks/`: the policies shipped for the second generation are theirs."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from agents.contenders import shipped_path
from agents.study import Trial, read_study
from offload_env.scenario import second_generation
from offload_env.world import build_world
from testbed.policy.policy_file import PolicyBundle
from tests.support.scripts import benchmark


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    """Those that look ahead, of all studies of what learning adds."""
    specs = benchmark("value_of_rl").SPECS
    found = [trial for spec in specs for trial in read_study(spec).trials(0)]
    return [trial for trial in found if trial.config.gamma > 0]


def test_every_scenario_has_one_setting_that_looks_ahead(trials: list[Trial]) -> None:
    settings = {(trial.scenario, trial.setting) for trial in trials}
    assert sorted(name for name, _ in settings) == sorted(second_generation())


@pytest.mark.parametrize("name", second_generation())
def test_the_shipped_policy_is_one_of_their_trainings(name: str, trials: list[Trial]) -> None:
    """Its file says how it was trained; settings that came later are not in all files."""
    manifest = PolicyBundle.load(shipped_path(name, staged=True)).manifest
    said = manifest["provenance"]["config"]
    world = build_world(name, "train")

    own = [json.loads(json.dumps(asdict(t.config_in(world)))) for t in trials if t.scenario == name]
    assert said in [{key: config[key] for key in said} for config in own]
