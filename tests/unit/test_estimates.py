import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from mura_ray.stats.estimates import DRAWS, Estimate, bootstrap, percentile_interval, rate, resamples


@pytest.mark.parametrize(
    ("hits", "num", "low", "high"),
    [(10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_rate_has_wilsons_interval(hits: int, num: int, low: float, high: float):
    # 81 of 263: Newcombe (1998), table I. The others follow from (p + z^2/2n +- z sqrt(..)) / (1 + z^2/n) by hand.
    estimate = rate(hits, num)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)
    assert estimate.value == hits / num


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


@pytest.mark.parametrize(("hits", "num"), [(0, 5), (5, 5), (17, 23), (75, 92), (661, 1199)])
def test_wilsons_interval_equals_statsmodels(hits: int, num: int):
    expected = proportion_confint(hits, num, method="wilson")
    estimate = rate(hits, num)
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-9)


def test_a_share_of_too_few_is_not_estimable():
    assert rate(2, 4) == Estimate()
    assert rate(2, 5).value == 0.4


def test_statistics_of_a_bootstrap_share_their_draws():
    values = np.array([1.0, 4.0, 2.0, 8.0, 3.0, 5.0])
    found = bootstrap(
        {"sum": lambda w: w @ values, "both": lambda w: w @ np.stack([values, -values], axis=1)}, np.arange(6)
    )
    assert found["sum"].shape == (DRAWS,)
    assert found["both"].shape == (DRAWS, 2)
    np.testing.assert_array_equal(found["both"], np.stack([found["sum"], -found["sum"]], axis=1))
    # Six draws with replacement: mean n * mean, variance n * population variance.
    assert found["sum"].mean() == pytest.approx(6 * values.mean(), rel=0.02)
    assert found["sum"].var() == pytest.approx(6 * values.var(), rel=0.1)


def test_percentile_interval():
    draws = np.arange(1001) / 1000
    estimate = percentile_interval(0.5, draws)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.025, 0.975))
    assert percentile_interval(0.5, np.append(draws, np.nan)) == percentile_interval(0.5, draws)
    assert percentile_interval(0.5, np.full(9, 0.5)) == Estimate(0.5)
    assert percentile_interval(0.5, np.full(9, np.nan)) == Estimate(0.5)
