"""A study's prediction as DICOM objects of that study: a Secondary Capture of each overlay, and a structured report.

They carry the patient's name and number, as the study does. Knows no network: it is told what was predicted.
"""

import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sc import SCImage
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from mura_ray.dicom_header import name_of, read_identity, shown

_NAME = "mura_ray"
_SERIES_NUMBER = 9000
"""Of the captures, the report has the next: behind what a modality numbers its series."""

_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Elements of type 2: an image must have them, and those without names often lack them."""

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

_PROBABILITY = Code("ABN-PROBABILITY", "99MURA", "Probability of abnormality")
_CALIBRATED = Code("ABN-CALIBRATED", "99MURA", "Calibrated probability of abnormality")
_LOWEST = Code("ABN-LOWEST", "99MURA", "Lowest probability of a member of the ensemble")
_HIGHEST = Code("ABN-HIGHEST", "99MURA", "Highest probability of a member of the ensemble")
_DECISION = Code("ABN-DECISION", "99MURA", "Decision by the threshold")
_NORMAL, _ABNORMAL = Code("17621005", "SCT", "Normal"), Code("263654008", "SCT", "Abnormal")
_NO_UNITS = Code("1", "UCUM", "no units")
_RADIOGRAPHY = Code("363680008", "SCT", "Radiographic imaging procedure")
_SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")

logging.getLogger("highdicom").setLevel(logging.WARNING)  # below that it tells of which file it copies


@dataclass(frozen=True, slots=True, eq=False)
class PredictedView:
    """One view: its DICOM file, its probability, and its overlay, uint8 [H, W, 3]."""

    content: bytes
    probability: float
    overlay: np.ndarray


@dataclass(frozen=True, slots=True)
class PredictedStudy:
    """What an ensemble said of a study without so many views of it, and what it must not be used for."""

    ensemble_id: str
    probability: float
    calibrated_probability: float | None
    member_range: tuple[float, float]
    abnormal: bool
    threshold: float
    num_left_out: int
    notice: str


def dicom_objects(study: PredictedStudy, views: Sequence[PredictedView]) -> dict[str, bytes]:
    """The objects as files, by name: `overlay-1.dcm` and so on in the order of the views, and `report.dcm`.

    Raises:
        ValueError: a file does not say rightly which patient, study and image it is; the text quotes no names.
    """
    warnings.filterwarnings("ignore", module="highdicom")  # it quotes names that it finds unusual
    sources = [_source(view.content) for view in views]
    series_uid = generate_uid()
    try:
        files = {
            f"overlay-{number}.dcm": _file(_capture(study, view, source, series_uid, number))
            for number, (view, source) in enumerate(zip(views, sources, strict=True), start=1)
        }
        return files | {"report.dcm": _file(_report(study, views, sources))}
    except MemoryError:
        raise
    except Exception as error:  # highdicom answers with whatever it stumbles over, and quotes values
        what = f"an element of the patient or the study is not as DICOM has it ({type(error).__name__})"
        raise ValueError(f"{what}: export the files again") from None


def _source(content: bytes) -> Dataset:
    found = read_identity(content)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not re.fullmatch(r"[0-9.]{1,64}", str(found.get(keyword, ""))):
            raise ValueError(f"{keyword} is missing or no UID: nothing can refer to the image; export it again")
    sop_class = UID(found.SOPClassUID)
    if sop_class.type != "SOP Class" or sop_class.info or sop_class.is_retired:
        what = f"is {shown(sop_class)}, no class of images in DICOM today"
        raise ValueError(f"{name_of('SOPClassUID')} {what}: export it as Computed or Digital Radiography")
    for keyword in _MAY_BE_EMPTY:
        if keyword not in found:
            setattr(found, keyword, "")
    return found


def _capture(study: PredictedStudy, view: PredictedView, source: Dataset, series_uid: str, number: int) -> SCImage:
    capture = SCImage(
        pixel_array=view.overlay,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # asked for, and replaced below by what the source says
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=series_uid,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=number,
        manufacturer=_NAME,
        patient_id=source.get("PatientID"),
        patient_name=source.get("PatientName"),
        patient_birth_date=source.get("PatientBirthDate"),
        patient_sex=source.get("PatientSex") or None,
        accession_number=source.get("AccessionNumber"),
        study_id=source.get("StudyID"),
        study_date=source.get("StudyDate"),
        study_time=source.get("StudyTime"),
        referring_physician_name=source.get("ReferringPhysicianName"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
        series_description="Class activation map, research use only",
        manufacturer_model_name=_NAME,
        software_versions=study.ensemble_id,
    )
    capture.PatientOrientation = source.get("PatientOrientation")
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = source.get("BurnedInAnnotation") or "NO"
    capture.DerivationDescription = f"Ensemble {study.ensemble_id}, probability {view.probability:.4f}. {study.notice}"
    capture.Laterality = source.get("Laterality") or source.get("ImageLaterality")
    for keyword in (*_SPACINGS, "BodyPartExamined"):
        if source.get(keyword):
            setattr(capture, keyword, source.get(keyword))
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [sr.CodedConcept.from_code(_SOURCE_IMAGE)]
    capture.SourceImageSequence = [reference]
    return capture


def _report(study: PredictedStudy, views: Sequence[PredictedView], sources: Sequence[Dataset]) -> sr.ComprehensiveSR:
    """By template TID 1500: a group for the study with its probability and decision, then one for each view."""
    parameters = [f"threshold {study.threshold:g}", study.notice]
    if study.num_left_out:
        parameters.append(f"views left out, for they could not be read: {study.num_left_out}")
    algorithm = sr.AlgorithmIdentification(name=_NAME, version=study.ensemble_id, parameters=parameters)
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[_NAME, study.ensemble_id]), name=_NAME, model_name=_NAME
    )
    decision = sr.QualitativeEvaluation(name=_DECISION, value=_ABNORMAL if study.abnormal else _NORMAL)
    probabilities = {_PROBABILITY: study.probability}
    probabilities |= dict(zip((_LOWEST, _HIGHEST), study.member_range, strict=True))
    if study.calibrated_probability is not None:
        probabilities[_CALIBRATED] = study.calibrated_probability
    groups = [
        _group("Study", probabilities, sources, algorithm, [decision]),
        *(
            _group(f"View {number}", {_PROBABILITY: view.probability}, [source], algorithm)
            for number, (view, source) in enumerate(zip(views, sources, strict=True), start=1)
        ),
    ]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
            )
        ),
        procedure_reported=_RADIOGRAPHY,
        imaging_measurements=groups,
    )
    return sr.ComprehensiveSR(
        evidence=list(sources),
        content=content[0],
        series_instance_uid=generate_uid(),
        series_number=_SERIES_NUMBER + 1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=_NAME,
        is_complete=True,
        series_description="Probability of abnormality, research use only",
        manufacturer_model_name=_NAME,
        software_versions=study.ensemble_id,
        specific_character_set="ISO_IR 192",
        coding_schemes=[CodingSchemeIdentificationItem("99MURA", name="Private codes of mura_ray", version="1")],
    )


def _group(
    what: str,
    probabilities: Mapping[Code, float],
    sources: Sequence[Dataset],
    algorithm: sr.AlgorithmIdentification,
    evaluations: Sequence[sr.QualitativeEvaluation] = (),
) -> sr.MeasurementsAndQualitativeEvaluations:
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier=what),
        algorithm_id=algorithm,
        measurements=[
            sr.Measurement(name=name, value=round(probability, 6), unit=_NO_UNITS)
            for name, probability in probabilities.items()
        ],
        qualitative_evaluations=list(evaluations),
        source_images=[
            sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID) for source in sources
        ],
    )


def _file(found: Dataset) -> bytes:
    file = io.BytesIO()
    found.save_as(file, enforce_file_format=True)
    return file.getvalue()
