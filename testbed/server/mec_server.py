"""The MEC server: ONNX Runtime tails behind gRPC, with limits on everything.

Limited are the message (before it is stored), the queue, the batch, the threads, the calls, the
streams of one connection, and how long a vanished client can hold anything.

gRPC's threads accept calls, the batcher's threads compute, and one thread watches that calls are
still answered (`testbed.server.watch`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from numpy.typing import NDArray

from cnn.bundle import Bundle
from cnn.common.errors import in_range
from cnn.ort import CPU_PROVIDER
from cnn.runtime import SplitRuntime
from cnn.topology import Topology
from testbed.server.batching import Batcher
from testbed.server.direct.calls import DirectCalls
from testbed.server.inference_service import (
    CONTROL_CALLS,
    PROBE,
    STREAMS,
    TOLD_LATER,
    InferenceService,
)
from testbed.server.places import Places
from testbed.server.server_metrics import MetricsEndpoint, ServerMetrics
from testbed.server.watch import Watch
from testbed.wire.address import PortInUseError, check_free, check_port, join_address, parse_host
from testbed.wire.protocol import MODEL_NAME, SERVICE, WireSpec
from testbed.wire.tls import ServerTls

INFER_METHOD: Final = f"/{SERVICE}/ModelInfer"
SPARE: Final = 8
"""Additional places and threads, for calls that will be refused."""
WATCHERS: Final = 2
"""Threads for the start of health watchers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Addresses and limits of a server.

    Attributes:
        host: name or address to listen on.
        port: TCP port; 0 takes any free one.
        threads: ONNX Runtime's threads for one batch.
        workers: batches computed at once.
        max_batch: most frames in one batch, and in one request.
        max_wait_ms: how long the oldest waiting request may be held back for a fuller batch while
            a worker is idle; 0 never. A request that finds the server idle never waits.
        queue: most frames waiting; above it, the newest of the client that holds the most are
            refused with RESOURCE_EXHAUSTED.
        metrics_port: HTTP port of the Prometheus metrics; None for none, 0 for any.
        metrics_host: name or address that the metrics listen on; None: as `host`.
        tls: certificate files; None serves without TLS.
        drain_s: time that `stop` gives accepted requests to finish.
        direct_calls: serve inference without grpcio's thread pool, through a private interface of
            grpcio, if this release of it allows that (`testbed.server.direct`).
        providers: ONNX Runtime's execution providers, as `SplitRuntime` takes them.
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
    direct_calls: bool = False
    providers: tuple[str, ...] = (CPU_PROVIDER,)

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
            in_range(f"server option {name} =", getattr(self, name), low, high)


