"""NVIDIA GPUs through NVML, if its Python binding is installed (`nvidia-ml-py`).

Functions and units as in https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html:
``nvmlDeviceGetTotalEnergyConsumption`` (millijoules since the driver was loaded; Volta and
newer), ``nvmlDeviceGetPowerUsage`` (milliwatts). Any of them may raise: a function that the GPU
or the driver lacks, a GPU that is lost, a driver that was updated under the running program.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from typing import Any

from testbed.meters.meter import (
    CounterMeter,
    EnergyReading,
    FrameActivity,
    Meter,
    SampledMeter,
    unmeasured,
)


def load_nvml() -> Any | None:
    """The initialised ``pynvml`` module; None if it or the driver is absent."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # pynvml raises its own classes, which cannot be named without it
        return None
    return nvml


def count_gpus(nvml: Any) -> int:
    """Number of GPUs; 0 if NVML does not report it."""
    try:
        return int(nvml.nvmlDeviceGetCount())
    except Exception:  # as in load_nvml
        return 0


def open_nvml(nvml: Any, index: int = 0) -> Meter | None:
    """The best meter of a GPU: its energy counter, otherwise its sampled power.

    None if it has neither. Watches the counter for up to half a second.
    """
    try:
        meter = NvmlMeter(nvml, index)
        step_s = counter_step_s(meter.counter_mj)
        if step_s is not None:
            meter.step_s = step_s
            return meter
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except Exception:  # as in load_nvml
        return None
    power = NvmlPowerMeter(nvml, handle, index, interval_s=0.02)
    if power.power_mw() is None:
        power.close()
        return None
    return power


class NvmlMeter(CounterMeter):
    """Energy counter of one GPU.

    Args:
        nvml: module from `load_nvml`.
        index: number of the GPU.
        step_s: time between two updates of the counter. A shorter window is None: the counter's
            step belongs to another window.
    """

    def __init__(self, nvml: Any, index: int = 0, *, step_s: float = 0.0) -> None:
        super().__init__(f"nvml:gpu{index}")
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self.step_s = step_s

    def counter_mj(self) -> float | None:
        """Energy since the driver was loaded; None if this GPU has no counter, or is lost."""
        return _number(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)

    def end(self, activity: FrameActivity) -> EnergyReading:
        """Difference of the counter over the window, unless the window is too short for it."""
        reading = super().end(activity)
        short = activity.end_s - activity.start_s < self.step_s
        return unmeasured(self.source) if short else reading


class NvmlPowerMeter(SampledMeter):
    """Power of one GPU, sampled and integrated: for a GPU without an energy counter.

    Args:
        nvml: module from `load_nvml`.
        handle: the GPU's handle.
        index: its number.
        interval_s: time between samples.
    """

    def __init__(self, nvml: Any, handle: Any, index: int, *, interval_s: float) -> None:
        self._read_power, self._handle = getattr(nvml, "nvmlDeviceGetPowerUsage", None), handle
        super().__init__(self.power_mw, f"nvml-power:gpu{index}", interval_s=interval_s)

    def power_mw(self) -> float | None:
        """Power now, milliwatts; None if the GPU does not report it."""
        return _number(self._read_power, self._handle)


def counter_step_s(
    read: Callable[[], float | None],
    wait_s: float = 0.5,
    *,
    clock: Callable[[], float] | None = None,
) -> float | None:
    """Time between two updates of a counter, seconds; None if it shows none within `wait_s`."""
    now = clock or time.monotonic
    until_s, last, moved_s = now() + wait_s, read(), list[float]()
    while last is not None and now() < until_s and len(moved_s) < 2:
        if clock is None:
            time.sleep(0.001)
        value = read()
        if value is not None and value != last:
            last = value
            moved_s.append(now())
    if not moved_s:
        return None
    return moved_s[1] - moved_s[0] if len(moved_s) == 2 else wait_s


def _number(function: Any, handle: Any) -> float | None:
    """The value of an NVML function for a GPU; None for an error, and for 0 or less."""
    try:
        value = float(function(handle))
    except Exception:  # as in load_nvml
        return None
    return value if math.isfinite(value) and value > 0 else None
