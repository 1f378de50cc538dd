"""NVML's two ways to energy, against a binding with the real one's calls; no GPU is at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest

from testbed.meters import nvml
from testbed.meters.meter import FrameActivity
from testbed.meters.nvml import NvmlMeter, NvmlPowerMeter, count_gpus, counter_step_s, open_nvml


class NvmlError(Exception):
    """The binding raises classes of its own."""


class Binding:
    """The calls that are used, named and shaped as in nvidia-ml-py."""

    NVMLError = NvmlError

    @staticmethod
    def nvmlInit() -> None: ...  # noqa: N802

    @staticmethod
    def nvmlDeviceGetCount() -> int: ...  # type: ignore[empty-body]  # noqa: N802

    @staticmethod
    def nvmlDeviceGetHandleByIndex(index: int) -> object: ...  # noqa: N802

    @staticmethod
    def nvmlDeviceGetTotalEnergyConsumption(handle: object) -> int: ...  # type: ignore[empty-body]  # noqa: N802

    @staticmethod
    def nvmlDeviceGetPowerUsage(handle: object) -> int: ...  # type: ignore[empty-body]  # noqa: N802


def binding(energy: Any = NvmlError, power: Any = NvmlError) -> Any:
    """A binding whose calls give, or raise, what is told."""
    fake = create_autospec(Binding)
    fake.NVMLError = NvmlError
    fake.nvmlDeviceGetCount.return_value = 2
    fake.nvmlDeviceGetHandleByIndex.side_effect = lambda index: f"gpu{index}"
    fake.nvmlDeviceGetTotalEnergyConsumption.side_effect = energy
    fake.nvmlDeviceGetPowerUsage.side_effect = power
    return fake


def rising(step_mj: int = 250) -> Iterator[int]:
    return count(1000, step_mj)


def test_the_counter_and_its_failure(second: FrameActivity) -> None:
    meter = NvmlMeter(binding([1000, 1250, 1250, NvmlError]))
    meter.begin()
    assert meter.end(second).energy_mj == 250
    meter.begin()
    assert meter.end(second).energy_mj is None
    assert meter.source == "nvml:gpu0"


@pytest.mark.parametrize(
    "energy",
    [
        NvmlError,  # not supported, or the GPU is lost
        OSError,  # the driver was replaced under the program
        [0, 0],  # virtual GPUs
        [1000, 1000],  # stands still
        [5000, 20],  # the driver was loaded again
        [1000, NvmlError],
        [None, None],
    ],
)
def test_a_counter_that_does_not_measure_gives_none(second: FrameActivity, energy: Any) -> None:
    meter = NvmlMeter(binding(energy))
    meter.begin()
    assert meter.end(second).energy_mj is None


def test_windows_shorter_than_the_counters_step_are_none() -> None:
    meter = NvmlMeter(binding(rising()), step_s=0.1)
    energies = []
    for length_s in (0.05, 0.2):
        meter.begin()
        energies.append(meter.end(FrameActivity(0, length_s, 0, 0, 0, 0, 0)).energy_mj)
    assert energies == [None, 250]


def stepping(step_s: float, now: list[float]) -> Callable[[], float]:
    """A counter that steps every `step_s`; each look at it takes 1 ms."""

    def read() -> float:
        now[0] += 0.001
        return 1000.0 + now[0] // step_s

    return read


@pytest.mark.parametrize("step_s", [0.02, 0.1])
def test_the_counters_step_is_found(step_s: float) -> None:
    now = [0.0]
    found = counter_step_s(stepping(step_s, now), clock=lambda: now[0])
    assert found == pytest.approx(step_s, abs=0.0015)


def test_a_counter_that_never_steps_has_no_step() -> None:
    now = [0.0]
    assert counter_step_s(stepping(10.0, now), clock=lambda: now[0]) is None
    assert counter_step_s(lambda: None, clock=lambda: now[0]) is None


def test_the_counter_is_preferred() -> None:
    meter = open_nvml(binding(rising(), lambda _: 30_000))
    assert isinstance(meter, NvmlMeter)
    assert meter.step_s > 0


def test_power_is_sampled_where_there_is_no_counter(second: FrameActivity) -> None:
    meter = open_nvml(binding(NvmlError, lambda _: 30_000))
    assert isinstance(meter, NvmlPowerMeter)
    with meter:
        meter.begin()
        reading = meter.end(second)
    assert reading.source == "nvml-power:gpu0"
    assert reading.energy_mj is not None


@pytest.mark.parametrize("power", [NvmlError, OSError, lambda _: 0, lambda _: None])
def test_a_gpu_that_offers_neither_is_no_meter(power: Any) -> None:
    assert open_nvml(binding(NvmlError, power)) is None


def test_a_binding_too_old_for_the_calls_is_no_meter() -> None:
    assert open_nvml(SimpleNamespace(nvmlDeviceGetHandleByIndex=lambda index: index)) is None
    assert count_gpus(SimpleNamespace()) == 0


def test_a_machine_without_a_gpu_is_no_meter() -> None:
    fake = binding()
    fake.nvmlDeviceGetHandleByIndex.side_effect = NvmlError
    assert open_nvml(fake) is None


@pytest.mark.parametrize("error", [ImportError, NvmlError, OSError])
def test_a_library_that_cannot_be_loaded_is_none(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def load(name: str) -> None:
        raise error(name)

    monkeypatch.setattr(nvml.importlib, "import_module", load)
    assert nvml.load_nvml() is None
