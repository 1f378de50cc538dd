"""``sliproad agent``: train, export and sweep. Heavy packages are imported within the commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.run_files import SWEEP, check_run, named
from agents.train_config import TrainConfig, config_of, priced, setting_help
from cnn.common.console import (
    EXIT_INTERRUPTED,
    JsonFlag,
    command_line,
    emit_json,
    stderr_console,
    warn,
)
from cnn.common.errors import ConfigError, in_range
from cnn.common.outputs import Claim, check_file, check_folder
from testbed.common.output_kinds import POLICY

if TYPE_CHECKING:
    from agents.training import TrainResult
    from testbed.policy.policy_file import PolicyBundle


def _setting(name: str, *option: str) -> Any:
    """Option for one setting of a training, with the setting's default.

    Commands read the given values with `_given`.
    """
    return typer.Option(*option, help=setting_help(name), show_default=False)


def _given(context: typer.Context) -> dict[str, Any]:
    """The settings of a training that the command line names; a wrong one names its option."""
    settings = {setting.name: setting for setting in fields(TrainConfig)}
    found = {k: v for k, v in context.params.items() if k in settings and v is not None}
    for option in context.command.params:
        if option.name in found and "range" in settings[option.name].metadata:
            in_range(option.opts[0], found[option.name], *settings[option.name].metadata["range"])
    return found


def train(
    context: typer.Context,
    scenario: Annotated[str | None, _setting("scenario")] = None,
    steps: Annotated[int | None, _setting("steps")] = None,
    algo: Annotated[str | None, _setting("algo")] = None,
    env: Annotated[str | None, _setting("env")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/agent"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume from the checkpoint in --out, bit for bit; what is left out is as it was.",
        ),
    ] = False,
    n_envs: Annotated[int | None, _setting("n_envs")] = None,
    hidden: Annotated[int | None, _setting("hidden")] = None,
    learning_rate: Annotated[float | None, _setting("learning_rate")] = None,
    gamma: Annotated[float | None, _setting("gamma")] = None,
    entropy: Annotated[float | None, _setting("entropy")] = None,
    teacher: Annotated[str | None, _setting("teacher")] = None,
    teacher_bonus: Annotated[float | None, _setting("teacher_bonus")] = None,
    teacher_steps: Annotated[int | None, _setting("teacher_steps")] = None,
    margin: Annotated[float | None, _setting("margin")] = None,
    dual_start: Annotated[float | None, _setting("dual_start")] = None,
    dual_rate: Annotated[float | None, _setting("dual_rate")] = None,
    dual_gain: Annotated[float | None, _setting("dual_gain")] = None,
    validate_every: Annotated[int | None, _setting("validate_every")] = None,
    records: Annotated[Path | None, _setting("records", "--from-records")] = None,
    seed: Annotated[int | None, _setting("seed")] = None,
    json: JsonFlag = False,
) -> None:
    """Train a policy with stable-baselines3 and keep the best that keeps the accuracy floor.

    Writes the run's settings, scenario, checkpoints, TensorBoard log, learning curve and
    agent.policy. Ctrl-C keeps the work, and --resume continues it.
    """
    check_run(out, resume)
    given = _given(context)
    config = config_of(given, out, resume)
    from agents.terminal import training_progress
    from agents.training import train as run_training
    from agents.training import world_of

    world = None if resume else world_of(config)
    if world is not None:
        config = priced(config, world.accuracy_floor, given)
    with (
        _resumed_with(f"sliproad agent train --resume --out {shlex.quote(str(out))}"),
        training_progress(stderr_console(), config.steps) as report,
    ):
        result = run_training(config, out, world=world, resume=resume, report=report)
    for line in said(result):
        typer.echo(line)
    if json:
        emit_json(
            {
                "policy": str(out / "agent.policy"),
                "steps": config.steps,
                "seconds": result.seconds,
                "validation": result.validation,
                "floor": result.floor,
                "keeps_floor": result.keeps_floor,
            }
        )


@contextmanager
def _resumed_with(line: str) -> Iterator[None]:
    """An interrupted training ends the command as Ctrl-C does, with the line that resumes it."""
    from agents.supervisor import TrainingInterrupted

    try:
        yield
    except TrainingInterrupted as stopped:
        typer.echo(f"{stopped}; resume with\n{line}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def said(result: TrainResult) -> list[str]:
    """The lines at the end of a training."""
    figures = result.validation
    lines = [
        f"best validation at step {figures['step']:.0f}: cost {figures['cost']:.4f}, "
        f"accuracy {100 * figures['accuracy']:.2f} %, delay {figures['delay_ms']:.1f} ms, "
        f"energy {figures['energy_mj']:.1f} mJ",
        floor_line(figures["accuracy"], result.floor),
        f"policy {result.out / 'agent.policy'} after {result.seconds:.0f} s of training",
    ]
    if result.config.records:
        lines.insert(
            0,
            f"trained on the link in {result.config.records}; full local processing takes "
            f"{result.full_local_ms:.1f} ms on the device it was trained for",
        )
    return lines


def floor_line(accuracy: float, floor: float) -> str:
    """A sentence: whether validation kept the accuracy floor of the training frames."""
    from agents.floor_kept import keeps

    if keeps(accuracy, floor):
        return f"accuracy floor {100 * floor:.2f} % kept on validation drives"
    return (
        f"accuracy floor {100 * floor:.2f} % MISSED on validation drives by "
        f"{100 * (floor - accuracy):.2f} points: train longer, or with a larger --margin or "
        "--dual-start, before the policy is used"
    )


def floor_of(bundle: PolicyBundle) -> tuple[bool | None, str]:
    """Whether a trained policy kept its floor in validation, by its manifest; None if unsaid."""
    from agents.floor_kept import keeps

    metrics = bundle.manifest.get("metrics", {})
    validation, floor = metrics.get("validation"), metrics.get("accuracy_floor")
    if not isinstance(validation, dict) or floor is None:
        return None, "the file does not say whether the accuracy floor was kept in validation"
    accuracy = float(validation["accuracy"])
    return keeps(accuracy, float(floor)), floor_line(accuracy, float(floor))


def export(
    out: Annotated[Path, typer.Option(help="Policy file to write, .policy.")],
    run: Annotated[
        Path | None, typer.Option(help="Folder that `sliproad agent train` wrote.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy file to write again instead, with the task it was trained for."),
    ] = None,
    scenario: Annotated[
        str,
        typer.Option(help="With --policy: what it was trained on; the file's own if left out."),
    ] = "",
    from_records: Annotated[
        Path | None, typer.Option(help="The records that it was trained on, if any.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Write the best model of a training run as a policy file that needs numpy alone.

    The file carries the policy's task: floor, weights, timing, device. With --policy, a file of
    format 1, which does not, is written again: the same weights, and the task.
    """
    check_file(named(out), POLICY)
    from agents.export_policy import write
    from agents.training import exported

    if (run is None) == (policy is None):
        raise ConfigError(
            f"--run {run or 'missing'} and --policy {policy or 'missing'}",
            expected="exactly one of the two",
            hint="give the run to export, or the policy file to write again",
        )
    if run is not None:
        bundle = exported(run, from_records)
    else:
        assert policy is not None
        bundle = _written_again(policy, scenario, from_records)
    path = write(bundle, out)
    size = path.stat().st_size
    typer.echo(f"{path}: {size} bytes, for model bundle {bundle.manifest['bundle_hash'][:12]}")
    kept, line = floor_of(bundle)
    typer.echo(line)
    if json:
        emit_json(
            {
                "policy": str(path),
                "bytes": size,
                "keeps_floor": kept,
                "manifest": dict(bundle.manifest),
            }
        )


