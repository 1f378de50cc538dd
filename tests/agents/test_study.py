"""A study's file, its trials, its folder and its table. No training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agents.cli import app
from agents.study import Study, Trial, begin, read_study
from agents.study_report import StudyResult, tables
from agents.train_config import STAGED_SETTINGS, TrainConfig
from cnn.common.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_every_combination_is_a_trial_with_its_own_folder(tmp_path: Path) -> None:
    text = """
scenarios = ["urban-5g", "busy-edge"]
steps = 1000
seeds = 3
[settings]
hidden = 32
[grid]
gamma = [0, 0.9]
learning_rate = [0.001, 0.003]
"""
    trials = read_study(written(tmp_path, text)).trials(7)
    found = {
        (t.config.scenario, t.config.gamma, t.config.learning_rate, t.config.seed) for t in trials
    }
    assert len(trials) == len(found) == len({t.name for t in trials}) == 2 * 2 * 2 * 3
    assert {t.config.seed for t in trials} == {7, 8, 9}
    assert {(t.config.hidden, t.config.steps, t.config.algo) for t in trials} == {(32, 1000, "ppo")}
    assert trials[0].name == "000-urban-5g-ppo-gamma=0.0-learning_rate=0.001-seed7"
    assert {t.setting for t in trials} == {
        f"ppo gamma={g} learning_rate={r}" for g in (0.0, 0.9) for r in (0.001, 0.003)
    }
    given = {"scenario", "env", "algo", "steps", "hidden", "gamma", "learning_rate"}
    assert trials[0].given == given


def test_each_environment_takes_its_algorithms_and_defaults() -> None:
    trials = Study(envs=("frame", "staged"), algos=("dqn", "ppo", "maskable-ppo"), seeds=1).trials(
        0
    )
    assert [(t.config.env, t.config.algo) for t in trials] == [
        ("frame", "dqn"),
        ("frame", "ppo"),
        ("staged", "maskable-ppo"),
    ]
    assert trials[2].config.steps == STAGED_SETTINGS["steps"]
    assert trials[1].config.steps == TrainConfig().steps
    both = Study(envs=("frame", "staged"), seeds=1).trials(0)
    assert [t.config.algo for t in both] == ["ppo", "maskable-ppo"]


def test_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    text = 'scenarios = ["mine.toml"]\nseeds = 1\n[settings]\nrecords = "records"\n'
    (trial,) = read_study(written(tmp_path, text)).trials(0)
    assert trial.scenario == "mine"
    assert trial.config.scenario == str(tmp_path / "mine.toml")
    assert trial.config.records == str(tmp_path / "records")


def test_the_example_can_be_read() -> None:
    trials = read_study(ROOT / "examples" / "tune.toml").trials(0)
    assert {t.config.gamma for t in trials} == {0.0, 0.9}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scenarios = [", "study.toml: "),
        ("scenario = ['urban-5g']", "unknown key 'scenario'; expected one of algos, envs, grid"),
        ("scenarios = 'urban-5g'", "scenarios = 'urban-5g'; expected a value of type list of str"),
        ("scenarios = []", "scenarios []; expected at least one value"),
        ("scenarios = ['a', 'a']", "scenarios ['a', 'a']; expected every value once"),
        ("scenarios = ['a.toml', 'b/a.toml']", "by short name, ['a', 'a']; expected every value"),
        ("envs = ['live']", "envs 'live'; expected frame or staged"),
        ("algos = ['sac']", "algos 'sac'; expected ppo or dqn or qr-dqn or maskable-ppo"),
        ("algos = ['maskable-ppo']", "envs 'frame' with algos ['maskable-ppo']; expected ppo or"),
        ("algos = ['ppo', 'maskable-ppo']", "algos 'maskable-ppo' with envs ['frame']"),
        ("envs = ['frame', 'staged']\nalgos = ['ppo']", "envs 'staged' with algos ['ppo']"),
        ("seeds = 0", "seeds 0; expected 1..1000"),
        ("seeds = [0, 1]", "seeds = [0, 1]; expected a value of type int"),
        ("steps = 0", "steps 0; expected 1..10000000000"),
        ("steps = 1.5", "steps = 1.5; expected a value of type int"),
        ("grid = 3", "grid = 3; expected a table"),
        ("[grid]\ngama = [0.9]", "grid: unknown key 'gama'; expected one of actions, batch_size"),
        ("[grid]\ngamma = 0.9", "grid: gamma = 0.9; expected a value of type list of float"),
        ("[grid]\ngamma = ['high']", "grid: gamma = 'high'; expected a value of type float"),
        ("[grid]\ngamma = []", "grid: gamma []; expected at least one value"),
        ("[grid]\ngamma = [0.9, 0.9]", "grid: gamma [0.9, 0.9]; expected every value once"),
        ("[grid]\ngamma = [0.9, 2]", "gamma 2; expected 0..0.999999"),
        ("[grid]\nseed = [1, 2]", "grid: seed; expected a setting without a key of its own; this"),
        ("[settings]\nsteps = 9", "settings: steps; expected a setting without a key of its own"),
        ("[settings]\nhidden = [9]", "settings: hidden = [9]; expected a value of type int"),
        ("[settings]\nn_env = 9", "settings: unknown key 'n_env'"),
        ("[settings]\ngamma = 0.5\n[grid]\ngamma = [0.9]", "gamma in both settings and grid"),
        ("seeds = 1000\n[grid]\nhidden = [1, 2, 3, 4, 5]\nn_envs = [1, 2, 3, 4, 5]", "25000 trai"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_study(path)
    assert str(path) in refused.value.given
    assert said in str(refused.value)


def test_a_study_is_begun_once_and_resumed_only_as_it_was(tmp_path: Path) -> None:
    study = Study(seeds=2, grid={"gamma": (0.0, 0.9)})
    with pytest.raises(DataError, match="holds no study"):
        begin(study, 0, tmp_path, resume=True)
    begin(study, 0, tmp_path, resume=False)
    begin(study, 0, tmp_path, resume=True)
    with pytest.raises(DataError, match=r"holds a study; .*--resume"):
        begin(study, 0, tmp_path, resume=False)
    with pytest.raises(DataError, match=r"differs from the one in .* in seed;"):
        begin(study, 1, tmp_path, resume=True)
    with pytest.raises(DataError, match=r"differs from the one in .* in seeds, grid;"):
        begin(Study(seeds=3), 0, tmp_path, resume=True)


def result_of(costs: dict[str, list[list[float]]], missed: str = "") -> StudyResult:
    """Costs by setting, (scenarios, seeds); runs of `missed` do not keep the floor."""
    trials, rows = [], []
    for setting, by_scenario in costs.items():
        for scenario, of_seeds in zip(("urban-5g", "busy-edge"), by_scenario, strict=False):
            for seed, cost in enumerate(of_seeds):
                row: dict[str, Any] = {"setting": setting, "scenario": scenario, "cost": cost}
                rows.append({**row, "keeps_floor": setting != missed})
                trials.append(
                    Trial(
                        f"{len(rows)}", setting, {}, scenario, frozenset(), TrainConfig(seed=seed)
                    )
                )
    return StudyResult(trials, rows, 0)


def test_settings_are_compared_over_seeds_and_scenarios() -> None:
    costs = {"ppo gamma=0.0": [[1, 2, 3], [4, 5, 6]], "ppo gamma=0.9": [[0, 2, 9], [7, 8, 9]]}
    found = result_of(costs, missed="ppo gamma=0.9").as_json()
    first, second = found["settings"]
    assert (first["runs"], first["keep_floor"], second["keep_floor"]) == (6, 6, 0)
    assert first["cost_iqm"]["mean"] == (2 + 3 + 4 + 5) / 4
    assert first["cost_iqm_by_scenario"]["busy-edge"]["mean"] == (4 + 5 + 6) / 3
    (pair,) = found["improvement"]
    assert (pair["setting"], pair["over"]) == ("ppo gamma=0.0", "ppo gamma=0.9")
    # Pairs of urban-5g: 1 < 2, 9; 2 = 2, 2 < 9; 3 < 9. Pairs of busy-edge: all.
    assert pair["probability"]["mean"] == pytest.approx((4.5 / 9 + 1) / 2)
    json.dumps(found, allow_nan=False)


def test_the_table_lists_the_cheapest_first_and_who_keeps_the_floor() -> None:
    result = result_of({"a": [[2.0, 2.0]], "b": [[1.0, 1.0]]}, missed="b").as_json()
    settings, pairs = tables(result)
    assert settings.rows[0] == ("b", "1.0000 (1.0000 .. 1.0000)", "0 of 2")
    assert settings.rows[1][2] == "2 of 2"
    assert "misses the floor" in settings.notes[-1]
    assert pairs.rows == [("a below b", "0.00 (0.00 .. 0.00)")]


def test_one_place_to_run(tmp_path: Path) -> None:
    words = ["agent", "tune", "none.toml", "--local", "--address", "head:1", "--out", str(tmp_path)]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, ConfigError)
    assert "--local and --address head:1" in error.given
