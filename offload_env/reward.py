"""What a learner is told of a frame: the reward, and the info beside it.

The reward is minus the cost, minus a price on wrong answers that a learner may move. The
constraint (mean accuracy at or above the floor) stays out of the cost, so that constrained
methods can use ``info["cost"]`` and ``info["accuracy"]``; a Lagrangian method raises or lowers
`lagrange` by dual ascent and learns on the reward.
"""

from __future__ import annotations

import math
from typing import Any, Final

from cnn.common.errors import ConfigError
from offload_env.outcome import NOTHING, BatchOutcome, Outcome
from testbed.policy.decision_points import CANONICAL


class Multipliers:
    """Prices of a wrong answer; mixed into every environment.

    Attributes:
        lagrange: taken off the reward for each wrong or missing answer.
        critical_lagrange: taken off as well if the frame's class is a critical one.
    """

    lagrange: float = 0.0
    critical_lagrange: float = 0.0

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


def frame_info(
    outcome: Outcome | BatchOutcome,
    exit_used: Any,
    accuracy: Any,
    critical: Any,
    prices: tuple[Any, Any, float],
) -> dict[str, Any]:
    """The info of a frame that ended, or of one in every lane: numbers, or arrays (B,).

    Args:
        outcome: what the frame cost.
        exit_used: whose answer stands, 1..5.
        accuracy: 1 if it is the true class, else 0.
        critical: whether the frame's class is a critical one.
        prices: of a millisecond, of a millijoule and of a missed deadline.
    """
    delay, energy = prices[0] * outcome.delay_ms, prices[1] * outcome.energy_mj
    miss = prices[2] * outcome.miss
    return {
        "delay_ms": outcome.delay_ms,
        "energy_mj": outcome.energy_mj,
        "accuracy": accuracy,
        "cost": outcome.cost,
        "cost_delay": delay,
        "cost_energy": energy,
        "cost_miss": miss,
        "cost_budget": outcome.cost - ((delay + energy) + miss),
        "queue_ms": outcome.queue_ms,
        "action": outcome.action,
        "exit_used": exit_used,
        "status": outcome.status,
        "critical": critical,
    }


_OPEN: Final = frame_info(NOTHING, 0, 0.0, False, (0.0, 0.0, 0.0))


def open_info(chosen: int) -> dict[str, Any]:
    """The info while a frame is open, after the staged action `chosen`."""
    return {**_OPEN, "action": int(CANONICAL[chosen]), "frame_done": False}
