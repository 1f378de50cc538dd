"""The kinds of measured traces, and which series of the collection each is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError
from testbed.traces.series import Series


@dataclass(frozen=True, slots=True)
class Source:
    """Series of one set that a kind of trace takes.

    Attributes:
        set_name: set of the collection.
        groups: beginnings of the groups (drives) taken; empty takes all.
        mean_from: least mean of the trace (Mbit/s), inclusive.
        mean_below: mean of the trace stays below this.
    """

    set_name: str
    groups: tuple[str, ...] = ()
    mean_from: float = 0.0
    mean_below: float = float("inf")

    def takes(self, series: Series) -> bool:
        """Whether this source wants `series`."""
        if self.groups and not series.group.startswith(self.groups):
            return False
        if series.kind != "ul":
            return True
        if not np.isfinite(series.values).any():
            return False
        return self.mean_from <= float(np.nanmean(series.values)) < self.mean_below


@dataclass(frozen=True, slots=True)
class Selection:
    """What one kind of trace is made of.

    Attributes:
        uplink: where capacities come from.
        rtt: where round trips come from.
        own_rtt: take the pings of the uplink test's own cycle where there are any.
        tech: technology the trace states (the sources do not know it per second).
    """

    uplink: tuple[Source, ...]
    rtt: tuple[Source, ...]
    own_rtt: bool
    tech: str


SELECTIONS: Final[dict[str, Selection]] = {
    "urban-5g": Selection(
        uplink=(Source("sa24", mean_from=20.0), Source("memu22", ("memu22-5g",))),
        rtt=(Source("cicv5g", ("cicv5g-urban", "cicv5g-w2s")),),
        own_rtt=False,
        tech="5G",
    ),
    "highway-lte": Selection(
        uplink=(Source("memu22", ("memu22-lte",)),),
        rtt=(Source("memu22", ("memu22-lte",)),),
        own_rtt=False,
        tech="LTE",
    ),
    "poor-coverage": Selection(
        uplink=(Source("sa24", mean_below=10.0), Source("mahimahi", mean_below=10.0)),
        rtt=(Source("sa24"),),
        own_rtt=True,
        tech="LTE",
    ),
}
"""Kinds of measured traces. The 20 and 10 Mbit/s borders on a trace's own mean stand in for
the coverage, which sa24 does not state."""


def select(kind: str) -> Selection:
    """The selection of a kind; raises `ConfigError` for an unknown one."""
    if kind not in SELECTIONS:
        raise ConfigError(
            f"trace kind {kind!r}",
            expected=f"one of {', '.join(SELECTIONS)}",
            hint="correct the kind",
        )
    return SELECTIONS[kind]
