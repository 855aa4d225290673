"""Two ensembles on the same studies: differences of AUROC and kappa, and whose decisions are right."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm

from mura_ray.stats.agreement import weighted_kappa
from mura_ray.stats.estimates import (
    DRAWS,
    Z_95,
    Estimate,
    bootstrap,
    has_both_labels,
    has_patients,
    percentile_interval,
)
from mura_ray.stats.metrics import checked
from mura_ray.stats.roc import delong, weighted_auroc


@dataclass(frozen=True, slots=True)
class McNemar:
    """Studies that only one of two calls rightly, and the exact test that neither is right more often.

    The test takes the studies as independent.
    """

    only_first: int
    only_second: int

    @property
    def p_value(self) -> float:
        """Two-sided; 1 where both are right on the same studies."""
        num = self.only_first + self.only_second
        return float(binomtest(self.only_first, num, 0.5).pvalue) if num else 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """First less second, on the same studies.

    Attributes:
        num_studies: that both have judged.
        num_abnormal: of them, by their labels.
        auroc: difference of the areas with DeLong's interval, which takes the studies as independent.
        auroc_p: two-sided, of DeLong's test that the areas are equal; None where it is not estimable.
        auroc_clustered: the same difference with the interval of a paired bootstrap that draws whole patients.
        kappa_clustered: difference of Cohen's kappas with labels, with that bootstrap's interval.
        mcnemar: of the decisions.
    """

    num_studies: int
    num_abnormal: int
    auroc: Estimate
    auroc_p: float | None
    auroc_clustered: Estimate
    kappa_clustered: Estimate
    mcnemar: McNemar


def compare(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patients: ArrayLike,
    thresholds: tuple[float, float],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compares two ensembles.

    Differences need enough normal and abnormal studies, and the clustered intervals enough patients with each
    (`MIN_COUNT`). Ensembles of equal ranks have no interval of the AUROC's difference, those of equal decisions none of
    kappa's.

    Args:
        labels: 0 normal, 1 abnormal, [n].
        first: the first ensemble's probabilities, [n].
        second: the second one's for the same studies, [n].
        patients: whose study it is, [n]; the bootstrap draws patients, not studies.
        thresholds: of the first and of the second: called abnormal iff the probability is greater.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, or a probability is not within 0 and 1.
    """
    labels, first, patients = checked(labels, first, patients)
    _, second, _ = checked(labels, second, patients)
    called = [(scores > limit).astype(np.int64) for scores, limit in zip((first, second), thresholds, strict=True)]
    right = [one == labels for one in called]
    auroc, p_value = _delong_difference(labels, np.stack([first, second]))
    clustered, kappa = _clustered_differences(labels, (first, second), called, patients, draws, seed)
    return Comparison(
        num_studies=len(labels),
        num_abnormal=int(labels.sum()),
        auroc=auroc,
        auroc_p=p_value,
        auroc_clustered=clustered,
        kappa_clustered=kappa,
        mcnemar=McNemar(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())),
    )


def _delong_difference(labels: np.ndarray, scores: np.ndarray) -> tuple[Estimate, float | None]:
    if not has_both_labels(labels):
        return Estimate(), None
    areas, covariance = delong(labels, scores)
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= np.finfo(np.float64).eps * float(np.trace(covariance)):  # the rest of a sum of equals
        return Estimate(difference), None
    error = float(np.sqrt(variance))
    interval = Estimate(difference, max(difference - Z_95 * error, -1.0), min(difference + Z_95 * error, 1.0))
    return interval, float(2 * norm.sf(abs(difference) / error))


def _clustered_differences(
    labels: np.ndarray,
    scores: tuple[np.ndarray, np.ndarray],
    called: list[np.ndarray],
    patients: np.ndarray,
    draws: int,
    seed: int,
) -> tuple[Estimate, Estimate]:
    """Of AUROC and of kappa."""
    if not has_both_labels(labels):
        return Estimate(), Estimate()

    def auroc(weights: np.ndarray) -> np.ndarray:
        return weighted_auroc(labels, scores[0], weights) - weighted_auroc(labels, scores[1], weights)

    def kappa(weights: np.ndarray) -> np.ndarray:
        return weighted_kappa(labels, called[0], weights) - weighted_kappa(labels, called[1], weights)

    once = np.ones((1, len(labels)))
    values = {"auroc": float(auroc(once)[0]), "kappa": float(kappa(once)[0])}
    if not has_patients(labels, patients):
        return Estimate(values["auroc"]), Estimate(values["kappa"])
    found = bootstrap({"auroc": auroc, "kappa": kappa}, patients, draws=draws, seed=seed)
    return percentile_interval(values["auroc"], found["auroc"]), percentile_interval(values["kappa"], found["kappa"])
