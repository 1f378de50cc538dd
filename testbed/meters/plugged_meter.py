"""A plug-in's meter, kept to the promises of `testbed.meters.meter.Meter`."""

from __future__ import annotations

import logging
from typing import Final

from cnn.common.errors import SliproadError
from cnn.common.plug_ins import PlugIn
from testbed.meters.meter import EnergyReading, FrameActivity, Meter, unmeasured
from testbed.meters.power import is_amount

_MAX_SOURCE: Final = 80

_log = logging.getLogger(__name__)


class PluggedMeter(Meter):
    """The meter that a plug-in opens.

    A window in which it raises, or gives anything but possible figures, was not measured; the first
    such failure is logged. Its source in the records begins with the plug-in's name.

    Args:
        plug_in: loads to a function of one text that opens the meter.
        setting: that text.

    Raises:
        ConfigError: the plug-in fails, or does not give a `Meter`.
    """

    def __init__(self, plug_in: PlugIn, setting: str) -> None:
        self._plug_in, self._failed = plug_in, False
        opens = plug_in.load()
        with plug_in.calling():
            meter = opens(setting)
            if not isinstance(meter, Meter):
                raise TypeError(f"it opens {type(meter).__name__}, no testbed.Meter")
            self._meter = meter
            self.source = self._named(meter.source)
            self.tail_ms = float(meter.tail_ms)

    def begin(self) -> None:
        """Start a window."""
        try:
            with self._plug_in.calling():
                self._meter.begin()
        except SliproadError as error:
            self._say(error)

    def end(self, activity: FrameActivity) -> EnergyReading:
        """The plug-in's reading, checked; everything is None if it failed."""
        try:
            with self._plug_in.calling():
                return self._checked(self._meter.end(activity))
        except SliproadError as error:
            self._say(error)
            return unmeasured(self.source)

    def close(self) -> None:
        """Release the plug-in's meter."""
        try:
            with self._plug_in.calling():
                self._meter.close()
        except SliproadError as error:
            self._say(error)

    def _checked(self, reading: EnergyReading) -> EnergyReading:
        return EnergyReading(
            _amount(reading.compute_mj),
            _amount(reading.radio_mj),
            _amount(reading.idle_mj),
            _amount(reading.energy_mj),
            self._named(reading.source),
        )

    def _named(self, source: object) -> str:
        name, text = self._plug_in.name, " ".join(str(source).split())[:_MAX_SOURCE]
        return text if text.partition(":")[0] == name else f"{name}:{text}" if text else name

    def _say(self, error: SliproadError) -> None:
        if not self._failed:
            _log.warning("windows without energy: %s", error)
        self._failed = True


def _amount(given_mj: float | None) -> float | None:
    """An energy as a plain float; raises `ValueError` unless it is finite and from 0 up."""
    energy_mj = None if given_mj is None else float(given_mj)
    if energy_mj is not None and not is_amount(energy_mj):
        raise ValueError(f"energy {given_mj} mJ, expected a finite one from 0 up")
    return energy_mj
