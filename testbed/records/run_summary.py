"""The summary of a run: delay, energy, accuracy and failures, in constant memory."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from typing import Any, Final

import numpy as np

from cnn.topology import Topology
from testbed.records.measurement import Measurement

SAMPLE: Final = 10_000
"""Delays kept for the percentile: all of a run up to this length, else a random sample."""
_MEANS: Final = ("delay_ms", "queue_ms", "energy_mj", "accuracy", "confidence")


class RunSummary:
    """Counts and means of the rows added so far, of a run of any length.

    Args:
        deadline_ms: a frame that took longer, or was skipped, is a miss; may be changed.
        topology: of the network whose actions the rows number.

    Attributes:
        frames: rows added.
        status, reasons, actions: counts, see `result`.
    """

    def __init__(self, deadline_ms: float, topology: Topology) -> None:
        self.deadline_ms, self.topology = deadline_ms, topology
        self._names = [action.name for action in topology.actions]
        self.frames = self._misses = self._probes = self._probe_bytes = 0
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self._sums = {name: [0.0, 0] for name in _MEANS}
        self._sources: dict[str, bool] = {}
        """The energy source of the rows, and whether it gave figures."""
        self._delays = array("d")
        self._draw = random.Random(0)

    def add(self, row: Measurement) -> None:
        """Count one row."""
        skipped = row.status == "skipped"
        self.frames += 1
        self.status[row.status] += 1
        self._misses += skipped or row.delay_ms > self.deadline_ms
        if row.reason:
            self.reasons[reason_kind(row)] += 1
        if not skipped:
            self.actions[self._names[row.action]] += 1
            self._mean("delay_ms", row.delay_ms)
            self._mean("queue_ms", row.queue_ms)
            self._sample(row.delay_ms)
        self._mean("energy_mj", row.energy_mj)
        self._mean("confidence", row.confidence)
        self._mean("accuracy", row.correct)
        if row.energy_mj is not None:
            self._sources[row.energy_source] = True
        elif not self._sources:
            self._sources[row.energy_source] = False
        self._probes += row.probes
        self._probe_bytes += row.probe_bytes

    def result(self) -> dict[str, Any]:
        """Figures of the run; None where nothing was measured.

        Returns:
            ``frames``; ``delay_ms`` (mean), ``delay_p95_ms`` and ``queue_ms`` over answered
            frames; ``energy_mj`` (mean over frames with a reading), ``energy_frames`` (how many
            those are) and ``energy_source`` (their meter); ``accuracy`` over labelled frames
            (a skipped one is wrong); ``confidence`` (mean); ``miss_rate``; ``status`` and
            ``reasons`` (counts); ``actions`` (counts by name, skipped excluded); ``probes`` and
            ``probe_bytes`` (sums).
        """
        read = [name for name, gave in self._sources.items() if gave]
        return {
            "frames": self.frames,
            **{name: total / n if n else None for name, (total, n) in self._sums.items()},
            "delay_p95_ms": float(np.percentile(self._delays, 95)) if self._delays else None,
            "energy_frames": self._sums["energy_mj"][1],
            "energy_source": ", ".join(read or self._sources),
            "miss_rate": self._misses / self.frames if self.frames else None,
            "status": dict(self.status),
            "reasons": dict(self.reasons),
            "actions": dict(self.actions),
            "probes": self._probes,
            "probe_bytes": self._probe_bytes,
        }

    def _mean(self, name: str, value: float | None) -> None:
        if value is not None:
            self._sums[name][0] += value
            self._sums[name][1] += 1

    def _sample(self, value: float) -> None:
        """Keep a random sample (Vitter's algorithm R, https://doi.org/10.1145/3147.3165)."""
        seen = self._sums["delay_ms"][1]  # this one included
        if seen <= SAMPLE:
            self._delays.append(value)
        elif (place := self._draw.randrange(int(seen))) < SAMPLE:
            self._delays[place] = value


def reason_kind(row: Measurement) -> str:
    """The reason without its figures, so that the number of kinds is limited."""
    return "queued" if row.reason.startswith("queued ") else row.reason
