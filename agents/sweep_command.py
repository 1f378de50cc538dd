"""``sliproad agent sweep``: one scenario under many floors and weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from agents.commands import ScenarioOption
from agents.run_files import SWEEP, check_run
from cnn.common.console import JsonFlag, SeedOption, command_line, emit_json, stderr_console
from cnn.common.errors import ConfigError
from cnn.common.locks import Claim
from cnn.common.outputs import check_folder


def sweep(
    context: typer.Context,
    scenario: ScenarioOption = "urban-5g",
    floors: Annotated[
        str,
        typer.Option(
            help="Accuracy floors as the device is told them, with commas between; "
            "three that the training frames suggest if left out."
        ),
    ] = "",
    weights: Annotated[
        str,
        typer.Option(help="Weights of delay against energy, 0..1, with commas between."),
    ] = "0.2,0.5,0.8",
    steps: Annotated[
        int | None,
        typer.Option(help="Frames of each training; 2,000,000 if left out."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Test drives of each point.")] = 128,
    out: Annotated[
        Path, typer.Option(help="Folder for policies, sweep.parquet, sweep.json and sweep.png.")
    ] = Path("runs/sweep"),
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Train a specialist for every floor and weight, and one conditioned policy for all.

    Compares them on the same held-out drives and draws the frontier of delay, energy and
    accuracy. What --out already holds is not trained again; Ctrl-C keeps the work, and the
    same command resumes it.
    """
    from agents.contenders import affordable
    from agents.progress import steps_progress
    from agents.sweep import (
        check_preferences,
        default_floors,
        evaluate_sweep,
        specialist_folder,
        train_all,
    )
    from agents.train_config import TrainConfig
    from offload_env.scenario import load_scenario
    from offload_env.world import build_world

    settings: dict[str, Any] = {} if steps is None else {"steps": steps}
    config = TrainConfig(scenario=scenario, seed=seed, **settings)
    check_folder(out, SWEEP)
    given, shares = _numbers("--floors", floors), _numbers("--weights", weights)
    loaded = load_scenario(scenario)
    affordable(loaded, episodes)
    train_world = build_world(loaded, "train")
    asked = given or default_floors(train_world, config.margin)
    check_preferences(asked, shares)
    for floor, share in product(asked, shares):
        check_run(specialist_folder(out, floor, share))
    with (
        _keeping_work(context),
        Claim(out, folder=True),
        steps_progress(stderr_console(), "sweep") as progress,
    ):
        policies = train_all(train_world, config, out, asked, shares, progress)
        result = evaluate_sweep(
            train_world,
            build_world(loaded, "test"),
            policies,
            margin=config.margin,
            drives=episodes,
            seed=seed,
            progress=progress,
        )
    result.save(out)
    columns = ["policy", "floor", "owed", "delay_share", "delay_ms", "energy_mj", "accuracy"]
    table = result.points[[*columns, "keeps_floor", "cost", "on_frontier"]]
    typer.echo(table.to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    found = result.as_json()
    ratio = found["conditioned_over_specialist"]
    typer.echo(
        f"the conditioned policy costs {ratio['mean_cost_ratio']:.3f} times what the specialists "
        f"cost on average, {ratio['worst_cost_ratio']:.3f} times at worst; "
        f"figures and picture in {out}"
    )
    for line in result.below_floor():
        typer.echo(line)
    if json:
        emit_json({**found, "policy": str(out / "conditioned.policy")})


@contextmanager
def _keeping_work(context: typer.Context) -> Iterator[None]:
    """An interrupted training ends the command with the line that resumes it."""
    from agents.interrupt import TrainingInterrupted
    from agents.train_command import interrupted

    try:
        yield
    except TrainingInterrupted as stopped:
        interrupted(stopped, command_line(context))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(
            f"{option} {text}",
            expected="numbers in 0..1 with commas between",
            hint="write them like 0.2,0.5,0.8",
        ) from error
