"""The words of the project as types: study types, studies and their views, and what a prediction of a study says."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

STUDY_TYPES = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
"""The seven upper-extremity study types (paper, section 2). A type's index here is its index in shards and weights."""

NORMAL, ABNORMAL = 0, 1

OVERALL = "overall"
"""Stands beside the study types where all of them are meant."""

PROBABILITY_EDGES = tuple(step / 20 for step in range(1, 21))
"""Where the distribution of study probabilities is counted: at most 0.05, 0.1, ..., 1."""

NOTICE = "Research use only. Not a medical device: not for diagnosis, triage or treatment."


@dataclass(frozen=True, slots=True)
class Box:
    """Where a finding is, in pixels of the original view: left edge, top edge, width, height."""

    x: float
    y: float
    width: float
    height: float
    finding: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """One radiograph: its path relative to the collection's root, with forward slashes, and its annotated findings."""

    path: str
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """One or more views of one study type, with one label (0 normal, 1 abnormal)."""

    study_type: str
    patient_id: str
    study_id: str
    label: int
    views: tuple[View, ...]

    @property
    def key(self) -> str:
        """Unique in a split: a patient may have several studies, of several types."""
        return f"{self.study_type}/{self.patient_id}/{self.study_id}"


@dataclass(frozen=True, slots=True)
class MemberPrediction:
    """One ensemble member's probability of abnormality: the mean over the study's views."""

    trial: str
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class ViewPrediction:
    """One view: its size in pixels, its probability (mean over the members), its raw CAM (float32 [h, w] in logits)."""

    width: int
    height: int
    probability: float
    cam: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class StudyPrediction:
    """A study's probability (mean over its views; paper, section 3.1), its decision, and what they were made of."""

    probability: float
    abnormal: bool
    threshold: float
    views: tuple[ViewPrediction, ...]
    members: tuple[MemberPrediction, ...]

    @property
    def member_range(self) -> tuple[float, float]:
        """Lowest and highest of the members' probabilities: how far they disagree, no confidence interval."""
        probabilities = [member.probability for member in self.members]
        return min(probabilities), max(probabilities)


def class_weights(studies: Iterable[Study]) -> dict[str, tuple[float, float]]:
    """Weights of the loss per study type, from the image counts of a training set (paper, section 3.1).

    Args:
        studies: the studies of the training split.

    Returns:
        For each study type T that occurs, (w_T0, w_T1): w_T1 = |N_T| / (|A_T| + |N_T|) weighs the abnormal images and
        w_T0 = |A_T| / (|A_T| + |N_T|) the normal ones, where A_T and N_T are the abnormal and the normal *images*.
    """
    num_images: Counter[tuple[str, int]] = Counter()
    for study in studies:
        num_images[study.study_type, study.label] += len(study.views)
    return image_count_weights(num_images)


def image_count_weights(num_images: Mapping[tuple[str, int], int]) -> dict[str, tuple[float, float]]:
    """The same as `class_weights`, from the number of images by (study type, label).

    Raises:
        ValueError: a study type or a label is unknown.
    """
    for study_type, label in num_images:
        if study_type not in STUDY_TYPES or label not in (NORMAL, ABNORMAL):
            raise ValueError(
                f"no class weight for study type {study_type!r} with label {label!r}: "
                f"known are {', '.join(STUDY_TYPES)} with 0 or 1"
            )
    weights = {}
    for study_type in STUDY_TYPES:
        normal, abnormal = num_images.get((study_type, NORMAL), 0), num_images.get((study_type, ABNORMAL), 0)
        if normal + abnormal:
            total = normal + abnormal
            weights[study_type] = (abnormal / total, normal / total)
    return weights


def weights_matrix(weights: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """Class weights as float32 [7, 2], indexed [study type, label]; NaN for a type that has none."""
    matrix = np.full((len(STUDY_TYPES), 2), np.nan, dtype=np.float32)
    for study_type, pair in weights.items():
        matrix[STUDY_TYPES.index(study_type)] = pair
    return matrix
