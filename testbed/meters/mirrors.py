"""Which of several counters are one counter, shown more than once.

AMD's multi-die processors (Zen 1 and 2) list one package zone a die, and every die shows the
counter of the whole socket (https://github.com/mlco2/codecarbon/issues/1274). Intel's multi-die
processors list the same zones with a counter of its own each. Names do not tell the two apart;
values do: two counters that have run since the start do not hold the same number of microjoules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FAR_UJ: Final = 500_000
"""Two views of one counter are never so far apart: they differ by an update, about 1 ms."""
NEAR: Final = 0.05
"""They differ by less than this part of what a window adds to them."""
SAME: Final = 1e-6
"""Two values that differ by less than this part are the same in any case."""

Seen = tuple[int, int]
"""Microjoules of a counter in a first pass over all counters, and in a second one after it."""


class Mirrors:
    """Tells views of one counter from counters, and remembers what is certain.

    Args:
        ranges_uj: where each counter wraps, microjoules; 0 if that is not known.
    """

    def __init__(self, ranges_uj: Sequence[int]) -> None:
        self._ranges_uj = ranges_uj
        self._distinct: set[tuple[int, int]] = set()

    @property
    def decided(self) -> bool:
        """Whether all are known to be different, so that one pass over them is enough."""
        n = len(self._ranges_uj)
        return len(self._distinct) == n * (n - 1) // 2

    def watch(self, seen: Sequence[Seen | None]) -> None:
        """Take in one look at all counters; None where one could not be read."""
        for j, b in enumerate(seen):
            for i, a in enumerate(seen[:j]):
                if a is not None and b is not None:
                    apart_uj = self._apart_uj(i, a, b)
                    if apart_uj > max(FAR_UJ, SAME * max(a[1], b[1])):
                        self._distinct.add((i, j))

    def originals(self, began: Sequence[Seen | None], ended: Sequence[Seen | None]) -> list[int]:
        """Numbers of the counters to count over a window: each once, whatever shows it.

        One that could not be read at either end is counted: nobody knows what it shows.
        """
        out: list[int] = []
        for j in range(len(self._ranges_uj)):
            if not any(self._one(i, j, began, ended) for i in out):
                out.append(j)
        return out

    def _one(
        self, i: int, j: int, began: Sequence[Seen | None], ended: Sequence[Seen | None]
    ) -> bool:
        """Whether `i` and `j` can be one counter, over the whole window."""
        a, b, c, d = began[i], began[j], ended[i], ended[j]
        if (i, j) in self._distinct or a is None or b is None or c is None or d is None:
            return False
        added = max(c[0] - a[0], d[0] - b[0], 0)
        return all(
            self._apart_uj(i, x, y) <= max(NEAR * added, SAME * max(x[1], y[1]))
            for x, y in ((a, b), (c, d))
        )

    def _apart_uj(self, i: int, a: Seen, b: Seen) -> int:
        """How far two views are apart that one counter, running on, cannot explain."""
        if a[1] < a[0] or b[1] < b[0]:
            return 0  # it wrapped or restarted between the passes: no evidence
        apart = max(0, b[0] - a[1], a[0] - b[1])
        whole = self._ranges_uj[i]
        if whole:  # one of the two may have wrapped already
            apart = min(apart, max(0, whole - max(a[1], b[1]) + min(a[0], b[0])))
        return apart
