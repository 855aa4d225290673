"""Platt scaling of study probabilities, and how far probabilities keep what they promise.

The weighted loss (paper, section 3.1) moves the logits' intercept by the normal and abnormal images of a study type, so
a scaling is fitted for each type.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit

from mura_ray.domain import ABNORMAL, NORMAL, STUDY_TYPES
from mura_ray.platt import Calibration, Scaling, clipped_logit
from mura_ray.stats.agreement import binary_labels
from mura_ray.stats.estimates import rate

MIN_STUDIES = 20
"""Of each label, from which on two parameters are fitted to them: with fewer they follow single studies."""

_TOLERANCE = 1e-10  # relative, of a step
_ROUND_OFF = 1e-14  # of the mean log loss
_MAX_CONDITION = 1e12
_MAX_STEPS = 200


def fit_calibration(labels: ArrayLike, probabilities: ArrayLike, study_types: ArrayLike) -> Calibration:
    """Platt scaling by maximum likelihood, without a penalty and with the labels as they are.

    A study type has its own slope and intercept if it has `MIN_STUDIES` studies of each label, its probabilities do not
    separate the labels completely (the likelihood then has no maximum), and its slope is positive. The others get the
    pooled one, which is fitted on the studies of all types.

    Args:
        labels: 0 normal, 1 abnormal, of each study, [n].
        probabilities: of abnormality, [n].
        study_types: [n].

    Raises:
        ValueError: lengths differ, a label, probability or study type is none, or there is no pooled scaling: too few
            studies of a label, completely separated labels, or a slope that is not positive.
    """
    labels, probabilities = _checked(labels, probabilities)
    study_types = np.asarray(study_types, dtype=object)
    if len(study_types) != len(labels):
        raise ValueError(f"{len(study_types)} study types of {len(labels)} studies: pass one for each")
    if unknown := sorted({str(name) for name in study_types} - set(STUDY_TYPES)):
        raise ValueError(f"{unknown[0]!r} is no study type; one of {', '.join(STUDY_TYPES)}")
    logits = clipped_logit(probabilities)
    pooled = _fit(labels, logits)
    if isinstance(pooled, str):
        raise ValueError(f"cannot calibrate on these {len(labels)} studies: {pooled}")
    by_type = {name: _fit(labels[study_types == name], logits[study_types == name]) for name in STUDY_TYPES}
    return Calibration(pooled=pooled, by_type={name: one for name, one in by_type.items() if isinstance(one, Scaling)})


def _fit(labels: np.ndarray, logits: np.ndarray) -> Scaling | str:
    """The scaling of some studies, or why there is none."""
    normal, abnormal = logits[labels == NORMAL], logits[labels == ABNORMAL]
    if min(len(normal), len(abnormal)) < MIN_STUDIES:
        return (
            f"{len(normal)} are normal and {len(abnormal)} abnormal, and it takes {MIN_STUDIES} of each; use a larger "
            "split"
        )
    is_separated = normal.max() <= abnormal.min() or abnormal.max() <= normal.min()
    line = None if is_separated else _most_likely(labels, logits)
    if line is None:
        return (
            "the probabilities separate normal from abnormal completely, so that no slope is the most likely one; use "
            "studies that the ensemble gets wrong too, as other data has them"
        )
    slope, intercept = line
    if not slope > 0:
        return f"the fitted slope is {slope:.3g}, for abnormal studies have no higher probabilities than normal ones"
    return Scaling(slope=slope, intercept=intercept, num_normal=len(normal), num_abnormal=len(abnormal))


def _most_likely(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float] | None:
    """Slope and intercept of the highest likelihood, by Newton's method with halved steps; None if it does not end.

    (scikit-learn's `LogisticRegression` goes over to an inexact solver where few studies lie on the wrong side.)
    """
    centre, spread = logits.mean(), logits.std()
    design = np.column_stack([np.ones(len(logits)), (logits - centre) / spread])

    def log_loss(line: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, design @ line) - labels * (design @ line)))

    line = np.zeros(2)
    for _ in range(_MAX_STEPS):
        predicted = expit(design @ line)
        gradient = design.T @ (predicted - labels)
        hessian = (design * (predicted * (1 - predicted))[:, None]).T @ design
        if np.linalg.cond(hessian) > _MAX_CONDITION:
            return None
        step = np.linalg.solve(hessian, gradient)
        if np.abs(step).max() <= _TOLERANCE * (1 + np.abs(line).max()):
            slope = line[1] / spread
            return float(slope), float(line[0] - slope * centre)
        while log_loss(line - step) > log_loss(line) + _ROUND_OFF:
            step /= 2
        line = line - step
    return None


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """What share of the studies with about a probability is abnormal: a reliability diagram as a table.

    Args:
        labels: 0 normal, 1 abnormal, [n].
        probabilities: of abnormality, [n].
        bins: how many, of equal width; an edge belongs to the bin below it, as in `calibration_error`.

    Returns:
        A row per bin: low, high (its edges), num_studies, mean_predicted, observed (the share of abnormal ones) with
        Wilson's 95 % interval observed_low, observed_high. NaN where there is no study, or too few (`rate`).

    Raises:
        ValueError: lengths differ, there is no bin, a label is neither 0 nor 1, or a probability not within 0 and 1.
    """
    labels, probabilities = _checked(labels, probabilities)
    if bins < 1:
        raise ValueError(f"{bins} bins: take 1 or more")
    edges = np.linspace(0, 1, bins + 1)
    places = np.searchsorted(edges[1:-1], probabilities)
    rows = []
    for place in range(bins):
        inside = places == place
        observed = rate(int(labels[inside].sum()), int(inside.sum()))
        rows.append(
            {
                "low": edges[place],
                "high": edges[place + 1],
                "num_studies": int(inside.sum()),
                "mean_predicted": probabilities[inside].mean() if inside.any() else np.nan,
                "observed": observed.value,
                "observed_low": observed.low,
                "observed_high": observed.high,
            }
        )
    return pd.DataFrame(rows).astype({"observed": float, "observed_low": float, "observed_high": float})


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = binary_labels(labels), np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape != labels.shape:
        raise ValueError(f"{len(labels)} labels, but probabilities of shape {probabilities.shape}: one for each study")
    wrong = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))
    if len(wrong):
        place = wrong[0]
        raise ValueError(f"probability {probabilities[place]} at position {place}: probabilities lie within 0 and 1")
    return labels, probabilities
