"""Random changes of training images, made for a whole batch at once on the images' device.

Every random number is a function of (seed, epoch, sample id, parameter), and of nothing else: not of the batch an image
is in, nor of the worker that loads it, nor of which other changes are switched on.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mura_ray import config
from mura_ray.data.prefetch import to_device

# What tells one parameter's random numbers from another's. New ones come last, so that the others keep their values.
_INVERSION, _ROTATION, _SCALE, _SHIFT_X, _SHIFT_Y, _BRIGHTNESS, _CONTRAST = range(7)


@dataclass(frozen=True, slots=True, eq=False)
class AugmentationParameters:
    """What is done to each of n images; all arrays are [n].

    Attributes:
        inverted: bool, mirrored left to right.
        rotation_deg: float64, counter-clockwise as seen.
        scale: float64, zoom factor; greater than 1 magnifies.
        shift_x: float64, to the right, as a share of the width.
        shift_y: float64, downwards, as a share of the height.
        brightness: float64, added after the change of contrast, as a share of white.
        contrast: float64, factor around mid-gray.
    """

    inverted: np.ndarray
    rotation_deg: np.ndarray
    scale: np.ndarray
    shift_x: np.ndarray
    shift_y: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray


def augmentation_parameters(
    sample_ids: torch.Tensor | np.ndarray, seed: int, epoch: int, settings: config.Augmentation
) -> AugmentationParameters:
    """Draws the parameters of each image.

    Args:
        sample_ids: int64 [n], on the host.
        seed: of the run.
        epoch: number of the epoch; the same image is changed differently in each.
        settings: ranges and probabilities.
    """
    ids = np.asarray(sample_ids).astype(np.uint64)

    def uniform(parameter: int) -> np.ndarray:
        return _uniform(ids, seed, epoch, parameter)

    def symmetric(parameter: int) -> np.ndarray:
        return 2 * uniform(parameter) - 1

    return AugmentationParameters(
        inverted=uniform(_INVERSION) < settings.inversion_probability,
        rotation_deg=settings.rotation_deg * symmetric(_ROTATION),
        scale=(1 + settings.scale) ** symmetric(_SCALE),
        shift_x=settings.translation * symmetric(_SHIFT_X),
        shift_y=settings.translation * symmetric(_SHIFT_Y),
        brightness=settings.brightness * symmetric(_BRIGHTNESS),
        contrast=(1 + settings.contrast) ** symmetric(_CONTRAST),
    )


def augment(
    images: torch.Tensor,
    sample_ids: torch.Tensor | np.ndarray,
    *,
    seed: int,
    epoch: int,
    settings: config.Augmentation,
) -> torch.Tensor:
    """Changes a batch at random (paper, section 3.1: lateral inversion and rotation up to 30 degrees).

    An image is mirrored, scaled, rotated and shifted, in this order and in one bilinear resampling, with black
    outside; then contrast and brightness change.

    Args:
        images: uint8 [n, 1, H, W], on any device.
        sample_ids: int64 [n], on the host.
        seed: of the run.
        epoch: number of the epoch.
        settings: ranges and probabilities; with all of them zero the result is exactly `to_unit(images)`.

    Returns:
        float32 [n, 1, H, W] in 0 to 1, on the images' device.
    """
    parameters = augmentation_parameters(sample_ids, seed, epoch, settings)
    result = to_unit(images)
    if len(images) == 0:  # affine_grid refuses it
        return result
    if settings.inversion_probability or settings.rotation_deg or settings.scale or settings.translation:
        matrices = to_device(torch.from_numpy(_sampling_matrices(parameters, images.shape[-2:])), images.device)
        grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
        result = F.grid_sample(result, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if settings.contrast or settings.brightness:
        result = (result - 0.5) * _per_image(parameters.contrast, result) + 0.5
        result = result + _per_image(parameters.brightness, result)
    return result.clamp_(0, 1)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Gray values 0 to 255 as float32 0 to 1, on the same device: what validation does in the place of `augment`."""
    return images.to(torch.float32) / 255


def _per_image(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return to_device(torch.from_numpy(values.astype(np.float32)), like.device).view(-1, 1, 1, 1)


def _sampling_matrices(parameters: AugmentationParameters, size: torch.Size) -> np.ndarray:
    """float32 [n, 2, 3]: from a place in the result to the place in the image it is taken from.

    Both in `affine_grid`'s coordinates: -1 to 1 over the width and over the height, y downwards.
    """
    height, width = size
    angle = parameters.rotation_deg * (math.pi / 180)
    cos, sin = np.cos(angle) / parameters.scale, np.sin(angle) / parameters.scale
    rows = np.array([[cos, -sin * (height / width)], [sin * (width / height), cos]])  # [2, 2, n]
    shift = 2 * np.array([parameters.shift_x, parameters.shift_y])  # [2, n]
    offset = -np.einsum("ijn,jn->in", rows, shift)
    matrices = np.concatenate([rows, offset[:, None]], axis=1)  # [2, 3, n]
    matrices[0] *= np.where(parameters.inverted, -1.0, 1.0)
    return np.ascontiguousarray(matrices.transpose(2, 0, 1), dtype=np.float32)


def _uniform(ids: np.ndarray, seed: int, epoch: int, parameter: int) -> np.ndarray:
    """float64 [n] in [0, 1), by a hash of the four numbers."""
    state = _mix(np.array([seed], dtype=np.uint64))
    for number in (np.array([epoch], dtype=np.uint64), ids, np.array([parameter], dtype=np.uint64)):
        state = _mix(state ^ number)
    return (state >> np.uint64(11)) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """The step of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits that scatters neighbours."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
