"""Where a device may stand within a frame, and what it may do there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.topology import ACTIONS, N_EXITS, action_index
from testbed.policy.decision_points import (
    ANSWER,
    BLOCK,
    CANONICAL,
    EVALUATED,
    LEGAL,
    N_POINTS,
    N_STAGED,
    POINT,
    REPAIR,
    TIMES_OUT_EARLY,
    has_timed_out,
    staged_name,
)
from testbed.policy.estimators import early_timeout_ms

POINTS = [(0, p, p) for p in range(N_EXITS)]
POINTS += [(1, s, p) for s in range(N_EXITS) for p in range(s + 1)]
"""(gave up, block, exit looked at last)."""


def test_every_stand_has_one_number() -> None:
    numbers = [int(POINT[point]) for point in POINTS]
    assert sorted(numbers) == list(range(N_POINTS))
    for number, (timed_out, block, evaluated) in zip(numbers, POINTS, strict=True):
        assert (has_timed_out(number), BLOCK[number], EVALUATED[number]) == (
            timed_out,
            block,
            evaluated,
        )


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_what_is_legal(point: tuple[int, int, int]) -> None:
    """By the words of `testbed.policy.decision_points`: never back, never twice, sent once."""
    timed_out, block, evaluated = point
    for number in range(N_STAGED):
        pair = ACTIONS[CANONICAL[number]]
        if number == ANSWER:
            legal = evaluated > 0
        elif pair.is_local:
            legal = pair.exit > evaluated and pair.exit >= block
        else:
            legal = not timed_out and pair.exit > evaluated and pair.split >= block
        assert LEGAL[POINT[point], number] == legal, staged_name(number)


@given(point=st.integers(0, N_POINTS - 1), number=st.integers(0, N_STAGED - 1))
def test_what_stands_in_is_legal_and_near(point: int, number: int) -> None:
    instead = int(REPAIR[point, number])
    assert LEGAL[point, instead]
    if LEGAL[point, number]:
        assert instead == number
    elif number == ANSWER:  # nothing was looked at: look at the nearest exit
        assert instead == action_index(max(1, BLOCK[point]), max(1, BLOCK[point]))
    elif instead != ANSWER and ACTIONS[CANONICAL[number]].exit > EVALUATED[point]:
        meant = ACTIONS[CANONICAL[number]].exit
        assert ACTIONS[CANONICAL[instead]].exit in (meant, max(meant, BLOCK[point]))


def test_names() -> None:
    names = [staged_name(number) for number in range(N_STAGED)]
    assert len(set(names)) == N_STAGED
    assert names[action_index(3, 1)] == "e3s1"
    assert names[ANSWER] == "answer"
    early = [n for n in range(N_STAGED) if TIMES_OUT_EARLY[n]]
    pairs = [ACTIONS[CANONICAL[n]] for n in early]
    assert pairs == [a for a in ACTIONS if not a.is_local]
    assert [names[n] for n in early] == [f"{a.name}-hurried" for a in pairs]


def test_patience_is_two_exchanges_and_four_deviations() -> None:
    assert early_timeout_ms(20.0, 3.0, 5.0) == 62.0
    np.testing.assert_array_equal(
        early_timeout_ms(np.array([20.0, 10.0]), np.array([3.0, 0.0]), np.zeros(2)), [52.0, 20.0]
    )
