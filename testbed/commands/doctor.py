"""``sliproad testbed doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnn.console import JsonFlag, emit_json


def doctor(
    bundle: Annotated[
        Path | None, typer.Option(help="Model bundle folder; the shipped one if left out.")
    ] = None,
    port: Annotated[int, typer.Option(help="TCP port that a server would take.")] = 8001,
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

    from testbed.doctor import examine
    from testbed.service.config import load_device_file

    files = list(certificate or ())
    if config is not None:
        section = load_device_file(config).server
        files += [Path(text) for text in (section.tls_ca, section.tls_cert) if text is not None]
    findings = examine(bundle=bundle, port=port, data=data, certificates=files)
    table = Table("", "", "what", "found", "to fix it", box=None, pad_edge=False)
    for finding in findings:
        mark = "ok" if finding.ok else "MISSING" if finding.needed else "-"
        need = "needed" if finding.needed else ""
        cells = (mark, need, finding.name, finding.found, finding.mend)
        table.add_row(*map(escape, cells))
    Console().print(table)
    broken = [finding.name for finding in findings if finding.needed and not finding.ok]
    if json:
        emit_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]})
    if broken:
        raise typer.Exit(2)
