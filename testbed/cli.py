"""``sliproad testbed``: run device, server and link; measure; fit costs."""

from __future__ import annotations

import typer

from testbed.commands.align import align
from testbed.commands.campaign import campaign
from testbed.commands.device import device
from testbed.commands.doctor import doctor
from testbed.commands.fit import fit
from testbed.commands.link import link
from testbed.commands.serve import serve
from testbed.commands.sign import keygen, sign
from testbed.commands.traces import traces_app

app = typer.Typer(no_args_is_help=True, help="Run device, server and link; measure; fit costs.")
for _command in (device, serve, link, campaign, fit, align, keygen, sign, doctor):
    app.command()(_command)
app.add_typer(traces_app, name="traces")