def _written_again(path: Path, scenario: str, records: Path | None) -> PolicyBundle:
    """A policy file's content with the task of the world that it was trained in."""
    from agents.export_policy import with_task
    from agents.from_records import world_from_records
    from offload_env.world import build_world
    from testbed.policy.policy_file import PolicyBundle

    bundle = PolicyBundle.load(path)
    name = scenario or str(bundle.manifest.get("scenario"))
    world = world_from_records(name, records, warn) if records is not None else build_world(name)
    return with_task(bundle, world)


def sweep(
    context: typer.Context,
    scenario: Annotated[str | None, _setting("scenario")] = None,
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
    steps: Annotated[int | None, _setting("steps")] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Test drives of each point.")] = 128,
    out: Annotated[
        Path, typer.Option(help="Folder for policies, sweep.parquet, sweep.json and sweep.png.")
    ] = Path("runs/sweep"),
    seed: Annotated[int | None, _setting("seed")] = None,
    json: JsonFlag = False,
) -> None:
    """Train a specialist for every floor and weight, and one conditioned policy for all.

    Compares them on the same held-out drives and draws the frontier of delay, energy and
    accuracy. What --out already holds is not trained again; Ctrl-C keeps the work, and the
    same command resumes it.
    """
    from agents.contenders import affordable
    from agents.sweep import (
        check_preferences,
        default_floors,
        evaluate_sweep,
        specialist_folder,
        train_all,
    )
    from agents.terminal import steps_progress
    from offload_env.scenario import load_scenario
    from offload_env.world import build_world

    config = TrainConfig(**_given(context))
    check_folder(out, SWEEP)
    given, shares = _numbers("--floors", floors), _numbers("--weights", weights)
    loaded = load_scenario(config.scenario)
    affordable(loaded, episodes)
    train_world = build_world(loaded, "train")
    asked = given or default_floors(train_world, config.margin)
    check_preferences(asked, shares)
    for floor, share in product(asked, shares):
        check_run(specialist_folder(out, floor, share))
    with (
        _resumed_with(command_line(context)),
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
            seed=config.seed,
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


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(
            f"{option} {text}",
            expected="numbers in 0..1 with commas between",
            hint="write them like 0.2,0.5,0.8",
        ) from error
