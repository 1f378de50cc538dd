"""The staged decision: what a device may do at each decision point of a frame.

Actions 0..19 are the canonical pairs (E, S): with S < E run on to block S and send from there to
exit E, with S = E run on to exit E and evaluate it. Action 20 answers with the exit evaluated
last. Actions 21..35 send as the fifteen pairs with S < E do, but with an early time-out: the device
stops waiting for the answer before the time-out (`testbed.policy.estimators.early_timeout_ms`).

An answer that comes in time ends the frame. After a time-out the device resumes with the features
that it sent: it may evaluate exits from there on and answer, but it does not send this frame again.

A *decision point* says how far a frame has been processed. At points 0..4 the device is after block
p, whose exit was evaluated last (0: nothing yet). At points 5..19 an exchange has timed out after
it sent from block s, and exit p <= s was evaluated last; evaluating another exit leads to a point
where p is the block again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cnn.topology import ACTIONS, N_ACTIONS, N_EXITS, Action, action_index
from testbed.policy.observation_fields import OBS_DIM, STAGED_OBS_DIM

ANSWER: Final = N_ACTIONS
"""The 21st action: answer with the exit evaluated last."""
SENDING: Final = tuple(a.index for a in ACTIONS if not a.is_local)
"""Canonical numbers of the fifteen pairs that send."""
EVALUATING: Final = tuple(a.index for a in ACTIONS if a.is_local)
"""Canonical numbers of the five that evaluate an exit."""
SENDING_EARLY: Final = tuple(range(ANSWER + 1, ANSWER + 1 + len(SENDING)))
"""Staged actions that send as `SENDING` do, with an early time-out."""
N_STAGED: Final = SENDING_EARLY[-1] + 1

CANONICAL: Final = np.array([*range(N_ACTIONS), Action(1, 1).index, *SENDING])
"""int64 (36,), the pair that a staged action runs; e1s1 for "answer", which runs nothing."""
TIMES_OUT_EARLY: Final = np.arange(N_STAGED) > ANSWER
"""bool (36,), whether it uses the early time-out."""

_TIMED_OUT: Final = tuple((s, p) for s in range(N_EXITS) for p in range(s + 1))
N_POINTS: Final = N_EXITS + len(_TIMED_OUT)


def _stands() -> NDArray[np.int64]:
    points = np.zeros((2, N_EXITS, N_EXITS), np.int64)
    points[0] = np.arange(N_EXITS)[:, None]
    for k, (s, p) in enumerate(_TIMED_OUT):
        points[1, s, p] = N_EXITS + k
    return points


POINT: Final = _stands()
"""int64 (2, 5, 5): the decision point, by whether an exchange of this frame has timed out,
the block that ran last, and the exit evaluated last (0: none)."""
BLOCK: Final = np.array([*range(N_EXITS), *(s for s, _ in _TIMED_OUT)])
"""int64 (20,), the block that ran last, by decision point."""
EVALUATED: Final = np.array([*range(N_EXITS), *(p for _, p in _TIMED_OUT)])
"""int64 (20,), the exit evaluated last, by decision point; 0 for none."""

START: Final = 0
"""The decision point at which every frame begins."""


@dataclass(frozen=True, slots=True)
class DecisionSpace:
    """The actions and the observation of one of the two granularities.

    Attributes:
        name: ``frame`` (one decision settles a frame) or ``staged`` (the policy decides again
            at every decision point of the frame).
        n_actions: of the policy.
        obs_dim: elements of its observation, float32.
    """

    name: Literal["frame", "staged"]
    n_actions: int
    obs_dim: int


FRAME: Final = DecisionSpace("frame", N_ACTIONS, OBS_DIM)
STAGED: Final = DecisionSpace("staged", N_STAGED, STAGED_OBS_DIM)


def has_timed_out(point: int) -> bool:
    """Whether an exchange of the current frame has timed out."""
    return point >= N_EXITS


def _legal() -> NDArray[np.bool_]:
    legal = np.zeros((N_POINTS, N_STAGED), bool)
    for p in range(N_EXITS):
        for a in ACTIONS:
            legal[p, a.index] = a.split >= p and a.exit > p
        legal[p, SENDING_EARLY] = legal[p, SENDING]
        legal[p, ANSWER] = p > 0
    for s, p in _TIMED_OUT:
        point = POINT[1, s, p]
        for exit in range(max(s, p + 1), N_EXITS + 1):
            legal[point, action_index(exit, exit)] = True
        legal[point, ANSWER] = p > 0
    return legal


LEGAL: Final = _legal()
"""bool (20, 36): whether the action is legal at a decision point."""


def _repair() -> NDArray[np.int64]:
    repaired = np.empty((N_POINTS, N_STAGED), np.int64)
    for point in range(N_POINTS):
        for number in range(N_STAGED):
            repaired[point, number] = _stand_in(point, number)
    return repaired


def _stand_in(point: int, number: int) -> int:
    """The legal action nearest to the intended one."""
    if LEGAL[point, number]:
        return number
    pair = ACTIONS[CANONICAL[number]]
    look = action_index(pair.exit, pair.exit)
    if number != ANSWER and LEGAL[point, look]:
        if pair.is_local or has_timed_out(point):
            return look
        ahead = action_index(pair.exit, point)  # its split has been passed
        return SENDING_EARLY[SENDING.index(ahead)] if TIMES_OUT_EARLY[number] else ahead
    return ANSWER if LEGAL[point, ANSWER] else EVALUATING[int(LEGAL[point, EVALUATING].argmax())]


REPAIR: Final = _repair()
"""int64 (20, 36): the legal action that replaces an illegal one (itself if legal)."""


def staged_name(action: int) -> str:
    """``e3s1`` for a canonical action, ``answer`` for the 21st, ``e3s1-hurried`` after it."""
    if action == ANSWER:
        return "answer"
    return ACTIONS[int(CANONICAL[action])].name + ("-hurried" if TIMES_OUT_EARLY[action] else "")
