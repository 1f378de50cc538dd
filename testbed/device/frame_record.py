"""The record of the current frame, and the measurement made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cnn.topology import Action
from testbed.device.frame_sources import CameraFrame
from testbed.records.measurement import Measurement
from testbed.wire.client import Reply

LinkTruth = Callable[[float, float], tuple[float | None, float | None]]
"""True mean uplink capacity (Mbit/s) and base round trip (ms) of the link between two
moments on the monotonic clock, as stated by the link; None if the link does not state them."""


@dataclass(slots=True)
class FrameRecord:
    """The data of the current frame so far; times in seconds on the monotonic clock.

    `action` is that of a skipped frame until another is decided.
    """

    frame: CameraFrame
    frame_id: int
    captured_s: float
    start_s: float
    free_s: float
    action: Action
    exit_used: int = 0
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
    measured: Measurement | None = None
    pending_updates: list[Callable[[], None]] = field(default_factory=list)
    probes: int = 0
    looks: int = 0

    @property
    def answered_by(self) -> int:
        """Exit of the answer: the action's, unless another was evaluated on the device."""
        return self.exit_used or self.action.exit


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


def measurement(
    work: FrameRecord, origin_s: float, truth: tuple[float | None, float | None]
) -> Measurement:
    """The row of a processed or skipped frame, its energy not yet set."""
    frame, reply = work.frame, work.reply
    uplink_mbps, rtt_ms = truth
    return Measurement(
        frame_id=work.frame_id,
        track=frame.track,
        frame_in_track=frame.frame_in_track,
        label=frame.label,
        action=work.action.index,
        exit_used=work.answered_by,
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
        looks=work.looks,
    )
