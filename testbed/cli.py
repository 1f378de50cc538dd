"""``sliproad testbed``: run device, server and link; measure; fit costs."""

from __future__ import annotations

import typer

from testbed.device_command import device
from testbed.serve_command import serve

app = typer.Typer(no_args_is_help=True, help="Run device, server and link; measure; fit costs.")
for _command in (device, serve):
    app.command()(_command)
