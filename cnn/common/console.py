"""Terminal conventions of every command: progress to stderr, results to stdout."""

from __future__ import annotations

import json
import math
import shlex
from typing import Annotated, Any

import typer
from rich.console import Console

from cnn.common.option_checks import MAX_SEED

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything random, from 0."),
]


def stderr_console() -> Console:
    """Console for progress and notes; standard output stays for results."""
    return Console(stderr=True)


def warn(text: str) -> None:
    """One line on standard error about what the user should know, and may have meant."""
    typer.echo(f"warning: {text}", err=True)


def given_options(context: typer.Context) -> set[str]:
    """Names of the parameters that were given on the command line."""
    sources = {p.name or "": context.get_parameter_source(p.name or "") for p in _params(context)}
    return {name for name, s in sources.items() if s is not None and s.name == "COMMANDLINE"}


def command_line(context: typer.Context) -> str:
    """The command line that gives the same options again, ready to paste into a shell."""
    words, given = context.command_path.split(), given_options(context)
    for parameter in _params(context):
        if parameter.name in given:
            value = context.params[parameter.name]
            option = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
            words += option if value is True else [*option, str(value)]
    return shlex.join(words)


def _params(context: typer.Context) -> list[Any]:
    return list(context.command.params)


def emit_json(result: dict[str, Any]) -> None:
    """Print `result` as one line of strict JSON (NaN and infinity become null)."""
    typer.echo(json.dumps(_plain(result), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
