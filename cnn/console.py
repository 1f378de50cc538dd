"""Terminal conventions of every command: progress to stderr, results to stdout."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]


def stderr_console() -> Console:
    """Console for progress and notes; standard output stays for results."""
    return Console(stderr=True)


def warn(text: str) -> None:
    """One line on standard error about what the user should know, and may have meant."""
    typer.echo(f"warning: {text}", err=True)


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
