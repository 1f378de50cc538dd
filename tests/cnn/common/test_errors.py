"""Numbers in a smaller type come back as they went in, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn.common.errors import DataError, narrowed, smallest_unsigned


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1), st.sampled_from(["i1", "u1", "i2"]))
def test_what_comes_back_is_what_went_in_or_it_is_refused(values: list[int], dtype: str) -> None:
    limits = np.iinfo(dtype)
    fits = all(limits.min <= v <= limits.max for v in values)
    try:
        found = narrowed(values, dtype, "column")
    except DataError:
        assert not fits
        return
    assert fits
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == values


@given(st.lists(st.integers(0, 2**33)))
def test_the_smallest_type_that_holds_all(values: list[int]) -> None:
    found = smallest_unsigned(np.array(values, np.int64))
    assert found.tolist() == values
    bits = max(values, default=0).bit_length()
    assert found.dtype.itemsize * 8 == next(n for n in (8, 16, 32, 64) if n >= bits)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.5, -1.0, 300.0])
def test_a_number_that_is_none_of_them_is_named(wrong: float) -> None:
    with pytest.raises(DataError, match=f"Width: 1 of 3 values out of range, such as {wrong:g}"):
        narrowed([3.0, wrong, 7.0], np.uint8, "Width")
    assert narrowed([3.0, 7.0], np.uint8, "Width").tolist() == [3, 7]


def test_text_and_a_narrower_range_are_refused() -> None:
    with pytest.raises(DataError, match="type"):
        narrowed(["a"], np.uint8, "Width")
    with pytest.raises(DataError, match="from 1 to 42"):
        narrowed([0], np.int16, "label", low=1, high=42)
