"""Device and precision of training: decided once, in one place.

The choice is a plain function of the settings and the machine's hardware, so that it can be tested
on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from cnn.common.errors import ConfigError

DeviceChoice = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
DEVICES: Final[tuple[DeviceChoice, ...]] = get_args(DeviceChoice)
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware that this machine can compute on.

    Attributes:
        cuda: PyTorch sees a CUDA GPU.
        cuda_bf16: that GPU has bf16 instructions (Ampere and newer).
        cpu_bf16: the processor has bf16 instructions (AVX-512 BF16).
    """

    cuda: bool
    cuda_bf16: bool
    cpu_bf16: bool

    @classmethod
    def here(cls) -> Machine:
        """This machine, as PyTorch sees it."""
        cuda = torch.cuda.is_available()
        return cls(
            cuda,
            cuda and torch.cuda.is_bf16_supported(including_emulation=False),
            torch.cpu._is_avx512_bf16_supported(),
        )


@dataclass(frozen=True, slots=True)
class Compute:
    """Device and arithmetic of a training run.

    Attributes:
        device: where the network and its batches live.
        dtype: of the autocast sections; None computes in float32 throughout.
    """

    device: torch.device
    dtype: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """Context for the forward pass."""
        dtype = self.dtype or torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaler: float16's range is too short for gradients, so it scales; any other
        precision gets one that passes everything through unchanged."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    def to_device(self, x: Tensor) -> Tensor:
        """`x` where the network is; the same tensor if it is there already."""
        return x.to(self.device, non_blocking=True)

    def rng_state(self) -> Tensor | None:
        """State of the GPU's generator (dropout draws from it); None on the processor."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def set_rng_state(self, state: Tensor | None) -> None:
        """Restore `rng_state`; the state of another kind of device is ignored."""
        if state is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)

    def describe(self) -> str:
        """For the run's record, such as ``cuda (NVIDIA L4), bfloat16 autocast``."""
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        how = "float32" if self.dtype is None else f"{str(self.dtype)[6:]} autocast"
        return f"{self.device.type}{name}, {how}"


def parse_choice(device: str, precision: str) -> tuple[DeviceChoice, Precision]:
    """The two settings as typed literals.

    Raises:
        ConfigError: if either is unknown, or float16 is requested on the processor.
    """
    if device not in DEVICES:
        raise ConfigError(f"device {device!r}", expected=_words(DEVICES), hint="use auto")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r}", expected=_words(PRECISIONS), hint="use auto")
    if device == "cpu" and precision == "fp16":
        raise _no_fp16()
    return device, precision


def choose_compute(
    device: DeviceChoice, precision: Precision, machine: Machine | None = None
) -> Compute:
    """The requested device and precision, on this machine.

    Args:
        device: ``auto`` takes a GPU if there is one.
        precision: ``auto`` takes bf16 where the device has instructions for it, else fp16
            on a GPU and fp32 on a processor. bf16 without such instructions is slow but right.
        machine: its hardware; None asks PyTorch.

    Raises:
        ConfigError: if a GPU is asked for and there is none, or fp16 on the processor.
    """
    parse_choice(device, precision)
    machine = machine or Machine.here()
    if device == "cuda" and not machine.cuda:
        raise ConfigError(
            "device cuda, but PyTorch sees no CUDA GPU",
            expected="an NVIDIA GPU with its driver, and a PyTorch built for CUDA",
            hint="use --device cpu or auto, or install PyTorch for CUDA (pytorch.org)",
        )
    on_gpu = machine.cuda and device != "cpu"
    if precision == "auto":
        if on_gpu:
            precision = "bf16" if machine.cuda_bf16 else "fp16"
        else:
            precision = "bf16" if machine.cpu_bf16 else "fp32"
    if precision == "fp16" and not on_gpu:
        raise _no_fp16()
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    return Compute(torch.device("cuda" if on_gpu else "cpu"), dtypes[precision])


def _words(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _no_fp16() -> ConfigError:
    return ConfigError(
        "precision fp16 on the processor",
        expected="fp16 with a CUDA GPU only",
        hint="use bf16 or fp32",
    )
