"""What a scenario tells its device once, before the drive."""

from __future__ import annotations

from dataclasses import dataclass

from cnn.errors import ConfigError
from testbed.decide.fields import CONSTANTS_AT, scale_one


@dataclass(frozen=True, slots=True)
class Settings:
    """What a scenario tells its device once, before the drive.

    Attributes:
        radio_5g: the modem is on 5G (otherwise LTE).
        accuracy_floor: constraint on mean accuracy, [0, 1].
        delay_share: w_delay / (w_delay + w_energy), [0, 1].
        full_local_ms: mean time of full local processing on this device.
        energy_budget_mj: energy allowed for the drive; 0 is no budget.
    """

    radio_5g: bool
    accuracy_floor: float
    delay_share: float
    full_local_ms: float
    energy_budget_mj: float = 0.0

    def __post_init__(self) -> None:
        ok = 0 <= self.accuracy_floor <= 1 and 0 <= self.delay_share <= 1
        if not ok or self.full_local_ms <= 0 or self.energy_budget_mj < 0:
            raise ConfigError(
                f"{self}",
                expected="floor and delay share in [0, 1], full_local_ms > 0, budget >= 0",
                mend="correct the scenario",
            )

    def scaled(self) -> tuple[float, float, float, float]:
        """The four constant elements of the observation, in [-1, 1]."""
        raw = (float(self.radio_5g), self.accuracy_floor, self.delay_share, self.full_local_ms)
        r, f, d, t = (scale_one(CONSTANTS_AT + i, value) for i, value in enumerate(raw))
        return r, f, d, t
