import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mura_ray.stats.estimates import Estimate
from mura_ray.stats.roc import (
    auroc,
    auroc_delong,
    delong,
    roc_points,
    threshold_for_sensitivity,
    weighted_auroc,
    youden_threshold,
)
from tests.unit.ovarian import ALBUMIN, BENEFIT, KG, PROTEIN


def test_delongs_own_data():
    # The printed digits are those of SAS/STAT's example of PROC LOGISTIC, which analyses these data.
    scores = np.array([ALBUMIN, PROTEIN, [10 - score for score in KG]])
    areas, covariance = delong(np.array(BENEFIT), scores)
    assert [round(area, 4) for area in areas] == [0.7366, 0.6478, 0.7258]
    assert [round(error, 4) for error in np.sqrt(np.diag(covariance))] == [0.0927, 0.1000, 0.1028]
    for first, difference, error, chi_square, p in (
        (0, 0.0108, 0.0953, 0.0127, 0.9102),
        (1, -0.078, 0.1046, 0.5554, 0.4561),
    ):
        contrast = np.eye(3)[first] - np.eye(3)[2]
        variance = contrast @ covariance @ contrast
        assert (round(contrast @ areas, 4), round(np.sqrt(variance), 4)) == (difference, error)
        z = contrast @ areas / np.sqrt(variance)
        assert (round(z**2, 4), round(float(2 * norm.sf(abs(z))), 4)) == (chi_square, p)
    alone = auroc_delong(np.array(BENEFIT), np.array(ALBUMIN))
    assert (alone.value, alone.low, alone.high) == pytest.approx((0.7366, 0.5549, 0.9182), abs=5e-5)


def by_all_pairs(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's areas and covariance from every pair of an abnormal and a normal study, as the paper defines them."""
    pairs = scores[:, labels == 1, None], scores[:, None, labels == 0]
    kernel = np.where(pairs[0] > pairs[1], 1.0, np.where(pairs[0] == pairs[1], 0.5, 0.0))
    areas = kernel.mean(axis=(1, 2))
    covariance = np.zeros((len(scores), len(scores)))
    for axis, num in ((2, kernel.shape[1]), (1, kernel.shape[2])):
        away = kernel.mean(axis=axis) - areas[:, None]
        covariance += away @ away.T / (num - 1) / num
    return areas, covariance


@pytest.mark.parametrize("seed", range(5))
def test_delong_with_ties_is_the_sum_over_all_pairs(seed: int):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat([0, 1], [23, 14]))
    scores = generator.integers(0, 9, (3, 37)) + labels
    areas, covariance = delong(labels, scores)
    expected_areas, expected_covariance = by_all_pairs(labels, scores)
    np.testing.assert_allclose(areas, expected_areas, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected_covariance, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(areas, [roc_auc_score(labels, one) for one in scores], rtol=1e-12)


def test_delongs_variance_is_the_jackknifes():
    # Leaving one study out changes the area by its placement's share exactly, so each label's jackknife adds its term.
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1], [30, 20])
    scores = generator.normal(labels)
    variance = 0.0
    for label in (0, 1):
        places = np.flatnonzero(labels == label)
        left = [roc_auc_score(np.delete(labels, place), np.delete(scores, place)) for place in places]
        variance += (len(places) - 1) * np.var(left)
    assert delong(labels, scores[None])[1][0, 0] == pytest.approx(variance, rel=1e-9)


def test_delongs_interval_claims_nothing_of_perfection_or_few():
    labels = np.repeat([0, 1], 6)
    assert auroc_delong(labels, labels.astype(float)) == Estimate(1.0)
    assert auroc_delong(labels[:10], np.arange(10.0)) == Estimate()
    almost = auroc_delong(labels, np.array([0, 1, 2, 3, 4, 7, 6, 8, 9, 10, 11, 12.0]))
    assert almost.value == pytest.approx(35 / 36)
    assert almost.high == 1


def called_above(scores: ArrayLike, threshold: float, labels: list[int]) -> tuple[float, float]:
    """1 - specificity and sensitivity, counted."""
    called, labelled = np.asarray(scores) > threshold, np.asarray(labels)
    return called[labelled == 0].mean(), called[labelled == 1].mean()


@pytest.mark.parametrize("seed", range(3))
def test_every_point_of_the_curve_is_what_its_threshold_gives(seed: int):
    generator = np.random.default_rng(seed)
    labels = [0, 1, *generator.integers(0, 2, 40)]
    scores = generator.integers(0, 12, 42) / 12
    curve = roc_points(labels, scores)
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    assert len(curve.thresholds) == len(np.unique(scores)) + 1
    assert (np.diff(curve.thresholds) < 0).all()
    for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds, strict=True):
        assert called_above(scores, threshold, labels) == (fpr, tpr)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_thresholds_lie_halfway_between_scores_that_differ():
    curve = roc_points([0, 0, 1, 1, 0], [0.125, 0.25, 0.25, 0.75, 0.75])
    assert list(curve.thresholds[:3]) == [0.75, 0.5, 0.1875]
    assert 0.125 - 1e-15 < curve.thresholds[3] < 0.125
    assert list(curve.tpr) == [0, 0.5, 1, 1]


