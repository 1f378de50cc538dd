"""The command line ``sliproad``: one application over the four packages.

Only light modules are imported here, and the mounted command modules import heavy
packages inside their commands, so that ``--help`` is quick and ``sliproad testbed device``
runs where torch is not installed (`tests/test_light_imports.py`).
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import cnn
from agents.certify_command import certify
from agents.control_command import control
from agents.run_files import DEMO, check_run
from agents.scenario_commands import JudgedScenario, new_scenario, scenarios
from agents.train_commands import export, sweep, train
from agents.tune_command import tune
from cnn.common.console import JsonFlag, SeedOption, emit_json, run_app, stderr_console, warn
from cnn.common.errors import ConfigError
from cnn.common.outputs import Claim, check_folder
from cnn.network_commands import app as cnn_app
from testbed.cli.app import app as testbed_app

_TOO_FEW = (
    "TOO FEW: {:.0f} effective frames, at least {} are needed; the records hardly show this "
    "policy, and what follows is the model's guess. Record more frames, explore more "
    "(--explore), or judge a policy that is more like the recorded one."
)

app = typer.Typer(
    name="sliproad",
    help="Decide, for every camera frame, where to leave the network early and where to "
    "split it between a moving device and a MEC server.",
    epilog="Results go to standard output, progress to standard error. "
    "Exit code 2 means: fix what the error line names.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


agent_app = typer.Typer(no_args_is_help=True, help="Train, evaluate and export policies.")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sliproad {cnn.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options that stand before the command."""


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Folder that `sliproad agent train` wrote, or a policy file; the shipped "
            "policies if none is given.",
            show_default=False,
        ),
    ] = None,
    scenario: JudgedScenario = "",
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy file or run's folder; the shipped policies if left out."),
    ] = None,
    staged_policy: Annotated[
        Path | None,
        typer.Option(help="A second one to judge beside it: staged policy file or run's folder."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="A policy plug-in to compare as well, by name; repeat for several."),
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

    Baselines are tuned on training drives only, as many as --episodes, at most 64. All
    policies meet the same frames, traces and random numbers. Without a policy the shipped
    ones are judged, and named so.
    """
    from agents.contenders import judge, paths_of

    judged = judge(
        paths_of(run, policy, staged_policy),
        scenario=scenario,
        traces=traces,
        frames=frames,
        episodes=episodes,
        seed=seed,
        out=out,
        baselines=baseline or (),
    )
    if json:
        emit_json(judged.as_json())


def estimate(
    records: Annotated[
        Path, typer.Option(help="Record file or folder of a device that ran with --explore.")
    ],
    policy: Annotated[Path, typer.Option(help="Policy file of the candidate.")],
    scenario: Annotated[
        str,
        typer.Option(
            help="Scenario whose device and prices the records are read with; "
            "the policy's own if left out."
        ),
    ] = "",
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Estimate a policy's delay, energy and cost from the records of another one.

    Inverse propensity scoring, its self-normalised form, and the doubly robust estimator,
    with 95 % bootstrap intervals. Trust the last; docs/agents.md says what none of them sees.
    """
    from agents.contenders import warn_of_other_task
    from agents.from_records import log_of
    from agents.off_policy import MIN_EFFECTIVE, warn_of_other_log
    from agents.off_policy import estimate as run_estimate
    from offload_env.world import build_world
    from testbed.policy.decision_points import decision_points
    from testbed.policy.network_policy import policy_from_bundle
    from testbed.policy.policies import require_space
    from testbed.policy.policy_file import PolicyBundle
    from testbed.records.record_file import read_all

    runs = read_all(records, warn)
    bundle = PolicyBundle.load(policy)
    bundle.check_fit(runs[0].source.get("bundle_hash"), runs[0].topology)
    space = decision_points(bundle.topology).frame
    candidate = require_space(policy_from_bundle(bundle), space)
    if not getattr(candidate, "memoryless", False):
        raise ConfigError(
            f"policy {policy} of kind {bundle.manifest.get('kind')!r}",
            expected="a policy that decides by one observation alone",
            hint="estimate a policy of `sliproad agent train` that decides once a frame",
        )
    world = build_world(scenario or str(bundle.manifest["scenario"]), "train")
    log = log_of(runs, world)
    warn_of_other_task(policy, bundle, world)
    warn_of_other_log(policy, bundle, log.observation)
    found = run_estimate(log, candidate, world, seed=seed)
    typer.echo(
        f"{found.frames} frames; the candidate agrees with {100 * found.match:.1f} % of them, "
        f"worth {found.effective_frames:.0f} frames of its own"
    )
    if not found.enough:
        typer.echo(_TOO_FEW.format(found.effective_frames, MIN_EFFECTIVE))

    def known(value: float) -> str:
        return f"{value:.4f}" if math.isfinite(value) else "unknown"

    for outcome, by in found.figures.items():
        dr = by["dr"]
        typer.echo(
            f"{outcome:<12} logged {found.logged[outcome]:.4f}  doubly robust {dr.mean:.4f} "
            f"({dr.low:.4f} .. {dr.high:.4f})  snips {known(by['snips'].mean)}  "
            f"ips {known(by['ips'].mean)}"
        )
    if json:
        emit_json({"policy": str(policy), "records": str(records), **found.as_json()})


def demo(
    scenario: Annotated[str, typer.Option(help="Scenario's name or TOML file.")] = "urban-5g",
    out: Annotated[Path, typer.Option(help="Folder of everything the demo writes.")] = Path(
        "runs/demo"
    ),
    frames: Annotated[
        int, typer.Option(min=1, help="Frames to drive live, at the scenario's camera rate.")
    ] = 300,
    steps: Annotated[int, typer.Option(min=1, help="Frames to train on.")] = 2_000_000,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out test drives.")] = 32,
    seed: SeedOption = 0,
    json: JsonFlag = False,
) -> None:
    """Train an agent, compare it on held-out drives, deploy it and measure it live.

    Needs no data: frames are the embedded frame tables, and rendered signs for the live
    run. With SLIPROAD_DATA set, the live run shows real GTSRB tracks instead.
    """
    check_folder(out, DEMO)
    check_run(out / "train")
    from agents.demo import run_demo

    with Claim(out, folder=True), _terminate_as_interrupt():
        result = run_demo(scenario, out, frames, steps, episodes, seed, stderr_console())
    if json:
        emit_json(result)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM ends like Ctrl-C, so that child processes are ended."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


app.add_typer(cnn_app, name="cnn", help="Train, evaluate and export the split network.")
app.add_typer(testbed_app, name="testbed", help="Run device, server and link; measure; fit costs.")
app.add_typer(agent_app, name="agent", help="Train, evaluate and export policies.")
app.command()(demo)
_AGENT_COMMANDS = (
    train,
    tune,
    evaluate,
    certify,
    control,
    scenarios,
    new_scenario,
    export,
    sweep,
    estimate,
)
for command in _AGENT_COMMANDS:
    agent_app.command()(command)


def main() -> NoReturn:
    """Entry point of the console script; exits with 0, 2 (user error) or 130 (interrupted)."""
    run_app(app, prog_name="sliproad")
