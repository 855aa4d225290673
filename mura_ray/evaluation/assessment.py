"""What predictions of a split are worth: metrics by stratum, figures, subgroups, errors, localisation."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from mura_ray.config import THRESHOLD
from mura_ray.data.leakage import USES
from mura_ray.data.manifest import Manifest, manifest_sha256, read_boxes
from mura_ray.domain import ABNORMAL, NORMAL, OVERALL
from mura_ray.evaluation.gallery import gallery
from mura_ray.evaluation.localising import boxed_views
from mura_ray.evaluation.predictions import Predictions, strata
from mura_ray.model.ensemble import EnsembleDescription
from mura_ray.platt import Calibration
from mura_ray.render.document import Picture
from mura_ray.render.figures import (
    Curve,
    OperatingPoint,
    ReliabilityBin,
    forest_figure,
    gallery_figure,
    reliability_figure,
    roc_figure,
)
from mura_ray.render.overlay import painted
from mura_ray.render.report import EvaluationResult
from mura_ray.render.tables import Table, cell_text
from mura_ray.stats.calibration import reliability
from mura_ray.stats.estimates import MIN_COUNT
from mura_ray.stats.localisation import pointing_game
from mura_ray.stats.metrics import Metrics, study_metrics
from mura_ray.stats.roc import roc_points

NUM_WORST = 20


def assess(predictions: Predictions, notes: tuple[str, ...]) -> EvaluationResult:
    """The evaluation that needs nothing besides the split: metrics, figures, subgroups, errors, localisation.

    Args:
        predictions: of the split.
        notes: why the numbers are not what new patients would give.
    """
    description = predictions.description
    threshold = description.threshold
    studies = predictions.studies(threshold)
    metrics = strata_metrics(studies, threshold)
    maps = predictions.maps
    boxes = read_boxes(predictions.data, predictions.split)
    views = None if boxes is None else boxed_views(predictions.table, boxes, maps)
    tables = [subgroups(studies, threshold), worst_errors(studies)]
    if description.calibration is not None:
        tables += calibration_tables(studies, description.calibration, metrics)
    return EvaluationResult(
        ensemble_id=description.id,
        data=data_facts(predictions),
        threshold=threshold,
        notes=notes,
        metrics=metrics,
        studies=studies,
        painted=painted_by_label(predictions.table["label"], maps),
        localisation=None if views is None else pointing_game(views),
        tables=tuple(tables),
        pictures=tuple(_pictures(predictions, studies, metrics)),
    )


def data_facts(predictions: Predictions) -> Mapping[str, str]:
    """What a report says of the data, by name."""
    manifest, split = predictions.manifest, predictions.split
    left_out = [one for one in manifest.quarantined if one.split == split]
    lost = sum(one.lost_study is not None for one in left_out)
    return {
        "name": manifest.name,
        "id": manifest.id,
        "split": split,
        "split_policy": manifest.split_policy,
        "manifest_sha256": manifest_sha256(predictions.data),
        "views": f"{len(predictions.table):,}",
        "patients": f"{predictions.table['patient_id'].nunique():,}" if manifest.patients_known else "unknown",
        "quarantined": f"{len(left_out)} damaged files of the split left out, {lost} studies lost by it",
    }


def strata_metrics(studies: pd.DataFrame, threshold: float) -> dict[str, Metrics]:
    """By study type in the paper's order, and over all studies."""
    return {name: _metrics(studies[chosen], threshold) for name, chosen in strata(studies["study_type"]).items()}


def subgroups(studies: pd.DataFrame, threshold: float) -> Table:
    """Results by the number of a study's views: what the data sets of this kind say of every study."""
    views = studies["num_views"].clip(upper=4).map({1: "1 view", 2: "2 views", 3: "3 views", 4: "4 views or more"})
    rows = []
    for name in sorted(views.unique()):
        metrics = _metrics(studies[views == name], threshold)
        rows.append({
            "subgroup": name, "num_studies": metrics.num_studies, "num_abnormal": metrics.num_abnormal,
            "AUROC": metrics.auroc, "sensitivity": metrics.sensitivity, "specificity": metrics.specificity,
        })  # fmt: skip
    return Table("subgroups", "Subgroups by number of views", pd.DataFrame(rows))


def calibration_tables(studies: pd.DataFrame, calibration: Calibration, before: Mapping[str, Metrics]) -> list[Table]:
    """Brier score and calibration error before and after calibration, and the scaling, by study type and overall."""
    calibrated = calibration.calibrated(studies["probability"], list(studies["study_type"]))
    after = strata_metrics(studies.assign(probability=calibrated), THRESHOLD)
    rows, scalings = [], []
    for name, raw in before.items():
        rows.append({
            "study_type": name, "num_studies": raw.num_studies, "num_abnormal": raw.num_abnormal,
            "Brier score": raw.brier, "calibrated": after[name].brier,
            "calibration error": raw.ece, "calibrated error": after[name].ece,
        })  # fmt: skip
        scaling = calibration.scaling(name)
        scalings.append({
            "study_type": name, "fitted on": name if name in calibration.by_type else "all types",
            "normal": scaling.num_normal, "abnormal": scaling.num_abnormal,
            "slope": scaling.slope, "intercept": scaling.intercept,
        })  # fmt: skip
    note = "Calibrated: expit(slope * logit(probability) + intercept)."
    return [
        Table("calibrated", "Before and after calibration", pd.DataFrame(rows)),
        Table("calibration", "The calibration: Platt scaling", pd.DataFrame(scalings), note),
    ]


