"""How well probabilities and decisions separate normal from abnormal studies, with 95 % intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mura_ray.stats.agreement import binary_labels, kappa_mchugh, weighted_kappa
from mura_ray.stats.calibration_error import (
    calibration_error_interval,
    expected_calibration_error,
    weighted_brier,
    weighted_excess,
)
from mura_ray.stats.estimates import (
    DRAWS,
    Estimate,
    Statistic,
    bootstrap,
    has_both_labels,
    has_patients,
    percentile_interval,
    rate,
)
from mura_ray.stats.roc import auroc_delong, auroc_interval, weighted_auroc


@dataclass(frozen=True, slots=True)
class Metrics:
    """Study-level results on one set of studies.

    The intervals of `auroc`, `kappa_clustered`, `brier` and `ece` come from a bootstrap that draws whole patients; they
    are percentile intervals, but for that of `ece`. Those of `auroc_delong`, of `kappa` (McHugh 2012) and of the shares
    (Wilson) take a patient's studies as independent.

    Attributes:
        num_studies: of the set.
        num_abnormal: of them, by their labels.
        auroc: area under the ROC curve (a perfect one's interval: Newcombe 2006, method 5).
        auroc_delong: the same with DeLong's interval.
        sensitivity: called abnormal, of the abnormal.
        specificity: called normal, of the normal.
        ppv: abnormal, of those called abnormal; holds for the set's own share of abnormal studies.
        npv: normal, of those called normal; likewise.
        kappa: Cohen's kappa of labels and decisions with McHugh's interval.
        kappa_clustered: the same with the bootstrap's.
        brier: mean of (probability - label)^2.
        ece: expected calibration error over ten equally wide bins; its interval: `calibration_error_interval`.
    """

    num_studies: int
    num_abnormal: int
    auroc: Estimate
    auroc_delong: Estimate
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    kappa: Estimate
    kappa_clustered: Estimate
    brier: Estimate
    ece: Estimate


def study_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    threshold: float,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Metrics:
    """Discrimination, decisions, agreement and calibration against the labels (paper, section 4).

    Args:
        labels: 0 normal, 1 abnormal, [n]; n may be 0.
        probabilities: of abnormality, [n].
        patients: whose study it is, [n]; the bootstrap draws patients, not studies.
        threshold: a study is called abnormal iff its probability is greater.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, or a probability is not within 0 and 1.
    """
    labels, probabilities, patients = checked(labels, probabilities, patients)
    called = (probabilities > threshold).astype(np.int64)
    abnormal, normal = labels == 1, labels == 0
    both = has_both_labels(labels)
    hits, rejections = int(called[abnormal].sum()), int((1 - called)[normal].sum())
    return Metrics(
        num_studies=len(labels),
        num_abnormal=int(abnormal.sum()),
        auroc_delong=auroc_delong(labels, probabilities),
        sensitivity=rate(hits, int(abnormal.sum())),
        specificity=rate(rejections, int(normal.sum())),
        ppv=rate(hits, int(called.sum())) if both else Estimate(),
        npv=rate(rejections, int((1 - called).sum())) if both else Estimate(),
        kappa=kappa_mchugh(labels, called),
        **_bootstrapped(labels, probabilities, called, patients, draws, seed),
    )


def _bootstrapped(
    labels: np.ndarray, probabilities: np.ndarray, called: np.ndarray, patients: np.ndarray, draws: int, seed: int
) -> dict[str, Estimate]:
    """The estimates whose intervals come from draws of patients, by their names in `Metrics`."""
    statistics: dict[str, Statistic] = {
        "auroc": lambda weights: weighted_auroc(labels, probabilities, weights),
        "kappa_clustered": lambda weights: weighted_kappa(labels, called, weights),
        "brier": lambda weights: weighted_brier(labels, probabilities, weights),
        "ece": lambda weights: weighted_excess(labels, probabilities, weights),
    }
    if not has_both_labels(labels):
        return dict.fromkeys(statistics, Estimate())
    once = np.ones((1, len(labels)))
    excess = weighted_excess(labels, probabilities, once)[0]
    values = {name: float(statistics[name](once)[0]) for name in ("auroc", "kappa_clustered", "brier")}
    if not has_patients(labels, patients):
        values["ece"] = float(expected_calibration_error(excess))
        return {name: Estimate(value) for name, value in values.items()}
    found = bootstrap(statistics, patients, draws=draws, seed=seed)
    estimates = {name: percentile_interval(value, found[name]) for name, value in values.items()}
    return estimates | {
        "auroc": auroc_interval(labels, probabilities, patients, found["auroc"]),
        "ece": calibration_error_interval(excess, found["ece"]),
    }


def checked(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, int64 [n], probabilities, float64 [n], and patients, [n].

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, or a probability is not within 0 and 1.
    """
    labels, probabilities, patients = binary_labels(labels), _probabilities(probabilities), np.asarray(patients)
    if not len(labels) == len(probabilities) == len(patients):
        raise ValueError(
            f"{len(labels)} labels, {len(probabilities)} probabilities, {len(patients)} patients: one for each study"
        )
    return labels, probabilities, patients


def _probabilities(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    wrong = np.flatnonzero(~((array >= 0) & (array <= 1)))
    if len(wrong):
        raise ValueError(f"probability {array[wrong[0]]} at position {wrong[0]}: probabilities lie within 0 and 1")
    return array
