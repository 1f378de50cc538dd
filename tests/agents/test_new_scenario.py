"""One command makes a checked scenario of a user's own parts."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from networks import (
    THREE_EXITS,
    TWO_EXITS,
    made_up_cost,
    made_up_table,
    scenario_of,
    with_quality,
)
from typer.testing import CliRunner

from agents.cli import app
from agents.new_scenario import Parts, compose
from agents.rollout import simulate
from agents.scenario_summary import DRIVES, FRAMES, file_text
from cnn.common.console import run_app
from cnn.frame_table import embedded_table
from offload_env.episode import episode_keys
from offload_env.scenario import (
    Constraint,
    Device,
    Frames,
    Link,
    Scenario,
    Timing,
    load_scenario,
    parse_scenario,
)
from offload_env.world import build_world
from testbed.meters.cost_model import load_profile
from testbed.policy.policies import StaticPolicy
from testbed.traces.generator import generate_trace, model_of
from testbed.traces.own_kind import save_kind
from testbed.traces.trace import save_trace

pytestmark = pytest.mark.slow(30)

ROOT = Path(__file__).parents[2]
OWN = ("--train-frames", "train.npz", "--test-frames", "test.npz", "--device", "cost.json")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The parts of a network with three exits, a folder of drives, and a kind of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLIPROAD_DATA", raising=False)
    scenario_of(THREE_EXITS, tmp_path)
    (tmp_path / "drives").mkdir()
    for k in range(4):
        trace = generate_trace("highway-lte", k, 30.0, 1.0)
        rows = "".join(f"d{k},{t},{mbps:.3f}\n" for t, mbps in enumerate(trace.uplink_mbps))
        (tmp_path / "drives" / f"2024051{k}.csv").write_text(f"trace,time_s,uplink_mbps\n{rows}")
    save_kind(replace(model_of("highway-lte"), kind="tram"), tmp_path / "tram.json")
    save_trace(generate_trace("urban-5g", 1, 30.0), tmp_path / "trace.json")
    return tmp_path


def made(*words: object) -> tuple[dict[str, Any], str]:
    """The command's JSON, and all it printed."""
    line = ["agent", "new-scenario", *map(str, words), "--json"]
    done = CliRunner().invoke(app, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1]), done.output


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a command that must fail and leave everything as it was."""

    def run(*words: object) -> str:
        before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit) as ended:
            run_app(app, args=["agent", "new-scenario", *map(str, words)])
        assert ended.value.code == 2
        assert before == {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "expected" in line
        return line

    return run


def test_the_file_gives_the_scenario_of_the_parts(here: Path) -> None:
    about, said = made("mine.toml", *OWN, "--margin", "0.05", "--seed", 7)
    expected = Scenario(
        "mine",
        frames=Frames("train.npz", "test.npz"),
        device=Device("cost.json"),
        link=Link(seed=7),
        timing=Timing(timeout_ms=60.0, max_queue_ms=100.0),
        constraint=Constraint(accuracy_margin=0.05),
    )
    assert load_scenario("mine.toml") == expected
    raw = tomllib.loads((here / "mine.toml").read_text())
    assert raw == {
        "frames": {"train": "train.npz", "test": "test.npz"},
        "device": {"cost_model": "cost.json"},
        "link": {"seed": 7},
        "timing": {"timeout_ms": 60.0, "max_queue_ms": 100.0},
        "constraint": {"accuracy_margin": 0.05},
    }
    assert all(why in said for why in about["why"])
    assert "period_ms 100: full local processing takes" in (here / "mine.toml").read_text()
    assert about["next"] == [
        "sliproad agent train --scenario mine.toml --out runs/mine",
        "sliproad agent evaluate runs/mine",
        "sliproad agent export --run runs/mine --out mine.policy",
    ]
    assert all(line in said for line in about["next"])


def test_the_summary_counts_the_parts_and_finds_the_best_static_action(here: Path) -> None:
    about, said = made("mine.toml", *OWN, "--margin", "0.05")
    table, cost = made_up_table(THREE_EXITS, 0), made_up_cost(THREE_EXITS, 0)
    assert about["network"] == {"blocks": 4, "exits": [1, 3, 4], "splits": [0, 2], "actions": 8}
    train = about["frames"]["train"]
    assert (train["frames"], train["tracks"]) == (len(table), 12)
    assert about["traces"] == {"train": 64, "test": 32}
    assert about["full_local_ms"] == pytest.approx(cost.device_ms[-1])
    assert about["full_local_mj"] == pytest.approx(5000 * cost.device_ms[-1] / 1e3)
    assert about["floor"] == pytest.approx(table.correct[:, -1].mean() - 0.05)
    assert about["warnings"] == []

    world, keys = build_world("mine.toml"), episode_keys(1, DRIVES)
    driven = [
        simulate(world, StaticPolicy(a, "s", THREE_EXITS), keys, frames=FRAMES) for a in range(8)
    ]
    accuracy = [d.correct.mean() for d in driven]
    floor = table.correct[driven[-1].row, -1].mean() - 0.05
    cheapest = min((d.cost.mean(), a) for a, d in enumerate(driven) if accuracy[a] >= floor - 1e-12)
    found = about["best_static"]
    assert found["action"] == THREE_EXITS.actions[cheapest[1]].name
    assert found["cost"] == pytest.approx(cheapest[0])
    assert found["keeps_floor"]
    assert f"{found['action']}, cost {found['cost']:.4f}" in said


LINKS: dict[str, tuple[tuple[str, ...], Link]] = {
    "a shipped kind": (("highway-lte",), Link(kind="highway-lte")),
    "a kind's file": (("tram.json",), Link(kind="tram.json")),
    "a folder": (("drives",), Link(source="measured", folder="drives")),
    "files": (
        ("drives/20240510.csv", "drives/20240511.csv"),
        Link(source="measured", files=("drives/20240510.csv", "drives/20240511.csv")),
    ),
    "files with our own JSON": (
        ("trace.json", "drives/20240511.csv"),
        Link(source="measured", files=("trace.json", "drives/20240511.csv")),
    ),
    "a folder, and a kind for its round trips": (
        ("drives", "tram.json"),
        Link(source="measured", folder="drives", kind="tram.json"),
    ),
}


@pytest.mark.parametrize(("given", "expected"), LINKS.values(), ids=LINKS)
def test_a_link_is_told_by_what_it_is(here: Path, given: tuple[str, ...], expected: Link) -> None:
    scenario = compose(Parts("train.npz", "test.npz", "cost.json", link=given), "mine")
    assert scenario.scenario.link == expected
    names = {w.split: set(w.pool.names) for w in (scenario.train, scenario.test)}
    assert names["train"]
    assert names["test"]
    assert not names["train"] & names["test"]
    assert parse_scenario(file_text(scenario), "mine") == scenario.scenario


def test_the_split_and_the_round_trip_are_the_users(here: Path) -> None:
    link = ("--link", "drives/20240510.csv", "--split", "fraction", "--rtt-ms", "31")
    about, said = made("mine.toml", *OWN, *link)
    assert load_scenario("mine.toml").link == Link(
        source="measured", files=("drives/20240510.csv",), split="fraction", rtt_ms=31.0
    )
    assert about["traces"] == {"train": 1, "test": 1}
    assert about["median_rtt_ms"] == 31.0
    assert "train: split in time: the first 0.7 of each trace trains" in about["notes"]
    text = (here / "mine.toml").read_text()
    assert "split in time" in text
    assert "split in time" in said


def test_the_shipped_network_needs_no_device(here: Path) -> None:
    embedded_table("policy-train").save(here / "a.npz")
    embedded_table("policy-test").save(here / "b.npz")
    device = ("--full-local-ms", 80, "--power", "jetson-nano+5g-nsa-lowband")
    made("own.toml", "--train-frames", "a.npz", "--test-frames", "b.npz", *device)
    own, shipped = load_scenario("own.toml"), load_scenario("urban-5g")
    assert own == replace(
        shipped,
        name="own",
        description="",
        frames=Frames("a.npz", "b.npz"),
        server=own.server,
    )
    # Nothing but a camera's period: shipped frames on the shipped profile.
    about, _ = made("fast.toml", "--period-ms", 50, "--description", 'a "quick"\nthing')
    fast = load_scenario("fast.toml")
    assert (fast.frames, fast.device) == (Frames(), Device())
    assert fast.timing == Timing(
        period_ms=50.0, timeout_ms=30.0, deadline_ms=50.0, max_queue_ms=50.0
    )
    assert fast.description == 'a "quick"\nthing'
    assert about["full_local_ms"] == pytest.approx(load_profile("shipped").device_ms[-1])


def test_what_may_not_be_meant_is_warned_of(here: Path) -> None:
    about, said = made("mine.toml", *OWN, "--period-ms", 3, "--margin", 1)
    skipped, slow, floor = about["warnings"]
    assert "longer than the period (3 ms): frames will be skipped" in skipped
    assert "longer than the time-out" in slow
    assert "the floor is 0" in floor
    assert said.count("warning: ") == 3


def test_equal_arguments_give_an_equal_file(here: Path) -> None:
    texts = []
    for seed in (3, 3, 4):
        made("mine.toml", *OWN, "--link", "drives", "--seed", seed)
        texts.append((here / "mine.toml").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_a_quality_is_named_as_one(here: Path) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        with_quality(made_up_table(THREE_EXITS, seed)).save(here / f"{name}.npz")
    sizes = made_up_table(THREE_EXITS, 0).payload_bytes[0]
    assert (sizes == made_up_cost(THREE_EXITS).payload_bytes).all()
    about, said = made("mine.toml", *OWN)
    assert about["measure"] == "quality"
    assert "% mean quality" in said
    assert "mean quality" in (here / "mine.toml").read_text()


def test_odd_names_stay_in_their_comments(here: Path) -> None:
    odd = 'pi"\n[device]\nslowdown = 3 \x00\u2028'
    replace(made_up_cost(THREE_EXITS), name=odd).save(here / "cost.json")
    replace(made_up_table(THREE_EXITS, 0), source=odd).save(here / "train.npz")
    made("mine.toml", *OWN)
    assert load_scenario("mine.toml").device == Device("cost.json")


def other_files(here: Path) -> None:
    """Parts that do not fit the others."""
    table, cost = made_up_table(THREE_EXITS, 5), made_up_cost(THREE_EXITS)
    made_up_table(TWO_EXITS).save(here / "two.npz")
    made_up_cost(TWO_EXITS).save(here / "two.json")
    replace(table, bundle_hash="1" * 64).save(here / "later.npz")
    with_quality(table).save(here / "quality.npz")
    bytes_sent = tuple(2 * n for n in cost.payload_bytes)
    replace(cost, payload_bytes=bytes_sent).save(here / "bytes.json")
    (here / "hand.toml").write_text('description = "by hand"\n')
    (here / "damaged.npz").write_bytes((here / "train.npz").read_bytes()[:200])


def own(**changed: str) -> list[str]:
    options = dict(zip(OWN[::2], OWN[1::2], strict=True))
    options |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return [word for pair in options.items() if pair[1] for word in pair]


WRONG: dict[str, tuple[list[str], str]] = {
    "a device of another network": (
        own(device="two.json"),
        "cost model made up from seed 0 of a n",
    ),
    "no device": (own(device=""), "without --device; expected the profile"),
    "a device of other payloads": (own(device="bytes.json"), "a cost model whose actions send"),
    "test frames of another network": (own(test_frames="two.npz"), "test frames (made up"),
    "test frames of another bundle": (own(test_frames="later.npz"), "accuracy of bundle 1111"),
    "test frames of a detector": (own(test_frames="quality.npz"), "with quality of bundle 0000"),
    "the same frames twice": (own(test_frames="train.npz"), "other frames to judge"),
    "no test frames": (own(test_frames=""), "--test-frames missing"),
    "a damaged table": (own(train_frames="damaged.npz"), "frame table damaged.npz"),
    "an unknown table": (own(train_frames="nosuch"), "frame table 'nosuch'"),
    "a missing table": (own(train_frames="no.npz"), "frame table no.npz: No such file"),
    "no profile": (own(device="train.npz"), "cost model train.npz"),
    "an unknown power": (own(power="steam+lte"), "unknown 'steam'"),
    "an impossible time": (own(full_local_ms="-3"), "full_local_ms -3; expected 0.01.."),
    "an impossible period": (own(period_ms="0"), "period_ms 0; expected 0.01.."),
    "an impossible margin": (own(margin="2"), "accuracy_margin 2; expected 0..1"),
    "a link that is not there": (own(link="nowhere"), "--link 'nowhere', which is not there"),
    "two kinds": ([*own(link="tram.json"), "--link", "urban-5g"], "one kind at most"),
    "a folder and a file": ([*own(link="drives"), "--link", "trace.json"], "one folder or any"),
    "a split of nothing": (own(split="day"), "--split or --rtt-ms without traces"),
    "a round trip of nothing": (own(rtt_ms="30"), "--split or --rtt-ms without traces"),
    "an unknown split": (own(link="drives", split="week"), "--split week; expected one of file"),
    "one file to split": (own(link="trace.json"), "traces of one file"),
    "no trace": (own(link="cost.json"), "cost.json"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_parts_that_do_not_fit_are_one_line_and_nothing_is_written(
    here: Path, refused: Callable[..., str], words: list[str], said: str
) -> None:
    other_files(here)
    assert said in refused("mine.toml", *words)
    assert not (here / "mine.toml").exists()


def test_only_its_own_file_is_replaced(here: Path, refused: Callable[..., str]) -> None:
    other_files(here)
    for name in ("hand.toml", "drives", "mine.json", "cost.json"):
        assert name in refused(name, *OWN)
    made("mine.toml", *OWN)
    before = (here / "mine.toml").read_text()
    assert "two.json" not in refused("mine.toml", *own(device="two.json"))
    made("mine.toml", *OWN, "--margin", "0.02")
    assert (here / "mine.toml").read_text() != before
    (here / "mine.toml").write_text(before.partition("\n")[2])  # now it is the user's
    assert "mine.toml exists" in refused("mine.toml", *OWN)


def test_it_trains_and_is_judged_in_real_processes(here: Path) -> None:
    """Parts by relative paths, from the folder that they count from."""

    def sliproad(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "agents", "agent", *words, "--json"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    about = sliproad("new-scenario", "tram.toml", *OWN, "--link", "drives", "--margin", "0.05")
    (here / "tram.toml").write_text(
        (here / "tram.toml").read_text().replace("[timing]\n", "[timing]\nn_frames = 10\n")
    )
    short = ("--steps", "1024", "--n-envs", "16", "--hidden", "16", "--validate-every", "512")
    trained = sliproad("train", "--scenario", "tram.toml", "--out", "runs/tram", *short)
    assert trained["floor"] == pytest.approx(about["floor"])
    judged = sliproad("evaluate", "runs/tram", "--episodes", "2")
    assert judged["scenario"] == "tram"
    assert {"agent", "best-static", "full-local"} <= set(judged["policies"])
