"""What goes wrong around the soak test's device, and when: drawn from the seed before the start."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

RESTART_S = 60.0
EVERY_S = {"server held": 600.0, "server live but deaf": 600.0, "disk full": 600.0,
           "log reader stalled": 600.0, "certificates changed": 900.0}  # fmt: skip
"""Each of these comes once in so many seconds, and at least once."""
FIRST, LAST = 0.1, 0.9
"""Shares of the run between which they begin."""


@dataclass(order=True, slots=True)
class Event:
    """One thing that happens.

    Attributes:
        at_s: when, seconds from the start.
        name: what, as the report says it.
        happens: begins it, and where that is short waits for its end.
        began_s: when it was begun; the device's server may have been busy with another.
        seconds: how long it took.
    """

    at_s: float
    name: str = field(compare=False)
    happens: Callable[[], object] = field(compare=False)
    began_s: float | None = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)


def drawn(seconds: float, seed: int, happenings: dict[str, Callable[[], object]]) -> list[Event]:
    """The events of a run in order: restarts at even distances, two swaps, the others at random.

    Args:
        seconds: length of the run.
        seed: of the moments.
        happenings: by name; one that this machine cannot do is left out.
    """
    rng = random.Random(seed)
    # In the first half: another model is one step of memory, which is judged over the last half.
    times = {"policy swapped": [seconds / 6], "model swapped": [seconds / 3]}
    n_restarts = max(1, int(seconds / RESTART_S) - 1)
    times["server restarted"] = [
        (i + 1) * seconds / (n_restarts + 1) + 5 for i in range(n_restarts)
    ]
    for name, every_s in EVERY_S.items():
        n = max(1, int(seconds / every_s))
        share = (LAST - FIRST) / n
        times[name] = [seconds * (FIRST + share * (i + rng.random())) for i in range(n)]
    return sorted(
        Event(at_s, name, happenings[name])
        for name, moments in times.items()
        if name in happenings
        for at_s in moments
    )
