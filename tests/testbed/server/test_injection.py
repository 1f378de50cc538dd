"""An error anywhere inside the server: it answers again, or says that it cannot go on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cnn.bundle import load_bundle
from cnn.runtime import SplitRuntime
from testbed.server import (
    batching,
    fair_queue,
    inference_service,
    mec_server,
    places,
    server_metrics,
    watch,
)
from testbed.server.direct import calls
from testbed.server.mec_server import MecServer, ServerConfig
from testbed.wire.client import ExchangeFailed, MecClient
from testbed.wire.requests import build_request

pytestmark = pytest.mark.slow(35)

BUNDLE = load_bundle()
RUNTIME = SplitRuntime(BUNDLE)
DATA = np.random.default_rng(0).integers(0, 256, (1, *RUNTIME.wire_shape(4)), dtype=np.uint8)
RIGHT = int(RUNTIME.tail(DATA, 5, 4)[0][0])
INFER = "/inference.GRPCInferenceService/ModelInfer"

POINTS: dict[str, list[tuple[Any, str]]] = {
    "both": [
        (inference_service, "parse_request"),
        (inference_service, "build_response"),
        (inference_service.InferenceService, "refused"),
        (inference_service, "_job"),
        (inference_service, "Job"),
        (inference_service.InferenceService, "begin"),
        (inference_service.InferenceService, "tend"),
        (inference_service.InferenceService, "_outcome"),
        (server_metrics.ServerMetrics, "outcome"),
        (server_metrics.ServerMetrics, "batch"),
        (places.Places, "enter"),
        (places.Places, "heard"),
        (places.Places, "leave"),
        (batching.Batcher, "submit"),
        (batching.Batcher, "withdraw"),
        (batching.Batcher, "_put"),
        (batching.Batcher, "_take"),
        (batching.Batcher, "_take_now"),
        (batching.Batcher, "_run_batch"),
        (batching.Batcher, "_still_wanted"),
        (batching.Batcher, "_compute_batch"),
        (fair_queue.Job, "finish"),
        (fair_queue.Job, "expired"),
        (mec_server.MecServer, "_on_batch"),
        (SplitRuntime, "tail"),
        (watch.Watch, "_answers"),
        (watch.Watch, "_trouble"),
        (watch.Watch, "run"),
    ],
    "pool": [
        (inference_service.InferenceService, "_message"),
        (inference_service.InferenceService, "_waited"),
        (inference_service, "_told"),
    ],
    "direct": [
        (calls.DirectCalls, "_request"),
        (calls.DirectCalls, "_arrived"),
        (calls._Call, "__init__"),
        (calls._Call, "receive"),
        (calls._Call, "send"),
        (calls._Call, "_received"),
        (calls._Call, "_begun"),
        (calls._Call, "_closed"),
        (calls._Call, "_cancelled"),
        (calls._Call, "_sent"),
        (calls._Call, "_leave"),
    ],
}


def _cases() -> Iterator[Any]:
    for direct in (False, True):
        own = "direct" if direct else "pool"
        for owner, name in POINTS["both"] + POINTS[own]:
            where = f"{own}-{owner.__name__.rpartition('.')[2]}.{name}"
            yield pytest.param(direct, owner, name, id=where)


def break_once(patch: pytest.MonkeyPatch, owner: Any, name: str) -> threading.Event:
    """Let the next call of a function raise MemoryError; set once it has."""
    true, raised = getattr(owner, name), threading.Event()

    def broken(*args: Any, **more: Any) -> Any:
        if not raised.is_set():
            raised.set()
            raise MemoryError("injected")
        return true(*args, **more)

    patch.setattr(owner, name, broken)
    return raised


def answered(address: str, timeout_ms: float = 1000) -> bool:
    with MecClient(address, BUNDLE.hash) as client:
        try:
            return bool(client.infer(DATA, 5, 4, timeout_ms=timeout_ms).prediction == RIGHT)
        except ExchangeFailed:
            return False


def settled(server: MecServer, limit_s: float = 20.0) -> str:
    """``answers`` (three in a row) or ``says so``, whichever comes first; else ``deaf``."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        if server.failure is not None:
            return "says so"
        if all(answered(server.address) for _ in range(3)):
            return "answers"
    return "deaf"


def status(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return int(check(health_pb2.HealthCheckRequest(), timeout=10).status)


def mix(address: str) -> None:
    """A good call, one that is none, one cancelled, one whose deadline passes."""
    answered(address, 200)
    request = build_request(BUNDLE.hash, 5, 4, DATA.shape)
    request.raw_input_contents[0] = DATA.tobytes()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)
        calls = [call.future(b"none", timeout=0.2), call.future(b"", timeout=0.0005)]
        calls.append(call.future(request.SerializeToString(), timeout=0.2))
        calls[-1].cancel()
        for one in calls:
            one.code()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("direct", "owner", "name"), list(_cases()))
def test_never_deaf(direct: bool, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if owner is watch.Watch and name == "run":
        break_once(monkeypatch, owner, name)
    server = MecServer(BUNDLE, ServerConfig(direct_calls=direct, drain_s=1)).start()
    try:
        assert (server.failure is not None) or answered(server.address, 20_000)
        break_once(monkeypatch, owner, name)
        mix(server.address)
        found = settled(server)
        assert found in ("answers", "says so")
        if found == "says so":
            assert status(server.address) == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        monkeypatch.undo()
        stopper = threading.Thread(target=server.stop, daemon=True)
        stopper.start()
        stopper.join(30)
    assert not stopper.is_alive()  # draining ends


def test_a_server_that_answers_nothing_exits_with_70() -> None:
    serve = (
        "import typer; from cnn.common.console import run_app;"
        "from testbed.cli.serve_command import serve;"
        "from testbed.server.inference_service import InferenceService as service;"
        "service.begin = lambda *_: lambda: None;"
        "app = typer.Typer(); app.command()(serve); run_app(app)"
    )
    done = subprocess.run(
        [sys.executable, "-c", serve, "--port", "0"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 70
    assert "\nerror: the server cannot go on: it has answered nothing for" in done.stderr


@pytest.mark.parametrize("direct", [False, True], ids=["pool", "direct"])
def test_idle_calls_of_three_connections_turn_nobody_away(direct: bool) -> None:
    release = threading.Event()

    def never() -> Iterator[bytes]:
        release.wait(60)
        yield from ()

    options = [("grpc.use_local_subchannel_pool", 1)]
    with MecServer(BUNDLE, ServerConfig(direct_calls=direct)) as server:
        channels = [grpc.insecure_channel(server.address, options) for _ in range(3)]
        for channel in channels:
            for _ in range(64):
                channel.stream_unary(INFER).future(never(), timeout=60)
        time.sleep(1)
        with MecClient(server.address, BUNDLE.hash) as client:
            client.connect(20)
            for _ in range(100):
                assert client.infer(DATA, 5, 4, timeout_ms=20_000).prediction == RIGHT
        release.set()
        for channel in channels:
            channel.close()


def test_open_streams_of_reflection_do_not_block_metadata() -> None:
    release = threading.Event()

    def never() -> Iterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        release.wait(60)

    with MecServer(BUNDLE) as server, grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        streams = [stub.ServerReflectionInfo(never(), timeout=60)]
        next(streams[0])  # before the others, of which the server refuses some
        streams += [stub.ServerReflectionInfo(never(), timeout=60) for _ in range(99)]
        metadata = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
        for _ in range(20):
            assert metadata(b"", timeout=20)
        assert answered(server.address, 20_000)
        release.set()
        for stream in streams:
            stream.cancel()
