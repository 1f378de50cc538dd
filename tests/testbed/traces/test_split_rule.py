"""The user's split: disjoint, deterministic, both sides filled, and stated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.common.errors import ConfigError
from testbed.traces.split_rule import SplitRule, day_in


@given(
    st.lists(st.text(max_size=3), min_size=2, max_size=30, unique=True),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
)
def test_a_share_of_the_units_trains(units: list[str], share: float, seed: int) -> None:
    rule = SplitRule("file", share, seed)
    training = rule.training(units)
    assert training == SplitRule("file", share, seed).training([*units, units[0]])
    assert training < set(units)
    assert len(training) == min(max(round(share * len(units)), 1), len(units) - 1)
    assert 1 <= rule.samples(len(units)) < len(units)


def test_another_seed_draws_others() -> None:
    units = [str(k) for k in range(20)]
    drawn = {SplitRule("file", 0.5, seed).training(units) for seed in range(10)}
    assert len(drawn) == 10


def test_rules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="file, day, fraction"):
        SplitRule("week")
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="train_share"):
            SplitRule("file", share)
    with pytest.raises(ConfigError, match=r"one day \(2024-05-17\).*fraction"):
        SplitRule("day").training(["2024-05-17"])


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("B_2019.12.16_13.40.04.csv", "2019-12-16"),
        ("sa24-20241101", "2024-11-01"),
        ("report.2010-09-13_1003CEST.log", "2010-09-13"),
        ("phone-20241399-run2", ""),
        ("id-120241101", ""),
        ("2024-11.01", ""),
    ],
)
def test_days_in_names(name: str, day: str) -> None:
    assert day_in(name) == day
