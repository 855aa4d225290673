"""A study's DICOM files to what its archive can keep: overlays and a structured report, in a zip. Knows no HTTP."""

import io
import zipfile
from collections.abc import Mapping

from mura_ray.dicom_out import PredictedStudy, PredictedView, dicom_objects
from mura_ray.render.overlay import overlay
from serve.decoding import DecodedStudy
from serve.prediction import Predicted
from serve.problems import ProblemError


def dicom_answer(predicted: Predicted, notice: str) -> bytes:
    """What a study's archive can keep of its prediction.

    Args:
        predicted: a study of DICOM files.
        notice: what the prediction must not be used for; the objects say it.

    Returns:
        A zip of a Secondary Capture for each view and a Comprehensive SR.

    Raises:
        ProblemError: a view is not DICOM, or does not say what it is a view of.
    """
    study, prediction = predicted.study, predicted.prediction
    _check_dicom(study)
    views = [
        PredictedView(decoded.content, view.probability, overlay(decoded.gray, view.cam))
        for decoded, view in zip(study.views, prediction.views, strict=True)
    ]
    said = PredictedStudy(
        ensemble_id=predicted.ensemble.id,
        probability=prediction.probability,
        abnormal=prediction.abnormal,
        calibrated_probability=predicted.calibrated_probability,
        member_range=prediction.member_range,
        threshold=prediction.threshold,
        num_left_out=study.num_left_out,
        notice=notice,
    )
    try:
        return _zipped(dicom_objects(said, views))
    except ValueError as error:
        raise ProblemError(422, "unidentified-study", "a view does not say what it is a view of", str(error)) from error


def _check_dicom(study: DecodedStudy) -> None:
    for view in study.views:
        if not view.radiograph.is_dicom:
            detail = f"{view.name} is not DICOM: send it to /v1/studies/predict, which answers JSON"
            raise ProblemError(422, "not-dicom", "only DICOM is answered with DICOM", detail, view=view.name)


def _zipped(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()
