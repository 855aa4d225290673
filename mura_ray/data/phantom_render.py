"""From anatomy to an 8-bit picture: projection, exposure, film and noise. Every random choice comes from the caller."""

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from mura_ray.data.phantom_anatomy import Anatomy, Bone, Tissue
from mura_ray.data.phantom_findings import Scene

_TILE = 1024


@dataclass(frozen=True, slots=True)
class Exposure:
    """How a view is taken: what differs between views and has nothing to do with the label.

    Attributes:
        kilovolt_factor: attenuation factor; a low one burns soft tissue out, a high one whitens bone.
        gamma: film curve.
        floor, ceiling: gray of no and of full attenuation, 0 to 1.
        noise: standard deviation of the quantum noise, 0 to 1.
        inverted: bone dark on a light ground.
    """

    kilovolt_factor: float
    gamma: float
    floor: float
    ceiling: float
    noise: float
    inverted: bool


@functools.cache
def _tiles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """White noise, trabecular texture and cloudy tissue, float32 [1024, 1024] of unit deviation, the same always."""
    white = np.random.default_rng(0).standard_normal((_TILE, _TILE)).astype(np.float32)
    grain = cv2.GaussianBlur(white, (0, 0), 0.7)
    fine = cv2.GaussianBlur(white, (0, 0), 1.3) - cv2.GaussianBlur(white, (0, 0), 2.6)
    small = cv2.GaussianBlur(cv2.resize(white, (64, 64), interpolation=cv2.INTER_AREA), (0, 0), 1.5)
    cloud = cv2.resize(small, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
    return grain / grain.std(), fine / fine.std(), cloud / cloud.std()


def _crop(tile: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    y, x = rng.integers(_TILE - shape[0] + 1), rng.integers(_TILE - shape[1] + 1)
    return tile[y : y + shape[0], x : x + shape[1]]


def project(anatomy: Anatomy, shape: tuple[int, int], rng: np.random.Generator) -> Scene:
    """Attenuation of an anatomy given in pixels, on a detector of shape (height, width)."""
    soft = _soft_tissue(anatomy.tissues, shape)
    soft *= 1 + 0.09 * _crop(_tiles()[2], shape, rng)
    bone = np.zeros(shape, dtype=np.float32)
    for each in anatomy.bones:
        _add_bone(bone, each, rng)
    return Scene(soft, bone, np.zeros(shape, dtype=np.float32))


def _soft_tissue(tissues: tuple[Tissue, ...], shape: tuple[int, int]) -> np.ndarray:
    """Thickness of rounded limbs, drawn at a quarter of the resolution: it has no fine detail."""
    small = np.zeros((shape[0] // 4 + 1, shape[1] // 4 + 1), dtype=np.float32)
    for tissue in tissues:
        mask = np.zeros(small.shape, dtype=np.uint8)
        thickness = max(2, round(tissue.radius / 2))
        cv2.polylines(mask, [np.round(tissue.line / 4 * 16).astype(np.int32)], False, 255, thickness, cv2.LINE_8, 4)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
        rim = np.clip(depth / (0.8 * tissue.radius / 4), 0, 1)
        np.maximum(small, np.sqrt(1 - np.square(1 - rim)), out=small)
    small = cv2.GaussianBlur(small, (0, 0), 0.8)
    return 0.5 * cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _add_bone(layer: np.ndarray, bone: Bone, rng: np.random.Generator) -> None:
    """Projects a tube of cortex around marrow: bright rims where the rays run along the cortex."""
    x0, y0 = np.maximum(np.floor(bone.outline.min(axis=0)).astype(int) - 3, 0)
    x1, y1 = np.minimum(np.ceil(bone.outline.max(axis=0)).astype(int) + 4, layer.shape[::-1])
    if x1 - x0 < 2 or y1 - y0 < 2:
        return  # outside the picture
    mask = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    cv2.fillPoly(mask, [np.round((bone.outline - (x0, y0)) * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    outer = bone.half_width
    inner = outer * (1 - bone.cortex)
    to_axis = np.square(np.maximum(outer - depth, 0))
    chord = np.sqrt(np.maximum(outer**2 - to_axis, 0)) / outer
    marrow = np.sqrt(np.maximum(inner**2 - to_axis, 0)) / outer
    texture = _crop(_tiles()[1], mask.shape, rng)
    projected = bone.density * (1.5 * (chord - marrow) + 0.40 * marrow * (1 + 0.22 * texture))
    projected = cv2.GaussianBlur(projected.astype(np.float32), (3, 3), 0.7)
    below = layer[y0:y1, x0:x1]
    below[:] = np.maximum(below, projected) + 0.4 * np.minimum(below, projected)  # what grew together does not add up


def draw_marker(scene: Scene, letter: str, corner: tuple[float, float], height: float) -> None:
    """A lead letter with its lower left end at `corner` (x, y), in pixels."""
    scale = height / 21
    origin = (round(corner[0]), round(corner[1]))
    thickness = max(1, round(height / 9))
    stencil = np.zeros(scene.metal.shape, dtype=np.uint8)
    cv2.putText(stencil, letter, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    scene.metal += stencil.astype(np.float32) * (1.8 / 255)


def develop(scene: Scene, window: np.ndarray, exposure: Exposure, rng: np.random.Generator) -> np.ndarray:
    """The picture of a scene.

    Args:
        scene: attenuation by material.
        window: float [4, 2], corners (x, y) of what the collimator leaves open.
        exposure: how it is taken.
        rng: stream of the noise.

    Returns:
        uint8 [H, W].
    """
    shape = scene.bone.shape
    attenuation = scene.soft + scene.bone + scene.metal
    picture = 1 - np.exp(-exposure.kilovolt_factor * attenuation)
    cv2.pow(np.maximum(picture, 0), exposure.gamma, picture)
    picture = exposure.floor + (exposure.ceiling - exposure.floor) * picture
    picture += exposure.noise * _crop(_tiles()[0], shape, rng)
    if exposure.inverted:
        picture = 1 - picture
    shade = np.zeros(shape, dtype=np.uint8)
    cv2.fillPoly(shade, [np.round(window * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    picture *= cv2.GaussianBlur(shade, (5, 5), 0).astype(np.float32) / 255
    picture += 0.01
    return np.clip(255 * picture, 0, 255).astype(np.uint8)
