"""The circuit breaker: when it opens, how long it waits, and how little it trusts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.device.breaker import AGAIN_S, MAX_BACKOFF_S, PROVEN_ANSWERS, CircuitBreaker

SPREAD = 1.2
"""A back-off is a fifth shorter or longer at most."""


def breaker(failures: int = 5, backoff_s: float = 1.0) -> CircuitBreaker:
    return CircuitBreaker(failures, backoff_s, np.random.default_rng(0))


def opened(failures: int = 5, backoff_s: float = 1.0) -> CircuitBreaker:
    unit = breaker(failures, backoff_s)
    for _ in range(failures):
        unit.failure(0.0)
    assert unit.is_open
    return unit


def until_due(unit: CircuitBreaker, from_s: float) -> float:
    """How long from `from_s` until a probe is due, to 10 ms."""
    return next(ms for ms in range(0, 100_000, 10) if unit.probe_due(from_s + ms / 1e3)) / 1e3


def probes_to_close(unit: CircuitBreaker, now_s: float = 0.0) -> int:
    """Answered probes in a row until it closes."""
    for number in range(1, 1000):
        now_s += until_due(unit, now_s)
        unit.probe_answered(now_s)
        if not unit.is_open:
            return number
    raise AssertionError("it never closes")


def test_failures_in_a_row_open_it() -> None:
    unit = breaker(3)
    for _ in range(2):
        unit.failure(0.0)
        assert not unit.is_open
    unit.failure(0.0)
    assert unit.is_open


def test_none_never_opens() -> None:
    unit = breaker(0)
    for _ in range(100):
        unit.failure(0.0)
    assert not unit.is_open


@pytest.mark.parametrize(
    ("answered", "of", "opens"), [(1, 2, True), (1, 5, True), (3, 5, True), (3, 4, False)]
)
def test_it_opens_if_more_than_one_in_three_fails_for_long(
    answered: int, of: int, opens: bool
) -> None:
    unit = breaker()
    for k in range(1000):
        if k % of < of - answered:
            unit.failure(0.0)
        elif not unit.is_open:
            unit.success()
    assert unit.is_open == opens


@pytest.mark.parametrize("backoff_s", [0.1, 1.0])
def test_back_off_doubles_up_to_its_cap_and_recovery_stays_within_two_seconds(
    backoff_s: float,
) -> None:
    unit, now_s = opened(backoff_s=backoff_s), 0.0
    for k in range(20):
        wait_s = until_due(unit, now_s)
        expected_s = min(backoff_s * 2**k, MAX_BACKOFF_S)
        assert 0.8 * expected_s - 0.012 <= wait_s <= expected_s * SPREAD + 0.012
        now_s += wait_s
        unit.probe_failed(now_s)
    assert MAX_BACKOFF_S * SPREAD <= 1.5  # of 2 s; the rest is for the exchange itself


def test_a_server_that_has_just_come_is_asked_again_soon() -> None:
    unit = opened()
    for _ in range(5):
        unit.probe_failed(0.0, gone=True)
        assert until_due(unit, 0.0) >= 0.8
    unit.probe_failed(0.0)
    assert until_due(unit, 0.0) == AGAIN_S
    unit.probe_failed(0.0)
    assert until_due(unit, 0.0) >= 0.8


def test_a_doubted_server_that_answers_nearly_always_is_trusted_in_the_end() -> None:
    unit = opened()
    for _ in range(10):
        probes_to_close(unit)
        unit.failure(0.0)
    now_s, rng = 0.0, np.random.default_rng(1)
    while unit.is_open:
        now_s += until_due(unit, now_s)
        (unit.probe_answered if rng.random() < 0.95 else unit.probe_failed)(now_s)
    assert now_s < 120


def test_a_longer_first_back_off_is_kept() -> None:
    unit = opened(backoff_s=8.0)
    for _ in range(5):
        assert 6.4 <= until_due(unit, 0.0) <= 9.6
        unit.probe_failed(0.0)


def test_back_off_survives_an_answered_probe_and_ends_with_an_answered_frame() -> None:
    unit = opened(backoff_s=0.1)
    for _ in range(6):
        unit.probe_failed(0.0)
    unit.probe_answered(0.0)
    assert not unit.is_open
    unit.failure(0.0)  # the first frame after it
    assert until_due(unit, 0.0) >= 0.8 * MAX_BACKOFF_S - 0.012
    probes_to_close(unit)
    for _ in range(3):
        unit.success()
    unit.failure(0.0)
    assert until_due(unit, 0.0) <= 0.1 * SPREAD + 0.012


def test_a_server_that_answers_only_probes_is_asked_for_more_and_more() -> None:
    unit = opened()
    asked = []
    for _ in range(10):
        asked.append(probes_to_close(unit))
        unit.failure(0.0)  # one frame of the trial, no more
        assert unit.is_open
    assert asked == [1, 2, 4, 8, 16, 32, 64, 128, 128, 128]
    assert 128 * AGAIN_S == 32  # seconds


@pytest.mark.parametrize(("gone", "asked"), [(False, [1, 2, 4]), (True, [1, 1, 1])])
def test_a_server_that_fails_soon_after_its_return_is_doubted_unless_it_is_gone(
    gone: bool, asked: list[int]
) -> None:
    unit = opened()
    seen = []
    for _ in range(3):
        seen.append(probes_to_close(unit))
        for _ in range(PROVEN_ANSWERS - 1):
            unit.success()
        while not unit.is_open:
            unit.failure(0.0, gone=gone)
    assert seen == asked


def test_answers_prove_a_server() -> None:
    unit = opened()
    for _ in range(3):
        probes_to_close(unit)
        unit.failure(0.0)
    assert probes_to_close(unit) == 8
    for _ in range(PROVEN_ANSWERS):
        unit.success()
    for _ in range(5):
        unit.failure(0.0)
    assert probes_to_close(unit) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 99))
def test_no_pattern_of_fewer_answers_than_failures_costs_more_than_one_frame_in_25(
    failures: int, pattern: list[bool], seed: int
) -> None:
    """Ten frames a second, a probe or a frame an exchange, failures of four frames' length."""
    if 2 * sum(not ok for ok in pattern) < len(pattern):
        pattern = [not ok for ok in pattern]
    unit = CircuitBreaker(failures, 1.0, np.random.default_rng(seed))
    exchanges = failed = 0
    frames = 6000
    for k in range(frames):
        now_s = k / 10
        answered = pattern[exchanges % len(pattern)]
        if not unit.is_open:
            exchanges += 1
            if answered:
                unit.success()
            else:
                unit.failure(now_s)
                failed += k >= frames / 2
        elif unit.probe_due(now_s):
            exchanges += 1
            (unit.probe_answered if answered else unit.probe_failed)(now_s)
    assert 4 * failed <= frames / 2 / 25
