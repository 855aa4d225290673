"""Studies of several requests in one forward pass. Knows no Ray and no HTTP."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import anyio
import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter

from mura_ray.domain import StudyPrediction
from serve.metrics import Metrics

Grays = Sequence[np.ndarray]
"""A study's views, uint8 [H, W] each."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    views: Grays
    answer: asyncio.Future[StudyPrediction]
    since: float
    is_over: asyncio.Event
    """Its pass has ended."""


class Batcher:
    """Answers studies from passes over as many views as wait, in the order in which they came.

    A pass begins as soon as the one before it has ended, in a thread: a study that comes alone waits for nobody, and
    batches grow with the load. (`ray.serve.batch` goes on cutting batches by its clock while a pass runs, so that many
    small ones queue, and puts a study that does not fit behind those that came after it.)
    """

    def __init__(
        self, predict_studies: Callable[[Sequence[Grays]], Sequence[StudyPrediction]], max_views: int, metrics: Metrics
    ) -> None:
        """Takes what computes, and how many views it should get at once; a larger study goes alone."""
        self._predict_studies = predict_studies
        self._max_views = max_views
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._passes: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether studies wait for the pass after this one."""
        return bool(self._waiting)

    async def predict(self, views: Grays) -> StudyPrediction:
        """A study's prediction, or what computing it alone raises: a study fails no other.

        A caller that leaves is let go when the pass that has its study ends, for nothing can stop that.
        """
        study = _Waiting(views, asyncio.get_running_loop().create_future(), perf_counter(), asyncio.Event())
        self._waiting.append(study)
        if self._passes is None or self._passes.done():
            self._passes = asyncio.create_task(self._run())
        try:
            return await study.answer
        except asyncio.CancelledError:
            if study not in self._waiting:
                with anyio.CancelScope(shield=True):
                    await study.is_over.wait()
            raise

    async def _run(self) -> None:
        one_at_a_time = CapacityLimiter(1)  # a pass uses all cores of the replica, or its GPU
        while batch := self._next_batch():
            now = perf_counter()
            for study in batch:
                self._metrics.stage("wait", now - study.since)
            await self._answer(batch, one_at_a_time)
            for study in batch:
                study.is_over.set()

    def _next_batch(self) -> list[_Waiting]:
        """The first studies whose callers still wait."""
        batch: list[_Waiting] = []
        num_views = 0
        while self._waiting:
            study = self._waiting[0]
            if study.answer.done():  # the client left, or its time was up
                self._waiting.popleft()
                continue
            num_views += len(study.views)
            if batch and num_views > self._max_views:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _answer(self, batch: Sequence[_Waiting], limiter: CapacityLimiter) -> None:
        studies = [study.views for study in batch]
        started = perf_counter()
        try:
            predictions = await anyio.to_thread.run_sync(self._predict_studies, studies, limiter=limiter)
        except Exception as error:
            if len(batch) > 1:
                for study in batch:
                    await self._answer([study], limiter)
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        self._metrics.forward_pass(sum(map(len, studies)), perf_counter() - started)
        for study, prediction in zip(batch, predictions, strict=True):
            if not study.answer.done():
                study.answer.set_result(prediction)
