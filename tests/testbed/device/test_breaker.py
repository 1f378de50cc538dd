"""The circuit breaker: when it opens, how long it waits, and how little it trusts."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.device.link_checks import AGAIN_S, MAX_BACKOFF_S, MAX_DOUBLINGS, CircuitBreaker

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


def test_a_link_with_outages_is_used_again_after_each() -> None:
    """A quarter of the time nothing passes, three seconds at a stretch; ten frames a second."""
    unit, sent, used = breaker(), 0, 0
    for k in range(12_000):
        now_s, up = k / 10, k % 120 >= 30
        if not unit.is_open:
            sent += 1
            used += up
            (unit.success if up else lambda now_s=now_s: unit.failure(now_s))()
        elif unit.probe_due(now_s):
            if up:
                unit.probe_answered()
            else:
                unit.probe_failed(now_s)
    assert used > 0.8 * 9_000  # of the frames for which it was up
    assert sent - used < 0.25 * 3_000


def test_a_longer_first_back_off_is_kept() -> None:
    unit = opened(backoff_s=8.0)
    for _ in range(5):
        assert 6.4 <= until_due(unit, 0.0) <= 9.6
        unit.probe_failed(0.0)


def test_back_off_survives_an_answered_probe_and_ends_with_an_answered_frame() -> None:
    unit = opened(backoff_s=0.1)
    for _ in range(6):
        unit.probe_failed(0.0)
    unit.probe_answered()
    assert not unit.is_open
    unit.failure(0.0)  # the first frame after it
    assert until_due(unit, 0.0) >= 0.8 * MAX_BACKOFF_S - 0.012
    unit.probe_answered()
    for _ in range(10):
        unit.success()
    for _ in range(5):
        unit.failure(0.0)
    assert until_due(unit, 0.0) <= 0.1 * SPREAD + 0.012


def test_a_server_that_answers_only_probes_is_asked_less_and_less() -> None:
    unit, waits_s = opened(backoff_s=MAX_BACKOFF_S), []
    for _ in range(6):
        unit.probe_answered()
        assert not unit.is_open
        unit.failure(0.0)  # one frame, no more
        assert unit.is_open
        waits_s.append(until_due(unit, 0.0))
    for k, wait_s in enumerate(waits_s):
        expected_s = MAX_BACKOFF_S * 2 ** min(k + 1, MAX_DOUBLINGS)
        assert 0.8 * expected_s - 0.012 <= wait_s <= SPREAD * expected_s + 0.012
