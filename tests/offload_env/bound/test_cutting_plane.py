"""The dual's maximiser against a fine grid, on functions that are known everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from offload_env.bound.cutting_plane import maximise


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_no_grid_point_is_higher(k: int, seed: int) -> None:
    """The least of random planes, the last of which falls along every axis."""
    rng = np.random.default_rng(seed)
    slopes = np.vstack([rng.normal(0, 1, (12, k)), -np.ones((1, k))])
    offsets = np.append(rng.uniform(0, 2, 12), 9.0)

    def evaluate(at: np.ndarray) -> tuple[float, np.ndarray]:
        values = slopes @ at + offsets
        lowest = int(values.argmin())
        return float(values[lowest]), slopes[lowest]

    peak = maximise(evaluate, k)
    assert (peak.at >= 0).all()
    assert evaluate(peak.at)[0] == peak.value
    axes = [np.linspace(0, 10, 201)] * k
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes)], 1)
    assert peak.value >= (grid @ slopes.T + offsets).min(1).max() - 1e-6


def test_a_peak_far_from_the_origin_is_found() -> None:
    def evaluate(at: np.ndarray) -> tuple[float, np.ndarray]:
        slope = 1.0 if at[0] < 5000.0 else -1.0
        return float(min(at[0], 10000.0 - at[0])), np.array([slope])

    assert maximise(evaluate, 1).at == pytest.approx([5000.0])
