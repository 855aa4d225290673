"""Operating points besides the ensemble's threshold: chosen on one split by a rule, reported on another."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from mura_ray.evaluation.predictions import Predictions
from mura_ray.render.tables import Table
from mura_ray.stats.metrics import study_metrics
from mura_ray.stats.roc import threshold_for_sensitivity, youden_threshold


@dataclass(frozen=True, slots=True)
class Rule:
    """How a threshold is chosen: `youden`, or the highest that reaches a sensitivity."""

    name: str
    sensitivity: float | None = None

    def threshold(self, studies: pd.DataFrame) -> float:
        """On these studies, of both labels."""
        labels, probabilities = studies["label"], studies["probability"]
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


def operating_points(predictions: Predictions, rules: Sequence[Rule], chosen_on: Predictions | None) -> Table:
    """The ensemble's threshold and those that the rules choose, with what each gives on the split.

    Args:
        predictions: of the split that is reported.
        rules: how to choose.
        chosen_on: predictions of the split that they choose on; None: no rule chooses.
    """
    threshold = predictions.description.threshold
    chosen = [("as trained", threshold, "fixed beforehand")]
    if chosen_on is not None:
        studies = chosen_on.studies(threshold)
        chosen += [(rule.name, rule.threshold(studies), chosen_on.split) for rule in rules]
    studies, rows = predictions.studies(threshold), []
    for name, limit, where in chosen:
        found = study_metrics(studies["label"], studies["probability"], studies["patient_id"].to_numpy(), limit)
        rows.append({
            "rule": name, "threshold": limit, "chosen on": where, "sensitivity": found.sensitivity,
            "specificity": found.specificity, "PPV": found.ppv, "NPV": found.npv, "kappa": found.kappa_clustered,
        })  # fmt: skip
    note = "A study is called abnormal above the threshold."
    if chosen_on is not None and chosen_on.split == predictions.split:
        note += f" Optimistic: chosen on the split {predictions.split!r}, which is reported here."
    return Table("operating_points", "Operating points, all study types", pd.DataFrame(rows), note)
