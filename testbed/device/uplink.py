"""The device's uplink to the server: sending, time-outs, and retries in the background.

While the breaker is open the device checks in the background whether the server infers: it sends
the unanswered payload again, and no frame waits for it. The estimator updates of an exchange are
noted in the frame's `pending_updates` and applied later, while the device has time for it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cnn.frame_codec import FrameCodec, FrameEncoding
from cnn.runtime import Features, SplitRuntime
from cnn.topology import Action
from testbed.common.clock import wait_until
from testbed.device.device_config import DeviceConfig
from testbed.device.frame_record import FrameRecord
from testbed.device.link_checks import CircuitBreaker, Prober
from testbed.device.processor import Processor
from testbed.policy.observer import Observer
from testbed.wire.client import ExchangeFailed, Reply
from testbed.wire.protocol import ENCODING_OVERHEAD_BYTES, WIRE_OVERHEAD_BYTES


class Exchanger(Protocol):
    """The part of `testbed.wire.client.MecClient` that the device uses."""

    def infer(
        self,
        payload: NDArray[np.uint8],
        exit: int,
        split: int,
        timeout_ms: float,
        encoding: FrameCodec = "raw",
    ) -> Reply:
        """Send one payload; raises `ExchangeFailed` if no answer comes."""
        ...

    def probe(self, timeout_ms: float, padding_bytes: int = 0) -> float:
        """The time of a small exchange; raises `ExchangeFailed` if it is not answered."""
        ...


@dataclass(slots=True)
class _Sent:
    """A payload that was sent."""

    payload: NDArray[np.uint8]
    action: Action
    encoding: FrameCodec
    bundle_hash: str

    @property
    def bytes(self) -> int:
        """Its bytes on the uplink."""
        extra_bytes = 0 if self.encoding == "raw" else ENCODING_OVERHEAD_BYTES
        return self.payload.nbytes + WIRE_OVERHEAD_BYTES + extra_bytes


@dataclass(slots=True)
class _Trial:
    """An exchange in the background that checks whether the server infers."""

    sent: _Sent
    sent_s: float
    counted_s: float
    """Its time up to here is already in the frames' records."""
    done_s: float | None = None
    reply: Reply | None = None
    reason: str = ""
    finished: threading.Event = field(default_factory=threading.Event)

    def run(self, client: Exchanger, timeout_ms: float, n_classes: int) -> None:
        """Carry it out; raises nothing."""
        sent = self.sent
        try:
            self.reply = _believed(
                client.infer(
                    sent.payload, sent.action.exit, sent.action.split, timeout_ms, sent.encoding
                ),
                n_classes,
            )
        except ExchangeFailed as error:
            self.reason = error.reason
        except ValueError:  # the connection was closed meanwhile
            self.reason = "unavailable"
        finally:
            self.done_s = time.monotonic()
            self.finished.set()


def _believed(reply: Reply, n_classes: int) -> Reply:
    """The reply, if the network has its class; raises `ExchangeFailed` otherwise."""
    if 0 <= reply.prediction < n_classes:
        return reply
    detail = f"class {reply.prediction} of a network of {n_classes}"
    raise ExchangeFailed("bad answer", detail, reply.total_ms)


