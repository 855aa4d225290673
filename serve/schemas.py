"""What the HTTP interface answers. `/openapi.json` is made from these models."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema

from mura_ray.domain import STUDY_TYPES


def _known_study_type(name: str) -> str:
    if name not in STUDY_TYPES:
        raise ValueError(f"{name!r} is no study type; one of {', '.join(STUDY_TYPES)}")
    return name


StudyType = Annotated[
    str, AfterValidator(_known_study_type), WithJsonSchema({"type": "string", "enum": list(STUDY_TYPES)})
]

CamForm = Literal["none", "raw", "overlay"]

Probability = Annotated[float, Field(ge=0, le=1)]

Range = Annotated[tuple[float, float], Field(description="lowest and highest value of the raw map, in logits")]


class RawCam(BaseModel):
    """A class activation map as numbers."""

    range: Range
    shape: tuple[int, int] = Field(description="rows and columns; the map covers the whole view", examples=[(10, 10)])
    float32_base64: str = Field(description="the map in logits, row by row, little-endian float32, base64")


class OverlayCam(BaseModel):
    """A class activation map as a picture."""

    range: Range
    png_base64: str = Field(
        description="the map painted over the view where it is above 0, PNG in the view's own pixels, base64"
    )


class ViewAnswer(BaseModel):
    """One view of the study, in the order of the request and of its zips."""

    name: str = Field(description="the file name that was sent, or the path in a zip")
    width: int = Field(description="pixels")
    height: int = Field(description="pixels")
    pixel_spacing_mm: tuple[float, float] | None = Field(
        description="between the centres of rows and of columns: PixelSpacing, else ImagerPixelSpacing, at the "
        "detector; null where the file says neither"
    )
    probability: Probability = Field(description="of abnormality, mean over the members")
    cam: RawCam | OverlayCam | None = Field(description="as the query's cam asks; null for none")


class MemberAnswer(BaseModel):
    """One member of the ensemble."""

    trial: str
    probability: Probability = Field(description="of abnormality, mean over the views")


class EnsembleReference(BaseModel):
    """Which ensemble answered."""

    id: str = Field(description="hash of the ensemble's content")
    created: str = Field(description="UTC, ISO 8601")


class StudyAnswer(BaseModel):
    """What the ensemble says of a study. Research use only, not a medical device."""

    study_type: StudyType | None = Field(
        description="as sent, else as BodyPartExamined of the DICOM views says; the prediction does not depend on it"
    )
    probability: Probability = Field(description="of abnormality: mean over the views, of the mean over the members")
    calibrated_probability: Probability | None = Field(
        description="the probability as a frequency among studies like those that the ensemble was calibrated on; "
        "null if it was not. The decision does not depend on it"
    )
    abnormal: bool = Field(description="probability > threshold")
    threshold: float
    views: list[ViewAnswer]
    members: list[MemberAnswer]
    member_range: tuple[Probability, Probability] = Field(
        description="lowest and highest of the members' probabilities: how far they disagree, no confidence interval"
    )
    ensemble: EnsembleReference
    warnings: list[str] = Field(
        description="what should make the reader doubt the answer, views that were left out first"
    )


class Health(BaseModel):
    """The process lives."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """Studies are answered."""

    status: Literal["ready"] = "ready"
    ensemble: str = Field(description="id of the ensemble that is loaded")
