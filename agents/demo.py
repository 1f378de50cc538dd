"""The steps of the demonstration, each of them real."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from agents.baselines.rules import full_local
from agents.contenders import affordable, contender, shipped_policy
from agents.drive_picture import Driven, drive_picture
from agents.evaluation import AGENT, Evaluation, evaluate
from agents.live_run import (
    FrameSource,
    frame_table,
    replay,
    run_live,
    warm_runtime,
)
from agents.report import write_report
from agents.rollout import simulate
from agents.terminal import (
    COLUMNS,
    Comparison,
    cells,
    comparison,
    steps_progress,
    training_progress,
)
from agents.train_config import TrainConfig
from agents.training import TrainResult, train
from cnn.bundle import load_bundle
from cnn.common.errors import ConfigError, RemoteError
from cnn.common.files import write_bytes
from cnn.frame_table import FrameTable
from offload_env.episode import episode_keys
from offload_env.scenario import load_scenario
from offload_env.world import World, build_world, load_traces
from testbed.device.processor import PaceKept
from testbed.policy.policies import Policy

LIVE_SEED_OFFSET: Final = 500
"""Live frames are drawn from the demo's seed plus this."""

LIVE_PICTURE: Final = (
    "live: real device, link and server processes; transfers and answers measured, the device's "
    "computing modelled (paced)"
)

FIGURES: Final = ("delay_ms", "energy_mj", "accuracy", "cost")


def run_demo(
    scenario: str,
    out: Path,
    frames: int,
    steps: int,
    episodes: int,
    seed: int,
    console: Console,
) -> dict[str, Any]:
    """All steps; returns the demo's JSON object."""
    affordable(load_scenario(scenario), episodes)
    train_world, test_world = build_world(scenario, "train"), build_world(scenario, "test")
    _check_bundle(test_world)
    _first_look(test_world, out / "first.png", seed, console)
    console.rule("1  train an agent on the training frames and traces")
    trained = _train(scenario, steps, seed, out, train_world, console)
    console.rule("2  compare on test drives that training never saw")
    path = out / "train" / "agent.policy"
    judged = contender(path, test_world)
    policy = judged.policy
    with steps_progress(console, "evaluating") as progress:
        result = evaluate(
            train_world,
            test_world,
            {AGENT: policy},
            drives=episodes,
            seed=seed,
            tuning_drives=min(32, episodes),
            origins={AGENT: judged.origin},
            progress=progress,
        )
    result.save(out)
    comparison(result).print()
    console.rule("3  drive live: device, link and MEC server as processes")
    runs: dict[str, tuple[Policy, tuple[str, str]]] = {AGENT: (policy, ("--policy", str(path)))}
    local = full_local(test_world.topology)
    runs["full-local"] = (local, ("--action", local.action.name))
    live = _live_or_why_not(test_world, runs, frames, seed, out, console)
    report = write_report(
        result,
        test_world,
        {AGENT: policy},
        out / "report.html",
        learning=trained.log,
        live=live.figures,
        live_text=live.text,
        facts={"training": f"{steps} frames in {trained.seconds:.0f} s, seed {seed}"},
    )
    console.print(f"report {report}", highlight=False)
    return _json(result, live, frames, report)


def _check_bundle(world: World) -> None:
    """Raise `ConfigError` unless the frames are the shipped bundle's, which drives live."""
    shipped = load_bundle().hash
    if shipped != world.table.bundle_hash:
        raise ConfigError(
            f"frame tables of model bundle {world.table.bundle_hash[:12]}",
            expected=f"{shipped[:12]}, the shipped bundle",
            hint="make the tables again with `sliproad cnn table`",
        )


def _first_look(world: World, path: Path, seed: int, console: Console) -> None:
    """The policy that comes with the package on one test drive, within seconds."""
    shipped = shipped_policy(world)
    if shipped is None:
        return
    keys, period_ms = episode_keys(seed, 1), world.scenario.timing.period_ms
    agent, local = (
        Driven.of_rollout(simulate(world, policy, keys), period_ms)
        for policy in (shipped, full_local(world.topology))
    )
    text = "simulated: the network's own answers to real frames, times by the fitted cost model"
    write_bytes(path, drive_picture(agent, local, world.scenario.timing.deadline_ms, text))
    console.print(
        f"one test drive, shipped policy: {agent.delay_ms.mean():.1f} ms a frame, full local "
        f"processing {local.delay_ms.mean():.1f} ms; picture {path}",
        highlight=False,
    )


