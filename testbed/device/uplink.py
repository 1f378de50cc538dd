"""The device's way to the server: sending, giving up, and asking for a sign of life.

What an exchange teaches is noted in the frame's `lessons` and learnt later, while the device
has time for it.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cnn.action import Action
from cnn.frame_codec import FrameCodec, FrameEncoding
from cnn.runtime import Features, SplitRuntime
from testbed.clock import wait_until
from testbed.decide.observation import Observer
from testbed.device.breaker import CircuitBreaker
from testbed.device.device_config import DeviceConfig
from testbed.device.probing import Prober
from testbed.device.processor import Processor
from testbed.device.work import Work
from testbed.wire.client import ExchangeFailed, Reply
from testbed.wire.overhead import ENCODING_OVERHEAD_BYTES, WIRE_OVERHEAD_BYTES


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
        """A small exchange, its time; raises `ExchangeFailed` if it is not answered."""
        ...


class Uplink:
    """Exchanges of one device with its server.

    Args:
        client: connection to the server; None is no server.
        runtime: makes the payloads.
        observer: learns from exchanges.
        processor: runs what the device computes.
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
        """Start a new drive: nothing was sent, the breaker and the probes begin anew."""
        self.exchange_end_s = -np.inf
        self._prober = Prober(self._config.probe_plan())
        self._breaker = CircuitBreaker(
            self._config.breaker_failures,
            self._config.breaker_backoff_ms / 1e3,
            np.random.default_rng(self._config.seed),
        )

    def follow(self, config: DeviceConfig) -> None:
        """Take the time-out of other settings from now on; breaker and probes stay."""
        self._config = config

    @property
    def probe_bytes(self) -> int:
        """What one probe puts on the uplink, framing included."""
        return self._prober.plan.sent_bytes

    def while_idle(self, work: Work | None, when_s: float, stop: threading.Event) -> None:
        """Probe, if that is due or worth it, before the device is needed at `when_s`."""
        now_s = time.monotonic()
        if self._client is None:
            return
        if self._breaker.probe_due(now_s):
            self._probe(self._client, work, now_s)
        elif work is not None and not self._breaker.is_open:
            self._refresh(self._client, work, when_s, stop)

    def offload(
        self, work: Work, action: Action, x: Features, patience_ms: float, rest_ms: float
    ) -> bool:
        """Encode, send, wait at most `patience_ms`; True if an answer came.

        Args:
            work: the frame.
            action: where it is sent from, and to which exit.
            x: the features to send.
            patience_ms: longest wait.
            rest_ms: what an emulated device takes from here to the hand-over.
        """
        client = self._client
        if client is None or self._breaker.is_open:
            work.reason = "no server" if client is None else "breaker open"
            return False
        payload, encoding = self._payload(work, action.split, x, rest_ms)
        sent_s = time.monotonic()
        try:
            work.reply = client.infer(payload, action.exit, action.split, patience_ms, encoding)
        except ExchangeFailed as error:
            work.reason = error.reason
        done_s = time.monotonic()
        self._processor.resume(done_s)
        if work.reply is None:
            self._account(work, payload.nbytes, encoding, sent_s, done_s)
            self._breaker.failure(done_s)
            work.lessons.append(partial(self._observer.record_failure, done_s))
            return False
        # The answer is here, and nothing else may delay it: the books are kept later.
        work.lessons.append(
            partial(self._accept, work, work.reply, payload.nbytes, encoding, sent_s, done_s)
        )
        return True

    def _payload(
        self, work: Work, split: int, x: Features, rest_ms: float
    ) -> tuple[NDArray[np.uint8], FrameCodec]:
        """What crosses the uplink, and how the frame is encoded: raw if that is no longer."""
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

    def _account(
        self, work: Work, payload_bytes: int, encoding: FrameCodec, sent_s: float, done_s: float
    ) -> None:
        """Write down an exchange, answered or not."""
        extra_bytes = 0 if encoding == "raw" else ENCODING_OVERHEAD_BYTES
        work.sent_bytes += payload_bytes + WIRE_OVERHEAD_BYTES + extra_bytes
        work.uplink_bytes = payload_bytes
        work.wait_ms += (done_s - sent_s) * 1e3
        work.exchanges.append((sent_s, done_s))
        self.exchange_end_s = done_s

    def _accept(
        self,
        work: Work,
        reply: Reply,
        payload_bytes: int,
        encoding: FrameCodec,
        sent_s: float,
        done_s: float,
    ) -> None:
        """Take an answer and learn from it."""
        self._account(work, payload_bytes, encoding, sent_s, done_s)
        self._breaker.success()
        work.transfer_ms, work.exit_used = reply.transfer_ms, 0
        work.prediction, work.confidence = int(reply.prediction), float(reply.confidence)
        self._observer.record_transfer(done_s, work.sent_bytes, reply.transfer_ms)
        self._observer.record_server(done_s, reply.server_queue_ms)

    def _probe(self, client: Exchanger, work: Work | None, now_s: float) -> None:
        """Ask the server for a sign of life before it is trusted again.

        Mostly answered before the next capture. An unanswered probe delays the next frame
        by at most the time-out, once in a back-off; without it a device that has no idle
        time would never come back.
        """
        try:
            client.probe(timeout_ms=self._config.timeout_ms)
            self._breaker.success()
        except ExchangeFailed:
            self._breaker.probe_failed(time.monotonic())
        self.exchange_end_s = time.monotonic()
        if work is not None:
            work.exchanges.append((now_s, self.exchange_end_s))

    def _refresh(self, client: Exchanger, work: Work, when_s: float, stop: threading.Event) -> None:
        """Probe the link while nothing is to be done until `when_s`, if that is worth it.

        An unanswered probe that had less time than a frame's exchange would have teaches
        nothing: such an exchange might still have been answered.
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
