"""The steps of the demonstration, each of them real."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from agents.baselines import FULL_LOCAL
from agents.config import TrainConfig
from agents.evaluate import AGENT, Evaluation, evaluate
from agents.evaluation_report import write_report
from agents.live import (
    FrameSource,
    frame_table,
    replay,
    run_live,
    slowdown_for,
    warm_runtime,
)
from agents.progress import steps_progress, training_progress
from agents.table import COLUMNS, Comparison, cells, comparison
from agents.train import TrainResult, train
from cnn.errors import ConfigError
from offload_env.world import World, build_world, load_traces
from testbed.decide.policy import Policy, StaticPolicy, load_policy

LIVE_SEED_OFFSET: Final = 500
"""Live frames are drawn from the demo's seed plus this."""

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
    train_world, test_world = build_world(scenario, "train"), build_world(scenario, "test")
    console.rule("1  train an agent on the training frames and traces")
    trained = _train(scenario, steps, seed, out, train_world, console)
    console.rule("2  compare on test drives that training never saw")
    path = out / "train" / "agent.policy"
    policy = load_policy(path, test_world.table.bundle_hash)
    with steps_progress(console, "evaluating") as progress:
        result = evaluate(
            train_world,
            test_world,
            {AGENT: policy},
            drives=episodes,
            seed=seed,
            tuning_drives=min(32, episodes),
            progress=progress,
        )
    result.save(out)
    comparison(result).print()
    console.rule("3  drive live: device, link and MEC server as processes")
    runs: dict[str, tuple[Policy, tuple[str, str]]] = {AGENT: (policy, ("--policy", str(path)))}
    runs["full-local"] = (StaticPolicy(FULL_LOCAL, "full-local"), ("--action", FULL_LOCAL.name))
    live, text = _live(test_world, runs, frames, seed, out, console)
    Comparison("live beside its replay", COLUMNS, [cells(*i) for i in live.items()], []).print()
    report = write_report(
        result,
        test_world,
        {AGENT: policy},
        out / "report.html",
        learning=trained.log,
        live=live,
        live_text=text,
        facts={"training": f"{steps} frames in {trained.seconds:.0f} s, seed {seed}"},
    )
    console.print(f"report {report}", highlight=False)
    return _json(result, live, frames, report)


def _train(
    scenario: str, steps: int, seed: int, out: Path, world: World, console: Console
) -> TrainResult:
    config = TrainConfig(
        scenario=scenario, steps=steps, seed=seed, validate_every=max(1, steps // 12)
    )
    with training_progress(console, steps) as report:
        return train(config, out / "train", world=world, report=report)


def _live(
    world: World,
    runs: dict[str, tuple[Policy, tuple[str, str]]],
    n: int,
    seed: int,
    out: Path,
    console: Console,
) -> tuple[dict[str, dict[str, float]], str]:
    """Every policy live, one after the other, over the same frames and the same trace."""
    source = _frame_source(seed)
    runtime = warm_runtime()
    if runtime.bundle.hash != world.table.bundle_hash:
        raise ConfigError(
            f"frame tables of model bundle {world.table.bundle_hash[:12]}",
            expected=f"{runtime.bundle.hash[:12]}, the shipped bundle",
            mend="make the tables again with `sliproad cnn table`",
        )
    with Progress(
        TextColumn("the network's answers to the live frames"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("table", total=n)
        table = frame_table(runtime, source, n, lambda done: bar.advance(task, done))
    trace = load_traces(world.scenario, "test")[seed % len(world.pool)]
    console.print("how fast is this machine as a device?", highlight=False)
    slowdown = slowdown_for(world, trace, source, out / "calibration.parquet")
    live: dict[str, dict[str, float]] = {}
    for name, (policy, decide) in runs.items():
        console.print(f"{name}: {n} frames over {trace.name}", highlight=False)
        run = run_live(world, trace, source, decide, n, slowdown, out / f"live-{name}.parquet")
        live[f"{name}, live"] = run.figures(world)
        live[f"{name}, replayed"] = replay(world, table, trace, policy, run.offset_ms)
    text = (
        f"{n} frames ({source.name}) through real processes on this machine over {trace.name}, "
        f"the device slowed down {slowdown:.1f} times to the scenario's speed; delay, bytes and "
        "answers are measured, energy is the model meter's. The replay simulates the same "
        "frames, trace and policy."
    )
    return live, text


def _frame_source(seed: int) -> FrameSource:
    name = "gtsrb:policy-test" if os.environ.get("SLIPROAD_DATA") else "render"
    return FrameSource(name, seed + LIVE_SEED_OFFSET)


def _json(
    result: Evaluation, live: dict[str, dict[str, float]], frames: int, report: Path
) -> dict[str, Any]:
    measured = live[f"{AGENT}, live"]
    return {
        "policies": {n: {k: m[k] for k in FIGURES} for n, m in result.policies.items()},
        "live": {
            "frames": frames,
            **{k: measured[k] for k in FIGURES},
            "policy": AGENT,
            "replayed": live[f"{AGENT}, replayed"],
            "full_local": live["full-local, live"],
        },
        "report": str(report),
        "floor": result.floor,
        "bound_cost": result.bound_cost,
        "gap_closed": result.gap_closed,
    }
