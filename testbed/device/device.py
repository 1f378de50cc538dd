"""The device: observe, decide, compute, send, receive, measure; one frame at a time.

The rules are those of "One frame on the device" in ``docs/architecture.md``; the simulator
follows the same. A frame is never lost to the network: if no answer comes, the device
goes on from the block where it stands.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cnn.action import N_EXITS, Action, action_from_index
from cnn.errors import ConfigError
from cnn.features import frame_features
from cnn.frame_codec import FrameCodec, FrameEncoding
from cnn.runtime import Features, SplitRuntime
from testbed.clock import wait_until
from testbed.decide.feedback import Feedback, Learner
from testbed.decide.observation import FIELDS, Observer, scale_one
from testbed.decide.staged_policy import AnyPolicy, StagedPolicy
from testbed.decide.stages import ANSWER
from testbed.device.breaker import CircuitBreaker
from testbed.device.frames import CameraFrame
from testbed.device.probing import ProbePlan, Prober
from testbed.device.processor import Processor
from testbed.device.stand import Stand
from testbed.meters.base import FrameActivity, Meter
from testbed.records.measurement import Measurement
from testbed.wire.client import ExchangeFailed, Reply

WIRE_OVERHEAD_BYTES: Final = 155
"""Bytes of the TCP stream that cross the uplink with a payload: 97 of the request message
(parameters, shape) and 58 of gRPC and HTTP/2 framing. Measured with a counting proxy on a
warm connection, the same for every split (`tests/testbed/device/test_device.py`). TCP and IP
headers are not in it, and the user-space link does not see them either."""

ENCODING_OVERHEAD_BYTES: Final = 18
"""What an encoded frame adds to them: the request parameter that names the encoding, less the
shorter shape (counted on the messages in `tests/testbed/device/test_device.py`)."""

_CONFIDENCE_AT: Final = next(f.index for f in FIELDS if f.name == "confidence_exit1")

LinkTruth = Callable[[float, float], tuple[float | None, float | None]]
"""True mean uplink capacity (Mbit/s) and base round trip (ms) of the link between two
moments on the monotonic clock, as the link itself states them; None if it does not."""


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


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """Settings of a device.

    Attributes:
        period_ms: time between two camera frames; 0 captures the next frame as soon as
            the device is free (a closed loop, used by campaigns: nothing ever queues).
        timeout_ms: from sending until the device gives an answer up.
        deadline_ms: a longer delay is a miss; only reported, never acted on.
        max_queue_ms: a frame that has waited longer is skipped.
        pause_ms: with period 0, idle time before each capture.
        slowdown: emulates a slower device (`testbed.device.processor`). At least 1.
        breaker_failures: failed exchanges in a row after which the device stays local
            until a probe is answered; 0 (the default) never does, as in the simulator.
        breaker_backoff_ms: first pause before such a probe, doubled at each that fails.
        seed: of the spread of the back-off.
        frame_encoding: how split 0 sends the frame: ``raw``, ``webp`` or ``jpeg[:quality]``.
        probe_budget_per_min: most probes a minute while idle (`testbed.device.probing`);
            0, the default, never probes, as in the simulator.
        probe_bytes: padding of a probe.
        probe_stale_s: age of the newest transfer from which a probe is worth its price.
    """

    period_ms: float = 100.0
    timeout_ms: float = 250.0
    deadline_ms: float = 100.0
    max_queue_ms: float = 200.0
    pause_ms: float = 0.0
    slowdown: float = 1.0
    breaker_failures: int = 0
    breaker_backoff_ms: float = 1000.0
    seed: int = 0
    frame_encoding: str = "raw"
    probe_budget_per_min: float = 0.0
    probe_bytes: int = 0
    probe_stale_s: float = 2.0

    def __post_init__(self) -> None:
        self.probe_plan()
        FrameEncoding.parse(self.frame_encoding)
        positive = min(self.timeout_ms, self.deadline_ms, self.breaker_backoff_ms) > 0
        others = (self.period_ms, self.max_queue_ms, self.pause_ms, self.breaker_failures)
        if not positive or min(others) < 0:
            raise ConfigError(
                f"{self}",
                expected="positive timeout, deadline and back-off, nothing negative",
                mend="correct the setting",
            )
        if self.slowdown < 1:
            raise ConfigError(
                f"slowdown {self.slowdown}",
                expected="at least 1: a faster device cannot be emulated",
                mend="use 1 for the machine as it is",
            )

    def probe_plan(self) -> ProbePlan:
        """The three settings of probing."""
        return ProbePlan(self.probe_budget_per_min, self.probe_bytes, self.probe_stale_s)

    def describe(self) -> str:
        """How the device was emulated, for the records: ``emulated slowdown x8``."""
        return "as it is" if self.slowdown == 1 else f"emulated slowdown x{self.slowdown:g}"


_UNDECIDED: Final = Action(1, 1)


@dataclass(slots=True)
class _Work:
    """What is known of the frame in hand; times in seconds on the monotonic clock."""

    frame: CameraFrame
    frame_id: int
    captured_s: float
    start_s: float
    free_s: float
    action: Action = _UNDECIDED
    head_ms: float = 0.0
    encode_ms: float | None = None
    fallback_ms: float | None = None
    reply: Reply | None = None
    transfer_ms: float | None = None
    uplink_bytes: int = 0
    wait_ms: float = 0.0
    sent_bytes: float = 0.0
    exchanges: list[tuple[float, float]] = field(default_factory=list)
    prediction: int | None = None
    confidence: float | None = None
    status: str = "ok"
    reason: str = ""
    settled: Measurement | None = None
    lessons: list[Callable[[], None]] = field(default_factory=list)
    probes: int = 0
    stand: Stand | None = None
    base: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


class Device:
    """One device running one policy.

    `run` is the whole loop. Live environments step it themselves: `receive` a frame,
    `process` an action (or `begin_stages` and `take_stage` until it ends), and read the
    frame's measurement from `finished` after the next `receive` (the modem's tail ends when
    the next frame starts) or `finish`.

    Args:
        runtime: the network; warm it before the first frame.
        client: connection to the MEC server; None makes every offloading action fall back.
        policy: decides in `run`: once a frame, or after every exit if it is staged.
        observer: what the device knows.
        meter: energy of each frame's window.
        config: settings.
        link_truth: the link's true state, for the records only.
    """

    def __init__(
        self,
        runtime: SplitRuntime,
        client: Exchanger | None,
        policy: AnyPolicy,
        observer: Observer,
        meter: Meter,
        config: DeviceConfig,
        *,
        link_truth: LinkTruth | None = None,
    ) -> None:
        self.config = config
        self.finished: Measurement | None = None
        self._runtime, self._client, self._policy = runtime, client, policy
        self._observer, self._meter, self._link_truth = observer, meter, link_truth
        self._encoding = FrameEncoding.parse(config.frame_encoding)
        self._processor = Processor(config.slowdown, runtime.threads == 1)
        if config.slowdown > 1:
            from testbed.device.rehearsal import rehearsals

            for name, frame in rehearsals(runtime).items():
                self._processor.keep_warm_with(name, frame)
        self._decide_name = "decide" if getattr(policy, "memoryless", False) else ""
        self._stop = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Start a new drive: the clock, the estimators and the breaker begin anew."""
        self.finished = None
        self._work: _Work | None = None
        self._origin_s: float | None = None
        self._count = 0
        self._track = -1
        self._prober = Prober(self.config.probe_plan())
        self._exchange_end_s = self._tail_from_s = -np.inf
        self._breaker = CircuitBreaker(
            self.config.breaker_failures,
            self.config.breaker_backoff_ms / 1e3,
            np.random.default_rng(self.config.seed),
        )
        self._policy.reset()

    @property
    def origin_s(self) -> float | None:
        """`time.monotonic` of the first capture, where ``captured_s`` is 0; None before it."""
        return self._origin_s

    def stop(self) -> None:
        """End `run` after the frame in hand, for good (safe in a signal handler)."""
        self._stop.set()

    def run(self, frames: Iterable[CameraFrame]) -> Iterator[Measurement]:
        """Process frames until they end or `stop` is called; one measurement a frame.

        A frame's measurement comes while the device waits for a later frame, so that
        what the caller does with it costs no frame any delay.
        """
        self.reset()
        for frame in frames:
            observation = self.receive(frame)
            done = self.finished
            if done is not None and isinstance(self._policy, Learner):
                self._policy.learn(Feedback.of(done))
            if observation is not None and isinstance(self._policy, StagedPolicy):
                self._process_staged(observation, self._policy)
            elif observation is not None:
                self._processor.begin()
                decide = partial(self._policy.decide, observation)
                action, _ = self._processor.run(decide, self._decide_name)
                self._processor.end()
                self.process(action)
            if done is not None:
                yield done
            if self._stop.is_set():
                break
        last = self.finish()
        if last is not None:
            yield last

    def receive(self, frame: CameraFrame) -> NDArray[np.float32] | None:
        """Wait for this frame's capture; close the frame before it into `finished`.

        Returns:
            The observation, float32 (`OBS_DIM`,), or None if the frame was skipped because
            it waited longer than `max_queue_ms`, or `stop` was called while waiting.
        """
        captured_s = self._next_capture_s()
        self._wait_for(captured_s)
        if frame.refresh is not None:
            frame = frame.refresh()
        self.finished = None
        start_s = time.monotonic()
        if self._stop.is_set():
            self._close(start_s)
            return None
        if self._origin_s is None:
            self._origin_s = captured_s
            self._observer.reset(start_s)
        if self.config.period_ms == 0:
            captured_s = start_s
        self._close(start_s)  # what measuring takes is not the device's, and not stretched
        self._meter.begin()
        self._processor.begin()
        work = _Work(frame, self._count, captured_s, start_s, start_s)
        self._work = work
        self._count += 1
        if frame.track != self._track:
            self._track = frame.track
            self._observer.new_track()
        queue_ms = (start_s - captured_s) * 1e3
        if queue_ms > self.config.max_queue_ms:
            work.status, work.reason = "skipped", f"queued {queue_ms:.0f} ms"
            self._observer.record_skipped()
            return None
        observation, _ = self._processor.run(lambda: self._observe(work, queue_ms), "observe")
        self._processor.end()
        return observation

    def process(self, action: int) -> None:
        """Carry out the action (canonical number, 0..19) on the frame just received."""
        self._processor.begin()
        work = self._work
        if work is None or work.status == "skipped":
            raise RuntimeError("process needs a frame that receive did not skip")
        work.action = chosen = action_from_index(int(action))
        x = self._head(work, chosen)
        if not chosen.is_local and not self._offload(work, chosen, x):
            self._fall_back(work, chosen, x)
        self._processor.end()
        self._processor.pay()
        work.free_s = time.monotonic()

    def begin_stages(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Before the first decision on a frame that is decided in stages.

        Args:
            observation: what `receive` returned for it.

        Returns:
            The staged observation, float32 (`STAGED_OBS_DIM`,).
        """
        work = self._work
        if work is None or work.status == "skipped":
            raise RuntimeError("begin_stages needs a frame that receive did not skip")
        self._processor.begin()
        work.base = observation.copy()
        work.stand = stand = Stand.before(self._runtime, work.frame.image)
        seen = self._observer.observe_stage(work.base, stand.exits, 0.0)
        self._processor.end()
        return seen

    @property
    def position(self) -> int:
        """Block after which the device stands in the frame in hand, 0..5."""
        work = self._work
        return 0 if work is None or work.stand is None else work.stand.position

    def take_stage(self, chosen: int) -> NDArray[np.float32] | None:
        """Carry out a legal staged action (`testbed.decide.stages`) on the frame in hand.

        Returns:
            The next staged observation, or None if the frame has ended.
        """
        work, processor = self._work, self._processor
        if work is None or work.stand is None:
            raise RuntimeError("take_stage needs a frame on which begin_stages was called")
        processor.begin()
        is_open = chosen != ANSWER and self._go_on(work, work.stand, action_from_index(chosen))
        processor.end()
        processor.pay()
        now_s = time.monotonic()
        if not is_open:
            work.free_s = now_s
            return None
        processor.begin()
        compute_ms = (now_s - work.start_s) * 1e3
        seen = self._observer.observe_stage(work.base, work.stand.exits, compute_ms)
        processor.end()
        return seen

    def _go_on(self, work: _Work, stand: Stand, action: Action) -> bool:
        """Run on to a split and send, or to an exit and look; True if the frame is open."""
        work.action = action
        if not action.is_local:
            x, head_ms = self._processor.run(partial(stand.run_to, action.split))
            work.head_ms += head_ms
            if not self._offload(work, action, x):
                self._fall_back(work, action, x)
            return False
        _, head_ms = self._processor.run(partial(stand.look, action.exit))
        work.head_ms += head_ms
        exit, work.prediction, confidence = stand.exits[-1]
        work.confidence = confidence
        if exit == N_EXITS:
            return False
        self._observer.record_exit(exit, confidence)
        at = _CONFIDENCE_AT + exit - 1
        work.base[at] = scale_one(at, confidence)
        return True

    def _process_staged(self, observation: NDArray[np.float32], policy: StagedPolicy) -> None:
        """Look at exits until the policy answers or sends; go on from the features in hand."""
        seen: NDArray[np.float32] | None = self.begin_stages(observation)
        while seen is not None:
            self._processor.begin()
            decide = partial(policy.decide, seen, self.position)
            chosen, _ = self._processor.run(decide, self._decide_name)
            self._processor.end()
            seen = self.take_stage(chosen)

    def finish(self) -> Measurement | None:
        """Close the last frame, as if the next one had started when it would have."""
        work = self._work
        if work is None:
            return None
        self._settle()
        next_s = max(work.captured_s + self.config.period_ms / 1e3, work.free_s)
        self._processor.wait_until(next_s, self._stop)
        self._close(next_s)
        return self.finished

    def _next_capture_s(self) -> float:
        now_s = time.monotonic()
        if self.config.period_ms == 0:
            return now_s + self.config.pause_ms / 1e3
        if self._origin_s is None:
            return now_s
        return self._origin_s + self._count * self.config.period_ms / 1e3

    def _settle(self) -> None:
        """Learn from the frame in hand and write it down, while the device has time for it."""
        work = self._work
        if work is None or work.settled is not None:
            return
        for learn in work.lessons:
            learn()
        if work.prediction is not None and work.confidence is not None:
            self._observer.record_answer(work.action.exit, work.prediction, work.confidence)
        truth: tuple[float | None, float | None] = (None, None)
        if self._link_truth is not None and work.uplink_bytes:
            truth = self._link_truth(*work.exchanges[0])
        work.settled = _measurement(work, self._origin_s or 0.0, truth)

    def _wait_for(self, when_s: float) -> None:
        self._settle()
        now_s = time.monotonic()
        if self._client is not None and self._breaker.probe_due(now_s):
            self._probe(self._client, now_s)
        elif self._client is not None and self._work is not None and not self._breaker.is_open:
            self._refresh(self._client, self._work, when_s)
        self._processor.wait_until(when_s, self._stop)

    def _refresh(self, client: Exchanger, work: _Work, when_s: float) -> None:
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
            wait_until(at_s, self._stop)
            if self._stop.is_set():
                return
            sent_s, limit_ms = time.monotonic(), min(window_ms, self.config.timeout_ms)
            prober.sent(sent_s)
            work.probes += 1
            try:
                took_ms = client.probe(limit_ms, plan.padding_bytes)
                observer.record_transfer(time.monotonic(), plan.sent_bytes, took_ms)
            except ExchangeFailed as error:
                prober.unanswered()
                if error.reason != "timeout" or limit_ms == self.config.timeout_ms:
                    observer.record_failure(time.monotonic())
            self._exchange_end_s = time.monotonic()
            work.sent_bytes += plan.sent_bytes
            work.exchanges.append((sent_s, self._exchange_end_s))

    def _probe(self, client: Exchanger, now_s: float) -> None:
        """Ask the server for a sign of life before it is trusted again.

        Mostly answered before the next capture. An unanswered probe delays the next frame
        by at most the time-out, once in a back-off; without it a device that has no idle
        time would never come back.
        """
        try:
            client.probe(timeout_ms=self.config.timeout_ms)
            self._breaker.success()
        except ExchangeFailed:
            self._breaker.probe_failed(time.monotonic())
        self._exchange_end_s = time.monotonic()
        if self._work is not None:
            self._work.exchanges.append((now_s, self._exchange_end_s))

    def _observe(self, work: _Work, queue_ms: float) -> NDArray[np.float32]:
        f = work.frame
        features = frame_features(f.image, f.width_px, f.height_px, f.frame_in_track)
        tail_left_ms = self._meter.tail_ms - (work.start_s - self._exchange_end_s) * 1e3
        return self._observer.observe(work.start_s, features, queue_ms, max(0.0, tail_left_ms))

    def _head(self, work: _Work, action: Action) -> Features:
        """Blocks 1..S, and exit E if that is all; fills in a local answer."""
        runtime = self._runtime

        def head() -> tuple[Features, tuple[int, float] | None]:
            x = runtime.forward(runtime.start(work.frame.image), 1, action.split)
            answer = runtime.answer(x, action.exit, action.split) if action.is_local else None
            return x, answer

        (x, answer), work.head_ms = self._processor.run(head, "head")
        if answer is not None:
            work.prediction, work.confidence = answer
        return x

    def _offload(self, work: _Work, action: Action, x: Features) -> bool:
        """Encode, send, wait; True if an answer came."""
        client = self._client
        if client is None or self._breaker.is_open:
            work.reason = "no server" if client is None else "breaker open"
            return False
        payload, encoding = self._payload(work, action.split, x)
        # The payload leaves when a device of this speed would have had it ready.
        self._processor.end()
        self._processor.pay()
        self._processor.begin()
        sent_s, sent_busy_s = time.monotonic(), self._processor.busy_s()
        try:
            work.reply = client.infer(
                payload, action.exit, action.split, self.config.timeout_ms, encoding
            )
        except ExchangeFailed as error:
            work.reason = error.reason
        done_s = time.monotonic()
        self._processor.apart(self._processor.busy_s() - sent_busy_s)
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
        self, work: _Work, split: int, x: Features
    ) -> tuple[NDArray[np.uint8], FrameCodec]:
        """What crosses the uplink, and how the frame is encoded: raw if that is no longer."""
        runtime, processor = self._runtime, self._processor
        if split > 0:
            payload, work.encode_ms = processor.run(lambda: runtime.payload(x, split), "encode")
            return payload, "raw"
        payload, chosen = runtime.payload(x, 0), self._encoding
        if chosen.codec != "raw":
            encoded, work.encode_ms = processor.run(lambda: chosen.encode(payload[0]), "encode")
            if len(encoded) < payload.nbytes:
                return np.frombuffer(encoded, np.uint8), chosen.codec
        return payload, "raw"

    def _account(
        self, work: _Work, payload_bytes: int, encoding: FrameCodec, sent_s: float, done_s: float
    ) -> None:
        """Write down an exchange, answered or not."""
        extra_bytes = 0 if encoding == "raw" else ENCODING_OVERHEAD_BYTES
        work.sent_bytes += payload_bytes + WIRE_OVERHEAD_BYTES + extra_bytes
        work.uplink_bytes = payload_bytes
        work.wait_ms += (done_s - sent_s) * 1e3
        work.exchanges.append((sent_s, done_s))
        self._exchange_end_s = done_s

    def _accept(
        self,
        work: _Work,
        reply: Reply,
        payload_bytes: int,
        encoding: FrameCodec,
        sent_s: float,
        done_s: float,
    ) -> None:
        """Take an answer and learn from it."""
        self._account(work, payload_bytes, encoding, sent_s, done_s)
        self._breaker.success()
        work.transfer_ms = reply.transfer_ms
        work.prediction, work.confidence = int(reply.prediction), float(reply.confidence)
        self._observer.record_transfer(done_s, work.sent_bytes, reply.transfer_ms)
        self._observer.record_server(done_s, reply.server_queue_ms)

    def _fall_back(self, work: _Work, action: Action, x: Features) -> None:
        """Finish from the features in hand: blocks S+1..E and exit E."""
        runtime, exit = self._runtime, action.exit

        def rest() -> tuple[int, float]:
            return runtime.answer(runtime.forward(x, action.split + 1, exit), exit, exit)

        (work.prediction, work.confidence), work.fallback_ms = self._processor.run(
            rest, "rest", after_wait=True
        )
        work.status = "fallback"

    def _close(self, end_s: float) -> None:
        """The frame in hand ends at `end_s`: read the meter, make its measurement."""
        work, self._work = self._work, None
        if work is None:
            return
        # Whatever the device does for this frame while it does not wait for an answer.
        compute_ms = max(0.0, (work.free_s - work.start_s) * 1e3 - work.wait_ms)
        exchange_ms = sum(b - a for a, b in work.exchanges) * 1e3
        tail_ms = tail_overlap_ms(
            work.start_s, end_s, work.exchanges, self._tail_from_s, self._meter.tail_ms
        )
        if work.exchanges:
            self._tail_from_s = work.exchanges[-1][1]
        reading = self._meter.end(
            FrameActivity(
                work.start_s, end_s, compute_ms, work.wait_ms, exchange_ms, work.sent_bytes, tail_ms
            )
        )
        if reading.energy_mj is not None:
            self._observer.record_energy(reading.energy_mj)
        assert work.settled is not None
        self.finished = replace(
            work.settled,
            compute_mj=reading.compute_mj,
            radio_mj=reading.radio_mj,
            idle_mj=reading.idle_mj,
            energy_mj=reading.energy_mj,
            energy_source=reading.source,
            probes=work.probes,
            probe_bytes=work.probes * self._prober.plan.sent_bytes,
        )


def tail_overlap_ms(
    start_s: float,
    end_s: float,
    exchanges: list[tuple[float, float]],
    previous_end_s: float,
    tail_ms: float,
) -> float:
    """Time within a window that the modem spends in the tail of an exchange.

    Args:
        start_s: start of the window.
        end_s: its end.
        exchanges: (begin, end) of the exchanges that begin in it, in order.
        previous_end_s: end of the last exchange before it; -inf if there was none.
        tail_ms: length of a whole tail.
    """
    total_s, from_s = 0.0, previous_end_s
    for begin_s, done_s in [*exchanges, (end_s, end_s)]:
        low_s = max(from_s, start_s)
        total_s += max(0.0, min(begin_s, end_s, from_s + tail_ms / 1e3) - low_s)
        from_s = done_s
    return total_s * 1e3


def _measurement(
    work: _Work, origin_s: float, truth: tuple[float | None, float | None]
) -> Measurement:
    """The row of a processed or skipped frame, its energy still open."""
    frame, reply = work.frame, work.reply
    uplink_mbps, rtt_ms = truth
    return Measurement(
        frame_id=work.frame_id,
        track=frame.track,
        frame_in_track=frame.frame_in_track,
        label=frame.label,
        action=work.action.index,
        exit_used=work.action.exit,
        captured_s=work.captured_s - origin_s,
        queue_ms=(work.start_s - work.captured_s) * 1e3,
        head_ms=work.head_ms,
        encode_ms=work.encode_ms,
        transfer_ms=work.transfer_ms,
        server_queue_ms=None if reply is None else reply.server_queue_ms,
        server_ms=None if reply is None else reply.server_ms,
        fallback_ms=work.fallback_ms,
        delay_ms=(work.free_s - work.captured_s) * 1e3,
        uplink_bytes=work.uplink_bytes,
        downlink_bytes=0 if reply is None else reply.downlink_bytes,
        prediction=work.prediction,
        confidence=work.confidence,
        correct=work.prediction == frame.label if frame.label is not None else None,
        compute_mj=None,
        radio_mj=None,
        idle_mj=None,
        energy_mj=None,
        energy_source="",
        status=work.status,
        reason=work.reason,
        uplink_mbps=uplink_mbps,
        rtt_ms=rtt_ms,
    )
