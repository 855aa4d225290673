import math

import numpy as np
import pytest
from pycm import ConfusionMatrix
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import cohens_kappa

from mura_ray.stats.agreement import Agreement, agreement, binary_labels, cohen_kappa, kappa_mchugh, weighted_kappa
from mura_ray.stats.estimates import Estimate


def raters(both_positive: int, only_a: int, only_b: int, both_negative: int) -> tuple[list[int], list[int]]:
    a = [1] * (both_positive + only_a) + [0] * (only_b + both_negative)
    b = [1] * both_positive + [0] * only_a + [1] * only_b + [0] * both_negative
    return a, b


def test_hand_worked_example():
    # 50 proposals: observed 35/50, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa 0.2 / 0.5, error sqrt(0.21 / 50) / 0.5
    result = agreement(*raters(20, 5, 10, 15))
    assert (result.observed, result.expected) == (0.7, 0.5)
    assert result.kappa == pytest.approx(0.4)
    assert result.standard_error == pytest.approx(0.129615, abs=1e-6)
    assert result.interval == pytest.approx((0.4 - 1.96 * 0.129615, 0.4 + 1.96 * 0.129615), abs=1e-6)


def test_mchughs_example():
    # McHugh (2012): 222 studies, agreement 0.94, 0.57 by chance, standard error 0.037.
    result = agreement(*raters(147, 3, 10, 62))
    assert result.num == 222
    assert round(result.observed, 2) == 0.94
    assert round(result.expected, 2) == 0.57
    assert round(result.standard_error, 3) == 0.037
    # She prints kappa .85 and 0.777 to 0.923. Her two agreements, as printed, give this margin (and a kappa of .86).
    margin = 1.96 * Agreement(num=222, observed=0.94, expected=0.57).standard_error
    assert [round(0.85 + sign * margin, 3) for sign in (-1, 1)] == [0.777, 0.923]


def test_the_papers_model_has_the_wide_interval():
    # TP 75, FN 17, TN 102, FP 13. The paper prints 0.700 to 0.710, which adds the variance to kappa.
    result = agreement(*raters(75, 17, 13, 102))
    assert [round(edge, 3) for edge in result.interval] == [0.608, 0.803]
    margin = 1.96 * result.standard_error**2
    assert [round(result.kappa + sign * margin, 3) for sign in (-1, 1)] == [0.700, 0.710]


@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(seed: int):
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 2, (2, 40))
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    assert cohen_kappa(a, b) == cohen_kappa(b, a)


@pytest.mark.parametrize("counts", [(75, 17, 13, 102), (20, 5, 10, 15), (147, 3, 10, 62), (3, 9, 30, 1)])
def test_equals_pycm_and_statsmodels(counts: tuple[int, int, int, int]):
    a, b = raters(*counts)
    result, expected = agreement(a, b), vars(ConfusionMatrix(actual_vector=a, predict_vector=b))
    assert result.kappa == pytest.approx(expected["Kappa"], abs=1e-9)
    assert result.standard_error == pytest.approx(expected["Kappa_SE"], abs=1e-9)
    assert result.interval == pytest.approx(expected["Kappa_CI"], abs=1e-9)
    tp, only_a, only_b, tn = counts
    assert result.kappa == pytest.approx(cohens_kappa([[tp, only_a], [only_b, tn]], return_results=False), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_weighted_kappa_is_that_of_repeated_studies(seed: int):
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 2, (2, 40))
    weights = generator.integers(0, 4, (5, 40))
    expected = [cohen_kappa(np.repeat(a, row), np.repeat(b, row)) for row in weights]
    np.testing.assert_allclose(weighted_kappa(a, b, weights.astype(float)), expected, rtol=1e-12)


def test_weighted_kappa_of_a_draw_with_one_label_is_nan():
    result = weighted_kappa(np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([[0.0, 2, 0], [1, 1, 0]]))
    assert np.isnan(result[0])
    assert result[1] == 1


def test_kappas_interval_claims_nothing_of_certainty_or_few():
    labels = np.repeat([0, 1], 6)
    assert kappa_mchugh(labels, labels) == Estimate(1.0)
    assert kappa_mchugh(labels, 1 - labels) == Estimate(-1.0)
    assert kappa_mchugh(labels[:10], labels[:10]) == Estimate()
    assert (
        kappa_mchugh(labels, np.repeat([0, 1], [7, 5])).low == agreement(labels, np.repeat([0, 1], [7, 5])).interval[0]
    )


def test_certain_and_worst_agreement_are_exact():
    labels = [0, 1, 1] * 7
    assert cohen_kappa(labels, labels) == 1
    assert cohen_kappa([0, 1], [1, 0]) == -1


def test_interval_stays_within_its_range():
    assert agreement(*raters(9, 1, 0, 10)).interval[1] == 1
    assert agreement(*raters(0, 9, 10, 1)).interval[0] == -1


def test_one_label_throughout_has_no_kappa():
    result = agreement([1, 1, 1], [1, 1, 1])
    assert result == Agreement(num=3, observed=1, expected=1)
    assert math.isnan(result.kappa)
    assert math.isnan(result.standard_error)
    assert cohen_kappa([1, 1, 1], [1, 0, 1]) == 0


def test_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="3 and 2 labels"):
        cohen_kappa([0, 1, 1], [0, 1])
    with pytest.raises(ValueError, match="no labels"):
        cohen_kappa([], [])


@pytest.mark.parametrize(
    ("labels", "named"),
    [([0, 2], "label 2 at position 1"), ([0.0, np.nan], "nan at position 1"), (["1"], "label 1 at")],
)
def test_refuses_other_labels(labels: list, named: str):
    with pytest.raises(ValueError, match=named):
        binary_labels(labels)
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        binary_labels([[0, 1]])
