"""The kinds of measured traces: their series, and the split of drives into train and test.

The rule: the groups listed in `TRAIN_GROUPS` train; every other group, also one unknown to this
list, tests. A group is a whole drive, day or route, so no test trace shares a stretch of
road at a time with a training trace. The list was fixed before any model was fitted: about two
thirds of each set's recorded time, chosen by date and run number, so that each set with more than
one group has both parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError
from testbed.traces.series import Series

TRAIN_GROUPS: Final[frozenset[str]] = frozenset(
    {
        "sa24-20241101",
        "sa24-20241103",
        "sa24-20241106",
        "sa25-chicago-20250419",
        "sa25-chicago-20250421",
        "memu22-5g-run01",
        "memu22-5g-run02",
        "memu22-5g-run04",
        "memu22-lte-run01",
        "memu22-lte-run03",
        "memu22-lte-run04",
        "memu22-lte-run05",
        "memu22-lte-run07",
        "memu22-5g-ping01",
        "memu22-lte-ping01",
        "umn21-20210120",
        "umn21-20210124",
        "mm-att-lte-driving",
        "mm-tmobile-lte-short",
        "mm-verizon-evdo-driving",
        "starlink23-20230418",
        "starlink23-20230426",
        "cicv5g-urban-n8",
        "cicv5g-w2s-n78",
        "multi23-trip3-20230805",
        "multi23-trip3-20230807",
        "wheels22-20220808",
        "wheels22-20220810",
        "wheels22-na",
    }
)
PARTS: Final = ("train", "test", "all")


@dataclass(frozen=True, slots=True)
class Source:
    """Series of one set that a kind of trace uses.

    Attributes:
        set_name: set of the collection.
        groups: prefixes of the groups (drives) used; empty uses all.
        mean_from: lowest mean of the trace (Mbit/s), inclusive.
        mean_below: mean of the trace stays below this.
    """

    set_name: str
    groups: tuple[str, ...] = ()
    mean_from: float = 0.0
    mean_below: float = float("inf")

    def takes(self, series: Series) -> bool:
        """Whether this source uses `series`."""
        if self.groups and not series.group.startswith(self.groups):
            return False
        if series.kind != "ul":
            return True
        if not np.isfinite(series.values).any():
            return False
        return self.mean_from <= float(np.nanmean(series.values)) < self.mean_below


@dataclass(frozen=True, slots=True)
class Selection:
    """The sources of one kind of trace.

    Attributes:
        uplink: sources of capacities.
        rtt: sources of round trips.
        own_rtt: use the pings of the uplink test's own cycle if there are any.
        tech: technology the trace states (the sources do not state it per second).
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
"""Kinds of measured traces. The 20 and 10 Mbit/s borders on a trace's own mean replace
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


def part_of(group: str) -> str:
    """``train`` or ``test`` for a group (drive, day or route)."""
    return "train" if group in TRAIN_GROUPS else "test"


def in_part(group: str, part: str) -> bool:
    """Whether `group` belongs to `part` (``train``, ``test`` or ``all``)."""
    if part not in PARTS:
        raise ConfigError(
            f"part {part!r}", expected=f"one of {', '.join(PARTS)}", hint="correct the part"
        )
    return part == "all" or part_of(group) == part
