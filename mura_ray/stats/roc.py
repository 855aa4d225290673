"""The ROC curve: its points, the area under it with two kinds of interval, and thresholds chosen on it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import root_scalar
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score, roc_curve

from mura_ray.stats.agreement import binary_labels
from mura_ray.stats.estimates import (
    DRAWS,
    Z_95,
    Estimate,
    bootstrap,
    has_both_labels,
    has_patients,
    percentile_interval,
)


@dataclass(frozen=True, slots=True, eq=False)
class RocCurve:
    """A point for every way in which a threshold can part the studies, from none called abnormal to all.

    Attributes:
        fpr: 1 - specificity, float64 [points], rising.
        tpr: sensitivity, float64 [points], rising.
        thresholds: float64 [points], falling; a study is called abnormal iff its score is greater.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


def roc_points(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """The empirical ROC curve (paper, figure 3).

    Studies of equal scores are called alike, whatever their labels: thresholds lie between scores that differ, halfway.
    The first is the greatest score, above which there is none; the last is just below the least.

    Args:
        labels: 0 normal, 1 abnormal, [n].
        scores: higher is more abnormal, [n].

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, a score is not finite, or the labels are all the same.
    """
    labels, scores = _checked(labels, scores)
    fpr, tpr, at_least = roc_curve(labels, scores, drop_intermediate=False)
    upper, lower = at_least[1:-1], at_least[2:]
    middle = lower + (upper - lower) / 2
    middle = np.where(middle < upper, middle, lower)  # no number lies between neighbours
    thresholds = np.concatenate([at_least[1:2], middle, [np.nextafter(at_least[-1], -np.inf)]])
    return RocCurve(fpr, tpr, thresholds)


def youden_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold with the greatest sensitivity + specificity (Youden 1950).

    Of several it is the lowest, which has the greatest sensitivity. Arguments and errors as in `roc_points`.
    """
    labels = binary_labels(labels)
    curve, num_abnormal = roc_points(labels, scores), int(labels.sum())
    num_normal = len(labels) - num_abnormal
    # Whole numbers, so that equals are equal: Youden's index times both counts.
    index = np.rint(curve.tpr * num_abnormal) * num_normal - np.rint(curve.fpr * num_normal) * num_abnormal
    return float(curve.thresholds[np.flatnonzero(index == index.max())[-1]])


def threshold_for_sensitivity(labels: ArrayLike, scores: ArrayLike, sensitivity: float) -> float:
    """The highest threshold whose sensitivity is at least the given one: no other has a greater specificity.

    Where scores tie, the sensitivity reached may be greater than asked for. Arguments and errors as in `roc_points`.

    Raises:
        ValueError: the sensitivity is not above 0 and up to 1.
    """
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity {sensitivity}: pass a share above 0 and up to 1")
    curve = roc_points(labels, scores)
    return float(curve.thresholds[np.flatnonzero(curve.tpr >= sensitivity)[0]])


def auroc(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, *, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Area under the ROC curve, with the percentile interval of a bootstrap that draws whole patients.

    Args:
        labels: 0 or 1, [n].
        scores: higher is more abnormal, [n].
        patients: whose study it is, [n].
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    if not has_both_labels(labels):
        return Estimate()
    if not has_patients(labels, patients):
        return Estimate(float(roc_auc_score(labels, scores)))
    found = bootstrap({"auroc": lambda w: weighted_auroc(labels, scores, w)}, patients, draws=draws, seed=seed)
    return auroc_interval(labels, scores, patients, found["auroc"])


def auroc_interval(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, draws: np.ndarray) -> Estimate:
    """Area under the ROC curve with the percentile interval of its draws, [draws]; the others as in `auroc`.

    Every draw of a perfect separation separates perfectly too; its interval is `perfect_auroc_bound`.
    """
    value = float(roc_auc_score(labels, scores))
    if value == 1:
        num_normal, num_abnormal = (len(np.unique(patients[labels == label])) for label in (0, 1))
        return Estimate(value, perfect_auroc_bound(num_normal, num_abnormal), 1.0)
    return percentile_interval(value, draws)


def auroc_delong(labels: np.ndarray, scores: np.ndarray) -> Estimate:
    """Area under the ROC curve with DeLong's interval, cut to 0 and 1; it takes the studies as independent.

    A perfect separation has none: its variance is 0, and would claim certainty. Arguments as in `auroc`.
    """
    if not has_both_labels(labels):
        return Estimate()
    areas, covariance = delong(labels, scores[None])
    value, margin = float(areas[0]), Z_95 * float(np.sqrt(covariance[0, 0]))
    return Estimate(value, max(value - margin, 0.0), min(value + margin, 1.0)) if margin > 0 else Estimate(value)


def delong(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the ROC curves of several scores of the same studies, and their covariance.

    DeLong, DeLong and Clarke-Pearson (1988), computed from midranks (Sun and Xu 2014). It takes the studies as
    independent.

    Args:
        labels: 0 or 1, at least two of each, [n].
        scores: float64 [k, n].

    Returns:
        Areas, float64 [k], and their covariance, float64 [k, k].
    """
    abnormal, normal = labels == 1, labels == 0
    num_abnormal, num_normal = int(abnormal.sum()), int(normal.sum())
    among_all = rankdata(scores, axis=1)
    # For each abnormal study the share of the normal ones below it; for each normal one, of the abnormal ones above it.
    below = (among_all[:, abnormal] - rankdata(scores[:, abnormal], axis=1)) / num_normal
    above = 1 - (among_all[:, normal] - rankdata(scores[:, normal], axis=1)) / num_abnormal
    covariance = np.atleast_2d(np.cov(below)) / num_abnormal + np.atleast_2d(np.cov(above)) / num_normal
    return below.mean(axis=1), covariance


def perfect_auroc_bound(num_normal: int, num_abnormal: int) -> float:
    """Lower 95 % bound of an AUROC of 1, by inverting a score test (Newcombe 2006, part 2, method 5).

    Args:
        num_normal: independent normal cases: patients, not their studies.
        num_abnormal: independent abnormal cases.
    """

    def excess(area: float) -> float:
        shape = 1 + ((num_normal + num_abnormal) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return (1 - area) ** 2 - Z_95**2 * area * (1 - area) * shape / (num_normal * num_abnormal)

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


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = binary_labels(labels), np.asarray(scores, dtype=np.float64)
    if labels.shape != scores.shape:
        raise ValueError(f"{len(labels)} labels, scores of shape {scores.shape}: one for each study")
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise ValueError(f"score {scores[wrong[0]]} at position {wrong[0]}: scores are finite numbers")
    if len(np.unique(labels)) < 2:
        raise ValueError("the studies are all normal or all abnormal: an ROC curve needs both")
    return labels, scores
