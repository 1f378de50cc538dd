"""Where a device may stand within a frame, and what it may do there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.topology import SHIPPED
from testbed.policy.decision_points import (
    decision_points,
)
from testbed.policy.estimators import early_timeout_ms

SHIPPED_POINTS = decision_points(SHIPPED)

POINTS = [(0, p, p) for p in range(SHIPPED.n_exits)]
POINTS += [(1, s, p) for s in range(SHIPPED.n_exits) for p in range(s + 1)]
"""(gave up, block, exit looked at last)."""


def test_every_stand_has_one_number() -> None:
    numbers = [int(SHIPPED_POINTS.point[point]) for point in POINTS]
    assert sorted(numbers) == list(range(SHIPPED_POINTS.n_points))
    for number, (timed_out, block, evaluated) in zip(numbers, POINTS, strict=True):
        assert (
            SHIPPED_POINTS.has_timed_out(number),
            SHIPPED_POINTS.block[number],
            SHIPPED_POINTS.evaluated[number],
        ) == (
            timed_out,
            block,
            evaluated,
        )


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_what_is_legal(point: tuple[int, int, int]) -> None:
    """By the words of `testbed.policy.decision_points`: never back, never twice, sent once."""
    timed_out, block, evaluated = point
    for number in range(SHIPPED_POINTS.n_actions):
        pair = SHIPPED.actions[SHIPPED_POINTS.canonical[number]]
        if number == SHIPPED_POINTS.answer:
            legal = evaluated > 0
        elif pair.is_local:
            legal = pair.exit > evaluated and pair.exit >= block
        else:
            legal = not timed_out and pair.exit > evaluated and pair.split >= block
        assert SHIPPED_POINTS.legal[SHIPPED_POINTS.point[point], number] == legal, (
            SHIPPED_POINTS.name(number)
        )


@given(
    point=st.integers(0, SHIPPED_POINTS.n_points - 1),
    number=st.integers(0, SHIPPED_POINTS.n_actions - 1),
)
def test_what_stands_in_is_legal_and_near(point: int, number: int) -> None:
    instead = int(SHIPPED_POINTS.repair[point, number])
    assert SHIPPED_POINTS.legal[point, instead]
    if SHIPPED_POINTS.legal[point, number]:
        assert instead == number
    elif number == SHIPPED_POINTS.answer:  # nothing was looked at: look at the nearest exit
        assert instead == SHIPPED.index(
            max(1, SHIPPED_POINTS.block[point]),
            max(1, SHIPPED_POINTS.block[point]),
        )
    elif (
        instead != SHIPPED_POINTS.answer
        and SHIPPED.actions[SHIPPED_POINTS.canonical[number]].exit > SHIPPED_POINTS.evaluated[point]
    ):
        meant = SHIPPED.actions[SHIPPED_POINTS.canonical[number]].exit
        assert SHIPPED.actions[SHIPPED_POINTS.canonical[instead]].exit in (
            meant,
            max(meant, SHIPPED_POINTS.block[point]),
        )


def test_names() -> None:
    names = [SHIPPED_POINTS.name(number) for number in range(SHIPPED_POINTS.n_actions)]
    assert len(set(names)) == SHIPPED_POINTS.n_actions
    assert names[SHIPPED.index(3, 1)] == "e3s1"
    assert names[SHIPPED_POINTS.answer] == "answer"
    early = [n for n in range(SHIPPED_POINTS.n_actions) if SHIPPED_POINTS.times_out_early[n]]
    pairs = [SHIPPED.actions[SHIPPED_POINTS.canonical[n]] for n in early]
    assert pairs == [a for a in SHIPPED.actions if not a.is_local]
    assert [names[n] for n in early] == [f"{a.name}-hurried" for a in pairs]


def test_patience_is_two_exchanges_and_four_deviations() -> None:
    assert early_timeout_ms(20.0, 3.0, 5.0) == 62.0
    np.testing.assert_array_equal(
        early_timeout_ms(np.array([20.0, 10.0]), np.array([3.0, 0.0]), np.zeros(2)), [52.0, 20.0]
    )
