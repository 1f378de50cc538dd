"""``sliproad testbed``: run device, server and link; measure; fit costs."""

from __future__ import annotations

import typer

from testbed.cli.align_command import align
from testbed.cli.cost_commands import campaign, fit
from testbed.cli.device_command import device
from testbed.cli.doctor_command import doctor
from testbed.cli.link_command import link, traces_app
from testbed.cli.serve_command import serve
from testbed.cli.sign_command import keygen, sign

app = typer.Typer(no_args_is_help=True, help="Run device, server and link; measure; fit costs.")
for _command in (device, serve, link, campaign, fit, align, keygen, sign, doctor):
    app.command()(_command)
app.add_typer(traces_app, name="traces")
