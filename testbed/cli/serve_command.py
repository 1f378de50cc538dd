"""``sliproad testbed serve``: the MEC server as a process."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from cnn.common.console import stderr_console, warn
from cnn.common.files import write_text
from cnn.common.outputs import check_file
from testbed.common.output_kinds import PORT
from testbed.deploy.log import dropped_lines, logged, write_out

if TYPE_CHECKING:
    from testbed.common.signals import StopFlag
    from testbed.server.mec_server import MecServer

EXIT_FAILED: Final = 70
"""EX_SOFTWARE of sysexits(3)."""

LOOK_S: Final = 5.0
"""Interval of the checks of TLS files, so that errors in new ones are reported soon."""


@logged("text", "info")
def serve(
    host: Annotated[str, typer.Option(help="Name or address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0 takes any free one.")] = 8001,
    bundle: Annotated[
        Path | None, typer.Option(help="Model bundle folder; the shipped one if left out.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads that compute one batch.")] = 1,
    providers: Annotated[
        str,
        typer.Option(
            help="ONNX Runtime's execution providers, NAME[,NAME]; `sliproad testbed doctor` "
            "lists those that are here."
        ),
    ] = "CPUExecutionProvider",
    workers: Annotated[int, typer.Option(help="Batches computed at once.")] = 1,
    max_batch: Annotated[int, typer.Option(help="Most frames in one batch.")] = 8,
    max_wait_ms: Annotated[
        float,
        typer.Option(help="Milliseconds a waiting request may be held back for company."),
    ] = 0.0,
    queue: Annotated[int, typer.Option(help="Most frames waiting; more are refused.")] = 128,
    metrics_port: Annotated[
        int | None, typer.Option(help="HTTP port of the Prometheus metrics; none if left out.")
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(help="Name or address that the metrics listen on; as --host if left out."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate chain of the server.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key of the server.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="PEM authority of the clients; every client must show a certificate."),
    ] = None,
    client_name: Annotated[
        list[str] | None,
        typer.Option(
            help="With --tls-client-ca: a name in a client's certificate (common name or "
            "alternative name) that may call; repeat for several. All if left out."
        ),
    ] = None,
    connection_age_s: Annotated[
        float,
        typer.Option(
            help="With TLS: seconds after which a connection is asked to connect anew, so that "
            "none outlives its certificates for long; no call is lost."
        ),
    ] = 3600.0,
    drain_s: Annotated[
        float, typer.Option(help="Seconds that accepted requests may take after SIGTERM.")
    ] = 5.0,
    batch_scheduling: Annotated[
        bool,
        typer.Option(
            help="Where every processor is busy, let a batch be computed without being "
            "interrupted for each message: more throughput; a message may wait some "
            "milliseconds for its turn. No difference while a processor is free. Linux only."
        ),
    ] = True,
    direct_calls: Annotated[
        bool,
        typer.Option(
            help="Serve inference through an interface of grpcio that is not public: more "
            "throughput, on releases of grpcio that were tested."
        ),
    ] = False,
    port_file: Annotated[
        Path | None, typer.Option(help="File that receives the port once the server is ready.")
    ] = None,
) -> None:
    """Run the MEC server: the network's tails behind the Open Inference Protocol (gRPC).

    Prints one line to standard error when it is ready. SIGTERM or SIGINT finishes the
    accepted requests and exits with 0; a second one exits at once. A server that finds that
    it cannot go on says why and exits with 70, so that a supervisor starts another. Renewed
    TLS files are used from the next handshake on; SIGHUP looks at them now.
    """
    if port_file is not None:
        check_file(port_file, PORT, room=4096)
    from cnn.bundle import load_bundle
    from testbed.common.signals import stop_on_signals
    from testbed.server.mec_server import MecServer, ServerConfig
    from testbed.server.server_process import prefer_throughput
    from testbed.wire.address import is_loopback, parse_host
    from testbed.wire.tls import server_tls

    config = ServerConfig(
        host=parse_host(host, "--host"),
        port=port,
        threads=threads,
        workers=workers,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        queue=queue,
        metrics_port=metrics_port,
        metrics_host=None if metrics_host is None else parse_host(metrics_host, "--metrics-host"),
        tls=server_tls(tls_cert, tls_key, tls_client_ca, client_name or (), connection_age_s),
        drain_s=drain_s,
        direct_calls=direct_calls,
        providers=tuple(providers.split(",")),
    )
    stop = stop_on_signals()
    console = stderr_console()
    for complaint in config.tls.complaints() if config.tls is not None else ():
        warn(complaint)
    if config.tls is None and not is_loopback(config.host):
        warn(
            f"--host {config.host} without TLS: other machines may call this server, and frames "
            "travel in the clear; give --tls-cert, --tls-key and --tls-client-ca"
        )
    server = MecServer(load_bundle(bundle), config)
    server.metrics.watch("log_lines_dropped", "Log lines that nobody took.", dropped_lines)
    if batch_scheduling:  # before it has threads, which inherit it
        prefer_throughput()
    server.start()
    if port_file is not None:
        write_text(port_file, f"{server.port}\n")
    ready = f"serving {server.bundle.hash[:12]} on {server.address}"
    console.print(ready, highlight=False, markup=False, soft_wrap=True)
    try:
        _wait(stop, server)
        _end_within(config.drain_s + 10)
        drained = server.stop()
    except KeyboardInterrupt:
        server.stop(0)
        drained = False
    done = "drained" if drained else "stopped with requests unanswered"
    console.print(done, highlight=False, markup=False)


def _wait(stop: StopFlag, server: MecServer) -> None:
    """Wait until stopped; meanwhile check TLS files, immediately at SIGHUP."""
    asked = False

    def on_hup(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGHUP, on_hup)
    tls, looked_s = server.config.tls, time.monotonic()
    while not stop.wait(0.1):
        if server.failure is not None:
            _give_up(server.failure)
        if tls is not None and (asked or time.monotonic() - looked_s >= LOOK_S):
            asked, looked_s = False, time.monotonic()
            tls.watch.look()


def _give_up(why: str) -> NoReturn:
    """End the process at once: hanging threads must not keep it alive."""
    try:
        # Not through a stream, which may hang.
        os.write(2, f"error: the server cannot go on: {why}; start it again\n".encode())
        write_out()
    finally:
        os._exit(EXIT_FAILED)


def _end_within(seconds: float) -> None:
    """The process ends by then even if something hangs (by SIGALRM, if the system has it)."""
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(seconds))
