"""Operating points besides the ensemble's threshold: chosen on one split by a rule, reported on another."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mura_ray.evaluation.assessment import strata_metrics
from mura_ray.evaluation.predictions import Predictions
from mura_ray.render.tables import Table
from mura_ray.stats.estimates import Estimate, has_both_labels
from mura_ray.stats.metrics import Metrics
from mura_ray.stats.roc import threshold_for_sensitivity, youden_threshold

_COLUMNS = {
    "sensitivity": "sensitivity", "specificity": "specificity", "PPV": "ppv", "NPV": "npv", "kappa": "kappa",
    "kappa (by patient)": "kappa_clustered",
}  # fmt: skip
"""Fields of the metrics by their titles: those that depend on the threshold."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How a threshold is chosen: `youden`, or the highest that reaches a sensitivity."""

    name: str
    sensitivity: float | None = None

    def threshold(self, studies: pd.DataFrame) -> float | None:
        """On these studies; None where they have too few of a label."""
        labels, probabilities = studies["label"], studies["probability"]
        if not has_both_labels(labels.to_numpy()):
            return None
        if self.sensitivity is None:
            return youden_threshold(labels, probabilities)
        return threshold_for_sensitivity(labels, probabilities, self.sensitivity)


def parse_rule(text: str) -> Rule:
    """From `youden` or `sensitivity=0.9`.

    Raises:
        ValueError: neither of them.
    """
    if text == "youden":
        return Rule(text)
    name, _, value = text.partition("=")
    with suppress(ValueError):
        if name == "sensitivity" and 0 < float(value) <= 1:
            return Rule(text, float(value))
    raise ValueError(f"--operating-point {text!r}: pass youden, or a sensitivity above 0 and up to 1: sensitivity=0.9")


def operating_points(
    metrics: Mapping[str, Metrics], predictions: Predictions, rules: Sequence[Rule], chosen_on: Predictions | None
) -> Table:
    """The ensemble's threshold and those that the rules choose, with what each gives by study type and overall.

    Args:
        metrics: at the ensemble's threshold, by study type and overall.
        predictions: of the split that is reported.
        rules: how to choose, one threshold for all study types.
        chosen_on: predictions of the split that they choose on; None: no rule chooses.
    """
    threshold = predictions.description.threshold
    rows = _rows({"rule": "as trained", "threshold": threshold, "chosen on": "fixed beforehand"}, metrics)
    if chosen_on is not None:
        studies, known = predictions.studies(threshold), chosen_on.studies(threshold)
        for rule in rules:
            limit = rule.threshold(known)
            found = metrics if limit is None else strata_metrics(studies, limit)
            rows += _rows({"rule": rule.name, "threshold": limit, "chosen on": chosen_on.split}, found)
    note = " ".join(["A study is called abnormal above the threshold.", *operating_notes(predictions, chosen_on)])
    return Table("operating_points", "Operating points", pd.DataFrame(rows), note)


def operating_notes(predictions: Predictions, chosen_on: Predictions | None) -> tuple[str, ...]:
    """Why the results at chosen operating points are not what new patients would give."""
    if chosen_on is None:
        return ()
    if chosen_on.split == predictions.split:
        return (f"Optimistic operating points: chosen on the split {predictions.split!r}, which is reported.",)
    if chosen_on.split == "train" and chosen_on.manifest.id == chosen_on.description.data_id:
        return ("Operating points chosen on the split 'train', whose studies the members know: they will not hold.",)
    return ()


def _rows(rule: dict[str, Any], metrics: Mapping[str, Metrics]) -> list[dict[str, Any]]:
    """A row a stratum; nothing but counts is estimable without a threshold."""
    return [
        {**rule, "study_type": name, "num_studies": one.num_studies, "num_abnormal": one.num_abnormal}
        | {title: Estimate() if rule["threshold"] is None else getattr(one, field) for title, field in _COLUMNS.items()}
        for name, one in metrics.items()
    ]