class MecServer:
    """A running server; `start` and `stop` it, or use ``with``.

    Args:
        bundle: model bundle to serve.
        config: settings.

    Raises:
        ConfigError: if the bundle's network cannot be cut, or a full batch is too long.
        PortInUseError: from `start`, if a port is taken.
        ConfigError: from `start`, if TLS files cannot be used.
    """

    def __init__(self, bundle: Bundle, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self.bundle = bundle
        self.port = 0
        runtime = SplitRuntime(bundle, self.config.threads, self.config.providers)
        self.spec = WireSpec(bundle.hash, bundle.topology, self.config.max_batch)
        self._runtime = runtime
        self._batcher: Batcher | None = None
        self._endpoint: MetricsEndpoint | None = None
        self._server: Any = None
        self._direct: DirectCalls | None = None
        self._watch: Watch | None = None
        self._failures: list[str] = []
        self.metrics = ServerMetrics(bundle.hash, self._queue_length)
        if self.config.tls is not None:
            self.metrics.certificates(self.config.tls.watch.not_after)

    @property
    def address(self) -> str:
        """Its listening address, ``host:port``."""
        return join_address(self.config.host, self.port)

    @property
    def metrics_port(self) -> int | None:
        """HTTP port of the metrics, if they are served."""
        return self._endpoint.port if self._endpoint else None

    @property
    def failure(self) -> str | None:
        """Why it cannot go on; None while it can. Health then reports NOT_SERVING, and the owner of
        the process should end it, so that a supervisor starts another."""
        if not self._failures and self._watch is not None and not self._watch.is_alive():
            self.fail("the watch has ended")
        return self._failures[0] if self._failures else None

    def fail(self, why: str) -> None:
        """Record that it cannot go on; any thread may call this. The first reason counts."""
        self._failures.append(why)
        if len(self._failures) == 1:
            with contextlib.suppress(Exception):  # the reason is already stored
                _log.error("the server cannot go on: %s", why)
            self._service.ready = False
            with contextlib.suppress(Exception):  # a watcher that cannot be reached
                self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)

    def start(self) -> Self:
        """Load and warm the tails, then listen; returns itself."""
        config = self.config
        check_free(config.host, config.port, what="server")
        credentials = config.tls.credentials() if config.tls else None
        self._runtime.warm(tail_segments(self.bundle.topology))
        if config.metrics_port is not None:
            host = config.metrics_host or config.host
            self._endpoint = MetricsEndpoint(self.metrics, host, config.metrics_port)
        try:
            self._batcher = Batcher(
                self._tail,
                workers=config.workers,
                max_batch=config.max_batch,
                max_wait_ms=config.max_wait_ms,
                queue_limit=config.queue,
                on_batch=self._on_batch,
                on_death=lambda error: self.fail(f"a computing thread ended: {error!r}"),
            )
            places = config.queue + config.workers * config.max_batch + SPARE
            refusal = config.tls.refusal if config.tls else None
            self._service = InferenceService(
                self.spec, self._batcher, self.metrics, places, refusal
            )
            self._server = self._build(credentials, places)
            if config.direct_calls:
                self._direct = DirectCalls.attach(
                    self._server, INFER_METHOD, self._service, self._batcher.finishing
                )
            self._server.start()
            if self._direct is not None:
                self._direct.start()
            self._set_health(health_pb2.HealthCheckResponse.SERVING)
            self._watch = Watch(self._service, self.fail)
            self._watch.start()
        except BaseException:
            self._release()
            raise
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
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        stopped = self._server.stop(limit_s)  # refuses new calls at once, returns at once
        drained = self._service.wait_idle(max(0.0, until_s - time.monotonic()))
        # Health watchers never end by themselves: end the remaining ones now.
        self._server.stop(0)
        stopped.wait(max(1.0, until_s - time.monotonic()))
        self._release()
        return drained and not self._failures

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _queue_length(self) -> int:
        return self._batcher.queue_length if self._batcher else 0

    def _tail(
        self, payload: NDArray[np.uint8], exit: int, split: int
    ) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        if (exit, split) == PROBE:
            return np.zeros(len(payload), np.int16), np.zeros(len(payload), np.float32)
        return self._runtime.tail(payload, exit, split)

    def _on_batch(
        self, exit: int, split: int, wait_ms: float, compute_ms: float, frames: int
    ) -> None:
        if (exit, split) != PROBE:
            self.metrics.batch(exit, split, wait_ms, compute_ms, frames)

    def _build(self, credentials: grpc.ServerCredentials | None, places: int) -> Any:
        config = self.config
        # Every running call holds one thread (made when first needed), and can do so only in a
        # place of its kind; so there is always a thread for a new call.
        threads = 2 * (places + CONTROL_CALLS + STREAMS) + TOLD_LATER + SPARE
        pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="rpc")
        options = _options(self.spec.max_message_bytes, threads)
        options += config.tls.options() if config.tls else ()
        server = grpc.server(pool, options=options)
        server.add_generic_rpc_handlers((self._service.handlers(), self._health_handlers()))
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            _Reflection(self._service.stream_places), server
        )
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
                hint="choose another port (0 takes any free one)",
            )
        if self._service.own_address is not None:
            server.add_insecure_port(self._service.own_address)
        return server

    def _health_handlers(self) -> grpc.GenericRpcHandler:
        # A watcher holds one of these threads until its request has arrived, and none after that.
        self._health = health.HealthServicer(
            experimental_thread_pool=futures.ThreadPoolExecutor(WATCHERS, "watchers")
        )
        request, response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        return grpc.method_handlers_generic_handler(
            health.SERVICE_NAME,
            {
                "Check": self._service.asked(self._health.Check, request, guarded=False),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._health.Watch, request.FromString, response.SerializeToString
                ),
            },
        )

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


def tail_segments(topology: Topology) -> tuple[str, ...]:
    """The parts of a bundle that a server runs: what comes after the first split, and decoders."""
    first = min(topology.splits)
    return (
        *(f"block{b}" for b in range(first + 1, topology.n_blocks + 1)),
        *(f"exit{e}" for e in topology.exits if e > first),
        *(f"dec{s}" for s in topology.splits if s > 0),
    )


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]
    """Reflection whose streams end: each holds a thread."""

    def __init__(self, places: Places) -> None:
        super().__init__((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME))
        self._places = places

    def ServerReflectionInfo(  # noqa: N802  (the protocol's name)
        self, request_iterator: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        if self._places.enter(context) is None:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams; try again later")
        yield from super().ServerReflectionInfo(request_iterator, context)


def _options(max_message_bytes: int, max_streams: int) -> list[tuple[str, int]]:
    """Channel arguments (https://grpc.github.io/grpc/core/group__grpc__arg__keys.html)."""
    return [
        # Two servers on one port would silently share its connections.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_concurrent_streams", max_streams),
        # A client keeps to that number by itself, and counts a call as over once it has the
        # answer. By default gRPC counts the call until its memory is free, and resets calls in
        # between; clients then see a broken connection.
        ("grpc.http.overload_protection", 0),
        # A device that vanished during a call is dropped after 15 s. A connection without calls is
        # left alone for an hour, because a ping would wake its modem.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.max_connection_idle_ms", 3_600_000),
        ("grpc.http2.bdp_probe", 0),
        # Other clients may ping as often as five times a second.
        ("grpc.http2.min_ping_interval_without_data_ms", 200),
        ("grpc.http2.max_ping_strikes", 0),
    ]
