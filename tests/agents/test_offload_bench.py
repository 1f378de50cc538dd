"""OffloadBench on a tiny scenario: submissions, their records, intervals, and bad input."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from agents.contenders import shipped_path
from agents.offload_bench import QUICK, WHOLE, Size, chosen, drive_keys, input_hashes, run_scenario
from agents.submission import NAME, Recorded, Replayed, Submission
from cnn.common.errors import BundleError, ConfigError, DataError
from offload_env.world import build_world
from tests.support.scripts import benchmark

pytestmark = pytest.mark.slow(30)

ROOT = Path(__file__).parents[2]
SIZE = Size(drives=4, tuning_drives=3)

POLICIES = """
import numpy as np
from agents.baselines.rules import CascadePolicy, GreedyPolicy, full_local
from agents.baselines.tuning import DEPTHS, PRICES, THRESHOLDS, AccuracyTable, exits_at

def local(topology, world):
    return full_local(topology)

def greedy(topology, world):
    from agents.baselines import tuning
    table = AccuracyTable(world)
    return [GreedyPolicy(world, price, table) for price in tuning.PRICES]

def staged(topology, world):
    from agents.baselines import tuning
    exits = exits_at(topology, tuning.DEPTHS)
    return [CascadePolicy(world, sure, last) for last in exits for sure in tuning.THRESHOLDS]

class Broken:
    name = "broken"
    def __init__(self, topology):
        self.space = full_local(topology).space
    def reset(self):
        pass
    def decide(self, observation, point=0):
        return 0
    def decide_batch(self, observations, points=None):
        return self.answer(len(observations))

class WrongAction(Broken):
    def answer(self, n):
        return np.full(n, 20)

class NotANumber(Broken):
    def answer(self, n):
        return np.full(n, np.nan)

class WrongLength(Broken):
    def answer(self, n):
        return np.zeros(n + 1, np.int64)

class Raises(Broken):
    def answer(self, n):
        return 1 // 0

class Illegal(Broken):
    def __init__(self, topology):
        from testbed import decision_points
        self.space = decision_points(topology).staged
        self.number = decision_points(topology).answer  # nothing is evaluated yet
    def answer(self, n):
        return np.full(n, self.number)

class NoPolicy:
    def __init__(self, topology):
        pass
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("submission") / "mine.py"
    path.write_text(POLICIES)
    return path


@pytest.fixture(scope="module")
def worlds(make_world):
    train = make_world([20.0, 0.1, 0.1], floor=0.98, n_frames=30)
    return train, replace(train, split="test")


def submitted(file: Path, name: str, worlds) -> Recorded:
    submission = Submission.parse(f"{file}:{name}")
    return Recorded(chosen(submission, worlds[0], SIZE), f"submission {submission}")


@pytest.fixture(scope="module")
def greedy(file, worlds):
    policy = submitted(file, "greedy", worlds)
    return policy, run_scenario(worlds, SIZE, policy)


@pytest.fixture(scope="module")
def staged(file, worlds):
    policy = submitted(file, "staged", worlds)
    return policy, run_scenario(worlds, SIZE, policy)


@pytest.mark.parametrize(("made", "row"), [("greedy", "greedy"), ("staged", "spinn")])
def test_a_submission_equals_the_baseline_that_it_is(made, row, request) -> None:
    _, part = request.getfixturevalue(made)
    baseline = part["baselines"][row]
    assert {k: part["submission"][k] for k in baseline} == baseline
    assert part["submission"]["over_bound"] == baseline["cost"] / part["bound_cost"]
    best = part["baselines"][part["best_baseline"]]
    assert best["keeps_floor"]
    less = part["submission"]["less_best_baseline"]
    assert less["mean"] == pytest.approx(baseline["cost"] - best["cost"])
    assert less["low"] <= less["mean"] <= less["high"]


@pytest.mark.parametrize("made", ["greedy", "staged"])
def test_the_record_alone_gives_the_same_bits(made, worlds, request) -> None:
    policy, part = request.getfixturevalue(made)
    record = json.loads(json.dumps(policy.record))
    again = Replayed.read(record, worlds[0].topology, "a record")
    assert json.dumps(run_scenario(worlds, SIZE, again)) == json.dumps(part)
    if made == "greedy":
        assert record["decisions"] == SIZE.drives * 30


def test_intervals_are_about_the_figures(greedy) -> None:
    mine = greedy[1]["submission"]
    for by in ("drive", "track"):
        cost, above = mine[f"cost_by_{by}"], mine[f"accuracy_above_floor_by_{by}"]
        assert cost["mean"] == pytest.approx(mine["cost"])
        assert cost["low"] < mine["cost"] < cost["high"]
        assert above["mean"] == pytest.approx(mine["accuracy"] - greedy[1]["floor"])
    assert 0 <= mine["tracks_below"] <= 1


