"""A study's files to its answer: decoding, prediction, maps. Knows no HTTP."""

import base64
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter

from mura_ray.domain import StudyPrediction, ViewPrediction
from mura_ray.model.ensemble import EnsembleDescription
from mura_ray.render.overlay import encode_png, overlay
from serve.batching import Batcher
from serve.decoding import Damaged, DecodedStudy, Upload, decode_study
from serve.limits import Limits
from serve.metrics import Metrics
from serve.model_card import Evaluation, drift_reference
from serve.schemas import (
    CamForm,
    EnsembleReference,
    MemberAnswer,
    OverlayCam,
    RawCam,
    StudyAnswer,
    ViewAnswer,
)
from serve.shadow import Shadow

_Answer = TypeVar("_Answer")

_QUICK = 1
"""Compression of overlays: far faster than zlib's usual 6, for files that are little larger."""


class Predictor(Protocol):
    """What is served: `mura_ray.model.ensemble.Ensemble`, or what behaves like one."""

    @property
    def description(self) -> EnsembleDescription:
        """The content of its ensemble.json."""
        ...

    @property
    def max_views(self) -> int:
        """How many views it should get at once."""
        ...

    def predict_studies(self, studies: Sequence[Sequence[np.ndarray]], /) -> Sequence[StudyPrediction]:
        """The predictions for studies' views, each uint8 [H, W]."""
        ...


@dataclass(frozen=True, slots=True)
class _Release:
    """An ensemble that answers."""

    description: EnsembleDescription
    batcher: Batcher
    evaluations: Sequence[Evaluation]


@dataclass(frozen=True, slots=True)
class Predicted:
    """A study, what was predicted of it, and the ensemble that did."""

    study: DecodedStudy
    prediction: StudyPrediction
    ensemble: EnsembleDescription

    @property
    def calibrated_probability(self) -> float | None:
        """None if the ensemble is not calibrated."""
        return self.ensemble.calibrated_probability(self.prediction.probability, self.study.study_type)

    @property
    def warnings(self) -> list[str]:
        """What should make a reader doubt what was predicted."""
        return [*self.study.warnings, *_calibration_warnings(self.ensemble, self.study.study_type)]


class Answers:
    """Answers studies with one ensemble; while one is computed, others are decoded and encoded.

    All of it happens in threads: the event loop takes requests and health checks meanwhile.
    """

    def __init__(
        self, predictor: Predictor, limits: Limits, metrics: Metrics, evaluations: Sequence[Evaluation] = ()
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self.release(predictor, evaluations)
        self.shadow: Shadow | None = None
        self._num_views = 0
        self._imaging = CapacityLimiter(max(2, len(os.sched_getaffinity(0)) // 2))

    @property
    def description(self) -> EnsembleDescription:
        """Of the ensemble that answers what comes now."""
        return self._release.description

    @property
    def evaluations(self) -> Sequence[Evaluation]:
        """Of the same ensemble."""
        return self._release.evaluations

    @property
    def views_in_flight(self) -> int:
        """Views that are predicted, and those that wait for it."""
        return self._num_views

    def release(self, predictor: Predictor, evaluations: Sequence[Evaluation] = ()) -> None:
        """Has an ensemble answer the studies that come from now on. Those in work stay with the one before it."""
        batcher = Batcher(predictor.predict_studies, predictor.max_views, self._metrics)
        self._release = _Release(predictor.description, batcher, evaluations)
        self._metrics.reference(drift_reference(evaluations, predictor.description.data_id))

    def show_to(self, candidate: Predictor | None) -> None:
        """Has a candidate predict in the shadow of what answers; None: nobody."""
        self.shadow = None
        if candidate is not None:
            self.shadow = Shadow(candidate.description, candidate.predict_studies, self._metrics.shadow)

    async def predict(
        self, uploads: Sequence[Upload], study_type: str | None, damaged: Damaged = "refuse"
    ) -> Predicted:
        """Predicts one study.

        Raises:
            ProblemError: see `decode_study`.
        """
        release = self._release

        def decode() -> DecodedStudy:
            with self._metrics.timed("decode"):
                return decode_study(uploads, study_type, self._limits, damaged)

        study = await anyio.to_thread.run_sync(decode, limiter=self._imaging)
        grays = [view.gray for view in study.views]
        self._num_views += len(grays)
        try:
            prediction = await release.batcher.predict(grays)
        finally:
            self._num_views -= len(grays)
        if self.shadow is not None:
            self.shadow.see(grays, prediction, is_busy=release.batcher.is_busy)
        self._metrics.prediction(prediction, study.study_type, [view.content for view in study.views])
        return Predicted(study, prediction, release.description)

    async def encode(self, encoded: Callable[[], _Answer]) -> _Answer:
        """Runs what makes an answer of a prediction."""

        def timed() -> _Answer:
            with self._metrics.timed("encode"):
                return encoded()

        return await anyio.to_thread.run_sync(timed, limiter=self._imaging)


def study_answer(predicted: Predicted, cam: CamForm) -> StudyAnswer:
    """The answer in JSON, each view's map in the form that is asked for."""
    study, prediction = predicted.study, predicted.prediction
    return StudyAnswer(
        study_type=study.study_type,
        probability=prediction.probability,
        calibrated_probability=predicted.calibrated_probability,
        abnormal=prediction.abnormal,
        threshold=prediction.threshold,
        views=[
            ViewAnswer(
                name=decoded.name,
                width=view.width,
                height=view.height,
                pixel_spacing_mm=decoded.radiograph.pixel_spacing_mm,
                probability=view.probability,
                cam=_cam(cam, decoded.gray, view),
            )
            for decoded, view in zip(study.views, prediction.views, strict=True)
        ],
        members=[MemberAnswer(trial=member.trial, probability=member.probability) for member in prediction.members],
        member_range=prediction.member_range,
        ensemble=EnsembleReference(id=predicted.ensemble.id, created=predicted.ensemble.created),
        warnings=predicted.warnings,
    )


def _calibration_warnings(ensemble: EnsembleDescription, study_type: str | None) -> list[str]:
    if ensemble.calibration is None or study_type in ensemble.calibration.by_type:
        return []
    why = f"the study type {study_type} has no calibration of its own, so " if study_type else ""
    return [f"calibrated_probability: {why}the one over all study types is used"]


def _cam(form: CamForm, gray: np.ndarray, view: ViewPrediction) -> RawCam | OverlayCam | None:
    if form == "none":
        return None
    values = np.ascontiguousarray(view.cam, dtype="<f4")
    extent = (float(values.min()), float(values.max()))
    if form == "overlay":
        return OverlayCam(range=extent, png_base64=_base64(encode_png(overlay(gray, view.cam), _QUICK)))
    height, width = values.shape
    return RawCam(range=extent, shape=(height, width), float32_base64=_base64(values.tobytes()))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
