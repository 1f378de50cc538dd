"""The terms of the cost models: what runs on device and server in each action.

Blocks, exits, encoders and decoders take the same time in whatever action they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_ACTIONS, N_EXITS, Action

Floats = NDArray[np.float64]

OVERHEAD: Final = "overhead"
SEND: Final = "send"
"""What an exchange costs the device beyond the exchange: payload and answer pass its hands."""
SEGMENTS: Final = (
    "block1",
    "block2",
    "block3",
    "block4",
    "block5_exit5",
    *(f"exit{e}" for e in range(1, N_EXITS)),
)
"""Blocks and exits. Block 5 and exit 5 always run together, so they are one term."""
DEVICE_TERMS: Final = (OVERHEAD, SEND, *SEGMENTS, *(f"enc{s}" for s in range(1, N_EXITS)))
SERVER_TERMS: Final = (OVERHEAD, *SEGMENTS, *(f"dec{s}" for s in range(1, N_EXITS)))
IS_LOCAL: Final[NDArray[np.bool_]] = np.array([a.is_local for a in ACTIONS])


def segment_terms(first: int, last: int, exit: int | None) -> list[str]:
    """Blocks `first`..`last`, and exit `exit` unless it is None."""
    blocks = [f"block{b}" for b in range(first, min(last, 4) + 1)]
    if exit is None:
        return blocks
    return [*blocks, "block5_exit5" if exit == N_EXITS else f"exit{exit}"]


def head_terms(action: Action) -> list[str]:
    """What runs on the device before the encoder."""
    return segment_terms(1, action.split, action.exit if action.is_local else None)


def device_terms(action: Action) -> list[str]:
    """What the device runs when all goes well."""
    send = [] if action.is_local else [SEND]
    encoder = [] if action.is_local or not action.split else [f"enc{action.split}"]
    return [OVERHEAD, *send, *head_terms(action), *encoder]


def fallback_terms(action: Action) -> list[str]:
    """What the device runs after a failed exchange."""
    return [] if action.is_local else segment_terms(action.split + 1, action.exit, action.exit)


def server_terms(action: Action) -> list[str]:
    """What the server runs."""
    if action.is_local:
        return []
    decoder = [f"dec{action.split}"] if action.split else []
    return [OVERHEAD, *decoder, *fallback_terms(action)]


def design(terms: Callable[[Action], Sequence[str]], names: Sequence[str]) -> Floats:
    """float64 (20, n_terms): how often each term runs in each action."""
    table = np.zeros((N_ACTIONS, len(names)))
    for action in ACTIONS:
        for name in terms(action):
            table[action.index, names.index(name)] += 1
    return table
