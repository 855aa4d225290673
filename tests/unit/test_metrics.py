import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mura_ray.stats.metrics import Estimate, auroc, perfect_auroc_bound, rate, resamples, study_metrics, weighted_auroc


def test_hand_worked_table():
    # Six abnormal, five normal; called abnormal above 0.5, so 0.5 itself is called normal. TP 4, FN 2, TN 4, FP 1.
    labels = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    probabilities = [0.9, 0.8, 0.7, 0.6, 0.5, 0.2, 0.1, 0.3, 0.4, 0.5, 0.65]
    result = study_metrics(labels, probabilities, range(11), threshold=0.5)
    assert (result.num_studies, result.num_abnormal) == (11, 6)
    assert result.sensitivity.value == pytest.approx(4 / 6)
    assert result.specificity.value == pytest.approx(4 / 5)
    # Normals below each abnormal, ties half: 5, 5, 5, 4, 3.5, 1 of 30 pairs.
    assert result.auroc.value == pytest.approx(23.5 / 30)
    # Observed 8/11; by chance (6 * 5 + 5 * 6) / 121.
    assert result.kappa.value == pytest.approx((8 / 11 - 60 / 121) / (1 - 60 / 121))


@pytest.mark.parametrize(
    ("hits", "num", "low", "high"),
    [(10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_rate_has_wilsons_interval(hits: int, num: int, low: float, high: float):
    # 81 of 263: Newcombe (1998), table I. The others follow from (p + z^2/2n +- z sqrt(..)) / (1 + z^2/n) by hand.
    estimate = rate(hits, num)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)
    assert estimate.value == hits / num


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


def test_resamples_keep_patients_whole():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    chunks = list(resamples(patients, draws=450))
    weights = np.concatenate(chunks)
    assert weights.shape == (450, 6)
    for patient in "abc":
        of_one = weights[:, patients == patient]
        assert (of_one == of_one[:, :1]).all()
    assert (weights[:, [1, 0, 3]].sum(axis=1) == 3).all()  # one study of each: as many patients as there are
    assert len(np.unique(weights[:, 0])) > 2
    np.testing.assert_array_equal(weights, np.concatenate(list(resamples(patients, draws=450))))


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


def test_a_single_label_leaves_what_needs_both_not_estimable():
    result = study_metrics([1] * 8, np.linspace(0.2, 0.9, 8), range(8), threshold=0.5)
    assert result.sensitivity.value == 0.5
    assert result.auroc == result.kappa == result.specificity == Estimate()


@pytest.mark.parametrize("num_abnormal", [0, 1, 4])
def test_a_tiny_stratum_is_not_estimable(num_abnormal: int):
    labels = [1] * num_abnormal + [0] * 4
    result = study_metrics(labels, np.full(len(labels), 0.4), range(len(labels)), threshold=0.5)
    assert (result.num_studies, result.num_abnormal) == (num_abnormal + 4, num_abnormal)
    assert result.auroc == result.kappa == result.specificity == result.sensitivity == Estimate()


def test_no_studies():
    result = study_metrics([], [], [], threshold=0.5)
    assert (result.num_studies, result.auroc) == (0, Estimate())


def test_few_patients_have_no_interval():
    labels = np.tile([0, 1], 10)
    scores = np.linspace(0, 1, 20)
    assert auroc(labels, scores, np.repeat(np.arange(4), 5)) == Estimate(0.55)
    assert auroc(labels, scores, np.repeat(np.arange(10), 2)).low is not None


def test_perfection_claims_no_certainty():
    labels = [0] * 6 + [1] * 6
    result = study_metrics(labels, labels, range(12), threshold=0.5)
    assert result.kappa == Estimate(1.0)
    assert result.auroc.value == result.auroc.high == 1
    bound = result.auroc.low
    assert bound is not None
    shape = 1 + 5 * ((1 - bound) / (2 - bound) + bound / (1 + bound))
    assert 1 - bound == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / 36 * shape), rel=1e-6)
    assert perfect_auroc_bound(60, 60) > 0.95 > perfect_auroc_bound(20, 20) > bound > 0.5
    assert result.sensitivity.low == pytest.approx(0.6097, abs=1e-4)


@pytest.mark.parametrize("bad", [np.nan, 1.01, -0.1, np.inf])
def test_refuses_what_is_no_probability(bad: float):
    with pytest.raises(ValueError, match=f"probability {bad} at position 1"):
        study_metrics([0, 1], [0.5, bad], ["a", "b"], threshold=0.5)


def test_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="2 labels, 1 probabilities, 2 patients"):
        study_metrics([0, 1], [0.5], ["a", "b"], threshold=0.5)
    with pytest.raises(ValueError, match="label 3 at position 0"):
        study_metrics([3, 1], [0.5, 0.5], ["a", "b"], threshold=0.5)
