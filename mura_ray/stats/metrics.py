"""How well probabilities and decisions separate normal from abnormal studies, with 95 % intervals."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import root_scalar
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from mura_ray.stats.agreement import agreement, binary_labels

MIN_COUNT = 5
"""From so many cases on a number is given; with fewer it is not estimable.

A rate needs them in its denominator, AUROC and kappa among the normal and among the abnormal studies each, a bootstrap
interval among the patients with each label. With 5, fewer than 1 % of the draws have a single label.
"""

DRAWS = 2000
_CHUNK = 200  # draws at a time: bounds the memory at any number of studies


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval; None for what is not estimable."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Study-level results on one set of studies."""

    num_studies: int
    num_abnormal: int
    auroc: Estimate
    sensitivity: Estimate
    specificity: Estimate
    kappa: Estimate


def study_metrics(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, threshold: float, *, seed: int = 0
) -> Metrics:
    """AUROC, sensitivity, specificity and Cohen's kappa against the labels (paper, section 4).

    Args:
        labels: 0 normal, 1 abnormal, [n]; n may be 0.
        probabilities: of abnormality, [n].
        patients: whose study it is, [n]; the AUROC's bootstrap draws patients, not studies.
        threshold: a study is called abnormal iff its probability is greater.
        seed: of the bootstrap.

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, or a probability is not within 0 and 1.
    """
    labels, probabilities = binary_labels(labels), _probabilities(probabilities)
    patients = np.asarray(patients)
    if not len(labels) == len(probabilities) == len(patients):
        raise ValueError(
            f"{len(labels)} labels, {len(probabilities)} probabilities, {len(patients)} patients: one for each study"
        )
    called = (probabilities > threshold).astype(np.int64)
    abnormal, normal = labels == 1, labels == 0
    return Metrics(
        num_studies=len(labels),
        num_abnormal=int(abnormal.sum()),
        auroc=auroc(labels, probabilities, patients, seed=seed),
        sensitivity=rate(int(called[abnormal].sum()), int(abnormal.sum())),
        specificity=rate(int((1 - called)[normal].sum()), int(normal.sum())),
        kappa=_kappa(labels, called),
    )


def auroc(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, *, seed: int = 0) -> Estimate:
    """Area under the ROC curve, with the percentile interval of a bootstrap that draws whole patients.

    Every draw of a perfect separation separates perfectly too; its interval is `perfect_auroc_bound`.

    Args:
        labels: 0 or 1, [n].
        scores: higher is more abnormal, [n].
        patients: whose study it is, [n].
        seed: of the bootstrap.
    """
    if np.bincount(labels, minlength=2).min() < MIN_COUNT:
        return Estimate()
    value = float(roc_auc_score(labels, scores))
    num_patients = [len(np.unique(patients[labels == label])) for label in (0, 1)]
    if min(num_patients) < MIN_COUNT:
        return Estimate(value)
    if value == 1:
        return Estimate(value, perfect_auroc_bound(*num_patients), 1.0)
    draws = np.concatenate([weighted_auroc(labels, scores, weights) for weights in resamples(patients, seed=seed)])
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high)) if low < high else Estimate(value)


def perfect_auroc_bound(num_normal: int, num_abnormal: int) -> float:
    """Lower 95 % bound of an AUROC of 1, by inverting a score test (Newcombe 2006, part 2, method 5).

    Args:
        num_normal: independent normal cases: patients, not their studies.
        num_abnormal: independent abnormal cases.
    """

    def excess(area: float) -> float:
        shape = 1 + ((num_normal + num_abnormal) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return (1 - area) ** 2 - float(norm.ppf(0.975)) ** 2 * area * (1 - area) * shape / (num_normal * num_abnormal)

    return root_scalar(excess, bracket=(0.0, 1 - 1e-9)).root


def weighted_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of each draw, from ranks; a tie counts half.

    Args:
        labels: 0 or 1, [n].
        scores: [n].
        weights: how often each study is in a draw, [draws, n].

    Returns:
        float64 [draws]; NaN where a draw has a single label.
    """
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    weights = weights[:, order]
    positive = np.add.reduceat(weights * labels[order], starts, axis=1)
    negative = np.add.reduceat(weights * (1 - labels[order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


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


def rate(hits: int, num: int) -> Estimate:
    """A share with Wilson's score interval."""
    if num < MIN_COUNT:
        return Estimate()
    interval = binomtest(hits, num).proportion_ci(confidence_level=0.95, method="wilson")
    return Estimate(hits / num, float(interval.low), float(interval.high))


def _kappa(labels: np.ndarray, called: np.ndarray) -> Estimate:
    if np.bincount(labels, minlength=2).min() < MIN_COUNT:
        return Estimate()
    result = agreement(labels, called)
    if result.standard_error == 0:  # all right or all wrong: McHugh's interval has no width, and would claim certainty
        return Estimate(result.kappa)
    return Estimate(result.kappa, *result.interval)


def _probabilities(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    wrong = np.flatnonzero(~((array >= 0) & (array <= 1)))
    if len(wrong):
        raise ValueError(f"probability {array[wrong[0]]} at position {wrong[0]}: probabilities lie within 0 and 1")
    return array
