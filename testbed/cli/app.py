"""``sliproad testbed``: run device, server and link; measure; fit costs."""

from __future__ import annotations

import typer

from testbed.cli.align_command import align
from testbed.cli.campaign_command import campaign
from testbed.cli.device_command import device
from testbed.cli.doctor_command import doctor
from testbed.cli.fit_command import fit
from testbed.cli.link_command import link
from testbed.cli.serve_command import serve
from testbed.cli.sign_command import keygen, sign
from testbed.cli.traces_command import traces_app

app = typer.Typer(no_args_is_help=True, help="Run device, server and link; measure; fit costs.")
for _command in (device, serve, link, campaign, fit, align, keygen, sign, doctor):
    app.command()(_command)
app.add_typer(traces_app, name="traces")
