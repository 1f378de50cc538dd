"""The MEC server: ONNX Runtime tails behind gRPC, with bounds on everything.

What is bounded: the message (before it is stored), the queue, the batch, the threads,
the streams of one connection, and how long a vanished client can hold anything.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent import futures
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cnn.action import N_EXITS
from cnn.bundle import Bundle
from cnn.errors import ConfigError
from cnn.runtime import SplitRuntime
from testbed.server.batching import Batcher
from testbed.server.direct_calls import DirectCalls
from testbed.server.inference_service import InferenceService
from testbed.server.metrics import MetricsEndpoint, ServerMetrics
from testbed.wire.address import check_port, join_address, parse_host
from testbed.wire.messages import MODEL_NAME, SERVICE, WireSpec
from testbed.wire.ports import PortInUseError, check_free
from testbed.wire.tls import ServerTls

INFER_METHOD: Final = f"/{SERVICE}/ModelInfer"
CONTROL_THREADS: Final = 16
"""Threads beyond those that inference can fill, for health, metadata and refusals."""
TAIL_SEGMENTS: Final = (
    *(f"block{b}" for b in range(1, N_EXITS + 1)),
    *(f"exit{e}" for e in range(1, N_EXITS + 1)),
    *(f"dec{s}" for s in range(1, N_EXITS)),
)
"""What a server runs: everything but the encoders."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How a server listens and what it takes on.

    Attributes:
        host: name or address to listen on.
        port: TCP port; 0 takes any free one.
        threads: ONNX Runtime's threads for one batch.
        workers: batches computed at once.
        max_batch: most frames in one batch, and in one request.
        max_wait_ms: how long the oldest waiting request may be held back for company while
            a worker is idle; 0 never. A request that finds the server idle never waits.
        queue: most frames waiting; of more, the newest of the client that holds the most are
            refused with RESOURCE_EXHAUSTED.
        metrics_port: HTTP port of the Prometheus metrics; None for none, 0 for any.
        metrics_host: name or address that the metrics listen on; None: as `host`.
        tls: certificate files; None serves in the clear.
        drain_s: how long `stop` lets accepted requests finish.
        direct_calls: serve inference without grpcio's thread pool, where this grpcio can and no
            client names are asked for.
    """

    host: str = "127.0.0.1"
    port: int = 0
    threads: int = 1
    workers: int = 1
    max_batch: int = 8
    max_wait_ms: float = 0.0
    queue: int = 128
    metrics_port: int | None = None
    metrics_host: str | None = None
    tls: ServerTls | None = None
    drain_s: float = 5.0
    direct_calls: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", parse_host(self.host, "server host"))
        if self.metrics_host is not None:
            object.__setattr__(self, "metrics_host", parse_host(self.metrics_host, "metrics host"))
        check_port(self.port, "server port")
        check_port(self.metrics_port or 0, "metrics port")
        for name, low, high in (
            ("threads", 1, 256),
            ("workers", 1, 256),
            ("max_batch", 1, 1024),
            ("max_wait_ms", 0, 1000),
            ("queue", 1, 4096),
            ("drain_s", 0, 3600),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(
                    f"server option {name} = {getattr(self, name)}",
                    expected=f"{low}..{high}",
                    mend="correct the option",
                )


class MecServer:
    """A running server; `start` and `stop` it, or use ``with``.

    Args:
        bundle: model bundle to serve.
        config: how.

    Raises:
        PortInUseError: from `start`, if a port is taken.
        ConfigError: from `start`, if TLS files cannot be used.
    """

    def __init__(self, bundle: Bundle, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self.bundle = bundle
        self.port = 0
        runtime = SplitRuntime(bundle, threads=self.config.threads)
        self.spec = WireSpec.of(bundle.hash, runtime, self.config.max_batch)
        self._runtime = runtime
        self._batcher: Batcher | None = None
        self._endpoint: MetricsEndpoint | None = None
        self._server: Any = None
        self._direct: DirectCalls | None = None
        self.metrics = ServerMetrics(bundle.hash, self._queue_length)
        if self.config.tls is not None:
            self.metrics.certificates(self.config.tls.watch.not_after)

    @property
    def address(self) -> str:
        """``host:port`` it listens on."""
        return join_address(self.config.host, self.port)

    @property
    def metrics_port(self) -> int | None:
        """HTTP port of the metrics, if they are served."""
        return self._endpoint.port if self._endpoint else None

    def start(self) -> MecServer:
        """Load and warm the tails, then listen; returns itself."""
        config = self.config
        check_free(config.host, config.port, what="server")
        credentials = config.tls.credentials() if config.tls else None
        self._runtime.warm(TAIL_SEGMENTS)
        if config.metrics_port is not None:
            host = config.metrics_host or config.host
            self._endpoint = MetricsEndpoint(self.metrics, host, config.metrics_port)
        try:
            self._batcher = batcher = Batcher(
                self._runtime.tail,
                workers=config.workers,
                max_batch=config.max_batch,
                max_wait_ms=config.max_wait_ms,
                queue_limit=config.queue,
                on_batch=self.metrics.batch,
            )
            self._service = InferenceService(
                self.spec, batcher, self.metrics, config.tls.refusal if config.tls else None
            )
            self._health = health.HealthServicer()
            self._server = self._build(credentials, batcher.finishing)
            self._server.start()
            if self._direct is not None:
                self._direct.start()
        except BaseException:
            self._release()
            raise
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return self

    def stop(self, drain_s: float | None = None) -> bool:
        """Refuse new calls, finish accepted ones for at most `drain_s`, free the ports.

        Returns:
            True if every accepted request was answered. Safe to call twice.
        """
        if self._server is None:
            return True
        limit_s = self.config.drain_s if drain_s is None else drain_s
        until_s = time.monotonic() + limit_s
        self._service.ready = False
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(limit_s)  # refuses new calls at once, returns at once
        drained = self._wait_idle(until_s)
        # Health watchers never end by themselves: cut what is left now.
        self._server.stop(0)
        stopped.wait(max(1.0, until_s - time.monotonic()))
        self._release()
        return drained

    def __enter__(self) -> MecServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_idle(self, until_s: float) -> bool:
        drained = self._service.wait_idle(max(0.0, until_s - time.monotonic()))
        if self._direct is not None:
            drained &= self._direct.wait_idle(max(0.0, until_s - time.monotonic()))
        return drained

    def _queue_length(self) -> int:
        return self._batcher.queue_length if self._batcher else 0

    def _build(self, credentials: grpc.ServerCredentials | None, pause: threading.Lock) -> Any:
        config = self.config
        # As many calls as there are places in the queue and in the batches, also on one
        # connection; more are refused.
        # Without direct calls each holds one thread (made when first needed) while it waits.
        threads = config.queue + config.workers * config.max_batch + CONTROL_THREADS
        server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="rpc"),
            maximum_concurrent_rpcs=threads,
            options=[
                *_options(self.spec.max_message_bytes, threads),
                *(config.tls.options() if config.tls else ()),
            ],
        )
        server.add_generic_rpc_handlers((self._service.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        address = join_address(config.host, config.port)
        try:
            self.port = (
                server.add_secure_port(address, credentials)
                if credentials
                else server.add_insecure_port(address)
            )
        except RuntimeError as error:
            self.port = 0
            _log.debug("bind failed", exc_info=error)
        if not self.port:
            raise PortInUseError(
                f"server address {address}: gRPC cannot listen there",
                expected="a free port on an address of this machine",
                mend="choose another port (0 takes any free one)",
            )
        if config.direct_calls and not (config.tls and config.tls.client_names):
            self._direct = DirectCalls.attach(
                server, INFER_METHOD, self._service.begin, threads, pause
            )
        return server

    def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE, MODEL_NAME):
            self._health.set(name, status)

    def _release(self) -> None:
        if self._batcher is not None:
            self._batcher.close(timeout_s=1.0)
        if self._direct is not None:
            self._direct.close(timeout_s=1.0)
            self._direct = None
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        self._server = None


def _options(max_message_bytes: int, max_streams: int) -> list[tuple[str, int]]:
    """Channel arguments (https://grpc.github.io/grpc/core/group__grpc__arg__keys.html)."""
    return [
        # Two servers on one port would share its connections without a word.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_concurrent_streams", max_streams),
        # A client keeps to that number by itself, and counts a call as over once it has the
        # answer. By default gRPC goes on counting it until its memory is free, and resets calls
        # in between, which clients meet as a broken connection.
        ("grpc.http.overload_protection", 0),
        # A device that vanished during a call is dropped after 15 s. One without calls is left
        # alone, because a ping would wake its modem, until it has been so for an hour.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.max_connection_idle_ms", 3_600_000),
        ("grpc.http2.bdp_probe", 0),
        # Other clients may ping as often as five times a second.
        ("grpc.http2.min_ping_interval_without_data_ms", 200),
        ("grpc.http2.max_ping_strikes", 0),
    ]
