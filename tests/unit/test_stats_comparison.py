import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar

from mura_ray.stats.comparison import Comparison, McNemar, compare
from mura_ray.stats.estimates import Estimate
from tests.unit.ovarian import ALBUMIN, BENEFIT, KG, PROTEIN


def sample(seed: int = 0, num: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and probabilities of a better and of a worse ensemble that err alike."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, num)
    shared = generator.normal(0.3 + 0.4 * labels, 0.2)
    first, second = (np.clip(shared + generator.normal(0, spread, num), 0, 1) for spread in (0.05, 0.3))
    return labels, first, second


@pytest.mark.parametrize(
    ("score", "difference", "low", "high", "p"),
    [(ALBUMIN, 0.0108, -0.1761, 0.1976, 0.9102), (PROTEIN, -0.0780, -0.2830, 0.1271, 0.4561)],
)
def test_delongs_own_data(score: list[float], difference: float, low: float, high: float, p: float):
    # As SAS/STAT prints them in its example of PROC LOGISTIC.
    kg = np.array([10 - score for score in KG]) / 10
    result = compare(BENEFIT, np.array(score) / 10, kg, np.arange(43), (0.5, 0.5), draws=10)
    assert [result.auroc.value, result.auroc.low, result.auroc.high] == pytest.approx([difference, low, high], abs=6e-5)
    assert result.auroc_p == pytest.approx(p, abs=5e-5)


@pytest.mark.parametrize("seed", range(3))
def test_differences_are_those_of_scikit_learn(seed: int):
    labels, first, second = sample(seed)
    result = compare(labels, first, second, np.arange(120), (0.5, 0.4))
    assert (result.num_studies, result.num_abnormal) == (120, labels.sum())
    area = roc_auc_score(labels, first) - roc_auc_score(labels, second)
    assert result.auroc.value == pytest.approx(area, abs=1e-9)
    assert result.auroc_clustered.value == pytest.approx(area, abs=1e-9)
    kappa = cohen_kappa_score(labels, first > 0.5) - cohen_kappa_score(labels, second > 0.4)
    assert result.kappa_clustered.value == pytest.approx(kappa, abs=1e-9)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (7, 2), (3, 3), (25, 11)])
def test_mcnemar_equals_statsmodels(only_first: int, only_second: int):
    expected = vars(mcnemar([[50, only_first], [only_second, 9]], exact=True))
    assert McNemar(only_first, only_second).p_value == pytest.approx(expected["pvalue"], abs=1e-9)


def test_mcnemar_counts_what_only_one_calls_rightly():
    labels = [0] * 6 + [1] * 6
    first = [0.1] * 6 + [0.9] * 3 + [0.1] * 3
    second = [0.1] * 5 + [0.9] + [0.9] * 2 + [0.1] * 3 + [0.9]
    assert compare(labels, first, second, np.arange(12), (0.5, 0.5), draws=10).mcnemar == McNemar(2, 1)


def test_the_paired_bootstrap_agrees_with_delong_on_single_studies():
    labels, first, second = sample(num=400)
    result = compare(labels, first, second, np.arange(400), (0.5, 0.5))
    assert width(result.auroc_clustered) == pytest.approx(width(result.auroc), rel=0.1)
    # Unpaired draws would be wider: the ensembles err alike.
    assert width(result.auroc) < 0.9 * np.hypot(hanley_mcneil_width(labels, first), hanley_mcneil_width(labels, second))


def hanley_mcneil_width(labels: np.ndarray, scores: np.ndarray) -> float:
    """Of the interval of one area under the curve, by Hanley and McNeil (1982)."""
    area, num = roc_auc_score(labels, scores), np.bincount(labels)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    terms = area * (1 - area) + (num[1] - 1) * (q1 - area**2) + (num[0] - 1) * (q2 - area**2)
    return 2 * 1.96 * np.sqrt(terms / num.prod())


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_copies_of_studies_narrow_only_what_takes_them_as_independent():
    labels, first, second = sample()
    alone = compare(labels, first, second, np.arange(120), (0.5, 0.5))
    repeated = (np.repeat(one, 4) for one in (labels, first, second, np.arange(120)))
    copies = compare(*repeated, thresholds=(0.5, 0.5))
    assert width(copies.auroc_clustered) == pytest.approx(width(alone.auroc_clustered))
    assert width(copies.kappa_clustered) == pytest.approx(width(alone.kappa_clustered))
    assert width(copies.auroc) == pytest.approx(width(alone.auroc) / 2, rel=0.05)
    assert alone.auroc_p is not None
    assert copies.auroc_p is not None
    assert copies.auroc_p < alone.auroc_p


def test_swapping_the_ensembles_changes_only_signs():
    labels, first, second = sample()
    one = compare(labels, first, second, np.arange(120), (0.5, 0.4))
    other = compare(labels, second, first, np.arange(120), (0.4, 0.5))
    assert other.auroc_p == pytest.approx(one.auroc_p)
    assert (other.mcnemar.only_first, other.mcnemar.only_second) == (one.mcnemar.only_second, one.mcnemar.only_first)
    for ours, theirs in ((one.auroc, other.auroc), (one.auroc_clustered, other.auroc_clustered)):
        assert ours.low is not None
        assert theirs.high is not None
        assert ours.low == pytest.approx(-theirs.high)


def test_an_ensemble_beside_itself_has_no_interval():
    labels, first, _ = sample()
    result = compare(labels, first, first**3, np.arange(120), (0.5, 0.125))
    assert result == Comparison(
        120, int(labels.sum()), Estimate(0.0), None, Estimate(0.0), Estimate(0.0), McNemar(0, 0)
    )


def test_few_studies_or_patients():
    labels, first, second = sample()
    few = np.append(np.flatnonzero(labels == 1)[:4], np.flatnonzero(labels == 0))
    result = compare(labels[few], first[few], second[few], few, (0.5, 0.5))
    assert result.auroc == result.auroc_clustered == result.kappa_clustered == Estimate()
    assert result.auroc_p is None
    result = compare(labels, first, second, np.arange(120) % 4, (0.5, 0.5))
    assert result.auroc.low is not None
    assert result.auroc_clustered == Estimate(result.auroc_clustered.value)
    assert result.auroc_clustered.value is not None
    assert compare([], [], [], [], (0.5, 0.5)).mcnemar.p_value == 1


def test_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="2 labels, 1 probabilities, 2 patients"):
        compare([0, 1], [0.1, 0.2], [0.1], ["a", "b"], (0.5, 0.5))
