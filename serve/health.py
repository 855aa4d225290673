"""Whether forward passes still succeed: after a fault of the GPU none may, until the process is another."""

from collections.abc import Sequence

import numpy as np

from mura_ray.domain import StudyPrediction
from mura_ray.model.ensemble import EnsembleDescription
from serve.prediction import Predictor

FAILED_IN_A_ROW = 3


class Passes:
    """Counts the forward passes that failed since the last that succeeded."""

    def __init__(self) -> None:
        self.num_failed = 0

    def watched(self, predictor: Predictor) -> Predictor:
        """The same predictor, its passes counted here, from 0 on."""
        self.num_failed = 0
        return _Watched(predictor, self)

    def check(self) -> None:
        """Returns if passes may succeed.

        Raises:
            RuntimeError: the last `FAILED_IN_A_ROW` did not, and not for what they were given.
        """
        if self.num_failed >= FAILED_IN_A_ROW:
            raise RuntimeError(
                f"the last {self.num_failed} forward passes failed; the log says why, a new process may help"
            )


class _Watched:
    def __init__(self, predictor: Predictor, passes: Passes) -> None:
        self._predictor = predictor
        self._passes = passes

    @property
    def description(self) -> EnsembleDescription:
        return self._predictor.description

    @property
    def max_views(self) -> int:
        return self._predictor.max_views

    def predict_studies(self, studies: Sequence[Sequence[np.ndarray]], /) -> Sequence[StudyPrediction]:
        try:
            predictions = self._predictor.predict_studies(studies)
        except ValueError:  # a study's own fault
            raise
        except Exception:
            self._passes.num_failed += 1
            raise
        self._passes.num_failed = 0
        return predictions
