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

A certificate's limits are about two kinds of evidence: doubt in the answers, defined here by
`EVIDENCE`, `doubt` and `MAX_TRACK_FRAMES`, and pictures unlike those of training
(`testbed.deploy.picture_reference`). The simulation that finds the limits and the device that keeps
to them share these definitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cnn.common.errors import BundleError, ConfigError, shown
from cnn.common.outside import refusing
from testbed.deploy.picture_reference import PICTURES, PictureReference

EVIDENCE: Final = "square root of 1 - calibrated confidence, mean over a track"
"""Its name in a policy file: the mean of `doubt` over the answered frames of a track."""
MAX_TRACK_FRAMES: Final = 300
"""So many frames of a track, by their number within it, count as one, the next ones as another:
the frames of a camera are a single track, whose end the monitor would never see. A sign is in view
for less, as a rule: ten seconds at 30 frames a second."""
STAKES: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the capital that are bet, side by side with equal parts of it: small ones for evidence
that is mostly 0, large ones for evidence that hardly spreads."""
MAX_BETWEEN: Final = 10**12
Number = TypeVar("Number", float, NDArray[np.float64])


def doubt(confidence: ArrayLike) -> NDArray[np.float64]:
    """Evidence of answered frames: the square root of 1 - confidence, from 0 to 1.

    It needs no label, and every answer has it, wherever it was computed. The root makes little
    doubt count, which blurred frames have more of long before the network says that it does not
    know. A frame that was skipped has none: load is no shift.

    Args:
        confidence: calibrated probability of the answer that was used, any shape; rounding may
            have put it a little above 1.

    Returns:
        float64, of the same shape.
    """
    return np.sqrt(np.clip(1.0 - np.asarray(confidence, np.float64), 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class PictureTerms:
    """The part of `MonitorTerms` that looks at `PICTURES`.

    Attributes:
        limit: highest mean share of strange frames that is no reason for an alarm, in (0, 1).
        reference: which frames are strange.
    """

    limit: float
    reference: PictureReference


@dataclass(frozen=True, slots=True)
class MonitorTerms:
    """What a certificate in a policy file says of its monitor, which looks at `EVIDENCE`.

    Attributes:
        limit: highest mean of the evidence that is no reason for an alarm, between 0 and 1.
        tracks_between: mean number of tracks between false alarms, at least.
        pictures: limit of the other evidence; None if nothing is known of the training frames.
    """

    limit: float
    tracks_between: int
    pictures: PictureTerms | None = None

    def limits(self) -> dict[str, float]:
        """By name of the evidence."""
        pictures = {} if self.pictures is None else {PICTURES: self.pictures.limit}
        return {EVIDENCE: self.limit, **pictures}

    def monitors(self) -> list[LossMonitor]:
        """One for each of `limits`, in that order: an alarm of any is one."""
        return side_by_side([*self.limits().values()], self.tracks_between)

    def to_json(self) -> dict[str, Any]:
        """The ``monitor`` of a certificate."""
        told: dict[str, Any] = {
            "evidence": EVIDENCE,
            "limit": self.limit,
            "tracks_between": self.tracks_between,
        }
        if self.pictures is not None:
            seen = self.pictures
            told["pictures"] = {
                "evidence": PICTURES,
                "limit": seen.limit,
                **seen.reference.to_json(),
            }
        return told

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Self | None:
        """Those in a policy file's manifest; None without a certificate, or without its monitor.

        Raises:
            BundleError: if they cannot be kept: the evidence is not known to this version, or a
                figure is out of its range. Such a policy is not to run as if it were watched.
        """
        with refusing(
            BundleError,
            "policy file with an unusable monitor in its certificate",
            expected="what `sliproad agent certify` writes",
            hint="certify the policy again",
        ):
            raw = (manifest.get("certificate") or {}).get("monitor")
            if raw is None:
                return None
            limit, between = _limit_of(raw, EVIDENCE), raw["tracks_between"]
            if type(between) is not int or not 1 < between <= MAX_BETWEEN:
                raise ValueError(f"tracks_between {shown(between)}, no whole number above 1")
            pictures = raw.get("pictures")
            if pictures is None:
                return cls(limit, between)
            reference = PictureReference.of_json(pictures)
            return cls(limit, between, PictureTerms(_limit_of(pictures, PICTURES), reference))


def _limit_of(raw: Mapping[str, Any], evidence: str) -> float:
    """Its limit, if it is about that evidence."""
    if raw["evidence"] != evidence:
        raise BundleError(
            f"policy file whose monitor looks at {shown(raw['evidence'])}",
            expected=f"{evidence!r}, which alone this version knows",
            hint="install the version that certified it, or certify it with this one",
        )
    limit = raw["limit"]
    if type(limit) is not float or not 0.0 < limit < 1.0:
        raise ValueError(f"limit {shown(limit)}, not between 0 and 1")
    return limit


def side_by_side(limits: Sequence[float], between: float) -> list[LossMonitor]:
    """One monitor for each limit; false alarms of any of them lie `between` tracks apart, or more.

    Each must earn as many times more capital as there are of them. When one alarms, the mean of
    their capitals is `between` at least, and that mean grows by 1 a track at most.
    """
    return [LossMonitor(limit, len(limits) * between) for limit in limits]


def after_bet(capital: Number, stake: Number, gain: Number) -> Number:
    """Capital at one stake after one more evidence, with one more start.

    Args:
        capital: before.
        stake: share of it that is bet.
        gain: the evidence over its limit, less 1.
    """
    return (capital + 1.0) * (1.0 + stake * gain)


class LossMonitor:
    """Bets evidence against a limit; alarms once, and stays so until `reset`.

    **Evidence** is a number from 0 (all is well) to 1, whose mean is at most `limit` as long as
    the promise holds. Any of these serves, each with its own limit, the upper confidence bound of
    its mean over the calibration tracks (`agents.loss_bounds.upper_bound` with low 0):

    * with labels, 1 - correct, for the frames that have one;
    * without labels, 1 - calibrated confidence of the answer, or its square root;
    * before any answer, whether a frame looks as few of training do;
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
        if not (0.0 < limit < 1.0 and 1.0 < between < math.inf):
            raise ConfigError(
                f"limit {limit:g} of a loss monitor, {between:g} tracks between false alarms",
                expected="a limit between 0 and 1, and more than 1 track",
                hint="take the limit from calibration tracks",
            )
        self.limit, self.between = limit, between
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.alarm, self.capital, self.units = False, 0.0, 0
        self._capitals = [0.0] * len(STAKES)
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
        gain = evidence / self.limit - 1.0
        self._capitals = [
            after_bet(capital, stake, gain)
            for capital, stake in zip(self._capitals, STAKES, strict=True)
        ]
        self.capital = sum(self._capitals) / len(STAKES)
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