def test_neighbouring_numbers_are_parted_all_the_same():
    low = 0.3
    high = np.nextafter(low, 1)
    assert called_above([low, high], youden_threshold([0, 1], [low, high]), [0, 1]) == (0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_youdens_threshold_is_the_best_of_all(seed: int):
    generator = np.random.default_rng(seed)
    labels = [0, 1, *generator.integers(0, 2, 60)]
    scores = np.clip(generator.normal(0.4 + 0.2 * np.array(labels), 0.2).round(2), 0, 1)
    fpr, tpr = called_above(scores, youden_threshold(labels, scores), labels)
    every = [called_above(scores, threshold, labels) for threshold in [-1.0, *scores]]
    assert tpr - fpr == pytest.approx(max(one[1] - one[0] for one in every), abs=1e-12)


def test_of_equal_youden_indices_the_more_sensitive_wins():
    # Above 0.5: sensitivity 1/3, specificity 1. Above 0.25: 1, 1/3. Both sum to 4/3, and 1/3 + 1 - 1 is not exact.
    labels, scores = [1, 0, 0, 1, 1, 0], [0.6, 0.4, 0.4, 0.4, 0.4, 0.1]
    assert youden_threshold(labels, scores) == 0.25


@pytest.mark.parametrize(("sensitivity", "reached", "fpr"), [(0.25, 0.25, 0), (0.5, 0.75, 0.2), (0.76, 1, 0.4)])
def test_a_fixed_sensitivity_is_reached_at_the_least_cost(sensitivity: float, reached: float, fpr: float):
    labels = [1, 1, 1, 0, 0, 1, 0, 0, 0]
    scores = [0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    threshold = threshold_for_sensitivity(labels, scores, sensitivity)
    assert called_above(scores, threshold, labels) == (fpr, reached)
    assert threshold == pytest.approx({0.25: 0.85, 0.5: 0.75, 0.76: 0.55}[sensitivity])


def test_full_sensitivity_where_the_least_score_is_abnormal():
    labels, scores = [0, 1, 1], [0.5, 0.0, 1.0]
    assert called_above(scores, threshold_for_sensitivity(labels, scores, 1), labels) == (1, 1)


@pytest.mark.parametrize(
    ("labels", "scores", "named"),
    [
        ([1, 1], [0.1, 0.2], "all normal or all abnormal"),
        ([0, 1], [0.1], r"2 labels, scores of shape \(1,\)"),
        ([0, 1], [0.1, np.nan], "score nan at position 1"),
        ([0, 2], [0.1, 0.2], "label 2 at position 1"),
    ],
)
def test_refuses_what_has_no_curve(labels: list[int], scores: list[float], named: str):
    with pytest.raises(ValueError, match=named):
        roc_points(labels, scores)


@pytest.mark.parametrize("sensitivity", [0, 1.1, np.nan])
def test_refuses_a_sensitivity_that_is_no_share(sensitivity: float):
    with pytest.raises(ValueError, match=f"sensitivity {sensitivity}: pass a share"):
        threshold_for_sensitivity([0, 1], [0.1, 0.2], sensitivity)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_auroc_with_ties_equals_scikit_learn(seed: int):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 60)
    scores = generator.integers(0, 8, 60) / 8
    weights = generator.integers(0, 4, (3, 60))
    expected = [roc_auc_score(np.repeat(labels, row), np.repeat(scores, row)) for row in weights]
    np.testing.assert_allclose(weighted_auroc(labels, scores, weights), expected)


def test_weighted_auroc_of_a_draw_with_one_label_is_nan():
    weights = np.array([[1, 1, 0], [0, 0, 2]])
    result = weighted_auroc(np.array([1, 0, 0]), np.array([0.9, 0.1, 0.2]), weights)
    assert result[0] == 1
    assert np.isnan(result[1])


def test_studies_of_one_patient_do_not_narrow_the_interval():
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    scores = generator.normal(labels, 1.5)
    alone = auroc(labels, scores, np.arange(40))
    copies = auroc(np.repeat(labels, 10), np.repeat(scores, 10), np.repeat(np.arange(40), 10))
    assert copies == alone  # ten equal studies of a patient tell no more than one
    as_if_independent = auroc(np.repeat(labels, 10), np.repeat(scores, 10), np.arange(400))
    assert width(as_if_independent) < 0.5 * width(alone)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_the_bootstrap_interval_has_the_width_of_theory():
    # Hanley and McNeil (1982): the standard error of the AUROC of two normal distributions, 100 studies each.
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], 100)
    estimate = auroc(labels, generator.normal(labels), np.arange(200))
    assert estimate.value is not None
    area = estimate.value
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt((area * (1 - area) + 99 * (q1 - area**2) + 99 * (q2 - area**2)) / 100**2)
    assert width(estimate) == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_covers_the_truth_about_as_often_as_it_says():
    # AUROC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.7602.
    generator = np.random.default_rng(2)
    labels = np.repeat([0, 1], 40)
    covered = 0
    for _ in range(60):
        estimate = auroc(labels, generator.normal(labels), np.arange(80))
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low < 0.7602 < estimate.high
    assert covered >= 50


def test_few_patients_have_no_interval():
    labels = np.tile([0, 1], 10)
    scores = np.linspace(0, 1, 20)
    assert auroc(labels, scores, np.repeat(np.arange(4), 5)) == Estimate(0.55)
    assert auroc(labels, scores, np.repeat(np.arange(10), 2)).low is not None
