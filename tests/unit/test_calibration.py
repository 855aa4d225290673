"""Platt scaling fitted and applied, and reliability."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn.metrics import log_loss
from statsmodels.stats.proportion import proportion_confint

from mura_ray.domain import STUDY_TYPES
from mura_ray.platt import CLIP, Calibration, Scaling
from mura_ray.stats.calibration import MIN_STUDIES, fit_calibration, reliability

TRUE = {"elbow": (1.0, 0.0), "hand": (0.6, -1.0), "wrist": (1.7, 0.8)}


def simulated(num: int, lines: dict[str, tuple[float, float]] = TRUE, seed: int = 0) -> pd.DataFrame:
    """Studies whose labels are drawn with the probability that each type's slope and intercept give."""
    random = np.random.default_rng(seed)
    frames = []
    for study_type, (slope, intercept) in lines.items():
        logits = random.normal(0, 2, num)
        labels = random.random(num) < expit(slope * logits + intercept)
        frames.append(
            pd.DataFrame({"label": labels.astype(int), "probability": expit(logits), "study_type": study_type})
        )
    return pd.concat(frames, ignore_index=True)


def fitted(studies: pd.DataFrame) -> Calibration:
    return fit_calibration(studies["label"], studies["probability"], studies["study_type"])


def by_statsmodels(studies: pd.DataFrame) -> list[float]:
    """Intercept and slope."""
    logits = logit(studies["probability"].clip(CLIP, 1 - CLIP))
    return list(sm.Logit(studies["label"], sm.add_constant(logits)).fit(disp=0, tol=1e-12).params)


def calibrated(calibration: Calibration, studies: pd.DataFrame) -> np.ndarray:
    return calibration.calibrated(studies["probability"], list(studies["study_type"]))


def test_slopes_and_intercepts_of_a_simulation_are_found_again():
    calibration = fitted(simulated(40_000))
    assert calibration.by_type.keys() == TRUE.keys()
    for study_type, (slope, intercept) in TRUE.items():
        found = calibration.by_type[study_type]
        assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=0.06)  # 3 standard errors


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_statsmodels(seed):
    studies = simulated(150, seed=seed)
    studies.loc[:1, "probability"] = [0.0, 1.0]
    calibration = fitted(studies)
    pairs = [
        (calibration.pooled, studies),
        *((calibration.by_type[str(name)], rows) for name, rows in studies.groupby("study_type")),
    ]
    assert len(pairs) == 4
    for scaling, rows in pairs:
        assert [scaling.intercept, scaling.slope] == pytest.approx(by_statsmodels(rows), abs=1e-6)
        assert (scaling.num_normal, scaling.num_abnormal) == (sum(rows["label"] == 0), sum(rows["label"] == 1))


@pytest.mark.parametrize("seed", range(20))
def test_log_loss_is_never_higher_than_before_on_the_studies_of_the_fit(seed):
    random = np.random.default_rng(seed)
    lines = {name: (random.uniform(0.3, 2), random.normal(0, 1.5)) for name in STUDY_TYPES}
    lines["wrist"] = (-1, 0)
    studies = pd.concat(
        [rows.head(int(random.integers(5, 200))) for _, rows in simulated(200, lines, seed).groupby("study_type")]
    )
    calibration = fitted(studies)
    assert 2 <= len(calibration.by_type) <= 6  # the others have the pooled one
    after = log_loss(studies["label"], calibrated(calibration, studies))
    assert after < log_loss(studies["label"], studies["probability"])


def test_a_type_with_too_few_studies_of_a_label_gets_the_pooled_scaling():
    studies = simulated(400)
    few = studies[(studies["study_type"] == "hand") & (studies["label"] == 1)].index[MIN_STUDIES - 1 :]
    calibration = fitted(studies.drop(few))
    assert calibration.by_type.keys() == {"elbow", "wrist"}
    assert (
        calibration.scaling("hand")
        == calibration.scaling("shoulder")
        == calibration.scaling(None)
        == calibration.pooled
    )
    assert calibration.scaling("wrist") == calibration.by_type["wrist"] != calibration.pooled
    assert calibration.calibrated([0.4, 0.4], ["hand", "wrist"])[0] == calibration.pooled(0.4)


@pytest.mark.parametrize("spoil", ["separated", "reversed", "constant"])
def test_a_type_whose_fit_has_no_end_or_the_wrong_direction_gets_the_pooled_scaling(spoil):
    studies = simulated(2000)
    hands = studies["study_type"] == "hand"
    labels = studies.loc[hands, "label"]
    studies.loc[hands, "probability"] = {
        "separated": labels * 0.5 + 0.2,
        "reversed": 1 - studies.loc[hands, "probability"],
        "constant": 0.3,
    }[spoil]
    assert fitted(studies).by_type.keys() == {"elbow", "wrist"}


