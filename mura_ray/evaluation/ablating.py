"""Ablations that need no training: one member against all, maximum of the views against their mean, as a table."""

import pandas as pd

from mura_ray.evaluation.predictions import Predictions
from mura_ray.render.tables import Table
from mura_ray.stats.ablation import ablations


def ablate(predictions: Predictions) -> list[Table]:
    """What each part of the recipe is worth on a split."""
    description = predictions.description
    trials = [member.trial for member in description.members]
    rows = [
        {
            "variant": one.variant, "AUROC": one.auroc, "kappa": one.kappa, "AUROC lost": one.auroc_loss,
            "kappa lost": one.kappa_loss,
        }
        for one in ablations(predictions.table, predictions.logits, trials, description.threshold)
    ]  # fmt: skip
    title = f"Ablations of {description.id} on {predictions.manifest.name}, split {predictions.split}"
    note = "Lost: the recipe's less the variant's, paired, intervals by patient; above 0 the recipe is better."
    return [Table("ablation", title, pd.DataFrame(rows), note)]
