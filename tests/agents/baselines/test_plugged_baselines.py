"""Policies of plug-ins in an evaluation: tuned, driven and named like the baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from distributions import install

from agents.baselines.tuning import tuned_baselines
from agents.contenders import plugged_baselines
from agents.evaluation import AGENT, CLAIRVOYANT, STAGED, evaluate
from agents.rollout import simulate
from cnn.common.errors import ConfigError
from offload_env.episode import episode_keys
from testbed.policy.plugged_policy import POLICY_PLUG_INS

pytestmark = pytest.mark.slow(6)

MODULE = """
from testbed import StaticPolicy

def pairs(topology, world):
    return [StaticPolicy(action, topology=topology) for action in topology.actions]

def offload(topology, world):
    assert world.topology == topology
    yield StaticPolicy(topology.action(5, 0), topology=topology)

class Tired(StaticPolicy):
    calls = 0
    def decide_batch(self, observations, points=None):
        Tired.calls += 1
        if Tired.calls > 30:
            raise MemoryError
        return super().decide_batch(observations, points)

def tired(topology, world):
    return [Tired(0)]

def asleep(topology, world):
    raise LookupError("no table here")
"""


@pytest.fixture(autouse=True)
def _site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("pairs", "offload", "tired", "asleep")
    points = "\n".join(f"{name} = rows_plug:{name}" for name in names)
    points += "\ngreedy = rows_plug:asleep\nabsent = nowhere:x"
    install(tmp_path, "rows-plug", MODULE, {"sliproad.policies": points})
    monkeypatch.syspath_prepend(str(tmp_path))


def test_its_candidates_are_tuned_like_ours(make_world) -> None:
    world = make_world(20.0, floor=0.99)
    found = tuned_baselines(world, 2, 8, plug_ins=plugged_baselines(["pairs", "offload"]))
    assert list(found)[-2:] == ["pairs", "offload"]
    keys = episode_keys(5, 4)
    for name, ours in (("pairs", "best-static"), ("offload", "full-offload")):
        mine, theirs = (simulate(world, found[each], keys) for each in (name, ours))
        np.testing.assert_array_equal(mine.action, theirs.action)
        np.testing.assert_array_equal(mine.cost, theirs.cost)
        assert mine.policy == name


def test_the_names_of_ours_are_the_rows_of_an_evaluation(make_world) -> None:
    rows = {*tuned_baselines(make_world(20.0), 2, 2), AGENT, STAGED, CLAIRVOYANT}
    assert rows == set(POLICY_PLUG_INS.ours)


def test_an_evaluation_says_which_plug_in_a_row_is_of(make_world) -> None:
    world = make_world(20.0)
    plug_ins = plugged_baselines(["offload", "offload"])
    result = evaluate(world, world, {}, drives=2, tuning_drives=2, plug_ins=plug_ins)
    said = "policy offload of rows-plug 1.0 (rows_plug:offload): static e5s0"
    row = result.as_json()["policies"]["offload"]
    assert row["plug_in"] == said
    assert row["cost"] == result.policies["full-offload"]["cost"]
    assert "plug_in" not in result.as_json()["policies"]["full-offload"]


def test_one_that_fails_on_the_way_is_one_line(make_world) -> None:
    world = make_world(20.0)
    for name, said in (("tired", "MemoryError"), ("asleep", "LookupError .no table here")):
        with pytest.raises(ConfigError, match=f"policy {name} of rows-plug 1.0 .*raised {said}"):
            tuned_baselines(world, 2, 2, plug_ins=plugged_baselines([name]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("greedy", "--baseline greedy, which is in every evaluation"),
        ("nobody", "--baseline nobody; expected a policy plug-in: absent, asleep, offload, pairs"),
        ("absent", "policy absent of rows-plug 1.0 .*No module named 'nowhere'"),
    ],
)
def test_a_name_that_is_no_plug_in_is_refused_at_once(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plugged_baselines([name])
