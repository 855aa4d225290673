"""Platt scaling as it lies in `ensemble.json`: what turns a study's probability into a calibrated one, and from what.

Knows not how it is fitted: `mura_ray.stats.calibration` does that, which this does not import.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field
from scipy.special import expit, logit

from mura_ray.config import Settings

CLIP = 1e-6
"""Probabilities are taken within this and 1 minus this, so that 0 and 1 have logits (-13.8 and 13.8)."""


class Scaling(Settings):
    """calibrated = expit(slope * logit(probability) + intercept), from so many studies of each label."""

    slope: float = Field(gt=0, description="of the logit; 1 leaves differences as they are")
    intercept: float
    num_normal: int
    num_abnormal: int

    def __call__(self, probabilities: ArrayLike) -> np.ndarray:
        """Calibrated probabilities, float64, in the shape of the others."""
        return expit(self.slope * clipped_logit(probabilities) + self.intercept)


class Calibration(Settings):
    """A scaling for each study type that allowed one, and one over the studies of all types for the others."""

    method: Literal["platt"] = "platt"
    pooled: Scaling
    by_type: dict[str, Scaling]

    def scaling(self, study_type: str | None) -> Scaling:
        """The one for a study type; None: not known which."""
        return self.by_type.get(study_type or "", self.pooled)

    def calibrated(self, probabilities: ArrayLike, study_types: Sequence[str | None]) -> np.ndarray:
        """Calibrated probabilities of studies, float64 [n].

        Args:
            probabilities: of abnormality, [n].
            study_types: n of them; None where it is not known.
        """
        pairs = zip(np.asarray(probabilities, dtype=np.float64), study_types, strict=True)
        return np.array([self.scaling(study_type)(probability) for probability, study_type in pairs], dtype=np.float64)


class FittedOn(Settings):
    """The studies that a calibration was fitted on: numbers about them are optimistic from then on."""

    data_id: str
    split: str
    num_studies: int


class CalibrationDescription(Calibration):
    """`calibration` in `ensemble.json`."""

    fitted_on: FittedOn
    uncalibrated_id: str = Field(description="id of the ensemble that was calibrated: the same members")


def clipped_logit(probabilities: ArrayLike) -> np.ndarray:
    """Logits, float64, of probabilities that may be 0 or 1: see `CLIP`."""
    return logit(np.clip(np.asarray(probabilities, dtype=np.float64), CLIP, 1 - CLIP))
