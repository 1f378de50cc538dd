"""A server that is live and of no use: every way of not answering, or of answering wrongly.

It speaks the real protocol over a real socket, says that it is live, ready and ``SERVING``, and
computes real answers; what it then does to them is its mode, which may be changed at any time.
Run it alone with ``python benchmarks/_evil_server.py MODE --port PORT``.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, Final, Self

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

from cnn.bundle import Bundle, load_bundle
from cnn.runtime import SplitRuntime
from testbed.wire.protocol import MODEL_NAME, SERVICE, WireSpec, build_response
from testbed.wire.requests import parse_request

Edit = Callable[[Any], None]


def _output(name: str, values: bytes) -> Edit:
    def edit(answer: Any) -> None:
        at = [tensor.name for tensor in answer.outputs].index(name)
        answer.raw_output_contents[at] = values

    return edit


def _class(number: int) -> Edit:
    return _output("prediction", np.array([number], "<i2").tobytes())


def _confidence(value: float) -> Edit:
    return _output("confidence", np.array([value], "<f4").tobytes())


def _parameter(name: str, kind: str, value: object) -> Edit:
    return lambda answer: setattr(answer.parameters[name], kind, value)


def _field(name: str, value: object) -> Edit:
    return lambda answer: setattr(answer, name, value)


def _no_parameters(answer: Any) -> None:
    answer.parameters.clear()


def _one_output(answer: Any) -> None:
    del answer.outputs[1:]
    del answer.raw_output_contents[1:]


def _output_twice(answer: Any) -> None:
    answer.outputs[1].CopyFrom(answer.outputs[0])
    answer.raw_output_contents[1] = answer.raw_output_contents[0]


def _third_output(answer: Any) -> None:
    answer.outputs.add(name="extra", datatype="FP32", shape=[1])
    answer.raw_output_contents.append(bytes(4))


def _two_frames(answer: Any) -> None:
    for at, tensor in enumerate(answer.outputs):
        tensor.shape[:] = [2]
        answer.raw_output_contents[at] *= 2


WRONG_ANSWERS: Final[dict[str, Edit]] = {
    "no id": _field("id", ""),
    "wrong id": _field("id", "AAAA"),
    "class out of range": _class(43),
    "class 32767": _class(32767),
    "class negative": _class(-1),
    "confidence nan": _confidence(math.nan),
    "confidence inf": _confidence(math.inf),
    "confidence above 1": _confidence(1.01),
    "confidence below 0": _confidence(-0.01),
    "compute longer than the exchange": _parameter("server_ms", "double_param", 60_000.0),
    "queue longer than the exchange": _parameter("server_queue_ms", "double_param", 5_000.0),
    "time negative": _parameter("server_ms", "double_param", -1.0),
    "time nan": _parameter("server_queue_ms", "double_param", math.nan),
    "time inf": _parameter("server_ms", "double_param", math.inf),
    "time as text": _parameter("server_ms", "string_param", "1.0"),
    "wait absurd": _parameter("server_wait_ms", "double_param", 1e9),
    "wait negative": _parameter("server_wait_ms", "double_param", -1e-3),
    "queue length negative": _parameter("queue_length", "int64_param", -1),
    "queue length absurd": _parameter("queue_length", "int64_param", 2**62),
    "queue length true": _parameter("queue_length", "bool_param", True),
    "no parameters": _no_parameters,
    "another model": _field("model_name", "resnet"),
    "another version": _field("model_version", "0" * 64),
    "one output": _one_output,
    "an output twice": _output_twice,
    "a third output": _third_output,
    "two frames": _two_frames,
    "short content": _output("prediction", b"\0"),
    "long content": _output("confidence", bytes(8)),
}
"""Answers to a request that cannot be true: what is done to the true one."""

USELESS: Final = (
    "deaf",  # takes the request and never answers
    "late",  # answers `late_s` after the request
    "garbage",  # bytes that are no message
    "empty",  # a message without content
    "huge",  # 8 MiB
    "bomb",  # 64 MiB of zeros, compressed
    "resets",  # ends the TCP connection on every inference
    "full",  # RESOURCE_EXHAUSTED
    "fails",  # INTERNAL
)
"""Answers that never come, or are no answers."""

HALF: Final = ("every second", "every fifth", "five then deaf")
"""Some true answers between requests that are never answered: each second one is answered, each
fifth one, or five in a row and then five not."""

MODES: Final = ("honest", *USELESS, *WRONG_ANSWERS, *HALF)


class EvilServer:
    """Serves while the context is open.

    Args:
        mode: one of `MODES`.
        port: to listen on; 0 takes a free one.
        bundle: that it claims to have; the shipped one if left out.
        late_s: of the mode ``late``.
        credentials: of TLS; None serves in the clear.

    Attributes:
        mode: may be changed at any time.
        inferences: requests for one that came.
        answers: those that were answered as a server should.
        damage: done to the bytes of every true answer; None leaves them.
    """

    def __init__(
        self,
        mode: str,
        port: int = 0,
        bundle: Bundle | None = None,
        late_s: float = 0.4,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"{mode}; expected one of {', '.join(MODES)}")
        self.mode, self.late_s = mode, late_s
        self.inferences = self.answers = 0
        self.damage: Callable[[bytes], bytes] | None = None
        self._bundle = bundle or load_bundle()
        self._runtime = SplitRuntime(self._bundle)
        self._spec = WireSpec(self._bundle.hash, self._bundle.topology, max_batch=1)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(32))
        methods = {
            "ServerLive": lambda _: pb.ServerLiveResponse(live=True),
            "ServerReady": lambda _: pb.ServerReadyResponse(ready=True),
            "ModelReady": lambda _: pb.ModelReadyResponse(ready=True),
            "ModelMetadata": lambda _: pb.ModelMetadataResponse(
                name=MODEL_NAME, versions=[self._bundle.hash]
            ),
        }
        handlers = {name: _handler(answer) for name, answer in methods.items()}
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._infer)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        inner = "127.0.0.1:0"
        self._relay = _Relay(
            self._server.add_secure_port(inner, credentials)
            if credentials
            else self._server.add_insecure_port(inner),
            port,
        )
        self.port = self._relay.port
        self.target = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        self._relay.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._relay.stop()
        self._server.stop(0).wait(10)

    def _infer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.inferences += 1
            number, mode = self.inferences, self.mode
        if mode in HALF:
            answered = {
                "every second": number % 2 == 0,
                "every fifth": number % 5 == 0,
                "five then deaf": (number - 1) // 5 % 2 == 0,
            }[mode]
            mode = "honest" if answered else "deaf"
        if mode == "deaf":
            self._stopped.wait(context.time_remaining() or 60)
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "")
        elif mode == "late":
            time.sleep(self.late_s)
        elif mode == "resets":
            self._relay.reset()
            context.abort(grpc.StatusCode.UNAVAILABLE, "")  # to nobody
        elif mode == "full":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        elif mode == "fails":
            context.abort(grpc.StatusCode.INTERNAL, "\x1b[2Jfailed\r\n")
        elif mode == "bomb":
            context.set_compression(grpc.Compression.Gzip)
            return bytes(2**26)
        plain = {"garbage": b"\xff" * 90, "empty": b"", "huge": bytes(2**23)}
        return plain[mode] if mode in plain else self._answer(data, mode)

    def _answer(self, data: bytes, mode: str) -> bytes:
        """The true answer, and what the mode does to it."""
        call = parse_request(data, self._spec)
        began = time.perf_counter()
        prediction, confidence = self._runtime.tail(call.payload, call.exit, call.split)
        answer = build_response(
            call,
            np.asarray(prediction, np.int16),
            np.asarray(confidence, np.float32),
            server_queue_ms=0.0,
            server_ms=(time.perf_counter() - began) * 1e3,
            server_wait_ms=0.0,
            queue_length=0,
        )
        if mode in WRONG_ANSWERS:
            WRONG_ANSWERS[mode](answer)
        elif mode == "honest":
            with self._lock:
                self.answers += 1
        message: bytes = answer.SerializeToString()
        return message if self.damage is None else self.damage(message)


class _Relay:
    """Hands TCP connections through to a port, and resets them when told to."""

    def __init__(self, to_port: int, port: int) -> None:
        self._to = ("127.0.0.1", to_port)
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[_Pair] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """End all connections with a TCP reset."""
        with self._lock:
            ended, self._open = self._open, []
        for pair in ended:
            pair.reset()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                pair = _Pair(near, socket.create_connection(self._to))
            except OSError:
                return
            with self._lock:
                self._open.append(pair)


class _Pair:
    """A connection and its way on; both end when one does."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._near, self._far = near, far
        self._lock = threading.Lock()
        self._pumps = 2
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def reset(self) -> None:
        # A closed socket that has no time to linger is reset; it closes once both pumps are done.
        with contextlib.suppress(OSError):
            self._near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._near.shutdown(socket.SHUT_RD)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_RD)
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._pumps -= 1
            if self._pumps == 0:
                self._near.close()
                self._far.close()


def _handler(answer: Callable[[bytes], Any]) -> grpc.RpcMethodHandler:
    def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
        message: bytes = answer(data).SerializeToString()
        return message

    return grpc.unary_unary_rpc_method_handler(handle)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with EvilServer(options.mode, options.port) as server:
        print(server.target, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
