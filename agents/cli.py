"""The command line ``sliproad``: one application over the four packages.

Only light modules are imported here, and the mounted command modules import heavy
packages inside their commands, so that ``--help`` is quick and ``sliproad testbed device``
runs where torch is not installed (`tests/test_light_imports.py`).
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

import cnn
from agents.commands import agent_app
from agents.demo import demo
from agents.offline.estimate_command import estimate
from agents.sweep_command import sweep
from cnn.common.console import run_app
from cnn.network_commands import app as cnn_app
from testbed.cli.app import app as testbed_app

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


app.add_typer(cnn_app, name="cnn", help="Train, evaluate and export the split network.")
app.add_typer(testbed_app, name="testbed", help="Run device, server and link; measure; fit costs.")
app.add_typer(agent_app, name="agent", help="Train, evaluate and export policies.")
agent_app.command("sweep")(sweep)
agent_app.command("estimate")(estimate)
app.command("demo")(demo)


def main() -> NoReturn:
    """Entry point of the console script; exits with 0, 2 (user error) or 130 (interrupted)."""
    run_app(app, prog_name="sliproad")
