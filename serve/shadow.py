"""A candidate ensemble in the shadow of the one that answers: it predicts the same studies, and nobody gets its word.

What it says is compared, to decide on a release by studies of the place where it will work.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from pydantic import BaseModel, Field

from mura_ray.domain import StudyPrediction
from mura_ray.model.ensemble import EnsembleDescription

_logger = logging.getLogger(__name__)


class ShadowAnswer(BaseModel):
    """What one replica has seen of a candidate since it came."""

    ensemble: str = Field(description="id of the candidate")
    num_studies: int = Field(description="studies that both predicted")
    num_skipped: int = Field(description="studies that it did not predict: the answering ensemble needed the machine")
    num_failed: int = Field(description="studies on which it failed; the log says why")
    num_decisions_changed: int = Field(description="studies that one calls abnormal and the other does not")
    mean_difference: float | None = Field(description="of the probabilities, the candidate's minus the other's")
    mean_absolute_difference: float | None
    largest_absolute_difference: float | None


class Shadow:
    """One study at a time, in a thread, and only while no study waits for an answer."""

    def __init__(
        self,
        description: EnsembleDescription,
        predict_studies: Callable[[Sequence[Sequence[np.ndarray]]], Sequence[StudyPrediction]],
        compared: Callable[[float, bool], None],
    ) -> None:
        """Takes the candidate, and what hears of each comparison: the difference, and whether the decision changed."""
        self._description = description
        self._predict_studies = predict_studies
        self._compared = compared
        self._one_at_a_time = CapacityLimiter(1)
        self._comparison: asyncio.Task[None] | None = None
        self._sum = self._absolute_sum = self._largest = 0.0
        self._num_studies = self._num_skipped = self._num_failed = self._num_changed = 0

    def see(self, views: Sequence[np.ndarray], answered: StudyPrediction, *, is_busy: bool) -> None:
        """Compares a study that was answered, later; or skips it.

        Args:
            views: uint8 [H, W] each.
            answered: what the ensemble that answers says of it.
            is_busy: other studies wait for their answers.
        """
        if is_busy or (self._comparison is not None and not self._comparison.done()):
            self._num_skipped += 1
            return
        self._comparison = asyncio.create_task(self._compare(views, answered))

    async def _compare(self, views: Sequence[np.ndarray], answered: StudyPrediction) -> None:
        try:
            (predicted,) = await anyio.to_thread.run_sync(self._predict_studies, [views], limiter=self._one_at_a_time)
        except Exception as error:  # a candidate's fault is no caller's
            self._num_failed += 1
            _logger.error("the candidate %s failed on a study", self._description.id, exc_info=error)
            return
        difference = predicted.probability - answered.probability
        changed = predicted.abnormal != answered.abnormal
        self._num_studies += 1
        self._num_changed += changed
        self._sum += difference
        self._absolute_sum += abs(difference)
        self._largest = max(self._largest, abs(difference))
        self._compared(difference, changed)

    def answer(self) -> ShadowAnswer:
        """What was seen so far."""
        count = self._num_studies
        return ShadowAnswer(
            ensemble=self._description.id,
            num_studies=count,
            num_skipped=self._num_skipped,
            num_failed=self._num_failed,
            num_decisions_changed=self._num_changed,
            mean_difference=self._sum / count if count else None,
            mean_absolute_difference=self._absolute_sum / count if count else None,
            largest_absolute_difference=self._largest if count else None,
        )
