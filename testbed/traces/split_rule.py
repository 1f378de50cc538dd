"""The rule by which a user's own traces become training and test drives.

The collection of `testbed.traces.trace_kinds` has a list of its own, and never asks this rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError, shown

RULES: Final = ("file", "day", "fraction")
_DATE: Final = re.compile(r"(?<!\d)((?:19|20)\d\d)([-._]?)(\d\d)\2(\d\d)(?!\d)")
_HINT: Final = "correct [link] split or train_share in the scenario"


def day_in(*names: str) -> str:
    """The first date in names such as ``drive-20241105`` or ``B_2019.12.16_13.40.04.csv``.

    Returns:
        Such as ``2024-11-05``; empty if there is none.
    """
    for name in names:
        for year, _, month, day in _DATE.findall(name):
            try:
                return date(int(year), int(month), int(day)).isoformat()
            except ValueError:
                continue
    return ""


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How traces are divided.

    Attributes:
        by: ``file``: whole files (whole groups, where an index.csv names them); ``day``: whole
            days; ``fraction``: every trace is cut in time, its beginning trains.
        train_share: share of the files, the days or each trace's time that trains, 0..1.
        seed: chooses the files or days.

    Raises:
        ConfigError: an unknown rule, or a share that leaves one side empty.
    """

    by: str = "file"
    train_share: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in RULES:
            raise ConfigError(
                f"split {shown(self.by)}", expected=f"one of {', '.join(RULES)}", hint=_HINT
            )
        if not 0 < self.train_share < 1:
            raise ConfigError(
                f"train_share {self.train_share:g}", expected="between 0 and 1", hint=_HINT
            )

    def training(self, units: Iterable[str]) -> frozenset[str]:
        """The files or days that train; all others test. Each side has one at least.

        Args:
            units: names in an order that is always the same; repeated ones count once.

        Raises:
            ConfigError: there is only one.
        """
        every = list(dict.fromkeys(units))
        if len(every) < 2:
            raise ConfigError(
                f"traces of one {self.by} ({', '.join(every) or 'none'})",
                expected=f"two or more, to split them by {self.by}",
                hint="give more traces, or split = 'fraction' in [link] (--split fraction)",
            )
        count = min(max(round(self.train_share * len(every)), 1), len(every) - 1)
        drawn = np.random.default_rng(self.seed).permutation(len(every))[:count]
        return frozenset(every[i] for i in drawn.tolist())

    def samples(self, n: int) -> int:
        """Number of the first samples of `n` that train (`fraction`)."""
        return min(max(round(self.train_share * n), 1), n - 1)

    def words(self, n_training: int = 0, n_units: int = 0) -> str:
        """The rule in words, for notes and `Trace.source`."""
        if self.by == "fraction":
            return f"split in time: the first {self.train_share:g} of each trace trains"
        return (
            f"split by {self.by}: {n_training} of {n_units} train "
            f"(share {self.train_share:g}, seed {self.seed})"
        )
