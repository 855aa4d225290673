"""The data sets that benchmarks.coverage draws, and what it counts."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from benchmarks.coverage import DISTANCE, INTERVALS, PREVALENCE, SCENARIOS, Scenario, coverage, draw, measure
from mura_ray.stats.estimates import Estimate


def test_as_many_patients_and_studies_as_muras_validation_set():
    assert (len(SCENARIOS[0].sizes), SCENARIOS[0].sizes.sum()) == (783, 1199)
    assert (len(SCENARIOS[-1].sizes), SCENARIOS[-1].sizes.sum()) == (112, 170)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_studies_of_a_patient_are_as_alike_as_said(correlation: float):
    labels, probabilities = draw(np.full(30_000, 2), correlation, np.random.default_rng(0))
    assert labels.mean() == pytest.approx(PREVALENCE, abs=0.01)
    assert roc_auc_score(labels, probabilities) == pytest.approx(norm.cdf(DISTANCE / np.sqrt(2)), abs=0.005)
    both = labels.reshape(-1, 2)
    logits = np.log(probabilities / (1 - probabilities)).reshape(-1, 2)
    normal = logits[both.sum(axis=1) == 0]
    assert np.corrcoef(normal.T)[0, 1] == pytest.approx(correlation, abs=0.03)
    assert (np.corrcoef(both.T)[0, 1] > 0.2) == (correlation > 0)


def test_counts_intervals_that_hold_the_truth():
    estimates = [Estimate(0.5, 0.4, 0.6), Estimate(0.3, 0.2, 0.4), Estimate(0.7, 0.6, 0.7), Estimate(1.0)]
    found = coverage(0.5, estimates)
    assert (found.estimable, found.covered, found.below) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found.width == pytest.approx(0.5 / 3)


def test_measures_every_interval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.coverage.TRUTH_STUDIES", 20_000)
    found = measure(Scenario("few", 0.5, every=7), num_sets=3, draws=50)
    assert list(found) == list(INTERVALS)
    assert all(one.estimable == 3 for one in found.values())
    assert found["auroc"].truth == pytest.approx(norm.cdf(DISTANCE / np.sqrt(2)), abs=0.01)
