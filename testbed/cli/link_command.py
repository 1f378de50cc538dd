"""``sliproad testbed link`` and ``traces``: the emulated link as a process, and its traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnn.common.console import JsonFlag, SeedOption, emit_json, stderr_console
from cnn.common.files import write_text
from cnn.common.outputs import check_file
from testbed.common.output_kinds import LINK_RECORD, PORT, TRACE, TRACE_KIND

if TYPE_CHECKING:
    from testbed.common.signals import StopFlag
    from testbed.traces.trace import Trace

traces_app = typer.Typer(no_args_is_help=True, help="Network traces of other projects and tools.")


def link(
    server: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the MEC server. With --backend tc it runs here, on all addresses."
        ),
    ],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT for the device; port 0 takes any free one.")
    ] = "127.0.0.1:0",
    trace: Annotated[
        Path | None,
        typer.Option(help="Trace to replay: our JSON, samples (CSV), or a Mahimahi file."),
    ] = None,
    trace_name: Annotated[
        str | None, typer.Option(help="Which trace of a CSV file with several.")
    ] = None,
    generate: Annotated[
        str | None,
        typer.Option(
            help="Generate a trace: urban-5g, highway-lte, poor-coverage, or a file of traces fit."
        ),
    ] = None,
    seed: SeedOption = 0,
    rate_mbps: Annotated[
        float | None,
        typer.Option(min=0, max=100_000, help="Constant uplink capacity, Mbit/s."),
    ] = None,
    rtt_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=60_000,
            help="Constant base round trip, milliseconds; with --trace, replaces its own.",
        ),
    ] = None,
    downlink_mbps: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=100_000, help="Downlink capacity, Mbit/s; unlimited if left out."
        ),
    ] = None,
    power: Annotated[
        str | None,
        typer.Option(
            help="Power profile DEVICE+MODEM, as the device's: after its tail the modem must "
            "connect first (promotion_ms). Connected at all times if left out."
        ),
    ] = None,
    start_offset_s: Annotated[
        float,
        typer.Option(min=0, max=10_000_000, help="Seconds into the trace at which it starts."),
    ] = 0.0,
    duration_s: Annotated[
        float | None,
        typer.Option(
            min=0, max=100_000_000, help="Stop after so many seconds; until SIGTERM if left out."
        ),
    ] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="File that receives the port once the link is ready.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="File (link.json) that receives trace and start on exit, for replay."),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(help="user-space (a proxy, no root) or tc (network namespace, root)."),
    ] = "user-space",
    json_output: JsonFlag = False,
) -> None:
    """Run an emulated mobile link between a device and a server, in user space, without root.

    Connect the device to --listen. The trace starts with the first connection and repeats.
    With --backend tc, run the device behind the command and to the server that the link names.
    SIGTERM or SIGINT stops it; the statistics on exit count the bytes of each direction and
    say how late they came out compared with the schedule (milliseconds).
    """
    from cnn.common.errors import ConfigError
    from testbed.common.signals import stop_on_signals
    from testbed.link.emulator import LinkEmulator
    from testbed.meters.power import DEFAULT_PROFILE, power_profile
    from testbed.wire.address import join_address, parse_address

    upstream = parse_address(server, "--server")
    listening = parse_address(listen, "--listen", listen=True)
    for path, kind in ((port_file, PORT), (record, LINK_RECORD)):
        if path is not None:
            check_file(path, kind, room=4096)
    replayed = _choose_trace(trace, trace_name, generate, seed, rate_mbps, rtt_ms)
    if backend not in ("user-space", "tc"):
        raise ConfigError(
            f"--backend {backend}", expected="user-space or tc", hint="correct --backend"
        )
    modem = power_profile(power or DEFAULT_PROFILE).radio
    if backend == "tc" and modem.promotion_ms:
        raise ConfigError(
            f"--power {power} with --backend tc",
            expected="a modem without promotion_ms: the kernel's link is connected at all times",
            hint="use --backend user-space",
        )
    stop = stop_on_signals()
    if backend == "tc":
        _report(
            _run_tc(replayed, upstream[1], start_offset_s, duration_s, record, stop), json_output
        )
        return
    emulator = LinkEmulator(
        replayed,
        upstream,
        listening,
        start_offset_s=start_offset_s,
        downlink_mbps=downlink_mbps,
        tail_ms=modem.tail_ms,
        promotion_ms=modem.promotion_ms,
        realtime=True,
    )
    with emulator:
        if port_file is not None:
            write_text(port_file, f"{emulator.port}\n")
        _say(f"link {replayed.name} on {join_address(emulator.host, emulator.port)} to {server}")
        stop.wait(duration_s)
        stats = emulator.stats()
        if record is not None:
            emulator.record().save(record)
    _report(stats, json_output)


def _run_tc(
    trace: Trace,
    port: int,
    start_offset_s: float,
    duration_s: float | None,
    record: Path | None,
    stop: StopFlag,
) -> dict[str, Any]:
    """Run the kernel's link until stopped; returns its record."""
    from testbed.link.tc import TcLink
    from testbed.wire.address import join_address

    with TcLink(trace, start_offset_s=start_offset_s) as link:
        delay = "with" if link.has_netem else "without (no netem in this kernel)"
        _say(f"link {trace.name} {delay} delays; run the device as")
        address = join_address(link.server_host, port)
        _say(f"  {' '.join(link.prefix)} sliproad testbed device --server {address}")
        stop.wait(duration_s)
        if record is not None:
            link.record().save(record)
        return {"trace": trace.name, "backend": "tc", "netem": link.has_netem}


