from dataclasses import fields

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss
from statsmodels.stats.proportion import proportion_confint

from mura_ray.stats.agreement import kappa_mchugh
from mura_ray.stats.estimates import Estimate
from mura_ray.stats.metrics import Metrics, study_metrics
from mura_ray.stats.roc import auroc, auroc_delong, perfect_auroc_bound


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
    assert result.kappa_clustered.value == pytest.approx(result.kappa.value)
    assert result.auroc_delong.value == pytest.approx(result.auroc.value)
    assert result.ppv.value == pytest.approx(4 / 5)
    assert result.npv.value == pytest.approx(4 / 6)


def sample(num: int = 150, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and patients, who have three studies each."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, num)
    return labels, np.clip(generator.normal(0.35 + 0.3 * labels, 0.2), 0, 1), np.arange(num) // 3


def test_each_number_is_what_its_own_function_gives():
    labels, probabilities, patients = sample()
    result = study_metrics(labels, probabilities, patients, 0.45, seed=3)
    called = probabilities > 0.45
    assert result.auroc == auroc(labels, probabilities, patients, seed=3)
    assert result.auroc_delong == auroc_delong(labels, probabilities)
    assert result.kappa == kappa_mchugh(labels, called.astype(int))
    assert result.brier.value == pytest.approx(brier_score_loss(labels, probabilities), abs=1e-12)
    for estimate, right, num in (
        (result.ppv, labels[called].sum(), called.sum()),
        (result.npv, (1 - labels)[~called].sum(), (~called).sum()),
    ):
        assert estimate.value == right / num
        expected = proportion_confint(right, num, method="wilson")
        assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-9)


def test_every_number_has_an_interval_around_it():
    estimates = [one for one in study_metrics_of(sample()).values() if isinstance(one, Estimate)]
    assert len(estimates) == len(fields(Metrics)) - 2
    for estimate in estimates:
        assert estimate.value is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low <= estimate.value <= estimate.high


def study_metrics_of(data: tuple[np.ndarray, np.ndarray, np.ndarray], **settings: int) -> dict[str, object]:
    result = study_metrics(*data, threshold=0.5, **settings)
    return {field.name: getattr(result, field.name) for field in fields(result)}


def test_copies_of_studies_narrow_only_the_intervals_that_take_them_as_independent():
    labels, probabilities, _ = sample(60)
    alone = study_metrics_of((labels, probabilities, np.arange(60)))
    copies = study_metrics_of((np.repeat(labels, 9), np.repeat(probabilities, 9), np.repeat(np.arange(60), 9)))
    for name in ("auroc", "kappa_clustered", "brier", "ece"):
        assert bounds(copies[name]) == pytest.approx(bounds(alone[name])), name
    for name in ("auroc_delong", "kappa", "sensitivity", "specificity", "ppv", "npv"):
        assert width(copies[name]) == pytest.approx(width(alone[name]) / 3, rel=0.15), name


def bounds(estimate: object) -> tuple[float, float]:
    assert isinstance(estimate, Estimate)
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def width(estimate: object) -> float:
    low, high = bounds(estimate)
    return high - low


def test_draws_and_seed_change_only_the_bootstrap():
    data = sample()
    first, same, other = (study_metrics_of(data, seed=seed, draws=300) for seed in (1, 1, 2))
    assert first == same
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {"auroc", "kappa_clustered", "brier", "ece"}


def test_few_patients_leave_the_clustered_intervals_out():
    labels, probabilities, _ = sample(40)
    result = study_metrics(labels, probabilities, np.arange(40) % 4, threshold=0.5)
    for estimate in (result.auroc, result.kappa_clustered, result.brier, result.ece):
        assert estimate.value is not None
        assert estimate == Estimate(estimate.value)
    assert result.auroc_delong.low is not None


def test_a_single_label_leaves_what_needs_both_not_estimable():
    result = study_metrics([1] * 8, np.linspace(0.2, 0.9, 8), range(8), threshold=0.5)
    assert result.sensitivity.value == 0.5
    assert result.auroc == result.kappa == result.specificity == Estimate()
    assert result.auroc_delong == result.kappa_clustered == result.brier == result.ece == Estimate()
    assert result.ppv == result.npv == Estimate()


@pytest.mark.parametrize("num_abnormal", [0, 1, 4])
def test_a_tiny_stratum_is_not_estimable(num_abnormal: int):
    labels = [1] * num_abnormal + [0] * 4
    result = study_metrics(labels, np.full(len(labels), 0.4), range(len(labels)), threshold=0.5)
    assert (result.num_studies, result.num_abnormal) == (num_abnormal + 4, num_abnormal)
    assert result.auroc == result.kappa == result.specificity == result.sensitivity == Estimate()
    assert result.auroc_delong == result.kappa_clustered == result.brier == result.ece == Estimate()
    assert result.ppv == result.npv == Estimate()


def test_no_studies():
    result = study_metrics([], [], [], threshold=0.5)
    assert (result.num_studies, result.auroc) == (0, Estimate())


def test_perfection_claims_no_certainty():
    labels = [0] * 6 + [1] * 6
    result = study_metrics(labels, labels, range(12), threshold=0.5)
    assert result.kappa == result.kappa_clustered == result.auroc_delong == Estimate(1.0)
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
