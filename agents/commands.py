"""``sliproad agent``: train, evaluate and export policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.file_kinds import EVALUATION, check_run, named
from cnn.console import JsonFlag, SeedOption, emit_json, stderr_console, warn
from cnn.outputs import check_file, check_folder
from testbed.file_kinds import POLICY

if TYPE_CHECKING:
    from offload_env.world import World
    from testbed.decide.policy_bundle import PolicyBundle
    from testbed.decide.staged_policy import AnyPolicy

agent_app = typer.Typer(no_args_is_help=True, help="Train, evaluate and export policies.")

ScenarioOption = Annotated[
    str, typer.Option(help="Scenario's name (such as urban-5g) or the path of its TOML file.")
]


@agent_app.command()
def train(
    scenario: ScenarioOption = "urban-5g",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Decisions to train on; the default setting if left out."),
    ] = None,
    algo: Annotated[str, typer.Option(help="ppo or dqn; maskable-ppo with --env staged.")] = "ppo",
    env: Annotated[
        str, typer.Option(help="frame: one decision a frame. staged: again after every exit seen.")
    ] = "frame",
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/agent"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out, bit for bit.")
    ] = False,
    n_envs: Annotated[int | None, typer.Option(min=1, help="Parallel drives.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Width of both layers.")] = None,
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
        int | None, typer.Option(min=1, help="Decisions between two validations.")
    ] = None,
    from_records: Annotated[
        Path | None,
        typer.Option(help="Records of a deployed device: train on its link and at its speed."),
    ] = None,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Train a policy with stable-baselines3 and keep the best that keeps the accuracy floor.

    Writes the run's settings, checkpoints, TensorBoard log, learning curve and agent.policy.
    """
    from agents.config import STAGED_SETTINGS, TrainConfig
    from agents.progress import training_progress
    from agents.train import train as run_training

    given = {
        "steps": steps,
        "n_envs": n_envs,
        "hidden": hidden,
        "learning_rate": learning_rate,
        "gamma": gamma,
        "margin": margin,
        "dual_start": dual_start,
        "dual_rate": dual_rate,
        "validate_every": validate_every,
    }
    settings: dict[str, Any] = dict(STAGED_SETTINGS) if env == "staged" else {}
    settings |= {k: v for k, v in given.items() if v is not None}
    check_run(out)
    config = TrainConfig(scenario=scenario, algo=algo, env=env, seed=seed, **settings)
    world = _recorded_world(scenario, from_records)
    with training_progress(stderr_console(), config.steps) as report:
        result = run_training(config, out, world=world, resume=resume, report=report)
    figures = result.validation
    typer.echo(
        f"best validation at step {figures['step']:.0f}: cost {figures['cost']:.4f}, "
        f"accuracy {100 * figures['accuracy']:.2f} %, delay {figures['delay_ms']:.1f} ms, "
        f"energy {figures['energy_mj']:.1f} mJ"
    )
    typer.echo(f"policy {out / 'agent.policy'} after {result.seconds:.0f} s of training")
    if json:
        emit_json(
            {
                "policy": str(out / "agent.policy"),
                "steps": config.steps,
                "seconds": result.seconds,
                "validation": figures,
            }
        )