def worst_errors(studies: pd.DataFrame) -> Table:
    """The studies with the surest wrong answers, if any are wrong."""
    wrong = studies[studies["abnormal"] != studies["label"]]
    surest = wrong.assign(off=(wrong["probability"] - wrong["label"]).abs()).sort_values("off", ascending=False)
    columns = ["study", "label", "num_views", "probability"]
    title = f"The {min(NUM_WORST, len(wrong))} surest of {len(wrong)} wrong answers"
    return Table("worst_errors", title, surest.head(NUM_WORST)[columns].reset_index(drop=True))


def painted_by_label(labels: pd.Series, maps: np.ndarray) -> pd.DataFrame:
    """How much the maps paint over views labelled normal (0) and abnormal (1): means over the views of a label."""
    shares = pd.DataFrame([painted(cam) for cam in maps], columns=["share", "strength"])
    groups = shares.assign(label=labels.to_numpy()).groupby("label")
    return groups.agg(num_views=("share", "size"), share=("share", "mean"), strength=("strength", "mean")).reset_index()


def split_notes(description: EnsembleDescription, manifest: Manifest, split: str) -> tuple[str, ...]:
    """Why the numbers, or their intervals, are not what new patients would give, as the data set itself tells."""
    notes = []
    if manifest.id == description.data_id and split == "train":
        notes.append("training numbers: members learn from the split 'train'")
    elif manifest.id == description.data_id and (split == "valid" or manifest.split_policy == "official"):
        notes.append(f"optimistic numbers: epochs and members are chosen on the split {split!r}")
    if not manifest.patients_known:
        notes.append(
            f"patients unknown: {manifest.name} does not say whose its images are, so each study counts as a patient's "
            "only one. Intervals by patient are too narrow where patients have several, and patients that are in the "
            "training data too are not found"
        )
    return tuple(notes)


def calibration_notes(description: EnsembleDescription, manifest: Manifest, split: str) -> tuple[str, ...]:
    """Why the calibrated numbers are not what new patients would give, or may not be."""
    if description.calibration is None:
        return ()
    fitted_on = description.calibration.fitted_on
    where = f"split {fitted_on.split!r} of {fitted_on.data_id}"
    if (fitted_on.data_id, fitted_on.split) == (manifest.id, split):
        return (f"optimistic calibration: it was fitted on these very studies, {where}",)
    is_looked_at = fitted_on.data_id == description.data_id and fitted_on.split in USES  # by `find_leakage`
    if fitted_on.data_id != manifest.id and not is_looked_at:
        return (f"not checked: whether these patients are among those that the calibration was fitted on, {where}",)
    return ()


def reliability_bins(labels: pd.Series, probabilities: ArrayLike) -> list[ReliabilityBin]:
    """Bins with studies, for the figure; NaN for the share of abnormal ones where they are too few for one."""
    table = reliability(labels, probabilities).dropna(subset=["mean_predicted"])
    return [
        ReliabilityBin(row["mean_predicted"], row["observed"], row["observed_low"], row["observed_high"],
                       int(row["num_studies"]))
        for row in table.to_dict(orient="records")
    ]  # fmt: skip


def _metrics(rows: pd.DataFrame, threshold: float) -> Metrics:
    return study_metrics(rows["label"], rows["probability"], rows["patient_id"].to_numpy(), threshold)


def _pictures(predictions: Predictions, studies: pd.DataFrame, metrics: Mapping[str, Metrics]) -> list[Picture]:
    pictures, overall = [], metrics[OVERALL]
    if studies["label"].nunique() == 2:
        curve = roc_points(studies["label"], studies["probability"])
        named = f"ensemble, AUROC {cell_text(overall.auroc)}"
        pictures.append(Picture(
            "roc", roc_figure([Curve(named, curve.fpr, curve.tpr)], [model_point(studies, predictions)]),
            "ROC curve over all studies, with the point at which the ensemble decides.",
        ))  # fmt: skip
    rows = [(name, one.auroc.value, one.auroc.low, one.auroc.high) for name, one in metrics.items()
            if one.auroc.value is not None]  # fmt: skip
    if rows:
        pictures.append(Picture("auroc_by_type", forest_figure(rows, "AUROC, 95 % interval by patient"),
                                "AUROC by study type; types that are not estimable are left out."))  # fmt: skip
    calibration = predictions.description.calibration
    series = [("ensemble", reliability_bins(studies["label"], studies["probability"]))]
    if calibration is not None:
        calibrated = calibration.calibrated(studies["probability"], list(studies["study_type"]))
        series.append(("calibrated", reliability_bins(studies["label"], calibrated)))
    if series[0][1]:
        pictures.append(Picture(
            "reliability", reliability_figure(series),
            f"Share of abnormal studies by predicted probability, Wilson's intervals; bins of fewer than {MIN_COUNT} "
            "studies have a bar only.", 50,
        ))  # fmt: skip
    pictures.append(Picture(
        "gallery", gallery_figure(gallery(predictions, studies)),
        "The surest answers of each kind, with their maps painted on one scale for all.", 100,
    ))  # fmt: skip
    return pictures


def model_point(studies: pd.DataFrame, predictions: Predictions) -> OperatingPoint:
    """Where the ensemble decides."""
    normal, abnormal = (studies[studies["label"] == label]["abnormal"] for label in (NORMAL, ABNORMAL))
    name = f"ensemble at {predictions.description.threshold:g}"
    return OperatingPoint(name, float(normal.mean()), float(abnormal.mean()), is_reader=False)
