"""Numbers with 95 % intervals: what is estimable, shares, and the bootstrap that draws whole patients."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

MIN_COUNT = 5
"""From so many cases on a number is given; with fewer it is not estimable.

A share needs them in its denominator; AUROC, kappa, predictive values, Brier score and calibration error among the
normal and among the abnormal studies each; a bootstrap interval among the patients with each label. With 5, fewer than
1 % of the draws have a single label.
"""

DRAWS = 2000
Z_95 = float(norm.ppf(0.975))
_CHUNK = 200  # draws at a time: bounds the memory at any number of studies

Statistic = Callable[[np.ndarray], np.ndarray]
"""A statistic of each draw, float64 [draws] or [draws, k]; it is given how often each study is in one, [draws, n]."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval; None for what is not estimable."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def rate(hits: int, num: int) -> Estimate:
    """A share with Wilson's score interval, which takes the cases as independent."""
    if num < MIN_COUNT:
        return Estimate()
    interval = binomtest(hits, num).proportion_ci(confidence_level=0.95, method="wilson")
    return Estimate(hits / num, float(interval.low), float(interval.high))


def has_both_labels(labels: np.ndarray) -> bool:
    """Whether there are enough normal and enough abnormal studies among the labels, [n], for what needs both."""
    return bool(np.bincount(labels, minlength=2).min() >= MIN_COUNT)


def has_patients(labels: np.ndarray, patients: np.ndarray) -> bool:
    """Whether enough patients have a normal and enough an abnormal study for a bootstrap to draw from; both [n]."""
    return min(len(np.unique(patients[labels == label])) for label in (0, 1)) >= MIN_COUNT


def resamples(clusters: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """Bootstrap draws of whole clusters, as weights of their items.

    Args:
        clusters: the cluster of each item (its patient), [n].
        draws: in all.
        seed: of the draws.

    Yields:
        int64 [some draws, n]: how often each item is in a draw; items of one cluster always have the same weight.
    """
    names, cluster_of = np.unique(clusters, return_inverse=True)
    generator = np.random.default_rng(seed)
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        yield generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)[:, cluster_of]


def bootstrap(
    statistics: Mapping[str, Statistic], patients: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Several statistics of the same draws of whole patients, so that their differences are paired.

    Args:
        statistics: by name.
        patients: whose study it is, [n].
        draws: in all.
        seed: of the draws.

    Returns:
        By name, float64 [draws], or [draws, k] of a statistic of k numbers.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for weights in resamples(patients, draws=draws, seed=seed):
        weights = weights.astype(np.float64)
        for name, statistic in statistics.items():
            found[name].append(statistic(weights))
    return {name: np.concatenate(values) for name, values in found.items()}


def percentile_interval(value: float, draws: np.ndarray) -> Estimate:
    """A value with the percentile interval of its draws, [draws].

    Draws without a value (NaN) are left out. Where all others are equal there is no interval: it would have no width,
    and claim certainty.
    """
    if np.isnan(draws).all():
        return Estimate(value)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high)) if low < high else Estimate(value)
