"""What model cards say of any ensemble, and its training settings apart: shared by the members, and each one's own."""

from collections.abc import Mapping
from typing import Any

from mura_ray.model.ensemble import EnsembleDescription

INTENDED_USE = (
    "Research on finding abnormal studies among radiographs of the upper extremity: one study of one type (elbow, "
    "finger, forearm, hand, humerus, shoulder or wrist), in one or more views.",
    "Experiments that compare it with readers, order a worklist by it or show its maps, without effect on any care.",
)

LIMITS = (
    "It says whether a study looks abnormal, not what is abnormal: a fracture, an implant and worn cartilage count "
    "alike. What its training data hardly has it may miss.",
    "It answers pictures of other body parts, of other modalities and of no patient at all; such answers mean nothing.",
    "Patients' ages are not part of the data: whether it holds for children as for adults is unknown. So it is for "
    "sex, origin, and for hospitals and devices that differ from those of the training data.",
    "Of study types that the training data lacks it knows nothing; its results name the types that it was tested on.",
    "`probability` is no frequency: the paper's loss takes normal and abnormal images for equally common. "
    "`calibrated_probability` is one, among studies like those of `calibration`, where abnormality is as common.",
    "A map shows which parts of a view raise its probability, not the outline of a finding, nor all that is abnormal.",
    "Its results hold for the studies of their data set: read their notes, and measure on your own studies.",
)


def training_settings(description: EnsembleDescription) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings by dotted name: those that all members share, and of each member the others."""
    settings = [_flat(member.config.model_dump(mode="json")) for member in description.members]
    shared = {name: value for name, value in settings[0].items() if all(one[name] == value for one in settings)}
    return shared, [{name: value for name, value in one.items() if name not in shared} for one in settings]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
