"""``sliproad testbed``: run device, server and link; measure; fit costs."""

from __future__ import annotations

import typer

from testbed.align_command import align
from testbed.campaign_command import campaign, fit
from testbed.device_command import device
from testbed.doctor_command import doctor
from testbed.link_command import link
from testbed.serve_command import serve

app = typer.Typer(no_args_is_help=True, help="Run device, server and link; measure; fit costs.")
for _command in (device, serve, link, campaign, fit, align, doctor):
    app.command()(_command)
