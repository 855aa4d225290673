import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from mura_ray.stats.agreement import Agreement, agreement, binary_labels, cohen_kappa


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
