"""What a scenario tells its device once, before the drive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cnn.common.errors import ConfigError
from testbed.policy.observation_fields import CONSTANTS_AT, FIELDS, scale_one

MAX_MJ: Final = 1e12
_, _FLOOR, _SHARE, _FULL = FIELDS[CONSTANTS_AT:]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a scenario tells its device once, before the drive.

    Attributes:
        radio_5g: the modem is on 5G (otherwise LTE).
        accuracy_floor: constraint on mean accuracy, [0, 1].
        delay_share: w_delay / (w_delay + w_energy), [0, 1].
        full_local_ms: mean time of full local processing on this device, 0.01..100,000.
        energy_budget_mj: energy allowed for the drive, at most 1e12; 0 is no budget.

    Raises:
        ConfigError: if one is out of the range that the observation can show
            (`testbed.policy.observation_fields.Field.reach`), or no number.
    """

    radio_5g: bool
    accuracy_floor: float
    delay_share: float
    full_local_ms: float
    energy_budget_mj: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "accuracy floor": (self.accuracy_floor, _FLOOR.least, _FLOOR.most, ""),
            "delay share": (self.delay_share, _SHARE.least, _SHARE.most, ""),
            "full local processing": (self.full_local_ms, _FULL.least, _FULL.most, " ms"),
            "energy budget": (self.energy_budget_mj, 0.0, MAX_MJ, " mJ"),
        }
        for name, (value, least, most, unit) in ranges.items():
            if not least <= value <= most:  # NaN is not
                raise ConfigError(
                    f"{name} {value:g}{unit}",
                    expected=f"{least:g} to {most:g}{unit}",
                    hint="correct the scenario, or what the device is told",
                )

    def scaled(self) -> tuple[float, float, float, float]:
        """The four constant elements of the observation, scaled."""
        raw = (float(self.radio_5g), self.accuracy_floor, self.delay_share, self.full_local_ms)
        r, f, d, t = (scale_one(CONSTANTS_AT + i, value) for i, value in enumerate(raw))
        return r, f, d, t
