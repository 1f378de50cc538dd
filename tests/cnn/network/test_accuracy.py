"""Temperature scaling and expected calibration error against closed forms."""

import numpy as np
import pytest

from cnn.network.accuracy import fit_temperature, negative_log_likelihood, reliability, softmax


def sampled(temperature: float, n: int = 20000) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels are drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (n, 10)).astype(np.float32)
    p = softmax(logits, temperature)
    labels = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return logits, labels.astype(np.int16)


@pytest.mark.parametrize("true", [0.6, 1.0, 2.5])
def test_fit_finds_the_temperature_that_made_the_labels(true: float) -> None:
    logits, labels = sampled(true)
    assert fit_temperature(logits, labels) == pytest.approx(true, rel=0.05)


def test_fit_beats_a_grid() -> None:
    logits, labels = sampled(1.7, 3000)
    best = negative_log_likelihood(logits, labels, fit_temperature(logits, labels))
    grid = [negative_log_likelihood(logits, labels, t) for t in np.geomspace(0.2, 10, 100)]
    assert best <= min(grid) + 1e-4


def test_ece_of_truthful_confidences_is_near_zero_and_of_boasting_is_the_gap() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.1, 1, 200_000)
    assert reliability(confidence, rng.random(200_000) < confidence).ece < 0.005
    always = np.full(1000, 0.9)
    assert reliability(always, np.arange(1000) % 2 == 0).ece == pytest.approx(0.4)
