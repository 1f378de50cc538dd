"""What counts as a difference between an exported network and torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnn.data.image_set import ImageSet
from cnn.model_config import NetworkConfig
from cnn.network.block_network import LATENT_LEVELS, BlockNetwork
from cnn.network.checked_export import MOST_ERROR, largest_error
from cnn.network.pipeline import Calibration
from cnn.topology import Topology

N, LEVEL = 3, 100


class Always(nn.Module):
    """A number between byte `LEVEL` and the next, whatever the frame."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), 1, 1, 1), (LEVEL + 0.5) / LATENT_LEVELS)


def network() -> BlockNetwork:
    """Two exits, of which the second answers by the byte that arrives: its logits move by 9."""
    steep = nn.Linear(1, 2)
    with torch.no_grad():
        steep.weight[:, 0] = torch.tensor([9.0, -9.0]) * LATENT_LEVELS
        steep.bias[:] = torch.tensor([-9.0, 9.0]) * LEVEL
    topology = Topology(2, (1, 2), (0, 1), ((4, 4, 3), (1, 1, 1)))
    blocks = [nn.AvgPool2d(4), nn.Conv2d(3, 1, 1)]
    first = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    exits = [first, nn.Sequential(nn.Flatten(), steep)]
    decoder = nn.Conv2d(1, 3, 1)
    return BlockNetwork(NetworkConfig(4, 2), topology, blocks, exits, [Always()], [decoder]).eval()


@torch.no_grad()
def error_of(net: BlockNetwork, byte: int) -> float:
    """Of an export that sends this byte, and answers from it as `net` does."""
    ones = np.ones(N, np.int16)
    val = ImageSet(np.zeros((N, 4, 4, 3), np.uint8), ones, ones.astype(np.int32), ones, ones, ones)
    x = torch.zeros(N, 3, 4, 4)
    sent = np.full((N, 1, 1, 1), byte, np.uint8)
    logits = [
        net.act(x, a) if a.split in (0, a.exit) else net.act_on(torch.from_numpy(sent), a)
        for a in net.topology.actions
    ]
    temperatures = (1.0,) * len(logits)
    found = Calibration(torch.stack(logits, 1).numpy(), {1: sent}, temperatures, {})
    return largest_error(net, val, found)


@pytest.mark.parametrize("byte", [LEVEL, LEVEL + 1])
def test_a_number_between_two_bytes_may_become_either(byte: int) -> None:
    assert error_of(network(), byte) < 1e-6


@pytest.mark.parametrize("byte", [LEVEL - 2, LEVEL + 2])
def test_two_levels_off_are_a_difference(byte: int) -> None:
    assert error_of(network(), byte) == pytest.approx(2 / LATENT_LEVELS)
    assert MOST_ERROR < 2 / LATENT_LEVELS
