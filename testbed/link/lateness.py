"""How late bytes come out of the user-space link, as a histogram."""

from __future__ import annotations

from typing import Final

import numpy as np

_BIN_MS: Final = 0.05
_BINS: Final = 4000


class Lateness:
    """Counts lateness in bins of 0.05 ms up to 0.2 s; the last one holds what is later."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._latest_ms = 0.0

    def note(self, late_ms: float) -> None:
        """Count a segment that came out so late."""
        self._latest_ms = max(self._latest_ms, late_ms)
        self._counts[min(int(late_ms / _BIN_MS), _BINS - 1)] += 1

    def stats(self) -> dict[str, float]:
        """``late_ms_p50``, ``_p95``, ``_p99`` (absent if nothing was counted), ``_max``."""
        total = int(self._counts.sum())
        below = np.cumsum(self._counts) / max(total, 1)
        late = {
            f"late_ms_p{p}": float(np.searchsorted(below, p / 100) + 1) * _BIN_MS
            for p in (50, 95, 99)
        }
        return {**(late if total else {}), "late_ms_max": self._latest_ms}
