"""Operation counts and payloads against the network itself."""

import pytest
import torch
from torch import nn

from cnn.common.errors import ConfigError
from cnn.model_config import PRESETS, ModelConfig
from cnn.network.vgg import MultiExitVGG


def macs_by_hooks(module: nn.Module, x: torch.Tensor) -> int:
    """Independent count: multiply-accumulates of every convolution and linear layer run."""
    total = 0

    def count(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += out[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()

    hooks = [m.register_forward_hook(count) for m in module.modules()]
    module(x)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(width=0.25, input_size=64)])
def test_macs_equal_those_of_the_layers_that_run(config: ModelConfig) -> None:
    net = MultiExitVGG(config).eval()
    x = torch.zeros(1, 3, config.input_size, config.input_size)
    with torch.no_grad():
        for block in range(1, 6):
            assert macs_by_hooks(net.blocks[block - 1], x) == config.block_macs(block)
            x = net.blocks[block - 1](x)
            assert x.shape[1:] == (config.channels(block), config.size(block), config.size(block))
            assert macs_by_hooks(net.exits[block - 1], x) == config.head_macs(block)


@pytest.mark.parametrize("preset", PRESETS)
def test_exit_heads_cost_at_most_a_tenth_of_their_block(preset: str) -> None:
    config = PRESETS[preset]
    for exit in range(1, 6):
        assert config.head_macs(exit) <= 0.10 * config.block_macs(exit)


def test_embedded_payloads_keep_the_promised_bounds() -> None:
    config = PRESETS["embedded"]
    assert [config.payload_bytes(5, s) for s in (0, 5)] == [6912, 0]
    assert all(config.payload_bytes(5, s) <= 1024 for s in (1, 2))
    assert all(config.payload_bytes(5, s) <= 512 for s in (3, 4))


@pytest.mark.parametrize("wrong", [{"width": 0.0}, {"input_size": 50}, {"input_size": 16}])
def test_impossible_shapes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        ModelConfig(**wrong)  # type: ignore[arg-type]
