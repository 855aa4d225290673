"""What the parts of the paper's recipe are worth that need no training: five members, and the mean over the views.

What the weighted loss and augmentation are worth takes ensembles of their own: tune_spaces/ablation-*.yaml.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit

from mura_ray.stats.agreement import weighted_kappa
from mura_ray.stats.estimates import Estimate, Statistic, bootstrap, has_both_labels, has_patients, percentile_interval
from mura_ray.stats.roc import weighted_auroc

RECIPE = "ensemble, mean of views"
MAXIMUM = "ensemble, maximum of views"
MEMBER = "member {}"
AVERAGE_MEMBER = "one member, average"


@dataclass(frozen=True, slots=True)
class Ablation:
    """The paper's recipe with one part taken away, on the same studies.

    Kappa is with the labels, at the same threshold for all. The maximum over the views is never below their mean: its
    kappa says what changing nothing else gives, its AUROC whether it ranks better.

    Attributes:
        variant: `RECIPE`; `MEMBER` of each trial; `AVERAGE_MEMBER`, what one of them gives on average; `MAXIMUM`.
        num_studies: that all were judged on.
        num_abnormal: of them, by their labels.
        auroc: of the variant.
        kappa: of the variant.
        auroc_loss: the recipe's less the variant's, paired.
        kappa_loss: the recipe's less the variant's, paired.
    """

    variant: str
    num_studies: int
    num_abnormal: int
    auroc: Estimate
    kappa: Estimate
    auroc_loss: Estimate
    kappa_loss: Estimate


def ablations(
    views: pd.DataFrame, logits: np.ndarray, trials: Sequence[str], threshold: float, *, seed: int = 0
) -> list[Ablation]:
    """Compares the recipe with less than it.

    The 95 % intervals are percentile intervals of one bootstrap that draws whole patients, so that differences are
    paired; none where all draws are equal. Fewer than `estimates.MIN_COUNT` normal or abnormal studies: nothing is
    estimable; as few patients with either: no interval.

    Args:
        views: a row per view: study_type, patient_id, study_id, label.
        logits: of the members, float [M, N].
        trials: the members' names, [M].
        threshold: a study is called abnormal iff its probability is greater.
        seed: of the bootstrap.
    """
    assert logits.shape == (len(trials), len(views)), logits.shape
    studies, scores = _study_scores(views, logits, trials)
    labels, patients = studies["label"].to_numpy(), studies["patient_id"].to_numpy()
    num_abnormal = int(labels.sum())
    names = [RECIPE, *(MEMBER.format(trial) for trial in trials), AVERAGE_MEMBER, MAXIMUM]
    if not has_both_labels(labels):
        return [Ablation(name, len(labels), num_abnormal, *[Estimate()] * 4) for name in names]
    statistics = {name: _statistic(labels, score, threshold) for name, score in scores.items()}
    once = np.ones((1, len(labels)))
    found = {name: statistic(once) for name, statistic in statistics.items()}
    if has_patients(labels, patients):
        drawn = bootstrap(statistics, patients, seed=seed)
        found = {name: np.concatenate([value, drawn[name]]) for name, value in found.items()}
    found[AVERAGE_MEMBER] = np.mean([found[MEMBER.format(trial)] for trial in trials], axis=0)
    return [
        Ablation(name, len(labels), num_abnormal, *map(_estimate, [*found[name].T, *(found[RECIPE] - found[name]).T]))
        for name in names
    ]


def _study_scores(
    views: pd.DataFrame, logits: np.ndarray, trials: Sequence[str]
) -> tuple[pd.DataFrame, Mapping[str, np.ndarray]]:
    """The studies, in the order of their first views, and by variant their probabilities, [n]."""
    members = expit(logits.astype(np.float64))
    keys = ["study_type", "patient_id", "study_id"]
    columns = {RECIPE: members.mean(axis=0)} | dict(zip(map(MEMBER.format, trials), members, strict=True))
    groups = views[[*keys, "label"]].assign(**columns).groupby([*keys, "label"], sort=False)
    means = groups[list(columns)].mean().reset_index()
    assert not means.duplicated(keys).any(), "a study's views have different labels"
    scores = {name: means[name].to_numpy() for name in columns}
    return means[[*keys, "label"]], scores | {MAXIMUM: groups[RECIPE].max().to_numpy()}


def _statistic(labels: np.ndarray, scores: np.ndarray, threshold: float) -> Statistic:
    """AUROC and kappa of each draw, float64 [draws, 2]."""
    called = (scores > threshold).astype(np.int64)
    return lambda weights: np.stack(
        [weighted_auroc(labels, scores, weights), weighted_kappa(labels, called, weights)], axis=1
    )


def _estimate(draws: np.ndarray) -> Estimate:
    """The number, which is first, with the interval of the draws after it."""
    return percentile_interval(float(draws[0]), draws[1:])
