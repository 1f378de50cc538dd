"""Running figures of a run of any length, in constant memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cnn.topology import ACTIONS
from testbed.records.measurement import Measurement


class Tally:
    """Counts and means of the rows added so far.

    Args:
        deadline_ms: a frame that took longer, or was skipped, is a miss; may be changed.
    """

    def __init__(self, deadline_ms: float) -> None:
        self.deadline_ms = deadline_ms
        self.frames = self.misses = 0
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self._sums: dict[str, list[float]] = {
            name: [0.0, 0] for name in ("delay_ms", "energy_mj", "confidence", "accuracy")
        }

    def add(self, row: Measurement) -> None:
        """Count one row."""
        skipped = row.status == "skipped"
        self.frames += 1
        self.status[row.status] += 1
        self.misses += skipped or row.delay_ms > self.deadline_ms
        if row.reason:
            self.reasons[reason_kind(row)] += 1
        if not skipped:
            self.actions[ACTIONS[row.action].name] += 1
            self._add("delay_ms", row.delay_ms)
        self._add("energy_mj", row.energy_mj)
        self._add("confidence", row.confidence)
        self._add("accuracy", None if row.correct is None else float(row.correct))

    def result(self) -> dict[str, Any]:
        """Figures as of `testbed.records.run_summary`; None where nothing was measured."""
        means = {name: total / n if n else None for name, (total, n) in self._sums.items()}
        return {
            "frames": self.frames,
            **means,
            "energy_frames": self._sums["energy_mj"][1],
            "miss_rate": self.misses / self.frames if self.frames else None,
            "status": dict(self.status),
            "reasons": dict(self.reasons),
            "actions": dict(self.actions),
        }

    def _add(self, name: str, value: float | None) -> None:
        if value is not None:
            self._sums[name][0] += value
            self._sums[name][1] += 1


def reason_kind(row: Measurement) -> str:
    """The reason without its figures, of which there would be any number."""
    return "queued" if row.reason.startswith("queued ") else row.reason
