"""Device and precision of training: what is chosen where, and what is refused."""

import pytest
import torch

from cnn.common.errors import ConfigError
from cnn.network.fitting import backward_step
from cnn.network.torch_device import Compute, Machine, choose_compute, parse_choice

OLD_GPU = Machine(cuda=True, cuda_bf16=False, cpu_bf16=True)
NEW_GPU = Machine(cuda=True, cuda_bf16=True, cpu_bf16=False)
NO_GPU = Machine(cuda=False, cuda_bf16=False, cpu_bf16=True)
PLAIN = Machine(cuda=False, cuda_bf16=False, cpu_bf16=False)


@pytest.mark.parametrize(
    ("device", "precision", "machine", "expected"),
    [
        ("auto", "auto", NEW_GPU, ("cuda", torch.bfloat16)),
        ("auto", "auto", OLD_GPU, ("cuda", torch.float16)),
        ("auto", "auto", NO_GPU, ("cpu", torch.bfloat16)),
        ("auto", "auto", PLAIN, ("cpu", None)),
        ("cpu", "auto", OLD_GPU, ("cpu", torch.bfloat16)),
        ("cpu", "auto", NEW_GPU, ("cpu", None)),
        ("cuda", "fp16", NEW_GPU, ("cuda", torch.float16)),
        ("cuda", "fp32", NEW_GPU, ("cuda", None)),
        ("auto", "fp32", NO_GPU, ("cpu", None)),
        ("cpu", "bf16", PLAIN, ("cpu", torch.bfloat16)),
    ],
)
def test_choice(
    device: str, precision: str, machine: Machine, expected: tuple[str, torch.dtype | None]
) -> None:
    compute = choose_compute(*parse_choice(device, precision), machine)
    assert (compute.device.type, compute.dtype) == expected


@pytest.mark.parametrize(
    ("device", "precision", "machine", "message"),
    [
        ("cuda", "auto", NO_GPU, "no CUDA GPU"),
        ("auto", "fp16", NO_GPU, "fp16 with a CUDA GPU only"),
        ("cpu", "fp16", NEW_GPU, "fp16 with a CUDA GPU only"),
    ],
)
def test_what_is_not_there_is_refused(
    device: str, precision: str, machine: Machine, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_compute(device, precision, machine)  # type: ignore[arg-type]


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        parse_choice("tpu", "auto")
    with pytest.raises(ConfigError, match="auto, fp32, bf16 or fp16"):
        parse_choice("auto", "int8")


def test_scaler_scales_for_float16_alone() -> None:
    cpu = torch.device("cpu")
    enabled = {d: Compute(cpu, d).scaler().is_enabled() for d in (torch.bfloat16, None)}
    assert enabled == {torch.bfloat16: False, None: False}
    assert Compute(cpu, torch.float16).scaler().is_enabled()


def test_scaled_step_is_the_plain_step_and_overflow_is_left_out() -> None:
    """The scaler's arithmetic on the processor, which PyTorch also provides there."""

    def stepped(scaler: torch.amp.GradScaler, loss_factor: float) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        backward_step(loss_factor * weight.square().sum(), [weight], optimizer, scaler)
        return weight.detach()

    scaled = Compute(torch.device("cpu"), torch.float16).scaler()
    plain = Compute(torch.device("cpu"), None).scaler()
    # Gradient 2w has norm 2 sqrt(14), clipped to 5: w - 0.1 * 5 w / sqrt(14).
    w = torch.tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(stepped(plain, 1.0), w * (1 - 0.5 / 14**0.5))
    torch.testing.assert_close(stepped(scaled, 1.0), stepped(plain, 1.0))
    before = scaled.get_scale()
    torch.testing.assert_close(stepped(scaled, float("inf")), w)
    assert scaled.get_scale() < before
