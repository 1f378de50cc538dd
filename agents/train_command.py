"""What ``sliproad agent train`` does around a training: its settings, its last words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import typer

from agents.evaluation import keeps
from agents.interrupt import TrainingInterrupted
from agents.run_files import CONFIG
from agents.train_config import STAGED_SETTINGS, TrainConfig
from agents.training import TrainResult
from cnn.common.entry import EXIT_INTERRUPTED
from testbed.policy.policy_file import PolicyBundle


def config_of(given: Mapping[str, Any], out: Path, resume: bool) -> TrainConfig:
    """The settings of a run, from the options that were given.

    What was not given is as it was in a run that is resumed, otherwise the default. Paths are
    made absolute, so that the run can be resumed from anywhere.
    """
    settings = {name: _anchored(name, value) for name, value in given.items()}
    if resume:
        return replace(TrainConfig.load(out / CONFIG), **settings)
    defaults = STAGED_SETTINGS if given.get("env") == "staged" else {}
    return TrainConfig(**{**defaults, **settings})


def _anchored(name: str, value: Any) -> Any:
    is_path = name == "records" or (name == "scenario" and str(value).endswith(".toml"))
    return str(Path(value).resolve()) if is_path else value


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
        lines.insert(0, _speed_line(result))
    return lines


def floor_line(accuracy: float, floor: float) -> str:
    """Whether validation kept the accuracy floor of the training frames, for people."""
    if keeps(accuracy, floor):
        return f"accuracy floor {100 * floor:.2f} % kept on validation drives"
    return (
        f"accuracy floor {100 * floor:.2f} % MISSED on validation drives by "
        f"{100 * (floor - accuracy):.2f} points: train longer, or with a larger --margin or "
        "--dual-start, before the policy is used"
    )


def floor_of(bundle: PolicyBundle) -> tuple[bool | None, str]:
    """Whether a trained policy kept its floor in validation, by its manifest; None if unsaid."""
    metrics = bundle.manifest.get("metrics", {})
    validation, floor = metrics.get("validation"), metrics.get("accuracy_floor")
    if not isinstance(validation, dict) or floor is None:
        return None, "the file does not say whether the accuracy floor was kept in validation"
    accuracy = float(validation["accuracy"])
    return keeps(accuracy, float(floor)), floor_line(accuracy, float(floor))


def _speed_line(result: TrainResult) -> str:
    return (
        f"trained on the link in {result.config.records}; full local processing takes "
        f"{result.full_local_ms:.1f} ms on the device it was trained for"
    )


def interrupted(stopped: TrainingInterrupted, line: str) -> NoReturn:
    """Say how to resume, and end as Ctrl-C ends a command."""
    typer.echo(f"{stopped}; resume with", err=True)
    typer.echo(line, err=True)
    raise typer.Exit(EXIT_INTERRUPTED)
