"""NVIDIA GPUs through NVML, if its Python binding is installed (`nvidia-ml-py`)."""

from __future__ import annotations

import importlib
from typing import Any

from testbed.meters.base import CounterMeter


def load_nvml() -> Any | None:
    """The initialised ``pynvml`` module; None if it or the driver is absent."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # pynvml raises its own classes, which cannot be named without it
        return None
    return nvml


class NvmlMeter(CounterMeter):
    """Energy counter of one GPU (`nvmlDeviceGetTotalEnergyConsumption`, millijoules).

    Args:
        nvml: module from `load_nvml`.
        index: number of the GPU.
    """

    def __init__(self, nvml: Any, index: int = 0) -> None:
        super().__init__(f"nvml:gpu{index}")
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def counter_mj(self) -> float | None:
        """Energy since the driver was loaded; None if this GPU has no counter."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError:
            return None