@agent_app.command()
def evaluate(
    scenario: ScenarioOption = "urban-5g",
    policy: Annotated[
        Path | None, typer.Option(help="Policy file; the shipped one, if any, if left out.")
    ] = None,
    staged_policy: Annotated[
        Path | None,
        typer.Option(help="Staged policy file; the shipped one, if any, if both are left out."),
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
    and random numbers.
    """
    if out is not None:
        check_folder(out, EVALUATION)
    from agents.evaluate import evaluate as run_evaluation
    from agents.evaluation_report import write_report
    from agents.progress import steps_progress
    from agents.table import comparison
    from offload_env.world import build_world

    train_world = build_world(scenario, "train")
    test_world = _test_world(scenario, traces, frames)
    agents = _agents(policy, staged_policy, test_world)
    console = stderr_console()
    with steps_progress(console, "evaluating") as progress:
        result = run_evaluation(
            train_world, test_world, agents, drives=episodes, seed=seed, progress=progress
        )
    comparison(result).print()
    if out is not None:
        result.save(out)
        write_report(result, test_world, agents, out / "report.html")
        typer.echo(f"report {out / 'report.html'}")
    if json:
        emit_json(result.as_json())


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
    from agents.export import write
    from cnn.errors import ConfigError

    if (run is None) == (policy is None):
        raise ConfigError(
            f"--run {run or 'missing'} and --policy {policy or 'missing'}",
            expected="exactly one of the two",
            mend="give the run to export, or the policy file to write again",
        )
    if run is not None:
        bundle = _exported(run, from_records)
    else:
        assert policy is not None
        bundle = _written_again(policy, scenario, from_records)
    path = write(bundle, out)
    size = path.stat().st_size
    typer.echo(f"{path}: {size} bytes, for model bundle {bundle.manifest['bundle_hash'][:12]}")
    if json:
        emit_json({"policy": str(path), "bytes": size, "manifest": dict(bundle.manifest)})


def _exported(run: Path, records: Path | None) -> PolicyBundle:
    """The best model of a run, as a policy in the world that it was trained in."""
    from agents.checkpoint import load_best
    from agents.config import TrainConfig
    from agents.task import task_of
    from agents.train import policy_of
    from cnn.errors import DataError
    from offload_env.world import build_world
    from testbed.decide.policy_bundle import PolicyBundle

    config = TrainConfig.load(run / "config.json")
    model, figures = load_best(config.algo, run)
    world = _recorded_world(config.scenario, records) or build_world(config.scenario, "train")
    written = run / "agent.policy"
    if written.is_file() and PolicyBundle.load(written).task not in (None, task_of(world)):
        raise DataError(
            f"run {run}, whose agent.policy has another task than its scenario sets now",
            expected="the scenario, and the records if any, that it was trained with",
            mend="give --from-records, put the scenario back, or use that agent.policy as it is",
        )
    return policy_of(model, config, world, figures)


def _written_again(path: Path, scenario: str, records: Path | None) -> PolicyBundle:
    """A policy file's content with the task of the world that it was trained in."""
    from agents.task import with_task
    from offload_env.world import build_world
    from testbed.decide.policy_bundle import PolicyBundle

    bundle = PolicyBundle.load(path)
    name = scenario or str(bundle.manifest.get("scenario"))
    return with_task(bundle, _recorded_world(name, records) or build_world(name, "train"))


def _recorded_world(scenario: str, records: Path | None) -> World | None:
    """The scenario on what a device recorded; None without records."""
    if records is None:
        return None
    from agents.from_records import world_from_records

    return world_from_records(scenario, records, warn)


def _test_world(scenario: str, traces: Path | None, frames: Path | None) -> World:
    from cnn.frame_table import FrameTable
    from offload_env.scenario import load_scenario
    from offload_env.world import build_world

    if traces is None and frames is None:
        return build_world(scenario, "test")
    loaded = load_scenario(scenario)
    measured = None
    if traces is not None:
        from testbed.traces.collection import load_collection

        link = loaded.link
        collection = load_collection(traces, link.kind, "test", period_s=link.period_s)
        stderr_console().print(
            "; ".join(collection.notes), highlight=False, markup=False, soft_wrap=True
        )
        measured = collection.traces
    table = FrameTable.load(frames) if frames is not None else None
    return build_world(loaded, "test", traces=measured, table=table)


def _agents(path: Path | None, staged_path: Path | None, world: World) -> dict[str, AnyPolicy]:
    """The agents to evaluate, by name; empty if none is given and none is shipped."""
    from agents.shipped import shipped_agents
    from agents.task import warn_of_other_task
    from testbed.decide.policy import load_policy
    from testbed.decide.policy_bundle import PolicyBundle
    from testbed.decide.staged_policy import load_staged_policy

    model_hash = world.table.bundle_hash
    given: dict[str, AnyPolicy] = {}
    if path is not None:
        given["agent"] = load_policy(path, model_hash)
    if staged_path is not None:
        given["staged-agent"] = load_staged_policy(staged_path, model_hash)
    for file in (path, staged_path):
        if file is not None:
            warn_of_other_task(file, PolicyBundle.load(file), world)
    agents = given or shipped_agents(world)
    if not agents:
        stderr_console().print(
            f"no policy is shipped for {world.scenario.name} and this model bundle: baselines only"
        )
    return agents
