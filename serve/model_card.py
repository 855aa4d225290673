"""The model card that `/v1/ensemble` gives: what an ensemble was made of, how good it was found, what it is not for."""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt

from mura_ray import store
from mura_ray.domain import NOTICE, PROBABILITY_EDGES
from mura_ray.model.card import INTENDED_USE, LIMITS, training_settings
from mura_ray.model.ensemble import EnsembleDescription, ensemble_folder
from mura_ray.platt import CalibrationDescription

_logger = logging.getLogger(__name__)


Counts = Annotated[list[NonNegativeInt], Field(min_length=len(PROBABILITY_EDGES), max_length=len(PROBABILITY_EDGES))]
"""Of studies, up to each of `PROBABILITY_EDGES`."""


class MemberDescription(BaseModel):
    """One member: the trial's best epoch."""

    trial: str
    epoch: int
    val_loss: float
    settings: dict[str, Any] = Field(description="those of its training in which the members differ")


class TrainingData(BaseModel):
    """The data set that the members were trained on."""

    id: str = Field(description="hash of its content")
    manifest_sha256: str


class EvaluatedData(BaseModel):
    """Of what the studies are that an evaluation reports."""

    id: str
    name: str
    split: str


class Evaluation(BaseModel):
    """What `python -m mura_ray.evaluate` found, as far as its `metrics.json` has it."""

    data: EvaluatedData
    notes: list[str] = Field(description="why the numbers are not those of new patients, if they are not")
    metrics: dict[str, dict[str, Any]] = Field(description="by study type, and overall")
    probabilities: dict[str, Counts] = Field(
        default={}, description="by study type, how many studies' probabilities are at most 0.05, 0.10, ... 1"
    )


class EnsembleAnswer(BaseModel):
    """The ensemble that is served, as a model card."""

    id: str = Field(description="hash of the ensemble's content")
    created: str = Field(description="UTC, ISO 8601")
    image_size: int = Field(description="side of the network's input in pixels")
    threshold: float = Field(description="a study is abnormal if its probability is greater")
    data_id: str = Field(description="id of the data set that the members were trained on")
    members: list[MemberDescription]
    notice: str = Field(description="what the ensemble must not be used for")
    architecture: str = Field(description="of each member")
    data: TrainingData
    recipe: dict[str, Any] = Field(description="the settings of training that all members share")
    calibration: CalibrationDescription | None = Field(description="what makes calibrated_probability; null: nothing")
    metrics: list[Evaluation] = Field(description="the evaluations that lay beside the ensemble when it was loaded")
    intended_use: list[str]
    limits: list[str]
    git_revision: str = Field(description="of the program that wrote the ensemble")


def model_card(description: EnsembleDescription, evaluations: Sequence[Evaluation]) -> EnsembleAnswer:
    """What is known of an ensemble."""
    shared, each = training_settings(description)
    return EnsembleAnswer(
        id=description.id,
        created=description.created,
        image_size=description.image_size,
        threshold=description.threshold,
        data_id=description.data_id,
        members=[
            MemberDescription(
                trial=member.trial,
                epoch=member.epoch,
                val_loss=member.val_loss,
                settings=own,
            )
            for member, own in zip(description.members, each, strict=True)
        ],
        notice=NOTICE,
        architecture=description.architecture,
        data=TrainingData(id=description.data_id, manifest_sha256=description.data_manifest_sha256),
        recipe=shared,
        calibration=description.calibration,
        metrics=list(evaluations),
        intended_use=list(INTENDED_USE),
        limits=list(LIMITS),
        git_revision=description.git_revision,
    )


def read_evaluations(uri: str, ensemble_id: str) -> list[Evaluation]:
    """The evaluations beside an ensemble's folder, in `evaluation-SPLIT-DATA-ENSEMBLE`, where `evaluate` puts them.

    One that cannot be read is left out and logged: an ensemble answers without its evaluations.

    Args:
        uri: of the ensemble's folder, or of its `ensemble.json`.
        ensemble_id: evaluations of others are not its own.
    """
    try:
        home = store.parent(ensemble_folder(store.absolute(uri)))
        names = [entry.name for entry in store.tree(home).entries() if entry.is_folder]
        names = sorted(name for name in names if name.startswith("evaluation-") and name.endswith(f"-{ensemble_id}"))
        files = [store.join(home, name, "metrics.json") for name in names]
        return [found for file in files if (found := _evaluation(file)) is not None]
    except (ValueError, OSError) as error:
        _logger.warning("no evaluations are shown of the ensemble %s: %s", ensemble_id, error)
        return []


def drift_reference(evaluations: Sequence[Evaluation], data_id: str) -> Mapping[str, Sequence[int]]:
    """The probabilities that those of new studies are compared with: an evaluation's `probabilities`.

    Of the evaluations on the data set that the members were trained on, the one of `valid`; else any of them that is
    not of `train`, whose studies the members know by heart; else nothing.
    """
    usable = [one for one in evaluations if one.data.id == data_id and one.data.split != "train"]
    first = min(usable, key=lambda one: one.data.split != "valid", default=None)
    return first.probabilities if first else {}


def _evaluation(file: str) -> Evaluation | None:
    try:
        return Evaluation.model_validate_json(store.read_bytes(file))
    except (ValueError, OSError) as error:
        _logger.warning("the evaluation %s is not shown: %s", file, error)
        return None
