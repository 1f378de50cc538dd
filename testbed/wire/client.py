"""The device's end of the wire: one connection, one exchange at a time, failures reported at once.

The circuit breaker and the decision when to probe belong to the device loop; this class only
reports the outcome. An answer after its time-out is never returned. An answer that cannot be true
(to another request, or with times longer than the exchange itself) is refused.
"""

from __future__ import annotations

import base64
import itertools
import logging
import random
import time
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from cnn.common.errors import RemoteError
from cnn.frame_codec import FrameCodec
from testbed.wire.address import join_address, parse_address
from testbed.wire.certificates import TlsWatch
from testbed.wire.connection import Connection, why_tls_fails
from testbed.wire.protocol import (
    CLOCK_TOLERANCE_MS,
    MODEL_NAME,
    SERVICE,
    Answer,
    WireError,
    check_live,
    check_metadata,
    parse_response,
    printable,
    probe_message,
)
from testbed.wire.requests import build_request, id_field
from testbed.wire.tls import TlsFiles, channel_credentials

Reason = Literal["timeout", "refused", "unavailable", "rejected", "bad answer"]

REASONS: Final[dict[grpc.StatusCode, Reason]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "refused",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.CANCELLED: "unavailable",
}
"""Failure reason of each status; every other status is ``rejected``."""

INFER: Final = f"/{SERVICE}/ModelInfer"
LIVE: Final = f"/{SERVICE}/ServerLive"
METADATA: Final = f"/{SERVICE}/ModelMetadata"
_IDS: Final = 2**24
"""Number of request ids before they repeat: four characters of base 64, six bytes of a message."""
_ASK_METADATA: Final = pb.ModelMetadataRequest(name=MODEL_NAME).SerializeToString()

CONNECT_RETRY_S: Final = 0.05
RENEW_S: Final = 5.0
RENEW_PAUSE_S: Final = 30.0
MAX_RENEW_PAUSE_S: Final = 3600.0
MAX_REPLY_BYTES: Final = 65_536

_log = logging.getLogger(__name__)


class ExchangeFailed(RemoteError):  # noqa: N818 - an outcome the device expects and handles
    """No usable answer: the device finishes the frame itself.

    Attributes:
        reason: ``timeout`` (no answer in time), ``refused`` (the server is full),
            ``unavailable`` (no connection, or it broke), ``rejected`` (the server refused the
            request as wrong, or failed) or ``bad answer`` (the answer failed the device's check).
        elapsed_ms: from the start of the exchange until the failure was known.
    """

    def __init__(self, reason: Reason, detail: str, elapsed_ms: float) -> None:
        super().__init__(
            f"exchange failed ({reason}) after {elapsed_ms:.1f} ms: {detail}",
            expected="an answer of the MEC server in time",
            hint="finish the frame on the device",
        )
        self.reason: Reason = reason
        self.elapsed_ms = elapsed_ms


@dataclass(frozen=True, slots=True)
class Reply:
    """An answered exchange.

    Attributes:
        prediction: class.
        confidence: calibrated probability of that class.
        server_queue_ms: wait at the server, as reported by it.
        server_ms: decoder and tail at the server, as reported by it.
        server_wait_ms: expected wait of a new request, as reported by it.
        queue_length: requests waiting at the server when it answered.
        uplink_bytes: payload bytes handed to the transport.
        message_bytes: the whole request message (payload, parameters, shape).
        downlink_bytes: the answer message.
        transfer_ms: `total_ms` less the server's two times.
        total_ms: from the hand-over of the request until the answer is checked.
    """

    prediction: int
    confidence: float
    server_queue_ms: float
    server_ms: float
    server_wait_ms: float
    queue_length: int
    uplink_bytes: int
    message_bytes: int
    downlink_bytes: int
    transfer_ms: float
    total_ms: float


