"""Which measured drives train and which test.

The rule: the groups listed here train; every other group, also one that this list has never
heard of, tests. A group is a whole drive, day or route, so no test trace shares a stretch of
road at a time with a training trace. The list was fixed before any model was fitted: about
two thirds of each set's recorded time, chosen by date and run number, so that each set with
more than one group has both parts.
"""

from __future__ import annotations

from typing import Final

from cnn.common.errors import ConfigError

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
