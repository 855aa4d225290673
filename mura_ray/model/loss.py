"""The paper's weighted loss (section 3.1), from logits."""

import torch
import torch.nn.functional as F

from mura_ray.domain import STUDY_TYPES


def weighted_bce(
    logits: torch.Tensor, labels: torch.Tensor, type_index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy, each image weighted by its study type and label: mean over the images (paper, section 3.1).

    For an image X of study type T, L = -w_T1 * y * log p(Y = 1 | X) - w_T0 * (1 - y) * log p(Y = 0 | X). It is finite
    for every finite logit, because the logarithms are taken of the logits and never of a rounded probability.

    Args:
        logits: float [N].
        labels: integers [N], 0 normal, 1 abnormal.
        type_index: integers [N], places in `domain.STUDY_TYPES`.
        weights: float [7, 2], indexed [study type, label]; NaN for a study type that the training set lacks.

    Returns:
        float [], of the logits' type.

    Raises:
        ValueError: an image's study type has no weights.
    """
    return weighted_bce_sum(logits, labels, type_index, weights) / len(logits)


def weighted_bce_sum(
    logits: torch.Tensor, labels: torch.Tensor, type_index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The same as `weighted_bce`, summed over the images, for workers that add up before they divide."""
    return bce_sum(logits, labels, image_weights(labels, type_index, weights))


def image_weights(labels: torch.Tensor, type_index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weight of each image in the loss, [N]. On a GPU it waits for all that was queued: do it on the host.

    Args:
        labels: integers [N], 0 normal, 1 abnormal.
        type_index: integers [N], places in `domain.STUDY_TYPES`.
        weights: float [7, 2], as of `weighted_bce`.

    Raises:
        ValueError: an image's study type has no weights.
    """
    chosen = weights[type_index, labels.long()]
    if bool(chosen.isnan().any()):
        unknown = sorted({STUDY_TYPES[index] for index in type_index[chosen.isnan()].tolist()})
        raise ValueError(
            f"no loss weights for study type {', '.join(unknown)}: the training set has no image of it; "
            "bring training images, or leave it out of the other splits"
        )
    return chosen


def bce_sum(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted loss, summed over the images. All arguments are [N], `weights` of `image_weights`."""
    return F.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype), weight=weights.to(logits.dtype), reduction="sum"
    )
