"""A passively cooled computer heats up as it computes, and slows down when it is hot.

The temperature T of the processor follows the power P of the whole device (first-order RC model)::

    dT/dt = (ambient + resistance * P - T) / time_constant

While the power is constant, T approaches ``ambient + resistance * P`` exponentially. The clock's
share is 1 up to `Heat.throttle_c`, and falls linearly to `Heat.least_clock` at `Heat.limit_c`. The
share at a frame's start holds for the whole frame: its compute times are divided by it.

Published, for a Raspberry Pi 4 without heat sink or fan:

* It throttles its cores progressively between 80 and 85 C (Raspberry Pi documentation, "Frequency
  management and thermal control").
* It idles at about 60 C in a room (A. Allan, "Do You Need to Use a Fan for Cooling with the New
  Raspberry Pi 4?", Hackster 2019: 61 C; J. Geerling, "The Raspberry Pi 4 needs a fan", 2019: 60 C),
  with the 2.7 W of the power profile ``raspberry-pi-4``. Both give 13 K/W above 25 C.
* CNNs that run all the time take up to 1.9 times as long without a fan; between 22 and 36 C around
  it their throughput differs by up to 27.7 % (D. Benoit-Cattin et al., "Impact of Thermal
  Throttling on Long-Term Visual Inference in a CPU-Based Edge Device", Electronics 9(12), 2020).
  Not used for the fit; the model gives 2.0 times and 27.7 %
  (`tests/offload_env/test_heat.py`).

Modelled: the least share of 0.4 (600 of 1500 MHz, ``arm_freq_min`` and ``arm_freq``: from memory,
not looked up), the linear fall, one time constant (a real board has one of seconds for the chip and
one of minutes for the board), and its value. Full load from idle then throttles after 1.8 minutes;
published are "a handful of minutes" (G. Halfacree, Tom's Hardware, 2019) and, for some CNNs, "few
seconds" (Benoit-Cattin et al.). Modelled, too: the power above idle falls with the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cnn.common.errors import in_range, require

_HINT = "correct the scenario's [heat]"


@dataclass(frozen=True, slots=True)
class Heat:
    """Heat of the device's processor; the defaults are a bare Raspberry Pi 4.

    Attributes:
        resistance_k_per_w: kelvin above the air for each watt of the device, in the long run; 0 is
            a device that never gets hot. 13 is a bare Raspberry Pi 4.
        time_constant_s: time in which the distance to the final temperature falls to 37 %.
        ambient_c: temperature of the air around the device.
        begin_low_c: coolest temperature at which a drive begins.
        begin_high_c: hottest one; each drive begins at one between the two.
        throttle_c: up to here the clock is full.
        limit_c: from here on it has its least share; in between it falls linearly.
        least_clock: least share of the full clock, [0.05, 1].
    """

    resistance_k_per_w: float = 0.0
    time_constant_s: float = 200.0
    ambient_c: float = 25.0
    begin_low_c: float = 60.0
    begin_high_c: float = 85.0
    throttle_c: float = 80.0
    limit_c: float = 85.0
    least_clock: float = 0.4

    def __post_init__(self) -> None:
        in_range("resistance_k_per_w", self.resistance_k_per_w, 0, 1000, _HINT)
        in_range("time_constant_s", self.time_constant_s, 0.01, 1e6, _HINT)
        for name in ("ambient_c", "begin_low_c", "begin_high_c", "throttle_c", "limit_c"):
            in_range(name, getattr(self, name), -100, 200, _HINT)
        in_range("least_clock", self.least_clock, 0.05, 1, _HINT)
        require(
            self.begin_low_c <= self.begin_high_c,
            f"begin_low_c {self.begin_low_c:g} above begin_high_c {self.begin_high_c:g}",
            "the lower one first",
            _HINT,
        )
        require(
            self.throttle_c < self.limit_c,
            f"throttle_c {self.throttle_c:g} with limit_c {self.limit_c:g}",
            "a limit above the temperature at which throttling begins",
            _HINT,
        )

    @property
    def is_on(self) -> bool:
        """Whether the device heats up at all."""
        return self.resistance_k_per_w > 0

    @property
    def slowest(self) -> float:
        """Largest factor on compute times; 1 without heat."""
        return 1.0 / self.least_clock if self.is_on else 1.0

    # The methods take floats or arrays, and perform the same operations on both.

    def beginning_c(self, drawn: Any) -> Any:
        """Temperature at which a drive begins, by a number drawn from [0, 1)."""
        return self.begin_low_c + (self.begin_high_c - self.begin_low_c) * drawn

    def clock(self, celsius: Any) -> Any:
        """Share of the full clock at a temperature, in [`least_clock`, 1]."""
        over = (celsius - self.throttle_c) / (self.limit_c - self.throttle_c)
        return 1.0 - (1.0 - self.least_clock) * np.minimum(np.maximum(over, 0.0), 1.0)

    def later_c(
        self, celsius: Any, busy_ms: Any, busy_mw: Any, idle_ms: Any, idle_mw: float
    ) -> Any:
        """Temperature after the device has computed, and then idled, for these times.

        Local compute after an exchange counts as before it: a few milliseconds of order do not
        matter against a time constant of minutes.
        """
        return self._towards(self._towards(celsius, busy_ms, busy_mw), idle_ms, idle_mw)

    def _towards(self, celsius: Any, ms: Any, mw: Any) -> Any:
        final = self.ambient_c + self.resistance_k_per_w * mw * 1e-3
        return final + (celsius - final) * np.exp(-ms / (self.time_constant_s * 1e3))


def slowed_mw(clock: Any, busy_mw: float, idle_mw: float) -> Any:
    """Power while it computes at this share of the full clock; `busy_mw` at 1."""
    return busy_mw - (busy_mw - idle_mw) * (1.0 - clock)
