"""A study's files to its answer: decoding, prediction, maps. Knows no HTTP."""

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter

from mura_ray.domain import StudyPrediction, ViewPrediction
from mura_ray.images import read_gray
from mura_ray.model.ensemble import EnsembleDescription
from mura_ray.render.overlay import encode_png, overlay
from serve.batching import Batcher
from serve.limits import Limits
from serve.metrics import Metrics
from serve.problems import ProblemError
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
class Upload:
    """One view as it was sent."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class _Release:
    """An ensemble that answers."""

    description: EnsembleDescription
    batcher: Batcher


class Answers:
    """Answers studies with one ensemble; while one is computed, others are decoded and encoded.

    All of it happens in threads: the event loop takes requests and health checks meanwhile.
    """

    def __init__(self, predictor: Predictor, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self.release(predictor)
        self.shadow: Shadow | None = None
        self._imaging = CapacityLimiter(max(2, len(os.sched_getaffinity(0)) // 2))

    @property
    def description(self) -> EnsembleDescription:
        """Of the ensemble that answers what comes now."""
        return self._release.description

    def release(self, predictor: Predictor) -> None:
        """Has an ensemble answer the studies that come from now on. Those in work stay with the one before it."""
        batcher = Batcher(predictor.predict_studies, predictor.max_views, self._metrics)
        self._release = _Release(predictor.description, batcher)

    def show_to(self, candidate: Predictor | None) -> None:
        """Has a candidate predict in the shadow of what answers; None: nobody."""
        self.shadow = candidate and Shadow(candidate.description, candidate.predict_studies, self._metrics.shadow)

    async def answer(self, uploads: Sequence[Upload], study_type: str | None, cam: CamForm) -> StudyAnswer:
        """Predicts one study.

        Raises:
            ProblemError: a view cannot be read, or the views are too large together.
        """
        release = self._release

        def decode() -> list[np.ndarray]:
            with self._metrics.timed("decode"):
                return decode_views(uploads, self._limits)

        def encode() -> StudyAnswer:
            with self._metrics.timed("encode"):
                return _study_answer(release.description, uploads, grays, prediction, study_type, cam)

        grays = await anyio.to_thread.run_sync(decode, limiter=self._imaging)
        prediction = await release.batcher.predict(grays)
        if self.shadow is not None:
            self.shadow.see(grays, prediction, is_busy=release.batcher.is_busy)
        self._metrics.prediction(prediction, study_type, [upload.content for upload in uploads])
        return await anyio.to_thread.run_sync(encode, limiter=self._imaging)


def _study_answer(
    description: EnsembleDescription,
    uploads: Sequence[Upload],
    grays: Sequence[np.ndarray],
    prediction: StudyPrediction,
    study_type: str | None,
    cam: CamForm,
) -> StudyAnswer:
    return StudyAnswer(
        study_type=study_type,
        probability=prediction.probability,
        abnormal=prediction.abnormal,
        threshold=prediction.threshold,
        views=[
            ViewAnswer(
                name=upload.name,
                width=view.width,
                height=view.height,
                probability=view.probability,
                cam=_cam(cam, gray, view),
            )
            for upload, gray, view in zip(uploads, grays, prediction.views, strict=True)
        ],
        members=[MemberAnswer(trial=member.trial, probability=member.probability) for member in prediction.members],
        ensemble=EnsembleReference(id=description.id, created=description.created),
        warnings=_warnings(uploads, grays),
    )


def decode_views(uploads: Sequence[Upload], limits: Limits) -> list[np.ndarray]:
    """The views' pixels, uint8 [H, W] each.

    Raises:
        ProblemError: a view cannot be read, or the views are too large together.
    """
    grays, num_pixels = [], 0
    for upload in uploads:
        try:
            gray = read_gray(upload.content)
        except ValueError as error:
            detail = f"{upload.name}: {error}"
            raise ProblemError(422, "damaged-view", "a view cannot be read", detail, view=upload.name) from error
        num_pixels += gray.size
        if num_pixels > limits.study_pixels:
            detail = f"the views have more than {limits.study_pixels:,} pixels together; send fewer or smaller ones"
            raise ProblemError(413, "too-many-pixels", "the study is too large", detail, limit=limits.study_pixels)
        grays.append(gray)
    return grays


def _cam(form: CamForm, gray: np.ndarray, view: ViewPrediction) -> RawCam | OverlayCam | None:
    if form == "none":
        return None
    values = np.ascontiguousarray(view.cam, dtype="<f4")
    extent = (float(values.min()), float(values.max()))
    if form == "overlay":
        return OverlayCam(range=extent, png_base64=_base64(encode_png(overlay(gray, view.cam))))
    height, width = values.shape
    return RawCam(range=extent, shape=(height, width), float32_base64=_base64(values.tobytes()))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _warnings(uploads: Sequence[Upload], grays: Sequence[np.ndarray]) -> list[str]:
    """What makes the mean over the views mean less than it says."""
    warnings, seen = [], {}
    for upload, gray in zip(uploads, grays, strict=True):
        if gray.min() == gray.max():
            warnings.append(f"{upload.name}: every pixel is {gray.flat[0]}; this is no radiograph")
        first = seen.setdefault(hashlib.sha256(upload.content).digest(), upload.name)
        if first is not upload.name:
            warnings.append(f"{upload.name}: the same file as {first}; it counts twice in the mean")
    return warnings