def test_without_a_submission_there_are_bound_and_baselines(worlds) -> None:
    part = run_scenario(worlds, SIZE, None)
    assert NAME not in part
    assert part["bound_cost"] <= part["baselines"][part["best_baseline"]]["cost"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("WrongAction", "action 20, expected 0 to 19"),
        ("NotANumber", "actions float64"),
        ("WrongLength", r"actions int64 \(5,\)"),
        ("Raises", "ZeroDivisionError"),
        ("Illegal", "at decision point 0; expected an action that is legal there"),
        ("NoPolicy", "NoPolicy, no testbed.Policy"),
        ("missing", "AttributeError"),
    ],
)
def test_a_broken_submission_is_named(file, worlds, name, message) -> None:

    def one_decision() -> None:
        policy = submitted(file, name, worlds)
        policy.decide_batch(np.zeros((SIZE.drives, policy.space.obs_dim), np.float32))

    with pytest.raises(ConfigError, match=message) as raised:
        one_decision()
    assert "mine.py" in str(raised.value)


def test_code_that_does_not_compile_is_named(tmp_path: Path, worlds) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"bad\.py:f raised SyntaxError"):
        Submission(str(path), "f").candidates(worlds[0])


@pytest.mark.parametrize("text", ["mine.py", "mine.py:", "mine.py:not a name"])
def test_python_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"FILE\.py:NAME"):
        Submission.parse(text)


def test_a_policy_file_and_one_for_each_scenario(tmp_path: Path, worlds) -> None:
    shipped = shipped_path("urban-5g", staged=True)
    pattern = Submission.parse(str(shipped.parent / "{scenario}.staged.policy"))
    assert pattern.file("urban-5g") == shipped
    world = build_world("urban-5g")
    (policy,) = pattern.candidates(world)
    assert policy.space.is_staged
    with pytest.raises(DataError, match=r"submission no-such\.policy"):
        Submission.parse("no-such.policy").candidates(world)
    broken = tmp_path / "broken.policy"
    broken.write_bytes(shipped.read_bytes()[:-100])
    with pytest.raises(BundleError):
        Submission.parse(str(broken)).candidates(world)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"decisions": 10}, "SHA-256"),
        ({"decisions": 10**12}, "decisions"),
        ({"zlib_base64": "AAAA"}, "a record that"),
        ({"space": "other"}, "decision space"),
        ({"space": None}, "decision space"),
    ],
)
def test_a_damaged_record_is_refused(greedy, worlds, change, message) -> None:
    record = {**greedy[0].record, **change}
    with pytest.raises(DataError, match=message):
        Replayed.read(record, worlds[0].topology, "a record")


def test_a_record_of_other_drives_is_refused(greedy, worlds) -> None:
    policy = Replayed.read(greedy[0].record, worlds[0].topology, "a record")
    with pytest.raises(DataError, match="fewer than"):
        run_scenario(worlds, replace(SIZE, drives=5), policy)


def test_hashes_tell_inputs_apart(worlds, make_world) -> None:
    found = input_hashes(worlds)
    other = make_world([20.0, 0.1, 0.2], floor=0.98, n_frames=30)
    changed = input_hashes((other, replace(other, split="test")))
    differ = {name for name in found if found[name] != changed[name]}
    assert differ == {"train_traces", "test_traces"}
    assert found == input_hashes(worlds)


def test_quick_drives_are_the_first_of_the_whole() -> None:
    np.testing.assert_array_equal(drive_keys(QUICK), drive_keys(WHOLE)[: QUICK.drives])


# --- The command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark("offload_bench")


def test_one_result_and_its_replay(script, file, worlds, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(script, "worlds_of", lambda name: worlds)
    monkeypatch.setattr(script, "QUICK", SIZE)
    frozen = {"urban-5g": input_hashes(worlds)}
    path = tmp_path / "frozen.json"
    path.write_text(json.dumps(frozen))
    monkeypatch.setattr(script, "FROZEN", path)
    words = ["offload_bench.py", "--quick", "--submission", f"{file}:local"]
    monkeypatch.setattr(sys, "argv", [*words, "--json"])
    script.main()
    printed = capsys.readouterr().out
    result = json.loads(printed)
    assert result["inputs_frozen"]
    assert result["scenarios"]["urban-5g"]["submission"]["keeps_floor"]
    saved = tmp_path / "result.json"
    saved.write_text(printed)
    assert script.replay(saved) == {"same_bits": True, "differs": {}}
    result["scenarios"]["urban-5g"]["submission"]["cost"] += 0.1
    saved.write_text(json.dumps(result))
    assert list(script.replay(saved)["differs"]) == ["/urban-5g/submission/cost"]
    saved.write_text(printed[:-50])
    with pytest.raises(DataError, match="result"):
        script.replay(saved)
    assert len(list(script.table(result))) == 2


def test_an_error_is_one_line(script, monkeypatch, capsys) -> None:
    words = ["offload_bench.py", "urban-5g", "--submission", "no-such.policy"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert capsys.readouterr().err.count("\n") == 1


def test_the_inputs_are_the_frozen_ones(script) -> None:
    frozen = json.loads(script.FROZEN.read_text())
    for name, hashes in frozen.items():
        assert input_hashes(script.worlds_of(name)) == hashes, name


def test_the_last_bits_of_what_is_drawn_do_not_count(script) -> None:
    train, test = script.worlds_of("busy-edge")
    beside = replace(train, server_work_ms=train.server_work_ms * (1 + 2.0**-52))
    other = replace(train, server_work_ms=train.server_work_ms * 1.001)
    as_it_is = input_hashes((train, test))
    assert input_hashes((beside, test)) == as_it_is
    changed = {k for k, v in input_hashes((other, test)).items() if v != as_it_is[k]}
    assert changed == {"train_noise"}
