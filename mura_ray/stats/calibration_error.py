"""How far probabilities lie from the labels: the Brier score and the expected calibration error."""

import numpy as np

from mura_ray.stats.estimates import Estimate

NUM_BINS = 10
"""Of the expected calibration error, equally wide; a probability on an edge belongs to the bin below it."""


def weighted_brier(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Brier score of each draw: the mean of (probability - label)^2.

    Args:
        labels: 0 or 1, [n].
        probabilities: of abnormality, [n].
        weights: how often each study is in a draw, float64 [draws, n].

    Returns:
        float64 [draws].
    """
    return weights @ (probabilities - labels) ** 2 / weights.sum(axis=1)


def weighted_excess(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """By how much the abnormal studies of a bin exceed their probabilities, as a share of all studies of a draw.

    Args:
        labels: 0 or 1, [n].
        probabilities: of abnormality (not the greater of both probabilities), [n].
        weights: how often each study is in a draw, float64 [draws, n].

    Returns:
        float64 [draws, NUM_BINS].
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    excess = np.zeros((len(labels), NUM_BINS))
    excess[np.arange(len(labels)), np.searchsorted(edges, probabilities)] = labels - probabilities
    return weights @ excess / weights.sum(axis=1, keepdims=True)


def expected_calibration_error(excess: np.ndarray) -> np.ndarray:
    """The mean over bins of |share of abnormal studies - mean probability|, weighed by the bins' studies.

    Args:
        excess: from `weighted_excess`, [..., NUM_BINS].

    Returns:
        float64 [...]. Chance alone makes it greater than 0, the more so the fewer the studies.
    """
    return np.abs(excess).sum(axis=-1)


def calibration_error_interval(excess: np.ndarray, draws: np.ndarray) -> Estimate:
    """Expected calibration error with a 95 % interval from draws of patients.

    A percentile interval would not do: the error never is below 0, so chance adds to it in the sample, and again in
    each draw, and perfect calibration would never be covered. The lower bound takes off what the bins' excesses differ
    from the sample's in 97.5 % of the draws, which is at least what chance has added; it is 0 where chance may explain
    all. The upper bound is that of the reverse percentile interval, though never below the value.

    Args:
        excess: of the sample, from `weighted_excess`, [NUM_BINS].
        draws: of the draws, [draws, NUM_BINS].
    """
    value = float(expected_calibration_error(excess))
    by_chance = np.percentile(expected_calibration_error(draws - excess), 97.5)
    least = np.percentile(expected_calibration_error(draws), 2.5)
    return Estimate(value, max(value - float(by_chance), 0.0), max(2 * value - float(least), value))
