"""``sliproad agent``: train, evaluate and export policies."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.file_kinds import check_run, named
from agents.interrupt import TrainingInterrupted
from cnn.common.console import JsonFlag, SeedOption, emit_json, given_options, stderr_console, warn
from cnn.common.outputs import check_file
from testbed.file_kinds import POLICY

if TYPE_CHECKING:
    from testbed.policy.policy_file import PolicyBundle

agent_app = typer.Typer(no_args_is_help=True, help="Train, evaluate and export policies.")

ScenarioOption = Annotated[
    str, typer.Option(help="Scenario's name (such as urban-5g) or the path of its TOML file.")
]


@agent_app.command()
def train(
    context: typer.Context,
    scenario: ScenarioOption = "urban-5g",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Decisions to train on; 2,000,000 if left out, 4,000,000 with --env staged.",
        ),
    ] = None,
    algo: Annotated[str, typer.Option(help="ppo or dqn; maskable-ppo with --env staged.")] = "ppo",
    env: Annotated[
        str, typer.Option(help="frame: one decision a frame. staged: again after every exit seen.")
    ] = "frame",
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/agent"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume from the checkpoint in --out, bit for bit; what is left out is as it was.",
        ),
    ] = False,
    n_envs: Annotated[int | None, typer.Option(help="Parallel drives.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of both layers, 1..2048.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's, at the start.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Discount a frame, 0..1.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Accuracy asked for above the floor, 0..1.")
    ] = None,
    dual_start: Annotated[
        float | None, typer.Option(help="Price of a wrong answer at the start.")
    ] = None,
    dual_rate: Annotated[
        float | None, typer.Option(help="How fast that price follows missing accuracy.")
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Decisions between two validations.")
    ] = None,
    from_records: Annotated[
        Path | None,
        typer.Option(help="Records of a deployed device: train on its link and at its speed."),
    ] = None,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Train a policy with stable-baselines3 and keep the best that keeps the accuracy floor.

    Writes the run's settings, scenario, checkpoints, TensorBoard log, learning curve and
    agent.policy. Ctrl-C keeps the work, and --resume continues it.
    """
    from agents.progress import training_progress
    from agents.train_command import config_of, interrupted, said
    from agents.training import train as run_training

    given = given_options(context)
    values: dict[str, Any] = {
        "scenario": scenario,
        "algo": algo,
        "env": env,
        "seed": seed,
        "steps": steps,
        "n_envs": n_envs,
        "hidden": hidden,
        "learning_rate": learning_rate,
        "gamma": gamma,
        "margin": margin,
        "dual_start": dual_start,
        "dual_rate": dual_rate,
        "validate_every": validate_every,
        "records": from_records,
    }
    given |= {"records"} if from_records is not None else set()
    check_run(out, resume)
    config = config_of({k: v for k, v in values.items() if k in given}, out, resume)
    try:
        with training_progress(stderr_console(), config.steps) as report:
            result = run_training(config, out, resume=resume, report=report)
    except TrainingInterrupted as stopped:
        interrupted(stopped, f"sliproad agent train --resume --out {shlex.quote(str(out))}")
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


@agent_app.command()
def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Folder that `sliproad agent train` wrote, or a policy file; the shipped "
            "policies if none is given.",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[
        str,
        typer.Option(
            help="Scenario's name or TOML file; if left out the one that the policy was trained "
            "for, or urban-5g.",
            show_default=False,
        ),
    ] = "",
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy file or run's folder; the shipped policies if left out."),
    ] = None,
    staged_policy: Annotated[
        Path | None,
        typer.Option(help="A second one to judge beside it: staged policy file or run's folder."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Test drives.")] = 128,
    traces: Annotated[
        Path | None,
        typer.Option(help="Folder of measured traces to drive on instead of the scenario's."),
    ] = None,
    frames: Annotated[
        Path | None, typer.Option(help="Frame table (.npz) to drive on instead of the scenario's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for evaluation.json, frames.parquet, report.html; none if left out."
        ),
    ] = None,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Compare a policy with every baseline and the clairvoyant bound on held-out test drives.

    Baselines are tuned on training drives only. All policies meet the same frames, traces
    and random numbers. Without a policy the shipped ones are judged, and named so.
    """
    from agents.evaluate_command import Given, judge

    judged = judge(Given(run, policy, staged_policy, scenario, traces, frames), episodes, seed, out)
    if json:
        emit_json(judged.as_json())


@agent_app.command()
def scenarios(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this one whole, as TOML: a start for your own.", metavar="NAME"),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List the shipped scenarios, or print one as the TOML file that it is.

    Your own is such a file, given by its path wherever a scenario is asked for;
    docs/environment.md explains every key.
    """
    from dataclasses import asdict

    from offload_env.scenario import load_scenario, scenario_names, scenario_toml

    if name is not None:
        scenario = load_scenario(name)
        typer.echo(scenario_toml(scenario), nl=False)
        if json:
            emit_json(asdict(scenario))
        return
    found = {each: load_scenario(each) for each in scenario_names()}
    width = max(len(each) for each in found)
    for each, scenario in found.items():
        typer.echo(f"{each:<{width}}  {scenario.description}")
    if json:
        emit_json({"scenarios": {each: s.description for each, s in found.items()}})


@agent_app.command()
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
    from agents.train_command import floor_of
    from cnn.common.errors import ConfigError

    if (run is None) == (policy is None):
        raise ConfigError(
            f"--run {run or 'missing'} and --policy {policy or 'missing'}",
            expected="exactly one of the two",
            hint="give the run to export, or the policy file to write again",
        )
    if run is not None:
        bundle = _exported(run, from_records)
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


def _exported(run: Path, records: Path | None) -> PolicyBundle:
    """The best model of a run, as a policy in the world that it was trained in."""
    from dataclasses import replace

    from agents.run_folder import CONFIG, POLICY
    from agents.train_checkpoint import load_best
    from agents.train_config import TrainConfig
    from agents.training import policy_of, world_of
    from agents.world_task import task_of
    from cnn.common.errors import DataError
    from testbed.policy.policy_file import PolicyBundle

    config = TrainConfig.load(run / CONFIG)
    if records is not None:
        config = replace(config, records=str(records))
    model, figures = load_best(config.algo, run)
    world = world_of(config, run)
    written = run / POLICY
    if written.is_file() and PolicyBundle.load(written).task not in (None, task_of(world)):
        raise DataError(
            f"run {run}, whose agent.policy has another task than its scenario sets now",
            expected="the scenario, and the records if any, that it was trained with",
            hint="give --from-records, put the scenario back, or use that agent.policy as it is",
        )
    return policy_of(model, config, world, figures)


def _written_again(path: Path, scenario: str, records: Path | None) -> PolicyBundle:
    """A policy file's content with the task of the world that it was trained in."""
    from agents.offline.from_records import world_from_records
    from agents.world_task import with_task
    from offload_env.world import build_world
    from testbed.policy.policy_file import PolicyBundle

    bundle = PolicyBundle.load(path)
    name = scenario or str(bundle.manifest.get("scenario"))
    world = world_from_records(name, records, warn) if records is not None else build_world(name)
    return with_task(bundle, world)