class Uplink:
    """Exchanges of one device with its server.

    Args:
        client: connection to the server; None is no server.
        runtime: makes the payloads.
        observer: is updated by exchanges.
        processor: runs the device's computations.
        config: settings.

    Attributes:
        exchange_end_s: when the last exchange ended, `time.monotonic`; -inf before the first.
    """

    def __init__(
        self,
        client: Exchanger | None,
        runtime: SplitRuntime,
        observer: Observer,
        processor: Processor,
        config: DeviceConfig,
    ) -> None:
        self._client, self._runtime = client, runtime
        self._observer, self._processor = observer, processor
        self._config = config
        self._encoding = FrameEncoding.parse(config.frame_encoding)
        self.reset()

    def reset(self) -> None:
        """Start a new drive: reset the breaker and the probes, with nothing sent."""
        self.exchange_end_s = -np.inf
        self._unanswered: _Sent | None = None
        self._trial: _Trial | None = None
        self._prober = Prober(self._config.probe_plan())
        self._breaker = CircuitBreaker(
            self._config.breaker_failures,
            self._config.breaker_backoff_ms / 1e3,
            np.random.default_rng(self._config.seed),
        )

    def follow(self, config: DeviceConfig) -> None:
        """Use the time-out of other settings from now on; breaker and probes stay."""
        self._config = config

    @property
    def probe_bytes(self) -> int:
        """Bytes of one probe on the uplink, framing included."""
        return self._prober.plan.sent_bytes

    def while_idle(self, work: FrameRecord | None, when_s: float, stop: threading.Event) -> None:
        """Probe, if that is due or useful, before the device is needed at `when_s`."""
        if self._client is None:
            return
        if self._trial is not None:
            self._follow(self._trial, work)
        if self._breaker.is_open:
            if self._trial is None and self._breaker.probe_due(time.monotonic()):
                self._try_again(self._client)
        elif work is not None:
            self._refresh(self._client, work, when_s, stop)

    def offload(
        self,
        work: FrameRecord,
        action: Action,
        x: Features,
        early_timeout_ms: float,
        rest_ms: float,
    ) -> bool:
        """Encode, send, wait at most `early_timeout_ms`; True if an answer came.

        Args:
            work: the frame.
            action: gives the split and the exit.
            x: the features to send.
            early_timeout_ms: longest wait.
            rest_ms: time of an emulated device from here to the hand-over.
        """
        client = self._client
        if client is None or self._breaker.is_open:
            work.reason = "no server" if client is None else "breaker open"
            return False
        payload, encoding = self._payload(work, action.split, x, rest_ms)
        sent = _Sent(payload, action, encoding, self._runtime.bundle.hash)
        sent_s = time.monotonic()
        try:
            work.reply = _believed(
                client.infer(payload, action.exit, action.split, early_timeout_ms, encoding),
                self._runtime.bundle.config.n_classes,
            )
        except ExchangeFailed as error:
            work.reason = error.reason
        done_s = time.monotonic()
        self._processor.resume(done_s)
        if work.reply is None:
            self._account(work, sent, sent_s, done_s)
            self._breaker.failure(done_s, gone=work.reason == "unavailable")
            self._unanswered = sent
            work.pending_updates.append(partial(self._observer.record_failure, done_s))
            return False
        # The answer is here, and nothing else may delay it: the records are updated later.
        work.pending_updates.append(partial(self._accept, work, work.reply, sent, sent_s, done_s))
        return True

    def _payload(
        self, work: FrameRecord, split: int, x: Features, rest_ms: float
    ) -> tuple[NDArray[np.uint8], FrameCodec]:
        """The payload, and how the frame is encoded: raw if that is no longer."""
        runtime, processor = self._runtime, self._processor
        if split > 0:
            payload, work.encode_ms = processor.run(lambda: runtime.payload(x, split), rest_ms)
            return payload, "raw"
        payload, chosen = runtime.payload(x, 0), self._encoding
        if chosen.codec != "raw":
            encoded, work.encode_ms = processor.run(lambda: chosen.encode(payload[0]), rest_ms)
            if len(encoded) < payload.nbytes:
                return np.frombuffer(encoded, np.uint8), chosen.codec
        else:
            processor.spend(rest_ms)
        return payload, "raw"

    def _account(self, work: FrameRecord, sent: _Sent, sent_s: float, done_s: float) -> None:
        """Record an exchange, answered or not."""
        work.sent_bytes += sent.bytes
        work.uplink_bytes = sent.payload.nbytes
        work.wait_ms += (done_s - sent_s) * 1e3
        work.exchanges.append((sent_s, done_s))
        self.exchange_end_s = done_s

    def _accept(
        self, work: FrameRecord, reply: Reply, sent: _Sent, sent_s: float, done_s: float
    ) -> None:
        """Accept an answer and update the estimates."""
        self._account(work, sent, sent_s, done_s)
        self._breaker.success()
        work.transfer_ms, work.exit_used = reply.transfer_ms, 0
        work.prediction, work.confidence = int(reply.prediction), float(reply.confidence)
        self._observer.record_transfer(done_s, work.sent_bytes, reply.transfer_ms)
        self._observer.record_server(done_s, reply.server_queue_ms)

    def _try_again(self, client: Exchanger) -> None:
        """Send the unanswered payload again, in the background."""
        sent, runtime = self._unanswered, self._runtime
        assert sent is not None  # a failure opened the breaker
        if sent.bundle_hash != runtime.bundle.hash:  # the network was changed meanwhile
            blank = np.zeros((1, *runtime.wire_shape(sent.action.split)), np.uint8)
            sent = self._unanswered = _Sent(blank, sent.action, "raw", runtime.bundle.hash)
        now_s = time.monotonic()
        self._trial = trial = _Trial(sent, now_s, now_s)
        arguments = client, self._config.timeout_ms, runtime.bundle.config.n_classes
        threading.Thread(target=trial.run, args=arguments, name="probe", daemon=True).start()

    def _follow(self, trial: _Trial, work: FrameRecord | None) -> None:
        """Record the background exchange so far, and its outcome."""
        ended = trial.finished.is_set()
        until_s = trial.done_s if ended and trial.done_s is not None else time.monotonic()
        if work is not None:
            work.exchanges.append((trial.counted_s, until_s))
        trial.counted_s = self.exchange_end_s = until_s
        if not ended:
            return
        self._trial, gone = None, trial.reason == "unavailable"
        if work is not None and not gone:
            work.sent_bytes += trial.sent.bytes
        if trial.reply is None:
            self._breaker.probe_failed(trial.sent_s, gone=gone)
            return
        self._breaker.probe_answered()
        self._observer.record_transfer(until_s, trial.sent.bytes, trial.reply.transfer_ms)
        self._observer.record_server(until_s, trial.reply.server_queue_ms)

    def _refresh(
        self, client: Exchanger, work: FrameRecord, when_s: float, stop: threading.Event
    ) -> None:
        """Probe the link if that is useful, while the device is idle until `when_s`.

        An unanswered probe that had less time than a frame's exchange is ignored: such an exchange
        might still have been answered.
        """
        observer, prober, plan = self._observer, self._prober, self._prober.plan
        while True:
            at_s = max(time.monotonic(), prober.due_s(observer.newest_transfer_s))
            expected_ms = observer.expected_transfer_ms(plan.sent_bytes)
            window_ms = prober.window_ms(at_s, when_s, expected_ms)
            if window_ms is None:
                return
            wait_until(at_s, stop)
            if stop.is_set():
                return
            sent_s, limit_ms = time.monotonic(), min(window_ms, self._config.timeout_ms)
            prober.sent(sent_s)
            work.probes += 1
            try:
                took_ms = client.probe(limit_ms, plan.padding_bytes)
                observer.record_transfer(time.monotonic(), plan.sent_bytes, took_ms)
            except ExchangeFailed as error:
                prober.unanswered()
                if error.reason != "timeout" or limit_ms == self._config.timeout_ms:
                    observer.record_failure(time.monotonic())
            self.exchange_end_s = time.monotonic()
            work.sent_bytes += plan.sent_bytes
            work.exchanges.append((sent_s, self.exchange_end_s))
