"""``sliproad agent scenarios`` and ``new-scenario``: those that are shipped, and your own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from agents.run_files import NEW_SCENARIO
from cnn.common.console import JsonFlag, emit_json, warn
from cnn.common.errors import MAX_SEED, require
from cnn.common.files import write_text
from cnn.common.outputs import check_file

JudgedScenario = Annotated[
    str,
    typer.Option(
        help="Scenario's name or TOML file; if left out the one that the policy was trained "
        "for, or urban-5g.",
        show_default=False,
    ),
]
"""Option of the commands that judge a policy (`agents.contenders.scenario_to_judge`)."""
JudgedPolicy = Annotated[
    Path | None,
    typer.Option(help="Policy file or run's folder; the shipped staged policy if left out."),
]
"""Option of the commands that judge one policy (`agents.contenders.policy_to_judge`)."""


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


def new_scenario(
    out: Annotated[Path, typer.Argument(help="Scenario file to write, .toml.", metavar="OUT.toml")],
    train_frames: Annotated[
        str, typer.Option(help="Frame table (.npz) of the training drives.")
    ] = "",
    test_frames: Annotated[str, typer.Option(help="Frame table (.npz) of the test drives.")] = "",
    device: Annotated[
        str,
        typer.Option(
            help="Profile (.json) of a device that ran this network; needless for the shipped one."
        ),
    ] = "",
    full_local_ms: Annotated[
        float | None,
        typer.Option(
            help="Time of full local processing, instead of the profile's.", show_default=False
        ),
    ] = None,
    power: Annotated[
        str, typer.Option(help="Power profile DEVICE+MODEM instead of the device profile's.")
    ] = "",
    link: Annotated[
        list[str] | None,
        typer.Option(
            help="A shipped kind's name, a kind's file (.json), or a folder or file of measured "
            "traces; several files: --link again. urban-5g if left out.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="What of measured traces trains and tests: file, day or fraction.")
    ] = "",
    rtt_ms: Annotated[
        float | None,
        typer.Option(help="Round trip of measured traces that have none.", show_default=False),
    ] = None,
    period_ms: Annotated[
        float | None,
        typer.Option(
            help="Between two camera frames; what suits the device if left out.", show_default=False
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="The floor: full local processing's accuracy less this, 0..1; 0.005 if left out.",
            show_default=False,
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="One sentence.")] = "",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_SEED,
            help="Seed of generated drives, or of the split of measured ones; 1 if left out.",
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Make a scenario of your own network's frames, device and traces, and check that they fit.

    What is left out has its default; timing that suits the device is chosen, and the file says why.
    Paths count from the folder in which you run.
    """
    require(
        out.suffix == ".toml",
        f"{out}",
        "a file that ends in .toml",
        "give it that ending: the name before it is the scenario's",
    )
    for text in (str(out), train_frames, test_frames, device, power, *(link or ()), description):
        require(
            not any("\ud800" <= c <= "\udfff" for c in text),
            ascii(text),
            "UTF-8",
            "rename the file",
        )
    check_file(out, NEW_SCENARIO)
    from agents.new_scenario import Parts, compose
    from agents.scenario_summary import file_text, lines, report

    parts = Parts(
        train_frames=train_frames,
        test_frames=test_frames,
        device=device,
        full_local_ms=full_local_ms,
        power=power,
        link=tuple(link or ()),
        split=split,
        rtt_ms=rtt_ms,
        period_ms=period_ms,
        margin=margin,
        description=description,
        seed=seed,
    )
    made = compose(parts, out.stem)
    about = report(made, out)
    write_text(out, file_text(made))
    for line in lines(about):
        typer.echo(line)
    for warning in made.warnings:
        warn(warning)
    next_commands = _next(out)
    typer.echo(f"{out} is written; next:")
    for command in next_commands:
        typer.echo(f"  {command}")
    if json:
        emit_json({**about, "next": next_commands})


def _next(out: Path) -> list[str]:
    """The commands that follow: train, evaluate, export."""
    run = f"runs/{out.stem}"
    words = (
        ("train", "--scenario", str(out), "--out", run),
        ("evaluate", run),
        ("export", "--run", run, "--out", f"{out.stem}.policy"),
    )
    return [shlex.join(["sliproad", "agent", *each]) for each in words]
