"""Which of several counters are one counter, shown more than once.

AMD's multi-die processors (Zen 1 and 2) list one package zone a die, and every die shows the
counter of the whole socket (https://github.com/mlco2/codecarbon/issues/1274). Intel's multi-die
processors list the same zones with a counter of its own each. Names do not tell the two apart;
values do: two counters that have run since the start do not hold the same number of microjoules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

TOLERANCE: Final = 1e-6
"""Relative difference below which two values are one counter, read within one update of it."""

Seen = tuple[int, int]
"""Value of a counter in a first pass over all counters, and in a second one after it."""


class Mirrors:
    """Remembers which counters have proven to be different ones.

    Args:
        ranges: where each counter wraps, in its own unit; 0 if that is not known.
    """

    def __init__(self, ranges: Sequence[int]) -> None:
        self._ranges = ranges
        self._distinct: set[tuple[int, int]] = set()
        self._alike: set[tuple[int, int]] = set()

    @property
    def decided(self) -> bool:
        """Whether all are known to be different, so that one pass over them is enough."""
        n = len(self._ranges)
        return len(self._distinct) == n * (n - 1) // 2

    def watch(self, seen: Sequence[Seen | None]) -> None:
        """Take in one look at all counters; None where one could not be read."""
        for j, b in enumerate(seen):
            for i, a in enumerate(seen[:j]):
                if a is not None and b is not None:
                    alike = self._can_be_one(i, a, b)
                    (self._alike if alike else self._distinct).add((i, j))

    def originals(self) -> list[int]:
        """Numbers of the counters to count: each is there once, whatever shows it."""
        out: list[int] = []
        for j in range(len(self._ranges)):
            if not any((i, j) in self._alike - self._distinct for i in out):
                out.append(j)
        return out

    def _can_be_one(self, i: int, a: Seen, b: Seen) -> bool:
        """Whether both can be one counter that ran on between the passes."""
        if a[1] < a[0] or b[1] < b[0]:
            return True  # it wrapped or restarted between the passes: no evidence
        apart = max(0, b[0] - a[1], a[0] - b[1])
        whole = self._ranges[i]
        if whole:  # one of the two may have wrapped already
            apart = min(apart, max(0, whole - max(a[1], b[1]) + min(a[0], b[0])))
        return apart <= TOLERANCE * max(a[1], b[1])
