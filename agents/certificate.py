"""A certified floor: which policy keeps its accuracy on signs that nobody has seen, at what level.

The loss of a sign is the mean, over all its frames that were driven, of [main exit's answer is
right] - [policy's answer is right], from -1 to 1. Signs are the sample, not frames: frames of one
sign share their fate. Calibration signs are those of `cnn.calibration_tracks`, on which nothing
was learnt or chosen. The assumption is that they and the signs to come are exchangeable.

Candidates (margins, multipliers) are tested in a fixed order, most careful first, until one is not
certified: Learn-then-Test with fixed-sequence testing (A. Angelopoulos, S. Bates, E. Candès,
M. Jordan, L. Lei, "Learn then test", Annals of Applied Statistics 19, 2025, arXiv:2110.01052). The
probability that any certified one breaks its promise is ``1 - level`` at most, however many
there are.

Signs of critical classes may have a promise of their own beside that for all signs. A candidate is
certified if both hypotheses are rejected, each at the full level: whichever of its promises is
false, the candidate passes with probability ``1 - level`` at most (an intersection-union test,
R. Berger, Technometrics 24, 1982). Dividing the level between the two would only lose power.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from agents.loss_bounds import least_bound, p_value, upper_bound
from agents.rollout import Rollout
from cnn.calibration_tracks import signs_of
from cnn.common.errors import ConfigError, DataError
from offload_env.world import World

Floats = NDArray[np.float64]


def sign_means(world: World, rows: NDArray[np.int64], values: NDArray[np.generic]) -> Floats:
    """Mean of one value a frame over each sign's frames, float64 (n_signs,).

    Args:
        world: whose table the rows are of.
        rows: int64, of the frames driven, any shape.
        values: numbers of the same shape, such as a monitor's evidence.

    Raises:
        DataError: if a sign was never driven past.
    """
    sign = signs_of(world.table)[world.table.track[rows.ravel()]]
    n = int(signs_of(world.table).max()) + 1
    frames = np.bincount(sign, minlength=n)
    if not frames.all():
        raise DataError(
            f"drives past {np.count_nonzero(frames)} of {n} signs",
            expected="each of them at least once",
            hint="drive more drives",
        )
    return np.bincount(sign, values.ravel().astype(np.float64), minlength=n) / frames


def sign_losses(world: World, rollout: Rollout) -> Floats:
    """Loss of each sign against full local processing, float64 (n_signs,), -1 to 1.

    A skipped frame has no answer, and counts as wrong.

    Raises:
        DataError: if a sign was never driven past.
    """
    main = world.correct[rollout.row, world.topology.main].astype(np.float64)
    return sign_means(world, rollout.row, main - rollout.correct)


def mean_loss(world: World, rollout: Rollout) -> float:
    """Mean over frames of [main exit is right] - [policy is right]; a skipped frame is wrong."""
    return float((world.correct[rollout.row, world.topology.main] - 1.0 * rollout.correct).mean())


def signs_needed(margin: float, level: float) -> int:
    """Signs that certify this margin if none of them has a loss (`agents.loss_bounds`).

    Raises:
        ConfigError: if the margin or the level is not between 0 and 1.
    """
    for name, value in (("margin", margin), ("level", level)):
        if not 0.0 < value < 1.0:
            raise ConfigError(
                f"{name} {value:g}", expected="between 0 and 1", hint="try --margin 0.02, 0.95"
            )

    def enough(n: int) -> bool:
        return p_value(np.zeros(n), margin) <= 1 - level

    # From Clopper and Pearson's number, which no method beats, to twice that, which surely does.
    least = math.ceil(math.log(1 - level) / math.log1p(-margin))
    return least + bisect.bisect_left(range(least, 3 * least + 3), True, key=enough)


@dataclass(frozen=True, slots=True)
class Critical:
    """A promise of their own for the signs of critical classes.

    Attributes:
        signs: bool (n_signs,), which these are.
        margin: highest mean loss that is promised of them.
        fresh: number of such signs whose mean is promised; None is all there will ever be.
    """

    signs: NDArray[np.bool_]
    margin: float
    fresh: int | None = None

    def broken(self, losses: Floats) -> bool:
        """Whether the mean loss of these signs, float64 (n_signs,), is above the margin."""
        return bool(self.signs.any() and losses[self.signs].mean() > self.margin)

    def p_value(self, losses: Floats) -> float:
        """p-value of "the promise is broken"; 1 without such a sign."""
        own = losses[self.signs]
        return p_value(own, self.margin, fresh=self.fresh) if len(own) else 1.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """Result of one Learn-then-Test.

    Attributes:
        margin: highest mean loss that is promised.
        level: probability at which the promise is kept, such as 0.95.
        signs: number of calibration signs.
        fresh: number of signs whose mean is promised; None is all there will ever be.
        p_values: of the candidates that were tested, in their order; the last may have failed.
            The larger one where there are two promises.
        chosen: number of the cheapest certified candidate; None if there is none.
    """

    margin: float
    level: float
    signs: int
    fresh: int | None
    p_values: tuple[float, ...]
    chosen: int | None

    @property
    def possible(self) -> bool:
        """Whether so few signs could certify this margin at all, had they no loss."""
        return least_bound(self.signs, self.level) <= self.margin


def certify(
    losses: Floats,
    costs: Floats,
    margin: float,
    level: float,
    *,
    fresh: int | None = None,
    critical: Critical | None = None,
) -> Certificate:
    """The cheapest candidate that keeps the margin, at this level.

    Args:
        losses: float64 (candidates, signs), of calibration signs, each -1 to 1; most careful
            candidate first. The order must not depend on these losses.
        costs: float64 (candidates,), to choose by among the certified.
        margin: highest mean loss that may be promised.
        level: between 0 and 1.
        fresh: as of `agents.loss_bounds.p_value`.
        critical: what is promised besides of some of the signs.

    Raises:
        DataError: if the losses have no candidates, do not fit the costs, or are out of range.
        ConfigError: if level or `fresh` is out of range.
    """
    if losses.ndim != 2 or costs.shape != losses.shape[:1] or not len(costs):
        raise DataError(
            f"losses of shape {losses.shape} and costs of shape {costs.shape}",
            expected="(candidates, signs) and (candidates,)",
            hint="give one row of losses and one cost a candidate",
        )
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level {level:g}", expected="between 0 and 1", hint="try 0.95")
    tested: list[float] = []
    for of_one in losses:
        own = 0.0 if critical is None else critical.p_value(of_one)
        tested.append(max(own, p_value(of_one, margin, fresh=fresh)))
        if tested[-1] > 1 - level:
            break
    certified = len(list(takewhile(lambda p: p <= 1 - level, tested)))
    chosen = int(np.argmin(costs[:certified])) if certified else None
    return Certificate(margin, level, losses.shape[1], fresh, tuple(tested), chosen)


@dataclass(frozen=True, slots=True)
class Resampled:
    """How promises made on some signs were kept on the others, over random divisions of them.

    Attributes:
        splits: number of divisions.
        certified_share: share of them in which anything was promised.
        broken_share: share of them in which the mean loss on the other signs was above the
            promise, or that on the critical ones of these above theirs.
        margin: mean of what was promised; NaN if nothing ever was.
        cost: mean cost of the candidates used: the chosen one, or the first where none was.
    """

    splits: int
    certified_share: float
    broken_share: float
    margin: float
    cost: float


def resampled(
    losses: Floats,
    costs: Floats,
    margin: float | None,
    level: float,
    *,
    calibration: int,
    critical: Critical | None = None,
    splits: int = 200,
    seed: int = 0,
) -> Resampled:
    """Certify on random parts of the signs, and look at the others.

    Args:
        losses: float64 (candidates, signs), as of `certify`.
        costs: float64 (candidates,).
        margin: promised; None promises of the first candidate what its losses allow, the upper
            bound at this level.
        level: between 0 and 1.
        calibration: number of signs to certify on; the promise is for the mean of the others.
        critical: what is promised besides of some of the signs, given a margin.
        splits: number of divisions.
        seed: of the divisions.

    Raises:
        ConfigError: if `calibration` leaves no sign on one side, or a number is out of range.
        DataError: if losses and costs do not fit together.
    """
    n = losses.shape[-1]
    if not 0 < calibration < n or splits < 1:
        raise ConfigError(
            f"{splits} splits with {calibration} of {n} signs to calibrate on",
            expected=f"at least one split, and 1..{n - 1} signs",
            hint="leave some signs to look at",
        )
    promised, broken, used = [], 0, []
    for known, others in _divisions(n, calibration, splits, seed):
        chosen: int | None = 0
        here = there = None
        if critical is not None:
            there = replace(critical, signs=critical.signs[others])
            fresh = int(there.signs.sum()) or None
            here = replace(critical, signs=critical.signs[known], fresh=fresh)
        if margin is None:
            promise = upper_bound(losses[0, known], level, fresh=len(others))
        else:
            promise = margin
            chosen = certify(
                losses[:, known], costs, margin, level, fresh=len(others), critical=here
            ).chosen
        used.append(costs[chosen or 0])
        if chosen is not None:
            seen = losses[chosen, others]
            promised.append(promise)
            broken += bool(seen.mean() > promise or (there is not None and there.broken(seen)))
    return Resampled(
        splits,
        len(promised) / splits,
        broken / splits,
        float(np.mean(promised)) if promised else float("nan"),
        float(np.mean(used)),
    )


def _divisions(
    n: int, calibration: int, splits: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    rng = np.random.default_rng(seed)
    for _ in range(splits):
        order = rng.permutation(n)
        yield order[:calibration], order[calibration:]
