"""Where a device may stand within a frame, and what it may do there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.action import ACTIONS, N_EXITS, action_index
from testbed.policy.decision_points import (
    ANSWER,
    BLOCK,
    CANONICAL,
    HURRIES,
    LEGAL,
    LOOKED,
    N_STAGED,
    N_STANDS,
    REPAIR,
    STAND,
    has_given_up,
    staged_name,
)
from testbed.policy.estimators import patience_ms

STANDS = [(0, p, p) for p in range(N_EXITS)]
STANDS += [(1, s, p) for s in range(N_EXITS) for p in range(s + 1)]
"""(gave up, block, exit looked at last)."""


def test_every_stand_has_one_number() -> None:
    numbers = [int(STAND[stand]) for stand in STANDS]
    assert sorted(numbers) == list(range(N_STANDS))
    for number, (gave_up, block, looked) in zip(numbers, STANDS, strict=True):
        assert (has_given_up(number), BLOCK[number], LOOKED[number]) == (gave_up, block, looked)


@pytest.mark.parametrize("stand", STANDS, ids=str)
def test_what_is_legal(stand: tuple[int, int, int]) -> None:
    """By the words of `testbed.policy.decision_points`: never back, never twice, sent once."""
    gave_up, block, looked = stand
    for number in range(N_STAGED):
        pair = ACTIONS[CANONICAL[number]]
        if number == ANSWER:
            legal = looked > 0
        elif pair.is_local:
            legal = pair.exit > looked and pair.exit >= block
        else:
            legal = not gave_up and pair.exit > looked and pair.split >= block
        assert LEGAL[STAND[stand], number] == legal, staged_name(number)


@given(stand=st.integers(0, N_STANDS - 1), number=st.integers(0, N_STAGED - 1))
def test_what_stands_in_is_legal_and_near(stand: int, number: int) -> None:
    instead = int(REPAIR[stand, number])
    assert LEGAL[stand, instead]
    if LEGAL[stand, number]:
        assert instead == number
    elif number == ANSWER:  # nothing was looked at: look at the nearest exit
        assert instead == action_index(max(1, BLOCK[stand]), max(1, BLOCK[stand]))
    elif instead != ANSWER and ACTIONS[CANONICAL[number]].exit > LOOKED[stand]:
        meant = ACTIONS[CANONICAL[number]].exit
        assert ACTIONS[CANONICAL[instead]].exit in (meant, max(meant, BLOCK[stand]))


def test_names() -> None:
    names = [staged_name(number) for number in range(N_STAGED)]
    assert len(set(names)) == N_STAGED
    assert names[action_index(3, 1)] == "e3s1"
    assert names[ANSWER] == "answer"
    hurried = [n for n in range(N_STAGED) if HURRIES[n]]
    pairs = [ACTIONS[CANONICAL[n]] for n in hurried]
    assert pairs == [a for a in ACTIONS if not a.is_local]
    assert [names[n] for n in hurried] == [f"{a.name}-hurried" for a in pairs]


def test_patience_is_two_exchanges_and_four_deviations() -> None:
    assert patience_ms(20.0, 3.0, 5.0) == 62.0
    np.testing.assert_array_equal(
        patience_ms(np.array([20.0, 10.0]), np.array([3.0, 0.0]), np.zeros(2)), [52.0, 20.0]
    )
