"""Reward: minus the cost, minus a price on wrong answers that a learner may move.

The constraint (mean accuracy at or above the floor) stays out of the cost, so that
constrained methods can use ``info["cost"]`` and ``info["accuracy"]``; a Lagrangian method
raises or lowers `lagrange` by dual ascent and learns on the reward.
"""

from __future__ import annotations

import math
from typing import Any

from cnn.common.errors import ConfigError


class Multipliers:
    """Prices of a wrong answer; mixed into every environment.

    Attributes:
        lagrange: taken off the reward for each wrong or missing answer.
        critical_lagrange: taken off as well if the frame's class is a critical one.
    """

    lagrange: float
    critical_lagrange: float

    def set_lagrange(self, value: float, critical: float | None = None) -> None:
        """Set the price of a wrong answer, and (if given) the extra one of critical classes.

        Raises:
            ConfigError: if a price is negative or no finite number.
        """
        prices = (value,) if critical is None else (value, critical)
        if not all(0 <= price < math.inf for price in prices):
            raise ConfigError(
                f"Lagrange multipliers {', '.join(map(str, prices))}",
                expected="finite numbers of 0 or more",
                hint="a multiplier of an inequality is never negative",
            )
        self.lagrange = float(value)
        if critical is not None:
            self.critical_lagrange = float(critical)

    def _price(self, correct: Any, critical: Any) -> Any:
        """What wrong answers cost, for one frame or arrays of frames."""
        if self.critical_lagrange:
            return (self.lagrange + self.critical_lagrange * critical) * (1.0 - correct)
        return self.lagrange * (1.0 - correct)
