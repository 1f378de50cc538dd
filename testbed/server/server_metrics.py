"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from testbed.wire.address import check_free, parse_host

LATENCY_BUCKETS_S: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0,
)  # fmt: skip
BATCH_BUCKETS: Final = (*range(1, 17), 32, 64, 128)
"""Exact up to 16 frames, so that `benchmarks/server_throughput.py` can replay the batches."""


class ServerMetrics:
    """Counters of one server; cheap enough to be kept even if they are not read.

    Args:
        bundle_hash: shown as a label of ``sliproad_info``.
        queue_length: called at every scrape.
    """

    def __init__(self, bundle_hash: str, queue_length: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "sliproad_requests",
            "Inference requests by outcome (ok, invalid, bundle, model, refused, expired, "
            "cancelled, denied, failed).",
            ["outcome"],
            registry=self.registry,
        )
        self._outcomes: dict[str, Counter] = {}
        self._tails: dict[tuple[int, int], tuple[Counter, Histogram]] = {}
        self._frames = Counter(
            "sliproad_frames",
            "Frames computed.",
            ["exit", "split"],
            registry=self.registry,
        )
        self._compute = Histogram(
            "sliproad_batch_compute_seconds",
            "Decoder and tail of one batch.",
            ["exit", "split"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._wait = Histogram(
            "sliproad_queue_wait_seconds",
            "Mean wait of a batch's requests.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._batch = Histogram(
            "sliproad_batch_frames",
            "Frames computed together.",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        Gauge("sliproad_queue_length", "Requests waiting.", registry=self.registry).set_function(
            queue_length
        )
        Gauge("sliproad_info", "Always 1.", ["bundle_hash"], registry=self.registry).labels(
            bundle_hash
        ).set(1)

    def outcome(self, name: str) -> None:
        """Count one finished request."""
        counter = self._outcomes.get(name)
        if counter is None:  # a label lookup costs more than counting
            counter = self._outcomes[name] = self._requests.labels(name)
        counter.inc()

    def batch(self, exit: int, split: int, wait_ms: float, compute_ms: float, frames: int) -> None:
        """Count one computed batch (the batcher's ``on_batch``)."""
        children = self._tails.get((exit, split))
        if children is None:
            children = self._frames.labels(exit, split), self._compute.labels(exit, split)
            self._tails[exit, split] = children
        children[0].inc(frames)
        children[1].observe(compute_ms / 1e3)
        self._wait.observe(wait_ms / 1e3)
        self._batch.observe(frames)

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """A gauge ``sliproad_<name>`` whose value is read at every scrape."""
        Gauge(f"sliproad_{name}", meaning, registry=self.registry).set_function(value)

    def certificates(self, ends: Callable[[], dict[str, float]]) -> None:
        """Show when the certificates in use end (`TlsWatch.not_after`)."""
        watch_certificates(self.registry, "sliproad_certificate_not_after_timestamp_seconds", ends)

    def value(self, name: str, **labels: str) -> float:
        """Current value of a sample such as ``sliproad_requests_total``; 0 if never set."""
        return self.registry.get_sample_value(name, labels) or 0.0


def watch_certificates(
    registry: CollectorRegistry, name: str, ends: Callable[[], dict[str, float]]
) -> None:
    """A gauge of Unix times by file, read at every scrape.

    Args:
        registry: receives the gauge.
        name: of the gauge.
        ends: name of each file, and its end of validity, in seconds.
    """
    registry.register(_CertificateEnds(name, ends))


class _CertificateEnds(Collector):
    def __init__(self, name: str, ends: Callable[[], dict[str, float]]) -> None:
        self._name, self._ends = name, ends

    def collect(self) -> Iterator[Metric]:
        meaning = "When the TLS certificates in use end, as Unix time; of authorities, the last."
        gauge = GaugeMetricFamily(self._name, meaning, labels=["file"])
        for file, end_s in self._ends().items():
            gauge.add_metric([file], end_s)
        yield gauge


class HasRegistry(Protocol):
    """Metrics of a server or of a device."""

    registry: CollectorRegistry


class MetricsEndpoint:
    """Serves the registry over HTTP at ``http://host:port/metrics``; close it or use ``with``.

    Raises:
        ConfigError: if host or port is invalid.
        PortInUseError: if the port is taken.
    """

    def __init__(self, metrics: HasRegistry, host: str, port: int) -> None:
        host = parse_host(host, "metrics host")
        check_free(host, port, what="metrics")
        self._server, self._thread = start_http_server(port, host, registry=metrics.registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
