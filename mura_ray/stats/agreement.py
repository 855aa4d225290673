"""Agreement of two raters on normal / abnormal: Cohen's kappa and its intervals."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mura_ray.stats.estimates import Estimate, has_both_labels

Z_95 = 1.96
"""Standard errors to each side of a 95 % interval, as McHugh (2012) rounds it."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two raters agreed on `num` studies, and how often two of their habits would by chance."""

    num: int
    observed: float
    expected: float

    @property
    def kappa(self) -> float:
        """Agreement beyond chance; NaN where chance alone agrees always (both gave every study the same label)."""
        return (self.observed - self.expected) / (1 - self.expected) if self.expected < 1 else math.nan

    @property
    def standard_error(self) -> float:
        """Of kappa: sqrt(po (1 - po) / (n (1 - pe)^2)), McHugh (2012); NaN where kappa is."""
        if self.expected == 1:
            return math.nan
        return math.sqrt(self.observed * (1 - self.observed) / self.num) / (1 - self.expected)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of kappa, cut to -1 and 1; it takes the studies as independent.

        The paper's Table 2 has narrower ones: it adds the variance where the standard error belongs.
        """
        margin = Z_95 * self.standard_error
        return max(self.kappa - margin, -1.0), min(self.kappa + margin, 1.0)


def agreement(a: ArrayLike, b: ArrayLike) -> Agreement:
    """Compares two raters.

    Args:
        a: labels of the first rater, 0 or 1, [n].
        b: labels of the second rater for the same studies, [n].

    Raises:
        ValueError: lengths differ, there are none, or a label is neither 0 nor 1.
    """
    a, b = binary_labels(a), binary_labels(b)
    if len(a) != len(b):
        raise ValueError(f"the raters have {len(a)} and {len(b)} labels: pass one of each for every study")
    if len(a) == 0:
        raise ValueError("no labels: agreement needs at least one study")
    # Counts stay whole up to the one division, so that certain agreement is exactly 1.
    num, positive_a, positive_b = len(a), int(a.sum()), int(b.sum())
    by_chance = positive_a * positive_b + (num - positive_a) * (num - positive_b)
    return Agreement(num=num, observed=int((a == b).sum()) / num, expected=by_chance / num**2)


def cohen_kappa(a: ArrayLike, b: ArrayLike) -> float:
    """Cohen's kappa of two raters' labels (paper, section 4); arguments and errors as in `agreement`."""
    return agreement(a, b).kappa


def kappa_mchugh(labels: np.ndarray, called: np.ndarray) -> Estimate:
    """Kappa of labels and decisions, int64 [n] each, with McHugh's interval, which takes the studies as independent.

    All right or all wrong have none: it would have no width, and claim certainty.
    """
    if not has_both_labels(labels):
        return Estimate()
    result = agreement(labels, called)
    return Estimate(result.kappa) if result.standard_error == 0 else Estimate(result.kappa, *result.interval)


def weighted_kappa(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cohen's kappa of each draw.

    Args:
        a: labels of the first rater, 0 or 1, [n].
        b: labels of the second rater, [n].
        weights: how often each study is in a draw, float64 [draws, n].

    Returns:
        float64 [draws]; NaN where both raters give all studies of a draw the same label.
    """
    num, positive_a, positive_b, agreed = (weights @ np.stack([np.ones(len(a)), a, b, a == b], axis=1)).T
    by_chance = positive_a * positive_b + (num - positive_a) * (num - positive_b)
    beyond = num**2 - by_chance
    return np.divide(agreed * num - by_chance, beyond, out=np.full(len(num), np.nan), where=beyond > 0)


def binary_labels(labels: ArrayLike) -> np.ndarray:
    """Labels as int64 [n].

    Raises:
        ValueError: not a list of numbers, or one is neither 0 nor 1.
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels have the shape {array.shape}: pass one 0 or 1 for each study")
    wrong = np.flatnonzero(~np.isin(array, (0, 1)))
    if len(wrong):
        raise ValueError(f"label {array[wrong[0]]!s} at position {wrong[0]}: labels are 0 (normal) or 1 (abnormal)")
    return array.astype(np.int64)
