"""``sliproad testbed traces``: foreign measurements as traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cnn.common.console import JsonFlag, emit_json
from cnn.common.outputs import check_file
from testbed.common.output_kinds import TRACE

traces_app = typer.Typer(no_args_is_help=True, help="Network traces of other projects and tools.")


@traces_app.command("import")
def import_command(
    measurement: Annotated[Path, typer.Argument(metavar="IN", help="File to import, or its gzip.")],
    out: Annotated[Path, typer.Option(help="JSON file for the trace; link --trace reads it.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="gnettrack, iperf3, pensieve, hsdpa, ghent, mahimahi or rates (one a line); "
            "told by the content if left out and clear.",
        ),
    ] = None,
    rtt_ms: Annotated[
        float | None,
        typer.Option(help="Constant base round trip, milliseconds; replaces the file's own."),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(help="up (default) or down: which rates of a gnettrack or iperf3 file."),
    ] = None,
    spacing_s: Annotated[
        float | None, typer.Option(help="Seconds between the lines of a rates file.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="Unit of a rates file: bps, kbps, mbps, kBps or MBps (B: bytes)."),
    ] = None,
    tech: Annotated[
        str | None,
        typer.Option(help="5G or LTE; what the file says if left out, LTE if it does not."),
    ] = None,
    period_s: Annotated[float, typer.Option(help="Spacing of the trace, seconds.")] = 0.1,
    json: JsonFlag = False,
) -> None:
    """Read a measurement of another tool and write it as a trace.

    What was counted, merged, held or left out on the way is printed, and kept in the trace.
    """
    check_file(out, TRACE, inputs=(measurement,))
    from testbed.traces.importing import ImportOptions, import_trace
    from testbed.traces.trace_files import save_trace

    trace = import_trace(
        measurement,
        ImportOptions(format_name, rtt_ms, tech, direction, spacing_s, unit, period_s),
    )
    save_trace(trace, out)
    mean_mbps = float(trace.uplink_mbps.mean())
    typer.echo(f"{out}: {trace.duration_s:.6g} s, mean {mean_mbps:.6g} Mbit/s, {trace.tech}")
    typer.echo(trace.source)
    if json:
        emit_json(
            {
                "trace": str(out),
                "duration_s": trace.duration_s,
                "period_s": trace.period_s,
                "mean_mbps": mean_mbps,
                "mean_rtt_ms": float(trace.rtt_ms.mean()),
                "tech": trace.tech,
                "source": trace.source,
            }
        )
