"""An alarm for the device when its mean loss is above the certified one, at any time.

Capital is bet on "the mean is above `limit`", anew before every unit of evidence (a track), and
the capitals of all starts are summed. While the mean is at most the limit, a unit adds 1 to the
sum on average at most. So the mean number of units until the sum reaches `between` is
`between` at least: that is how far false alarms lie apart, however long the device runs and
however often it looks. It is the e-detector of J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a
nonparametric framework for sequential change detection", NEJSDS 2, 2024, arXiv:2203.03532
(its Shiryaev-Roberts form), on the bets of I. Waudby-Smith and A. Ramdas, "Estimating means of
bounded random variables by betting", JRSS B 86, 2024, arXiv:2010.09686.

A bound on the probability that there is *ever* a false alarm would have to spread that probability
over all starts to come, and would find a change after a day only after some twice as many tracks.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.common.errors import ConfigError

_STAKES: Final = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
"""Shares of the capital that are bet, side by side with equal parts of it: small ones for evidence
that is mostly 0, large ones for evidence that hardly spreads."""
MAX_BETWEEN: Final = 1e12


class LossMonitor:
    """Bets evidence against a limit; alarms once, and stays so until `reset`.

    **Evidence** is a number from 0 (all is well) to 1, whose mean is at most `limit` as long as
    the promise holds. Any of these serves, each with its own limit, the upper confidence bound of
    its mean over the calibration tracks (`agents.loss_bounds.upper_bound` with low 0):

    * with labels, 1 - correct, for the frames that have one;
    * without labels, 1 - calibrated confidence of the answer, or its square root;
    * without labels, whether two exits, or an exit and the track's last answer, disagree.

    The mean is to be at most `limit` whatever came before. Frames of one track do not fulfil that:
    after a wrong answer the next one is likely wrong, too. So frames are given with `add_frame`,
    which bets once a track, on the mean of its frames. `add` takes what is independent as
    it is.

    Args:
        limit: highest mean of the evidence that is no reason for an alarm, between 0 and 1.
        between: mean number of tracks between false alarms, at least; above 1.

    Attributes:
        alarm: whether the capital has reached `between`.
        capital: now, all starts together; 0 at the beginning.
        units: number of evidences that were bet on.

    Raises:
        ConfigError: if `limit` or `between` is out of its range.
    """

    def __init__(self, limit: float, between: float) -> None:
        if not (0.0 < limit < 1.0 and 1.0 < between <= MAX_BETWEEN):
            raise ConfigError(
                f"limit {limit:g} of a loss monitor, {between:g} tracks between false alarms",
                expected=f"a limit between 0 and 1, and more than 1 track, {MAX_BETWEEN:g} at most",
                hint="take the limit from calibration tracks",
            )
        self.limit, self.between = limit, between
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.alarm, self.capital, self.units = False, 0.0, 0
        self._capitals: NDArray[np.float64] = np.zeros(len(_STAKES))
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
        self._capitals = (self._capitals + 1.0) * (1.0 + _STAKES * (evidence / self.limit - 1.0))
        self.capital = float(self._capitals.mean())
        self.alarm = self.capital >= self.between
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