def _train(
    scenario: str, steps: int, seed: int, out: Path, world: World, console: Console
) -> TrainResult:
    config = TrainConfig(
        scenario=scenario, steps=steps, seed=seed, validate_every=max(1, steps // 12)
    )
    with training_progress(console, steps) as report:
        return train(config, out / "train", world=world, report=report)


@dataclass(frozen=True, slots=True)
class _Live:
    """Result of the live part.

    Attributes:
        figures: mean figures of each policy, live and replayed; empty if it failed.
        text: a description of the figures, or the reason why there are none.
        kept: how this machine kept the device's pace; None if it failed.
        server_ratio: the server's times beside the cost model's, with the agent.
    """

    figures: dict[str, dict[str, float]]
    text: str
    kept: PaceKept | None
    server_ratio: float | None = None


def _live_or_why_not(
    world: World,
    runs: dict[str, tuple[Policy, tuple[str, str]]],
    n: int,
    seed: int,
    out: Path,
    console: Console,
) -> _Live:
    """The live part; if it fails, training and comparison are kept."""
    try:
        live = _live(world, runs, n, seed, out, console)
    except RemoteError as error:
        live = _Live({}, f"The live part could not be measured on this machine now: {error}", None)
        console.print(live.text, style="bold", highlight=False)
        return live
    rows = [cells(*i) for i in live.figures.items()]
    Comparison("live beside its replay", COLUMNS, rows, []).print()
    assert live.kept is not None
    console.print(live.kept.describe(), style="" if live.kept.valid else "bold", highlight=False)
    return live


def _live(
    world: World,
    runs: dict[str, tuple[Policy, tuple[str, str]]],
    n: int,
    seed: int,
    out: Path,
    console: Console,
) -> _Live:
    """Every policy live, one after the other, over the same frames and the same trace."""
    source = _frame_source(seed)
    table = _answers(source, n, console)
    trace = load_traces(world.scenario, "test")[seed % len(world.pool)]
    figures: dict[str, dict[str, float]] = {}
    kept, drives, ratios = PaceKept(0, 0), dict[str, Driven](), dict[str, float]()
    for name, (policy, decide) in runs.items():
        console.print(f"{name}: {n} frames over {trace.name}", highlight=False)
        run = run_live(world, trace, source, decide, n, out / f"live-{name}.parquet")
        kept += run.kept
        drives[name] = Driven.of_records(run.records, name)
        figures[f"{name}, live"] = run.figures(world)
        ratios[name] = run.server_ratio(world)
        figures[f"{name}, replayed"] = replay(
            world, table, trace, policy, run.offset_ms, source.seed, ratios[name]
        )
    text = (
        f"{n} frames ({source.name}) through real processes on this machine over {trace.name}. "
        "Live, transfers, the server, bytes and answers are measured; computing on the device "
        f"is modelled: it keeps the pace of the scenario's device, full local "
        f"{world.delay_ref_ms:.4g} ms. Energy is the model meter's. The replay simulates the same "
        f"frames, trace and policy, and a server that takes {ratios[AGENT]:.1f} times what the "
        f"cost model says, as this one did. {kept.describe().capitalize()}."
    )
    deadline_ms = world.scenario.timing.deadline_ms
    picture = drive_picture(drives[AGENT], drives["full-local"], deadline_ms, LIVE_PICTURE)
    write_bytes(out / "drive.png", picture)
    console.print(f"picture of the live drive {out / 'drive.png'}", highlight=False)
    return _Live(figures, text, kept, ratios[AGENT])


def _answers(source: FrameSource, n: int, console: Console) -> FrameTable:
    """The network's answers to the live frames, for the replay."""
    runtime = warm_runtime()
    with Progress(
        TextColumn("the network's answers to the live frames"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("table", total=n)
        return frame_table(runtime, source, n, lambda done: bar.advance(task, done))


def _frame_source(seed: int) -> FrameSource:
    name = "gtsrb:policy-test" if os.environ.get("SLIPROAD_DATA") else "render"
    return FrameSource(name, seed + LIVE_SEED_OFFSET)


def _json(result: Evaluation, live: _Live, frames: int, report: Path) -> dict[str, Any]:
    return {
        "policies": {n: {k: m[k] for k in FIGURES} for n, m in result.policies.items()},
        "live": _live_json(live, frames) if live.figures else None,
        "live_text": live.text,
        "pace": None if live.kept is None else live.kept.to_json(),
        "report": str(report),
        "floor": result.floor,
        "bound_cost": result.bound_cost,
        "gap_closed": result.gap_closed.get(AGENT),
    }


def _live_json(live: _Live, frames: int) -> dict[str, Any]:
    figures = live.figures
    measured = figures[f"{AGENT}, live"]
    return {
        "frames": frames,
        **{k: measured[k] for k in FIGURES},
        "policy": AGENT,
        "server_ratio": live.server_ratio,
        "replayed": figures[f"{AGENT}, replayed"],
        "full_local": figures["full-local, live"],
        "full_local_replayed": figures["full-local, replayed"],
    }
