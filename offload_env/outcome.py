"""The cost and status of one frame, and the info dict for learners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cnn.frame_table import Correct

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Number = TypeVar("Number", float, Floats)
"""Of one episode, or of many: an array of one element a lane."""

OK: Final = 0
FALLBACK: Final = 1
SKIPPED: Final = 2
DECIDING: Final = 3
"""Of a frame that is still open: a staged device has not answered yet."""
STATUS: Final = ("ok", "fallback", "skipped", "deciding")
"""Name of each status."""


class Outcome(NamedTuple):
    """The cost of one frame.

    Attributes:
        row: of the frame table.
        action: canonical number decided.
        used: canonical number of the action whose answer is used (a local one after a fallback).
        status: `OK`, `FALLBACK` or `SKIPPED`.
        queue_ms: wait for the device.
        compute_ms: head, encoder and local exit.
        exchange_ms: from the payload's hand-over to the radio until the answer or time-out.
        transfer_ms: the exchange less the server's wait and compute; 0 unless answered.
        server_wait_ms: wait at the server; 0 unless answered.
        fallback_ms: local compute after a time-out.
        delay_ms: capture until the answer is known (or until the frame is skipped).
        compute_mj, radio_mj, idle_mj, energy_mj: device energy; the last is their sum.
        correct: whether the answer is the true class, or its quality, [0, 1].
        miss: the deadline is missed or the frame skipped.
        cost: by the scenario's price.
    """

    row: int
    action: int
    used: int
    status: int
    queue_ms: float
    compute_ms: float
    exchange_ms: float
    transfer_ms: float
    server_wait_ms: float
    fallback_ms: float
    delay_ms: float
    compute_mj: float
    radio_mj: float
    idle_mj: float
    energy_mj: float
    correct: float
    miss: bool
    cost: float


NOTHING: Final = Outcome._make([0.0] * len(Outcome._fields))._replace(status=DECIDING)
"""Of a frame that is still open."""


class BatchOutcome(NamedTuple):
    """The cost of one frame in every lane: `Outcome` with arrays (B,)."""

    row: NDArray[np.int64]
    action: NDArray[np.int64]
    used: NDArray[np.int64]
    status: NDArray[np.int8]
    queue_ms: Floats
    compute_ms: Floats
    exchange_ms: Floats
    transfer_ms: Floats
    server_wait_ms: Floats
    fallback_ms: Floats
    delay_ms: Floats
    compute_mj: Floats
    radio_mj: Floats
    idle_mj: Floats
    energy_mj: Floats
    correct: Correct
    miss: Bools
    cost: Floats

    def part(self, lanes: NDArray[Any] | slice) -> BatchOutcome:
        """The outcome of some lanes, by index, by bool (B,), or from one to another."""
        return BatchOutcome._make(array[lanes] for array in self)

    @classmethod
    def joined(cls, parts: Sequence[BatchOutcome], lanes: NDArray[np.intp]) -> BatchOutcome:
        """Join parts that together cover all lanes; `lanes` (intp (B,)) has theirs, in order."""
        order = lanes.argsort()
        return cls._make(np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True))


def frame_info(
    outcome: Outcome | BatchOutcome,
    exit_used: Any,
    accuracy: Any,
    critical: Any,
    prices: tuple[Any, Any, float],
) -> dict[str, Any]:
    """The info of a frame that ended, or of one in every lane: numbers, or arrays (B,).

    Args:
        outcome: of the frame.
        exit_used: the exit whose answer is used, by its block.
        accuracy: 1 if it is the true class, else 0; or its quality.
        critical: whether the frame's class is a critical one.
        prices: of a millisecond, of a millijoule and of a missed deadline.
    """
    delay, energy = prices[0] * outcome.delay_ms, prices[1] * outcome.energy_mj
    miss = prices[2] * outcome.miss
    return {
        "delay_ms": outcome.delay_ms,
        "energy_mj": outcome.energy_mj,
        "accuracy": accuracy,
        "cost": outcome.cost,
        "cost_delay": delay,
        "cost_energy": energy,
        "cost_miss": miss,
        "cost_budget": outcome.cost - ((delay + energy) + miss),
        "queue_ms": outcome.queue_ms,
        "action": outcome.action,
        "exit_used": exit_used,
        "status": outcome.status,
        "critical": critical,
    }


_OPEN: Final = frame_info(NOTHING, 0, 0.0, False, (0.0, 0.0, 0.0))


def open_info(action: int) -> dict[str, Any]:
    """The info while a frame is open, after the device has run canonical `action`."""
    return {**_OPEN, "action": action, "frame_done": False}
