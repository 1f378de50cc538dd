"""What a run came to: delay, energy, accuracy and what went wrong, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cnn.topology import ACTIONS
from testbed.records.measurement import Measurement


def summarise(rows: Sequence[Measurement], deadline_ms: float) -> dict[str, Any]:
    """Figures of a run; None where nothing was measured.

    Args:
        rows: the run's measurements.
        deadline_ms: a frame that took longer, or was skipped, is a miss.

    Returns:
        ``frames``; ``delay_ms`` (mean), ``delay_p95_ms`` and ``queue_ms`` over answered
        frames; ``energy_mj`` (mean over frames with a reading), ``energy_frames`` (how many
        those are) and ``energy_source`` (what made them); ``accuracy`` over labelled frames
        (a skipped one is wrong); ``confidence`` (mean); ``miss_rate``; ``status`` and
        ``reasons`` (counts); ``actions`` (counts by name, skipped excluded).
    """
    answered = [row for row in rows if row.status != "skipped"]
    delays = [row.delay_ms for row in answered]
    energies = [row.energy_mj for row in rows if row.energy_mj is not None]
    measured_by = dict.fromkeys(row.energy_source for row in rows if row.energy_mj is not None)
    late = sum(row.status == "skipped" or row.delay_ms > deadline_ms for row in rows)
    return {
        "frames": len(rows),
        "delay_ms": _mean(delays),
        "delay_p95_ms": float(np.percentile(delays, 95)) if delays else None,
        "queue_ms": _mean(row.queue_ms for row in answered),
        "energy_mj": _mean(energies),
        "energy_frames": len(energies),
        "energy_source": ", ".join(measured_by) or (rows[0].energy_source if rows else ""),
        "accuracy": _mean(row.correct for row in rows if row.correct is not None),
        "confidence": _mean(row.confidence for row in rows if row.confidence is not None),
        "miss_rate": late / len(rows) if rows else None,
        "status": dict(Counter(row.status for row in rows)),
        "reasons": dict(Counter(row.reason for row in rows if row.reason)),
        "actions": dict(Counter(ACTIONS[row.action].name for row in answered)),
    }


def _mean(values: Iterable[float]) -> float | None:
    seen = list(values)
    return float(np.mean(seen)) if seen else None
