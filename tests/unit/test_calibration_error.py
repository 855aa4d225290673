import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from mura_ray.stats.calibration_error import (
    NUM_BINS,
    calibration_error_interval,
    expected_calibration_error,
    weighted_brier,
    weighted_excess,
)


def error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    excess = weighted_excess(labels, probabilities, np.ones((1, len(labels))))
    assert excess.shape == (1, NUM_BINS)
    return float(expected_calibration_error(excess)[0])


def sample(seed: int, num: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of one digit or two, so that many lie on the edges of bins."""
    generator = np.random.default_rng(seed)
    probabilities = np.append(generator.integers(0, 101, num - 11) / 100, np.linspace(0, 1, 11))
    return generator.integers(0, 2, num), probabilities


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_equals_scikit_learns_curve(seed: int):
    labels, probabilities = sample(seed)
    share, mean = calibration_curve(labels, probabilities, n_bins=10, strategy="uniform")
    edges = np.linspace(0, 1, 11)
    counts = pd.Series(pd.cut(probabilities, list(edges), include_lowest=True)).value_counts(sort=False)
    assert (counts > 0).all()
    expected = np.average(np.abs(share - mean), weights=counts)
    assert error(labels, probabilities) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_by_hand():
    # Bin up to 0.1: two of four abnormal at 0.05. Bin up to 0.9: one of one abnormal at 0.85.
    labels, probabilities = np.array([1, 1, 0, 0, 1]), np.array([0.05, 0.05, 0.05, 0.05, 0.85])
    assert error(labels, probabilities) == pytest.approx((4 * 0.45 + 0.15) / 5)
    assert error(np.array([0, 0, 1]), np.array([0.0, 0.0, 1.0])) == 0


@pytest.mark.parametrize("seed", range(3))
def test_weighted_scores_are_those_of_repeated_studies(seed: int):
    labels, probabilities = sample(seed, 60)
    weights = np.random.default_rng(seed).integers(0, 4, (3, 60)).astype(float)
    repeated = [np.repeat(np.arange(60), row.astype(int)) for row in weights]
    np.testing.assert_allclose(
        weighted_brier(labels, probabilities, weights),
        [brier_score_loss(labels[rows], probabilities[rows]) for rows in repeated],
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        expected_calibration_error(weighted_excess(labels, probabilities, weights)),
        [error(labels[rows], probabilities[rows]) for rows in repeated],
        rtol=1e-12,
    )


def drawn_interval(overconfidence: float, generator: np.random.Generator) -> tuple[float, float, float]:
    """Error and interval of 400 studies whose true logits are overstated so many times."""
    logits = generator.normal(0, 2, 400)
    labels = (generator.random(400) < 1 / (1 + np.exp(-logits))).astype(int)
    probabilities = 1 / (1 + np.exp(-overconfidence * logits))
    excess = weighted_excess(labels, probabilities, np.ones((1, 400)))[0]
    weights = generator.multinomial(400, np.full(400, 1 / 400), size=400).astype(float)
    estimate = calibration_error_interval(excess, weighted_excess(labels, probabilities, weights))
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.value, estimate.low, estimate.high


def test_the_interval_of_perfect_calibration_reaches_zero():
    generator = np.random.default_rng(0)
    values, lows, highs = np.array([drawn_interval(1, generator) for _ in range(60)]).T
    assert values.min() > 0.01  # what chance alone makes of zero
    assert (lows == 0).sum() >= 55
    assert (highs >= values).all()


def test_the_interval_of_plain_miscalibration_lies_above_zero():
    generator = np.random.default_rng(1)
    bounds = np.array([drawn_interval(4, generator) for _ in range(20)])
    assert (bounds[:, 1] > 0).all()
