"""An alarm for the device when its mean loss is above the certified one, at any time.

A capital is bet on "the mean is above `limit`". While the mean is at most that, the capital does
not grow on average, so the probability that it ever reaches ``1 / alpha`` is `alpha` at most,
however long the device runs and however often it looks (Ville's inequality). That is an e-process
(I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting",
JRSS B 86, 2024, arXiv:2010.09686; S. Shekhar and A. Ramdas, "Nonparametric two-sample testing by
betting", IEEE Trans. Inf. Theory 70, 2024, arXiv:2112.09162).

A capital that was bet while all was well is lost when the change comes. So a part of it is kept for
every later start: before unit n (from 1) the share ``1/log2(n+1) - 1/log2(n+2)`` starts to be
bet. All shares sum to 1. (Sums over start times are how J. Shin, A. Ramdas, A. Rinaldo,
"E-detectors", NEJSDS 2, 2024, arXiv:2203.03532, find a change; here the shares keep the
probability of a false alarm bounded over all time.)
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from cnn.common.errors import ConfigError

_STAKES: Final = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
"""Shares of the capital that are bet, side by side with equal parts of it: small ones for evidence
that is mostly 0, large ones for evidence that hardly spreads."""


class LossMonitor:
    """Bets evidence against a limit; alarms once, and stays so until `reset`.

    **Evidence** is a number from 0 (all is well) to 1, whose mean is at most `limit` as long as
    the promise holds. Any of these serves, each with its own limit, the upper confidence bound of
    its mean over the calibration tracks (`agents.loss_bounds.upper_bound` with low 0):

    * with labels, 1 - correct, for the frames that have one;
    * without labels, 1 - calibrated confidence of the answer;
    * without labels, whether two exits, or an exit and the track's last answer, disagree.

    A frame that was skipped got no answer: its evidence is 1, if such frames counted so in the
    limit. Several kinds are several monitors, each with its part of `alpha`.

    The mean is to be at most `limit` whatever came before. Frames of one track do not fulfil that:
    after a wrong answer the next one is likely wrong, too. So frames are given with `add_frame`,
    which bets once a track, on the mean of its frames. `add` takes what is independent as
    it is.

    Args:
        limit: highest mean of the evidence that is no reason for an alarm, between 0 and 1.
        alpha: probability of a false alarm, ever, between 0 and 1.

    Attributes:
        alarm: whether the capital has ever reached ``1 / alpha``.
        capital: now (the e-value); 1 at the start.
        units: number of evidences that were bet on.

    Raises:
        ConfigError: if `limit` or `alpha` is out of its range.
    """

    def __init__(self, limit: float, alpha: float = 0.01) -> None:
        for name, value in (("limit", limit), ("alpha", alpha)):
            if not 0.0 < value < 1.0:
                raise ConfigError(
                    f"{name} {value:g} of a loss monitor",
                    expected="between 0 and 1",
                    hint="take the limit from calibration tracks, and 0.01 for alpha",
                )
        self.limit, self.alpha = limit, alpha
        self.reset()

    def reset(self) -> None:
        """Begin anew, with another probability of `alpha` for a false alarm."""
        self.alarm, self.capital, self.units = False, 1.0, 0
        self._started = np.zeros(len(_STAKES))
        self._track_sum, self._track_frames = 0.0, 0

    def add(self, evidence: float) -> bool:
        """Bet on one evidence, independent of those before it; returns `alarm`.

        Raises:
            ValueError: if it is not within [0, 1].
        """
        _check(evidence)
        if self.alarm:
            return True
        self.units += 1
        kept = 1 / math.log2(self.units + 2)
        starts = 1 / math.log2(self.units + 1) - kept
        payoff = 1.0 + _STAKES * (evidence / self.limit - 1.0)
        self._started = (self._started + starts) * payoff
        self.capital = float(self._started.mean()) + kept
        self.alarm = self.capital >= 1 / self.alpha
        return self.alarm

    def add_frame(self, evidence: float, *, starts_track: bool) -> bool:
        """Add a frame's evidence to that of its track; returns `alarm`.

        The mean of the track before is bet on when a frame starts the next one.

        Args:
            evidence: within [0, 1]; NaN is a frame without evidence.
            starts_track: whether the frame is the first of its track.

        Raises:
            ValueError: if the evidence is out of its range.
        """
        if not math.isnan(evidence):
            _check(evidence)
        if starts_track and self._track_frames:
            self.add(min(1.0, self._track_sum / self._track_frames))
            self._track_sum, self._track_frames = 0.0, 0
        if not math.isnan(evidence):
            self._track_sum += evidence
            self._track_frames += 1
        return self.alarm


def _check(evidence: float) -> None:
    if not 0.0 <= evidence <= 1.0:
        raise ValueError(f"evidence {evidence!r}, expected 0 to 1")
