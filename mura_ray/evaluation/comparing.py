"""Two ensembles on the same studies, as tables."""

import pandas as pd

from mura_ray.config import THRESHOLD
from mura_ray.evaluation.predictions import Predictions, strata
from mura_ray.platt import Calibration
from mura_ray.render.tables import Table
from mura_ray.stats.comparison import compare

_NOTE = (
    "p of AUROC: DeLong's test. DeLong's interval and both tests take a patient's studies for independent; the "
    "intervals by patient do not. No correction for the number of strata."
)


def compare_predictions(first: Predictions, second: Predictions) -> list[Table]:
    """Differences of AUROC and kappa, first less second, by study type and overall, and whose decisions are right.

    Once more with calibrated probabilities, where both ensembles have a calibration: recipes whose losses weigh the
    labels differently are not compared fairly at one threshold.

    Args:
        first: of a split.
        second: another ensemble's, of the same split of the same data set.
    """
    assert (first.manifest.id, first.split) == (second.manifest.id, second.split)
    title = f"{first.description.id} less {second.description.id}, {first.manifest.name}, split {first.split}"
    thresholds = first.description.threshold, second.description.threshold
    mine, theirs = (one.studies(limit) for one, limit in zip((first, second), thresholds, strict=True))
    tables = [Table("comparison", title, _differences(mine, theirs, thresholds), _NOTE)]
    calibrations = first.description.calibration, second.description.calibration
    if calibrations[0] and calibrations[1]:
        mine, theirs = _calibrated(mine, calibrations[0]), _calibrated(theirs, calibrations[1])
        frame = _differences(mine, theirs, (THRESHOLD, THRESHOLD))
        note = f"Calibrated probabilities, abnormal above {THRESHOLD:g}. {_NOTE}"
        tables.append(Table("comparison_calibrated", f"Calibrated: {title}", frame, note))
    return tables


def _calibrated(studies: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    return studies.assign(probability=calibration.calibrated(studies["probability"], list(studies["study_type"])))


def _differences(mine: pd.DataFrame, theirs: pd.DataFrame, thresholds: tuple[float, float]) -> pd.DataFrame:
    rows = []
    for name, chosen in strata(mine["study_type"]).items():
        found = compare(
            mine["label"][chosen], mine["probability"][chosen], theirs["probability"][chosen],
            mine["patient_id"][chosen].to_numpy(), thresholds,
        )  # fmt: skip
        rows.append({
            "study_type": name, "num_studies": found.num_studies, "num_abnormal": found.num_abnormal,
            "AUROC (DeLong)": found.auroc, "p": found.auroc_p, "AUROC (by patient)": found.auroc_clustered,
            "kappa (by patient)": found.kappa_clustered, "only first right": found.mcnemar.only_first,
            "only second right": found.mcnemar.only_second, "McNemar's p": found.mcnemar.p_value,
        })  # fmt: skip
    return pd.DataFrame(rows)
