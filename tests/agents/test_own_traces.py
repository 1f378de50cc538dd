"""Train and evaluate on a folder of traces none of whose groups the package has named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from agents.cli import agent_app
from offload_env.scenario import anchored, load_scenario, parse_scenario, scenario_toml
from offload_env.world import build_world
from testbed.traces.trace_kinds import TRAIN_GROUPS

pytestmark = pytest.mark.slow(20)

SHORT = ["--steps", "2048", "--n-envs", "16", "--hidden", "16", "--validate-every", "1024"]


def write_folder(folder: Path, rtt: bool, n: int = 6) -> Path:
    """`n` drives of half a minute at rates that change every second, in one file each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(n):
        name = f"tram-{k}-2024051{k // 2}"
        assert name not in TRAIN_GROUPS
        rates, trips = rng.gamma(2.0, 6.0, 30), 20 + rng.gamma(2.0, 5.0, 30)
        rows = "".join(
            f"{name},{t},{rates[t]:.3f},{f'{trips[t]:.2f}' if rtt else ''},LTE\n" for t in range(30)
        )
        (folder / f"{name}.csv").write_text(f"trace,time_s,uplink_mbps,rtt_ms,tech\n{rows}")
    return folder


def scenario_of(path: Path, link: str) -> Path:
    path.write_text(
        "[timing]\nn_frames = 10\n[device]\nfull_local_ms = 80.0\n"
        f'power = "jetson-nano+lte"\n[link]\nsource = "measured"\n{link}'
    )
    return path


def command(*words: object) -> tuple[dict[str, Any], str]:
    done = CliRunner().invoke(agent_app, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def test_worlds_of_a_folder_and_of_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", rtt=True)
    files = ", ".join(f'"{path}"' for path in sorted(folder.iterdir()))
    for link in (f'folder = "{folder}"', f'files = [{files}]\nsplit = "day"\ntrain_share = 0.5'):
        scenario = load_scenario(scenario_of(tmp_path / "s.toml", link))
        train, test = (build_world(scenario, split) for split in ("train", "test"))
        trained, tested = set(train.pool.names), set(test.pool.names)
        assert trained
        assert tested
        assert not trained & tested
        assert len(trained | tested) == 6
        assert not train.settings.radio_5g
        kept = anchored(scenario)
        assert parse_scenario(scenario_toml(kept), "s") == kept


@pytest.mark.parametrize("rtt", [True, False], ids=["with-round-trips", "without"])
def test_training_and_evaluation_on_an_unknown_folder(tmp_path: Path, rtt: bool) -> None:
    folder = write_folder(tmp_path / "mine", rtt)
    scenario = scenario_of(tmp_path / "tram.toml", f'folder = "{folder}"')
    out = tmp_path / "run"
    trained, _ = command("train", "--scenario", scenario, *SHORT, "--out", out, "--json")
    assert trained["steps"] == 2048
    judged, said = command("evaluate", out, "--episodes", 2, "--json")
    assert judged["scenario"] == "tram"
    assert "split by file: 4 of 6 train" in said
    # The same folder by name: the training drives stay out of the evaluation.
    again, said = command("evaluate", out, "--traces", folder, "--episodes", 2, "--json")
    assert "2 of 6 traces of 6 files, part test" in said
    assert again["policies"]["agent"]["cost"] == judged["policies"]["agent"]["cost"]


@pytest.mark.parametrize("rtt", [True, False], ids=["with-round-trips", "without"])
def test_a_shipped_scenario_is_judged_on_an_unknown_folder(tmp_path: Path, rtt: bool) -> None:
    folder = write_folder(tmp_path / "mine", rtt)
    text = scenario_toml(load_scenario("highway-lte")).replace("n_frames = 300", "n_frames = 10")
    assert "n_frames = 10" in text
    (tmp_path / "short.toml").write_text(text)
    line: Sequence[object] = ("--scenario", tmp_path / "short.toml", "--traces", folder)
    judged, said = command("evaluate", *line, "--episodes", 2, "--json")
    assert "6 of 6 traces of 6 files, part all" in said
    assert judged["policies"]["full-local"]["cost"] == pytest.approx(1.0, abs=0.5)
