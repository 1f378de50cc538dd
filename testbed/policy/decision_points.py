"""The staged decision: what a device may do where it stands within a frame.

Actions 0..19 are the canonical pairs (E, S): with S < E run on to block S and send from there to
exit E, with S = E run on to exit E and look at its answer. Action 20 answers with the exit looked
at last. Actions 21..35 send as the fifteen pairs with S < E do, in a hurry: the device gives up
waiting for the answer before the time-out (`testbed.policy.estimators.patience_ms`).

An answer that comes in time ends the frame. After giving up, the device goes on with the features
that it sent: it may look at exits from there on and answer, but does not send this frame again.

A *stand* is where the device is within a frame. In stands 0..4 it is after block p, whose exit was
looked at last (0: nothing yet). In stands 5..19 it gave up after sending from block s, with exit p
<= s looked at last; a look takes it to where p is the block again.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cnn.action import ACTIONS, N_ACTIONS, N_EXITS, Action, action_index

ANSWER: Final = N_ACTIONS
"""The 21st action: answer with the exit evaluated last."""
SENDING: Final = tuple(a.index for a in ACTIONS if not a.is_local)
"""Canonical numbers of the fifteen pairs that send."""
LOOKING: Final = tuple(a.index for a in ACTIONS if a.is_local)
"""Canonical numbers of the five that look at an exit."""
IN_HURRY: Final = tuple(range(ANSWER + 1, ANSWER + 1 + len(SENDING)))
"""Staged actions that send as `SENDING` do, with less patience."""
N_STAGED: Final = IN_HURRY[-1] + 1

CANONICAL: Final = np.array([*range(N_ACTIONS), Action(1, 1).index, *SENDING])
"""int64 (36,), the pair that a staged action runs; e1s1 for "answer", which runs nothing."""
HURRIES: Final = np.arange(N_STAGED) > ANSWER
"""bool (36,), whether it gives up before the time-out."""

_GAVE_UP: Final = tuple((s, p) for s in range(N_EXITS) for p in range(s + 1))
N_STANDS: Final = N_EXITS + len(_GAVE_UP)


def _stands() -> NDArray[np.int64]:
    stands = np.zeros((2, N_EXITS, N_EXITS), np.int64)
    stands[0] = np.arange(N_EXITS)[:, None]
    for k, (s, p) in enumerate(_GAVE_UP):
        stands[1, s, p] = N_EXITS + k
    return stands


STAND: Final = _stands()
"""int64 (2, 5, 5): the stand of a device that has given up waiting on this frame or not, after a
block, with an exit looked at last (0: none)."""
BLOCK: Final = np.array([*range(N_EXITS), *(s for s, _ in _GAVE_UP)])
"""int64 (20,), block after which the device is at each stand."""
LOOKED: Final = np.array([*range(N_EXITS), *(p for _, p in _GAVE_UP)])
"""int64 (20,), exit looked at last at each stand; 0 if none was."""


def has_given_up(stand: int) -> bool:
    """Whether the device gave up waiting on the frame in hand."""
    return stand >= N_EXITS


def _legal() -> NDArray[np.bool_]:
    legal = np.zeros((N_STANDS, N_STAGED), bool)
    for p in range(N_EXITS):
        for a in ACTIONS:
            legal[p, a.index] = a.split >= p and a.exit > p
        legal[p, IN_HURRY] = legal[p, SENDING]
        legal[p, ANSWER] = p > 0
    for s, p in _GAVE_UP:
        stand = STAND[1, s, p]
        for exit in range(max(s, p + 1), N_EXITS + 1):
            legal[stand, action_index(exit, exit)] = True
        legal[stand, ANSWER] = p > 0
    return legal


LEGAL: Final = _legal()
"""bool (20, 36): whether a device may take the action at a stand."""


def _repair() -> NDArray[np.int64]:
    repaired = np.empty((N_STANDS, N_STAGED), np.int64)
    for stand in range(N_STANDS):
        for number in range(N_STAGED):
            repaired[stand, number] = _stand_in(stand, number)
    return repaired


def _stand_in(stand: int, number: int) -> int:
    """The legal action nearest to what was meant."""
    if LEGAL[stand, number]:
        return number
    pair = ACTIONS[CANONICAL[number]]
    look = action_index(pair.exit, pair.exit)
    if number != ANSWER and LEGAL[stand, look]:
        if pair.is_local or has_given_up(stand):
            return look
        ahead = action_index(pair.exit, stand)  # its split lies behind
        return IN_HURRY[SENDING.index(ahead)] if HURRIES[number] else ahead
    return ANSWER if LEGAL[stand, ANSWER] else LOOKING[int(LEGAL[stand, LOOKING].argmax())]


REPAIR: Final = _repair()
"""int64 (20, 36): the legal action that stands in for an illegal one (itself if legal)."""


def staged_name(action: int) -> str:
    """``e3s1`` for a canonical action, ``answer`` for the 21st, ``e3s1-hurried`` after it."""
    if action == ANSWER:
        return "answer"
    return ACTIONS[int(CANONICAL[action])].name + ("-hurried" if HURRIES[action] else "")