def _say(line: str) -> None:
    stderr_console().print(line, highlight=False, markup=False, soft_wrap=True)


def _report(stats: dict[str, Any], json_output: bool) -> None:
    if json_output:
        emit_json(stats)
    else:
        for name, value in stats.items():
            typer.echo(f"{name}: {value}")


def _choose_trace(
    path: Path | None,
    name: str | None,
    kind: str | None,
    seed: int,
    rate_mbps: float | None,
    rtt_ms: float | None,
) -> Trace:
    """The trace that the options select; raises `ConfigError` unless it is exactly one."""
    from cnn.common.errors import ConfigError
    from testbed.traces.generator import generate_trace
    from testbed.traces.trace import constant_trace
    from testbed.traces.trace_files import read_trace

    if sum(value is not None for value in (path, kind, rate_mbps)) != 1:
        raise ConfigError(
            "not exactly one trace",
            expected="one of --trace FILE, --generate KIND, --rate-mbps X",
            hint="give one of them",
        )
    if path is not None:
        read = read_trace(path, name=name, rtt_ms=rtt_ms)
        _say(f"trace {read.name}, {read.source}")
        return read
    if kind is not None:
        return generate_trace(kind, seed, duration_s=600.0)
    assert rate_mbps is not None
    return constant_trace(rate_mbps, 20.0 if rtt_ms is None else rtt_ms)


@traces_app.command("import")
def import_command(
    measurement: Annotated[Path, typer.Argument(metavar="IN", help="File to import, or its gzip.")],
    out: Annotated[Path, typer.Option(help="JSON file for the trace; link --trace reads it.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="gnettrack, iperf3, pensieve, hsdpa, ghent, mahimahi, rates (one a line), "
            "columns, or a plug-in's name; told by the content if left out and clear.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="WHAT=NAME:UNIT of a table's column, once each. WHAT: uplink_mbps, time_s, rtt_ms "
            "or tech. UNIT: bps, kbps, mbps, kBps, MBps; s, ms, us, ns; iso (dates).",
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
        float | None,
        typer.Option(
            help="Seconds between the lines of a rates file, or of a table without times."
        ),
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

    What was merged, held, filled or left out on the way is printed with its lines in the file, and
    kept in the trace.
    """
    check_file(out, TRACE, inputs=(measurement,))
    from testbed.traces.trace import save_trace
    from testbed.traces.trace_files import ImportOptions, import_trace

    trace = import_trace(
        measurement,
        ImportOptions(
            format_name,
            rtt_ms,
            tech,
            direction,
            spacing_s,
            unit,
            period_s,
            tuple(column) if column else None,
        ),
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


@traces_app.command("fit")
def fit_command(
    files: Annotated[
        list[Path], typer.Argument(help="Traces, of any format that its content tells.")
    ],
    out: Annotated[
        Path, typer.Option(help="JSON file for the kind, which is called as the file is.")
    ],
    step_s: Annotated[
        float, typer.Option(help="Spacing of the fit, seconds: that of the measurement.")
    ] = 0.5,
    levels: Annotated[int, typer.Option(help="Levels of the capacity, at most.")] = 6,
    rtt_ms: Annotated[
        float | None,
        typer.Option(min=0, max=60_000, help="Constant base round trip, if no trace has its own."),
    ] = None,
    tech: Annotated[
        str | None, typer.Option(help="5G or LTE; that of most of the time if left out.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Fit the generator of traces to measured ones: a kind of your own.

    Give the training traces alone. The file is a kind wherever one is named: link.kind in a
    scenario, --generate of testbed link.
    """
    check_file(out, TRACE_KIND, inputs=tuple(files))
    from cnn.common.errors import ConfigError
    from testbed.traces.generator import KIND_SUFFIX
    from testbed.traces.own_kind import fit_files, fit_line, save_kind

    if out.suffix != KIND_SUFFIX:
        raise ConfigError(
            f"--out {out}", expected=f"a name ending in {KIND_SUFFIX}", hint="add the ending"
        )
    model = fit_files(files, out.stem, step_s=step_s, n_levels=levels, rtt_ms=rtt_ms, tech=tech)
    save_kind(model, out)
    typer.echo(f"{out}: {model.kind}, {model.tech}, {len(model.levels)} levels")
    typer.echo(fit_line(model))
    if json:
        emit_json({"kind": str(out), "provenance": model.provenance})
