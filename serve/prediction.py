"""A study's files to its answer: decoding, prediction, maps. Knows no HTTP."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mura_ray.domain import StudyPrediction, ViewPrediction
from mura_ray.images import read_gray
from mura_ray.model.ensemble import EnsembleDescription
from mura_ray.render.overlay import encode_png, overlay
from serve.limits import Limits
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


class Predictor(Protocol):
    """What is served: `mura_ray.model.ensemble.Ensemble`, or what behaves like one."""

    @property
    def description(self) -> EnsembleDescription:
        """The content of its ensemble.json."""
        ...

    def predict_study(self, views: Sequence[np.ndarray], /) -> StudyPrediction:
        """The prediction for a study's views, each uint8 [H, W]."""
        ...


@dataclass(frozen=True, slots=True)
class Upload:
    """One view as it was sent."""

    name: str
    content: bytes


def answer_study(
    predictor: Predictor, uploads: Sequence[Upload], study_type: str | None, cam: CamForm, limits: Limits
) -> StudyAnswer:
    """Predicts one study.

    Raises:
        ProblemError: a view cannot be read, or the views are too large together.
    """
    grays = decode_views(uploads, limits)
    prediction = predictor.predict_study(grays)
    description = predictor.description
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