@pytest.mark.parametrize("overlap", [1, 2])
def test_a_fit_that_is_only_just_finite_is_found(overlap):
    """Of all studies only so many lie on the wrong side of 0.5."""
    logits = np.concatenate([np.linspace(-4, -0.1, 100), np.linspace(0.1, 4, 100)])
    labels = np.repeat([0, 1], 100)
    labels[100 : 100 + overlap] = 0
    labels[100 - overlap : 100] = 1
    calibration = fit_calibration(labels, expit(logits), ["hand"] * 200)
    expected = by_statsmodels(pd.DataFrame({"label": labels, "probability": expit(logits)}))
    assert [calibration.pooled.intercept, calibration.pooled.slope] == pytest.approx(expected, abs=1e-6)


def test_certain_probabilities_stay_finite():
    scaling = Scaling(slope=1, intercept=0, num_normal=20, num_abnormal=20)
    assert list(scaling([0, 0.5, 1])) == pytest.approx([CLIP, 0.5, 1 - CLIP], abs=1e-15)


@pytest.mark.parametrize(
    ("labels", "probabilities", "study_types", "reason"),
    [
        ([0] * 50, [0.5] * 50, ["hand"] * 50, "50 are normal and 0 abnormal, and it takes 20 of each"),
        ([], [], [], "0 are normal"),
        ([0, 1] * 25, [0.2, 0.7] * 25, ["hand"] * 50, "separate normal from abnormal completely"),
        ([0, 1] * 25, [0.5] * 50, ["hand"] * 50, "separate normal from abnormal completely"),
        ([0, 1, 0, 1, 0] * 25, [0.9, 0.1, 0.8, 0.2, 0.05] * 25, ["hand"] * 125, "slope is -"),
        ([0, 1], [0.5, 1.5], ["hand"] * 2, "probability 1.5 at position 1"),
        ([0, 1], [0.5, float("nan")], ["hand"] * 2, "probability nan at position 1"),
        ([0, 2], [0.5, 0.5], ["hand"] * 2, "label 2 at position 1"),
        ([0, 1], [0.5, 0.5], ["hand", "knee"], "'knee' is no study type"),
        ([0, 1], [0.5, 0.5], ["hand"], "1 study types of 2 studies"),
        ([0, 1], [0.5], ["hand"] * 2, "2 labels, but probabilities of shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated_on_is_refused_with_the_reason(labels, probabilities, study_types, reason):
    with pytest.raises(ValueError, match=reason):
        fit_calibration(labels, probabilities, study_types)


def test_reliability_has_a_row_per_bin_and_counts_every_study_once():
    studies = simulated(500)
    table = reliability(studies["label"], studies["probability"])
    assert list(table["low"]) == pytest.approx(np.arange(10) / 10)
    assert table["num_studies"].sum() == len(studies)
    for row in table.itertuples():
        inside = studies[(studies["probability"] >= row.low) & (studies["probability"] < row.high)]
        assert (row.num_studies, row.mean_predicted) == (len(inside), pytest.approx(inside["probability"].mean()))
        assert row.observed == pytest.approx(inside["label"].mean())
        wilson = proportion_confint(inside["label"].sum(), len(inside), method="wilson")
        assert (row.observed_low, row.observed_high) == pytest.approx(wilson, abs=1e-9)


def test_reliability_gives_edges_to_the_lower_bin_and_no_share_where_nothing_can_be_said():
    table = reliability([0, 1, 1], [0.0, 0.5, 1.0], bins=2)
    assert list(table["num_studies"]) == [2, 1]
    assert list(table["mean_predicted"]) == [0.25, 1.0]
    assert table[["observed", "observed_low", "observed_high"]].isna().all(axis=None)
    assert reliability([], []).shape == (10, 7)
    with pytest.raises(ValueError, match="0 bins"):
        reliability([0], [0.5], bins=0)


def test_calibrated_probabilities_are_reliable():
    studies = simulated(30_000)
    table = reliability(studies["label"], calibrated(fitted(studies), studies))
    assert ((table["observed"] - table["mean_predicted"]).abs() < 0.02).all()
    before = reliability(studies["label"], studies["probability"])
    assert ((before["observed"] - before["mean_predicted"]).abs() > 0.05).any()
