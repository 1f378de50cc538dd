"""Servers of other networks than the shipped one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from networks import NETWORKS, THREE_EXITS, network_id

from cnn.bundle import Bundle
from cnn.common.errors import ConfigError, RemoteError
from cnn.runtime import SplitRuntime
from cnn.topology import SHIPPED, Topology
from testbed.server.mec_server import MecServer, ServerConfig, tail_segments
from testbed.wire.client import ExchangeFailed, MecClient

MakeBundle = Callable[..., Bundle]
LATE_SPLIT = Topology(4, (1, 3, 4), (2,), ((3, 2, 2),))
"""The device always runs two blocks, so an exit of it is never the server's."""
FORMS = (*NETWORKS, LATE_SPLIT)
IDS = [*map(network_id, NETWORKS), "late-split"]
LONGER = Topology(5, (1, 3, 5), THREE_EXITS.splits, THREE_EXITS.payload_shapes)
"""Its payloads have the shapes of `THREE_EXITS`."""


def work(runtime: SplitRuntime, n: int = 2) -> Iterator[tuple[int, int, np.ndarray, int, float]]:
    """Exit, split, payload and the answer in one process, of every action that sends."""
    size = runtime.bundle.config.input_size
    rng = np.random.default_rng(0)
    for action in runtime.topology.actions:
        if not action.is_local:
            for image in rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8):
                x = runtime.forward(runtime.start(image), 1, action.split)
                payload = runtime.payload(x, action.split)
                yield action.exit, action.split, payload, *runtime.act(image, action)


@pytest.mark.parametrize("topology", FORMS, ids=IDS)
def test_it_answers_every_action_that_sends_as_one_process_does(
    topology: Topology, tiny_bundle: MakeBundle
) -> None:
    bundle = tiny_bundle(topology)
    runtime = SplitRuntime(bundle)
    jobs = list(work(runtime))
    assert {(e, s) for e, s, *_ in jobs} == {
        (e, s) for e in topology.exits for s in topology.splits if s < e
    }

    def run(jobs: list[tuple[int, int, np.ndarray, int, float]]) -> None:
        with MecClient(server.address, bundle.hash) as client:
            client.connect(20)
            for exit, split, payload, prediction, confidence in jobs:
                reply = client.infer(payload, exit, split, timeout_ms=20_000)
                assert reply.prediction == prediction
                assert reply.confidence == pytest.approx(confidence, rel=1e-5)
                assert reply.uplink_bytes == topology.payload_bytes[topology.index(exit, split)]

    config = ServerConfig(max_batch=4, max_wait_ms=5.0)  # so that frames of two clients meet
    with MecServer(bundle, config) as server, ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(run, jobs) for _ in range(3)]:
            done.result()
        assert server.metrics.value("sliproad_requests_total", outcome="ok") == 3 * len(jobs)


@pytest.mark.parametrize("topology", [*FORMS, SHIPPED], ids=[*IDS, "shipped"])
def test_it_loads_what_it_will_run_and_nothing_else(
    topology: Topology, tiny_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(topology)
    used: set[str] = set()
    real = Bundle.segment_bytes

    def segment_bytes(self: Bundle, name: str) -> bytes:
        used.add(name)
        return real(self, name)

    device, server = SplitRuntime(bundle), SplitRuntime(bundle)
    jobs = list(work(device, n=1))
    monkeypatch.setattr(Bundle, "segment_bytes", segment_bytes)
    for exit, split, payload, *_ in jobs:
        server.tail(payload, exit, split)
    assert sorted(used) == sorted(tail_segments(topology))


@pytest.mark.parametrize("other", [THREE_EXITS, LONGER], ids=["same form", "same payloads"])
def test_server_and_device_of_two_bundles_refuse_each_other_though_the_payloads_agree(
    other: Topology, tiny_bundle: MakeBundle
) -> None:
    served, own = tiny_bundle(THREE_EXITS), tiny_bundle(other, n_classes=5)
    assert served.topology.payload_shapes == own.topology.payload_shapes
    with MecServer(served) as server, MecClient(server.address, own.hash) as client:
        with pytest.raises(RemoteError, match=f"expected bundle {own.hash[:12]}") as refused:
            client.connect(20)
        assert served.hash[:12] in str(refused.value)
        with pytest.raises(ExchangeFailed, match=f"expected bundle {served.hash[:12]}") as caught:
            client.infer(np.zeros((1, 3, 2, 2), np.uint8), 3, 2, timeout_ms=20_000)
        assert caught.value.reason == "rejected"
        client.use_bundle(served.hash)
        client.connect(20)
        client.infer(np.zeros((1, 3, 2, 2), np.uint8), 3, 2, timeout_ms=20_000)


def test_a_network_that_cannot_be_cut_is_not_served(tiny_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match="without a split"):
        MecServer(tiny_bundle(Topology(2, (1, 2), (), ())))