class MecClient:
    """Connection to one MEC server. It has one frame exchange at a time; a probe may run in
    parallel in another thread.

    Args:
        target: ``host:port`` (`testbed.wire.address`).
        bundle_hash: full hash of the device's bundle.
        tls: certificate files; None connects without TLS.

    Attributes:
        tls_watch: the files' contents in use; None without TLS.

    Raises:
        ConfigError: if the target is not an address, or a TLS file cannot be used.
    """

    def __init__(self, target: str, bundle_hash: str, tls: TlsFiles | None = None) -> None:
        self.target = target = join_address(*parse_address(target, "server address"))
        self.bundle_hash = bundle_hash
        self._tls = tls
        options: list[tuple[str, Any]] = [("grpc.max_receive_message_length", MAX_REPLY_BYTES)]
        if tls is not None and tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        self.tls_watch = None if tls is None else TlsWatch(tls)
        self._renew_s: float | None = None
        self._renew_pause_s = RENEW_PAUSE_S
        credentials = self.tls_watch and channel_credentials(self.tls_watch.load())
        self._connection = Connection(target, credentials, tuple(options))
        self._requests: dict[tuple[int, int, FrameCodec], Any] = {}
        # Devices that start together must not use the same ids: answers must not be confused.
        self._ids = itertools.count(random.SystemRandom().randrange(_IDS))

    def use_bundle(self, bundle_hash: str) -> None:
        """Use another bundle in requests from now on; call it between two exchanges."""
        self.bundle_hash = bundle_hash
        self._requests = {}

    def connect(self, timeout_s: float, bundle_hash: str | None = None) -> None:
        """Wait for the server and check that it has our bundle.

        Args:
            timeout_s: how long.
            bundle_hash: the bundle to ask for instead of ours, before a change to it; such a call
                may come from another thread.

        Raises:
            RemoteError: if no server answers within `timeout_s`, or it has another bundle.
        """
        until_s = time.monotonic() + timeout_s
        wanted, detail, lost = bundle_hash or self.bundle_hash, "no answer", False
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                answer = self._connection.call(METADATA, _ASK_METADATA, left_s)
                return check_metadata(pb.ModelMetadataResponse.FromString(answer), wanted)
            except DecodeError:
                detail = "an answer that is no ModelMetadataResponse"
                break
            except grpc.RpcError as error:
                code = _code(error)
                if code is not grpc.StatusCode.DEADLINE_EXCEEDED:  # the last try may be cut short
                    detail = _detail(error)
                    lost = REASONS.get(code) == "unavailable"
                if REASONS.get(code) is None:
                    break
                time.sleep(min(CONNECT_RETRY_S, max(0.0, until_s - time.monotonic())))
        expected = f"a server of bundle {wanted[:12]} within {timeout_s:g} s"
        why = why_tls_fails(self.target, self._tls) if lost else None
        if why is not None:
            raise RemoteError(
                f"TLS: {why.reason}; MEC server {self.target}",
                expected=expected,
                hint=f"{why.hint}, or check address and TLS files",
            )
        raise RemoteError(
            f"MEC server {self.target}: {detail}",
            expected=expected,
            hint="start one with `sliproad testbed serve`, or check address and TLS files",
        )

    def infer(
        self,
        payload: NDArray[np.uint8],
        exit: int,
        split: int,
        timeout_ms: float,
        encoding: FrameCodec = "raw",
    ) -> Reply:
        """Send one frame's payload and wait for its answer.

        Args:
            payload: uint8 (1, ...), as `SplitRuntime.payload` gives it; (n,), the bytes of
                `cnn.frame_codec.FrameEncoding.encode`, if `encoding` is not ``raw``.
            exit: exit wanted.
            split: blocks already run.
            timeout_ms: longest wait for an answer.
            encoding: of the frame; only split 0 may use another than ``raw``.

        Raises:
            ExchangeFailed: if no usable answer came in time.
        """
        began = time.perf_counter()
        raw = payload.tobytes()
        request_id = base64.urlsafe_b64encode((next(self._ids) % _IDS).to_bytes(3)).decode()
        data = self._message(payload.shape, raw, exit, split, encoding, request_id)
        try:
            answer_bytes: bytes = self._connection.call(INFER, data, timeout_ms / 1e3)
            answer = parse_response(answer_bytes, 1, request_id, self.bundle_hash)
        except grpc.RpcError as error:
            raise _failure(error, began) from error
        except WireError as error:
            raise _bad(str(error), began) from error
        total_ms = (time.perf_counter() - began) * 1e3
        if total_ms > timeout_ms:
            raise ExchangeFailed("timeout", "the answer came late", total_ms)
        _check_times(answer, total_ms)
        return Reply(
            prediction=int(answer.predictions[0]),
            confidence=float(answer.confidences[0]),
            server_queue_ms=answer.server_queue_ms,
            server_ms=answer.server_ms,
            server_wait_ms=answer.server_wait_ms,
            queue_length=answer.queue_length,
            uplink_bytes=len(raw),
            message_bytes=len(data),
            downlink_bytes=len(answer_bytes),
            transfer_ms=max(0.0, total_ms - answer.server_queue_ms - answer.server_ms),
            total_ms=total_ms,
        )

    def probe(self, timeout_ms: float, padding_bytes: int = 0) -> float:
        """Time of a call that gives the server no work, milliseconds.

        Args:
            timeout_ms: longest wait for an answer.
            padding_bytes: padding of the message, less than 16384.

        Raises:
            ExchangeFailed: as `infer`.
        """
        message = probe_message(padding_bytes)
        began = time.perf_counter()
        try:
            check_live(self._connection.call(LIVE, message, timeout_ms / 1e3))
        except grpc.RpcError as error:
            raise _failure(error, began) from error
        except WireError as error:
            raise _bad(str(error), began) from error
        return (time.perf_counter() - began) * 1e3

    def renew_tls(self, timeout_s: float = RENEW_S) -> bool:
        """Check the TLS files, and connect again if they changed; one other thread may call this.

        The old connection serves until the new one has answered. If that does not answer within
        `timeout_s`, a later call of this method tries again: after `RENEW_PAUSE_S`, and then less
        and less often, because every attempt wakes a modem.

        Returns:
            True if the connection is new (or will be with the next call).
        """
        if self.tls_watch is None:
            return False
        new, now_s = self.tls_watch.look(), time.monotonic()
        if new:
            self._renew_pause_s = RENEW_PAUSE_S
        elif self._renew_s is None or now_s < self._renew_s:
            return False
        credentials = channel_credentials(self.tls_watch.contents)
        try:
            self._connection.renew(credentials, LIVE, probe_message(0), timeout_s)
        except grpc.RpcError as error:
            if new:
                _log.warning("no answer with the new TLS files, trying on: %s", _detail(error))
            self._renew_s = now_s + self._renew_pause_s
            self._renew_pause_s = min(2 * self._renew_pause_s, MAX_RENEW_PAUSE_S)
            return False
        self._renew_s = None
        return True

    def close(self) -> None:
        """Close the connection; a running call ends as ``unavailable``."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _message(
        self,
        shape: tuple[int, ...],
        raw: bytes,
        exit: int,
        split: int,
        encoding: FrameCodec,
        request_id: str,
    ) -> bytes:
        request = self._requests.get((exit, split, encoding))
        if request is None or tuple(request.inputs[0].shape) != shape:
            request = build_request(self.bundle_hash, exit, split, shape, encoding)
            self._requests[exit, split, encoding] = request
        # A message keeps all payloads assigned to it (its arena never shrinks), so each
        # exchange takes a copy of the prepared one, and the copy is freed with its payload.
        message = type(request)()
        message.CopyFrom(request)
        message.raw_input_contents[0] = raw
        data: bytes = message.SerializeToString()
        return id_field(request_id) + data


def _check_times(answer: Answer, total_ms: float) -> None:
    """A server's times are part of the exchange, as the device's own clock measured it."""
    stated_ms = answer.server_queue_ms + answer.server_ms
    if stated_ms > total_ms + CLOCK_TOLERANCE_MS:
        detail = f"server times of {stated_ms:.1f} ms in an exchange of {total_ms:.1f} ms"
        raise ExchangeFailed("bad answer", detail, total_ms)


def _failure(error: grpc.RpcError, began: float) -> ExchangeFailed:
    """The failure of a call that ended with a status other than OK."""
    elapsed_ms = (time.perf_counter() - began) * 1e3
    return ExchangeFailed(REASONS.get(_code(error), "rejected"), _detail(error), elapsed_ms)


def _bad(detail: str, began: float) -> ExchangeFailed:
    """The failure for an invalid answer."""
    return ExchangeFailed("bad answer", detail, (time.perf_counter() - began) * 1e3)


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    code = error.code() if isinstance(error, grpc.Call) else None
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN


def _detail(error: grpc.RpcError) -> str:
    text = error.details() if isinstance(error, grpc.Call) else str(error)
    return printable(" ".join((text or "no details").split())[:300])
