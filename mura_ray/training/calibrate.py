"""The last choice made on a validation split: the calibration of the ensemble that was chosen on it."""

import pandas as pd

from mura_ray import store
from mura_ray.model.ensemble import EnsembleDescription, calibrate_ensemble, ensemble_folder, read_description
from mura_ray.platt import FittedOn
from mura_ray.stats.calibration import fit_calibration

CALIBRATED = "-calibrated"
"""Ends the name of a calibrated ensemble's folder."""


def calibrate(
    ensemble_uri: str, studies: pd.DataFrame, *, data_id: str, split: str, dest: str | None = None
) -> tuple[str, EnsembleDescription]:
    """Fits a calibration to what an ensemble said of studies, and writes the ensemble that has it.

    Args:
        ensemble_uri: of the ensemble's folder, or of its `ensemble.json`.
        studies: a row per study: label, probability (as the ensemble gave it), study_type.
        data_id: of the data set that they are from.
        split: of that data set, `valid` as a rule; numbers about its studies are optimistic from then on.
        dest: URI of the new ensemble's folder; None: `default_dest`.

    Returns:
        The URI of the new ensemble's folder, and what its `ensemble.json` says.

    Raises:
        ValueError: the members were trained on these studies, the fit is impossible (see `fit_calibration`), or the
            ensemble cannot be written (see `calibrate_ensemble`).
    """
    uri = ensemble_folder(store.absolute(ensemble_uri))
    if split == "train" and data_id == read_description(uri).data_id:
        raise ValueError(
            f"the members of {uri} learned from the split 'train' of {data_id}, where they are surer than they are of "
            "new patients: calibrate on 'valid'"
        )
    calibration = fit_calibration(studies["label"], studies["probability"], studies["study_type"])
    fitted_on = FittedOn(data_id=data_id, split=split, num_studies=len(studies))
    dest = default_dest(uri) if dest is None else store.absolute(dest)
    return dest, calibrate_ensemble(uri, dest, calibration, fitted_on)


def default_dest(ensemble: str) -> str:
    """Where the calibrated ensemble of `<runs>/<name>/ensemble` is written: `<runs>/<name>-calibrated/ensemble`.

    There it is found like any other, by its id and as the newest.
    """
    return store.join(f"{store.parent(ensemble)}{CALIBRATED}", "ensemble")
