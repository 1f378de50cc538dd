"""The staged decision: what a device may do where it stands within a frame.

A device stands after block p (0 at first). Actions 0..19 are the canonical pairs (E, S): with
S < E run on to block S and send from there to exit E (the frame ends), with S = E run on to
exit E and look at its answer. Action 20 answers with the exit looked at last.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_ACTIONS, N_EXITS, Action, action_index

ANSWER: Final = N_ACTIONS
"""The 21st action: answer with the exit evaluated last."""
N_STAGED: Final = N_ACTIONS + 1


def _legal() -> NDArray[np.bool_]:
    legal = np.zeros((N_EXITS, N_STAGED), bool)
    for p in range(N_EXITS):
        for a in ACTIONS:
            legal[p, a.index] = a.split >= p and a.exit > p
        legal[p, ANSWER] = p > 0
    return legal


LEGAL: Final = _legal()
"""bool (5, 21): whether a device that stands after block p may take the action."""


def _repair() -> NDArray[np.int64]:
    repaired = np.empty((N_EXITS, N_STAGED), np.int64)
    for p in range(N_EXITS):
        for a in ACTIONS:
            ahead = action_index(a.exit, max(a.split, p)) if a.exit > p else ANSWER
            repaired[p, a.index] = ahead
        repaired[p, ANSWER] = ANSWER if p else Action(1, 1).index
    return repaired


REPAIR: Final = _repair()
"""int64 (5, 21): the legal action that stands in for an illegal one (itself if legal)."""


def staged_name(action: int) -> str:
    """``e3s1`` for a canonical action, ``answer`` for the 21st."""
    return "answer" if action == ANSWER else ACTIONS[action].name
