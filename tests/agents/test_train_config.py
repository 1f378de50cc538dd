"""Settings of a training that depend on what it is trained for."""

from __future__ import annotations

import pytest

from agents.train_config import PRICED_ERRORS, TrainConfig, priced


@pytest.mark.parametrize("floor", [0.986, 0.99, 1.0])
def test_a_high_floor_leaves_the_price_of_a_wrong_answer(floor: float) -> None:
    assert priced(TrainConfig(), floor, ()) == TrainConfig()


def test_a_floor_that_allows_ten_times_the_errors_has_a_tenth_of_the_price() -> None:
    config = priced(TrainConfig(dual_start=10.0, dual_rate=300.0), 1 - 10 * PRICED_ERRORS, ())
    assert (config.dual_start, config.dual_rate) == pytest.approx((1.0, 30.0))


def test_what_the_user_chose_stays() -> None:
    config = priced(TrainConfig(dual_start=7.0), 0.5, {"dual_start"})
    assert config.dual_start == 7.0
    assert config.dual_rate == pytest.approx(300 * PRICED_ERRORS / 0.5)
