"""A study's files to its answer: decoding, prediction, maps. Knows no HTTP."""

import base64
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mura_ray.domain import StudyPrediction, ViewPrediction
from mura_ray.model.ensemble import EnsembleDescription
from mura_ray.render.overlay import encode_png, overlay
from serve.decoding import Upload, decode_study
from serve.limits import Limits
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


def answer_study(
    predictor: Predictor, uploads: Sequence[Upload], study_type: str | None, cam: CamForm, limits: Limits
) -> StudyAnswer:
    """Predicts one study.

    Raises:
        ProblemError: see `decode_study`.
    """
    study = decode_study(uploads, study_type, limits)
    prediction = predictor.predict_study([view.gray for view in study.views])
    description = predictor.description
    return StudyAnswer(
        study_type=study.study_type,
        probability=prediction.probability,
        abnormal=prediction.abnormal,
        threshold=prediction.threshold,
        views=[
            ViewAnswer(
                name=decoded.name,
                width=view.width,
                height=view.height,
                probability=view.probability,
                cam=_cam(cam, decoded.gray, view),
            )
            for decoded, view in zip(study.views, prediction.views, strict=True)
        ],
        members=[MemberAnswer(trial=member.trial, probability=member.probability) for member in prediction.members],
        ensemble=EnsembleReference(id=description.id, created=description.created),
        warnings=study.warnings,
    )


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
