"""``sliproad agent tune``: many trainings by Ray Tune, and what their seeds say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agents.run_files import STUDY, STUDY_RESULT, check_run
from cnn.common.console import EXIT_INTERRUPTED, JsonFlag, SeedOption, emit_json, stderr_console
from cnn.common.errors import ConfigError
from cnn.common.files import write_text
from cnn.common.outputs import Claim, check_folder

if TYPE_CHECKING:
    from agents.study import Trial
    from agents.train_config import TrainConfig


def tune(
    spec: Annotated[Path, typer.Argument(help="TOML file of the study.", show_default=False)],
    local: Annotated[
        bool, typer.Option("--local", help="Run Ray on this machine alone; so without --address.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a Ray cluster's head. Every node must have sliproad, and see the "
            "spec's folder and --out under the same path."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Finish the study in --out: finished trainings stay, others are resumed.",
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of the study: trials/NAME are runs, study.json the result.")
    ] = Path("runs/study"),
    at_once: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Trainings at once; as many as there are processors if left out.",
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train a grid of settings with several seeds each, by Ray Tune, and compare the settings.

    Needs the extra 'ray'. Each training is one of `sliproad agent train`, with its own checkpoints:
    after a crash or Ctrl-C, --resume ends with the policies of an uninterrupted study.
    """
    if local and address is not None:
        raise ConfigError(
            f"--local and --address {address}", expected="one of the two", hint="leave one out"
        )
    check_folder(out, STUDY)
    from agents.study import begin, read_study

    study = read_study(spec)
    trials = study.trials(seed)
    for trial in trials:
        check_run(out / "trials" / trial.name, resume)
    from agents.ray_trials import connected, run_trials
    from agents.study_report import StudyResult, row_of, tables
    from agents.terminal import steps_progress

    out = out.resolve()
    with Claim(out, folder=True):
        begin(study, seed, out, resume)
        missing = _missing(trials, out)
        ended = len(trials) - len(missing)
        typer.echo(f"{ended} of {len(trials)} trainings are finished", err=True)
        if missing:
            with steps_progress(stderr_console(), f"{len(missing)} trainings") as progress:
                try:
                    with connected(address, at_once):
                        run_trials(missing, out, at_once=at_once, done=progress)
                except KeyboardInterrupt:
                    _leave(spec, out, address, seed)
        rows = [row_of(trial, out / "trials" / trial.name) for trial in trials]
        result = StudyResult(trials, rows, seed).as_json()
        write_text(out / STUDY_RESULT, json.dumps(result, indent=1) + "\n")
    for table in tables(result):
        table.print()
    typer.echo(f"{len(rows)} trainings; rows and statistics in {out / STUDY_RESULT}")
    if as_json:
        emit_json({"study": str(out / STUDY_RESULT), **result})


def _missing(trials: Sequence[Trial], out: Path) -> dict[str, TrainConfig]:
    """Settings, as they are trained, of the trials that are not finished yet, by name."""
    from agents.train_once import is_trained
    from agents.training import world_of

    found: dict[str, TrainConfig] = {}
    worlds = {}
    for trial in trials:
        source = (trial.config.scenario, trial.config.records)
        if source not in worlds:
            worlds = {source: world_of(trial.config)}  # one at a time: a world is large
        world = worlds[source]
        config = trial.config_in(world)
        if not is_trained(config, out / "trials" / trial.name, world):
            found[trial.name] = config
    return found


def _leave(spec: Path, out: Path, address: str | None, seed: int) -> None:
    words = ["sliproad", "agent", "tune", str(spec), "--resume", "--out", str(out)]
    words += ["--local"] if address is None else ["--address", address]
    words += ["--seed", str(seed)]
    typer.echo(f"interrupted; resume with\n{shlex.join(words)}", err=True)
    raise typer.Exit(EXIT_INTERRUPTED) from None
