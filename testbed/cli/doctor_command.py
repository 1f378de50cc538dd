"""``sliproad testbed doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnn.common.console import JsonFlag, emit_json


def doctor(
    bundle: Annotated[
        Path | None, typer.Option(help="Model bundle folder; the shipped one if left out.")
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port that a server would take.")] = 8001,
    host: Annotated[
        str, typer.Option(help="Name or address that a server would listen on.")
    ] = "127.0.0.1",
    data: Annotated[
        Path | None, typer.Option(help="Data folder; SLIPROAD_DATA if left out.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Device's configuration file (TOML) whose certificates are looked at."),
    ] = None,
    certificate: Annotated[
        list[Path] | None, typer.Option(help="PEM file of TLS to look at; repeat for several.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Say what this machine has: runtime, bundle, meters (mJ), shaping, data, port.

    Certificates are named with the day until which they are valid.

    Exits with 2 if something is missing without which no device can run.
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from testbed.cli.machine_check import examine
    from testbed.deploy.assembly import plain_note, tls_of
    from testbed.deploy.device_file import load_device_file
    from testbed.wire.address import parse_host

    files = list(certificate or ())
    plain = None
    if config is not None:
        device = load_device_file(config)
        tls, plain = tls_of(device), plain_note(device)
        files += [path for path in (tls.ca, tls.cert) if path is not None] if tls else []
    findings = examine(
        bundle=bundle,
        port=port,
        host=parse_host(host, "--host"),
        plain=plain,
        data=data,
        certificates=files,
    )
    table = Table("", "", "what", "found", "to fix it", box=None, pad_edge=False)
    for finding in findings:
        mark = "ok" if finding.ok else "MISSING" if finding.needed else "-"
        need = "needed" if finding.needed else ""
        cells = (mark, need, finding.name, finding.found, finding.hint)
        table.add_row(*map(escape, cells))
    Console().print(table)
    broken = [finding.name for finding in findings if finding.needed and not finding.ok]
    if json:
        emit_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]})
    if broken:
        raise typer.Exit(2)
