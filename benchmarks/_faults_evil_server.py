"""Servers that speak the protocol and cannot be trusted: live but deaf, or lying.

`EvilServer` listens like a MEC server and says that it is live and has the bundle; what it makes of
an inference is its ``kind``. Right in form and wrong in substance, so that only a check of the
substance can tell; every lie carries `MARK` as its confidence where that is not itself the lie.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from types import TracebackType
from typing import Any, Final, Self

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from cnn.bundle import load_bundle
from testbed.wire.messages import MODEL_NAME, OUTPUTS, SERVICE

MARK: Final = 0.734375
"""A share that float32 holds exactly, and no calibrated softmax meets by chance."""
LONG_MS: Final = 30_000.0
KINDS: Final = ("class", "negative class", "times", "queue time", "share", "nan", "id")
N_CLASSES: Final = load_bundle().config.n_classes


class EvilServer:
    """Listens on `port` until the context is left.

    Args:
        kind: ``deaf`` (live, but an inference is never answered) or one of `KINDS`.
        port: TCP port; 0 takes any free one.
    """

    def __init__(self, kind: str, port: int = 0) -> None:
        self.kind, self.answers = kind, 0
        self._let_go = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 0)]
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go.set()
        self._server.stop(0).wait(5)

    def _handlers(self) -> grpc.GenericRpcHandler:
        live = pb.ServerLiveResponse(live=True).SerializeToString()
        ready = pb.ServerReadyResponse(ready=True).SerializeToString()
        about = pb.ModelMetadataResponse(name=MODEL_NAME, versions=[load_bundle().hash])
        about_bytes = about.SerializeToString()
        methods: dict[str, Callable[[bytes, grpc.ServicerContext], bytes]] = {
            "ServerLive": lambda data, context: live,
            "ServerReady": lambda data, context: ready,
            "ModelReady": lambda data, context: ready,
            "ModelMetadata": lambda data, context: about_bytes,
            "ModelInfer": self._infer,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {name: grpc.unary_unary_rpc_method_handler(m) for name, m in methods.items()},
        )

    def _infer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        if self.kind == "deaf":
            over = threading.Event()
            context.add_callback(over.set)
            while not over.wait(0.05) and not self._let_go.is_set():
                pass
            return b""
        self.answers += 1
        lie: bytes = evil_answer(self.kind, pb.ModelInferRequest.FromString(data))
        return lie


def evil_answer(kind: str, request: Any) -> bytes:
    """Bytes of an answer to `request` that is right in form, and a lie of that kind."""
    answer = pb.ModelInferResponse(model_name=MODEL_NAME, id=request.id)
    if kind == "id":
        answer.id = f"{request.id}0" if request.id else "another"
    values = {"server_queue_ms": 0.01, "server_ms": 0.01, "server_wait_ms": 0.01}
    values["server_ms"] = LONG_MS if kind == "times" else 0.01
    values["server_queue_ms"] = LONG_MS if kind == "queue time" else 0.01
    for name, value in values.items():
        answer.parameters[name].double_param = value
    answer.parameters["queue_length"].int64_param = 0
    prediction = {"class": N_CLASSES, "negative class": -1}.get(kind, 0)
    confidence = {"share": 1.5, "nan": float("nan")}.get(kind, MARK)
    contents = (np.array([prediction], "<i2"), np.array([confidence], "<f4"))
    for name, content in zip(OUTPUTS, contents, strict=True):
        answer.outputs.add(name=name, datatype=OUTPUTS[name], shape=[1])
        answer.raw_output_contents.append(content.tobytes())
    data: bytes = answer.SerializeToString()
    return data


def is_lie(row: dict[str, Any]) -> bool:
    """Whether a record's row holds an evil server's answer as if it were one."""
    if row["status"] != "ok" or row["prediction"] is None:
        return False
    share = row["confidence"]
    of_class = 0 <= row["prediction"] < N_CLASSES
    return share == MARK or not (0 <= share <= 1) or not of_class
