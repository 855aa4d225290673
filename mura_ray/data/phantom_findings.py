"""Abnormalities of the paper's kinds, painted into a synthetic radiograph, and the harmless things that resemble them.

A finding changes attenuation around one site of a bone. Every finding has a counterpart of about the same area and the
same gray values in a harmless, smooth shape, which normal views carry: only shape tells them apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

FINDINGS = ("fracture", "hardware", "degenerative", "lesion")


@dataclass(slots=True, eq=False)
class Scene:
    """Attenuation of a view by material, each float32 [H, W]. Findings change it in place."""

    soft: np.ndarray
    bone: np.ndarray
    metal: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A place in a view, in pixels: its centre (x, y), the bone's direction as a unit vector, the bone's half width."""

    centre: np.ndarray
    along: np.ndarray
    half_width: float


@dataclass(frozen=True, slots=True, eq=False)
class _Patch:
    """The square of a scene around a site: its slices, and coordinates along (u) and across (v) the bone in pixels."""

    rows: slice
    columns: slice
    u: np.ndarray
    v: np.ndarray

    def of(self, layer: np.ndarray) -> np.ndarray:
        return layer[self.rows, self.columns]


def plant(kind: str, scene: Scene, site: Site, size: float, strength: float, rng: np.random.Generator) -> None:
    """Paints a finding of about `size` pixels at a site; `strength` scales its contrast, 1 being plain to see."""
    _FINDING[kind](scene, _patch(scene, site, 0.75 * size), site, size, strength, rng)


def plant_counterpart(
    kind: str, scene: Scene, site: Site, size: float, strength: float, softness: float, rng: np.random.Generator
) -> None:
    """Paints what a finding of that kind may be taken for: as large and as bright or dark, but smooth and harmless.

    `softness` is the width of its edges as a share of `size`. Nothing is painted where all of it lies outside.
    """
    patch = _patch(scene, site, 1.2 * size)
    if patch.u.size:
        _COUNTERPART[kind](scene, patch, size, strength, softness, rng)


def _patch(scene: Scene, site: Site, reach: float) -> _Patch:
    height, width = scene.bone.shape
    x, y = site.centre
    rows = slice(*np.clip([int(y - reach), int(y + reach) + 1], 0, height).tolist())
    columns = slice(*np.clip([int(x - reach), int(x + reach) + 1], 0, width).tolist())
    dy, dx = np.mgrid[rows, columns].astype(np.float32)
    dx -= np.float32(x)
    dy -= np.float32(y)
    ax, ay = np.float32(site.along[0]), np.float32(site.along[1])
    return _Patch(rows, columns, dx * ax + dy * ay, dy * ax - dx * ay)


def _fill(distance: np.ndarray, softness: float = 1.5) -> np.ndarray:
    """1 inside (negative distance), 0 outside, with an edge `softness` pixels wide."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _line(distance: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-np.square(distance / width))


def _radius(
    patch: _Patch, radius: float, roughness: float, lobes: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Signed distance to an irregular round outline."""
    theta = np.arctan2(patch.v, patch.u)
    edge = np.ones_like(theta)
    for lobe in lobes:
        edge += roughness * rng.uniform(0.5, 1.0) * np.cos(lobe * theta + rng.uniform(0, 2 * np.pi))
    return np.hypot(patch.u, patch.v) - radius * edge


def _fracture(scene: Scene, patch: _Patch, site: Site, size: float, strength: float, rng: np.random.Generator) -> None:
    """Jagged dark lines through the bone; the pieces between them step sideways, their edges overlap brightly."""
    num_lines = 1 + round(2 * min(strength, 1.0))
    slope, period = rng.uniform(-0.7, 0.7), size * rng.uniform(0.10, 0.16)
    places = (np.arange(num_lines) - (num_lines - 1) / 2) * 0.26 * size
    side = rng.choice((-1.0, 1.0))
    piece = np.zeros(patch.u.shape, dtype=np.int64)
    gap = np.zeros_like(patch.u)
    for index, place in enumerate(places):
        saw = np.abs((patch.v / period + rng.uniform()) % 1 - 0.5) * 2
        distance = patch.u - place - patch.v * slope * (1 if index % 2 else -1) - 0.5 * period * saw
        piece += distance > 0
        gap = np.maximum(gap, _line(distance, 0.026 * size))
    step = strength * min(1.1 * site.half_width, 0.16 * size) * rng.uniform(0.8, 1.2)
    steps = side * step * np.where(np.arange(num_lines + 1) % 2, 1.0, -0.6)
    taper = np.clip(1.5 - np.abs(patch.u) / (0.42 * size), 0, 1) * np.clip(4 - np.abs(patch.v) / (0.16 * size), 0, 1)
    shift = (steps[piece] * taper).astype(np.float32)
    bone = patch.of(scene.bone)
    rows, columns = np.indices(bone.shape, dtype=np.float32)
    ax, ay = (np.float32(value) for value in site.along)
    moved = cv2.remap(bone, columns + shift * ay, rows - shift * ax, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    window = _fill(np.hypot(patch.u, patch.v) - 0.55 * size, 0.2 * size)
    edge = _line(gap - 0.35, 0.15) * strength
    moved *= 1 + window * (0.55 * edge - 0.95 * min(1.0, 0.5 + 0.5 * strength) * gap)
    bone[:] = moved
    for _ in range(round(16 * min(strength, 1.0))):  # splinters in the soft tissue around
        angle, turn = rng.uniform(0, 2 * np.pi, 2)
        away = rng.uniform(0.08, 0.42) * size
        u, v = patch.u - away * np.cos(angle), patch.v - away * np.sin(angle)
        u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
        length, width = size * rng.uniform(0.06, 0.10), size * rng.uniform(0.02, 0.035)
        bone += 0.7 * strength * _fill(np.abs(u) / length * width + np.abs(v) - width)


def _hardware(scene: Scene, patch: _Patch, site: Site, size: float, strength: float, rng: np.random.Generator) -> None:
    """A plate along the bone with holes, and threaded screws through it and the bone."""
    length, half_plate, pitch = 1.05 * size, 0.075 * size, 0.21 * size
    side = rng.choice((-1.0, 1.0))
    v = side * patch.v + 0.3 * size
    plate = _fill(np.maximum(np.abs(patch.u) - length / 2, np.abs(v) - half_plate))
    metal = plate * 0.8
    depth = rng.uniform(0.55, 0.72) * size
    for index in range(-2, 3):
        u = patch.u - index * pitch
        if abs(index) == 2 or rng.random() < 0.7:
            thread = 0.028 * size * (1 + 0.35 * np.sin(v * (2 * np.pi / (0.06 * size))))
            screw = _fill(np.maximum(np.abs(u) - thread, np.abs(v - depth / 2) - depth / 2))
            head = _fill(np.hypot(u, v) - 0.07 * size)
            metal = np.maximum(metal, np.maximum(screw, head))
        else:
            metal *= 1 - 0.9 * _fill(np.hypot(u, v) - 0.05 * size)
    layer = patch.of(scene.metal)
    layer += 2.2 * (0.35 + 0.65 * strength) * metal


def _degenerative(
    scene: Scene, patch: _Patch, site: Site, size: float, strength: float, rng: np.random.Generator
) -> None:
    """Bright joint surfaces without a gap, bony spurs at the margins, and small cysts under the surface."""
    spurs = 0.0
    for _ in range(9):
        angle, length = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.3, 0.5)
        u = patch.u * np.cos(angle) + patch.v * np.sin(angle)
        v = patch.v * np.cos(angle) - patch.u * np.sin(angle)
        taper = np.clip(1 - u / length, 0, 1) * 0.075 * size
        spurs = np.maximum(spurs, _fill(np.abs(v) - taper, 2.5) * _fill(-u) * (u < length))
    sclerosis = _line(patch.u, 0.16 * size) * _fill(
        np.abs(patch.v) - max(site.half_width * 1.5, 0.3 * size), 0.1 * size
    )
    layer = patch.of(scene.bone)
    layer += 1.1 * strength * np.maximum(0.9 * spurs, 0.7 * sclerosis).astype(np.float32)
    for _ in range(7):
        middle = rng.uniform(-0.3, 0.3, 2) * size
        distance = np.hypot(patch.u - middle[0], patch.v - middle[1])
        radius = size * rng.uniform(0.045, 0.075)
        layer *= 1 - min(0.9, 0.8 * strength) * _fill(distance - radius, 2.0)
        layer += 0.5 * strength * _line(distance - 1.3 * radius, 0.025 * size)


def _lesion(scene: Scene, patch: _Patch, site: Site, size: float, strength: float, rng: np.random.Generator) -> None:
    """Either lytic, a honeycomb of dark cells between bright walls, or sclerotic, with rays that leave the bone."""
    bone = patch.of(scene.bone)
    if rng.random() < 0.5:
        distance = _radius(patch, 0.42 * size, 0.07, (2, 3, 5), rng)
        cells = rng.uniform(-0.42, 0.42, (16, 2)) * size
        apart = np.stack([np.hypot(patch.u - u, patch.v - v) for u, v in cells])
        nearest = np.partition(apart, 1, axis=0)[:2]
        inside = _fill(distance, 0.04 * size)
        walls = np.maximum(_line(nearest[1] - nearest[0], 0.055 * size) * inside, _line(distance, 0.04 * size))
        bone *= 1 - min(0.95, 0.35 + 0.5 * strength) * inside
        bone += 0.95 * strength * walls
        return
    theta = np.arctan2(patch.v, patch.u)
    reach = np.hypot(patch.u, patch.v) / (0.5 * size)
    wobble = np.sin(theta + rng.uniform(0, 6)) + 0.7 * np.sin(3 * theta + rng.uniform(0, 6)) + 0.8 * np.sin(7 * reach)
    rays = 0.5 + 0.5 * np.cos(rng.integers(9, 13) * theta + 1.6 * wobble)
    core = _fill(_radius(patch, 0.2 * size, 0.12, (2, 3, 5), rng), 0.06 * size)
    bone += (
        1.15
        * strength
        * np.maximum(0.8 * core, np.square(rays) * _fill(reach - 0.85 + 0.2 * wobble / 2.5, 0.35) * (1.1 - 0.4 * reach))
    )


def _smooth_metal(
    scene: Scene, patch: _Patch, size: float, strength: float, softness: float, rng: np.random.Generator
) -> None:
    """A ring, a coin or button, or a smooth bar."""
    shape = rng.integers(3)
    if shape == 0:
        distance = np.abs(np.hypot(patch.u, patch.v) - 0.34 * size) - 0.07 * size
    elif shape == 1:
        distance = np.hypot(patch.u, patch.v) - 0.27 * size
    else:
        distance = np.maximum(np.abs(patch.v) - 0.115 * size, np.abs(patch.u) - 0.55 * size)
    layer = patch.of(scene.metal)
    layer += 2.2 * (0.35 + 0.65 * strength) * _fill(distance, max(2.0, softness * size))


def _smooth_calcification(
    scene: Scene, patch: _Patch, size: float, strength: float, softness: float, rng: np.random.Generator
) -> None:
    """A bone island, sesamoid or calcified soft tissue: round, smooth, without structure."""
    squeeze = rng.uniform(0.7, 1.4)
    distance = np.hypot(patch.u * squeeze, patch.v / squeeze)
    layer = patch.of(scene.bone)
    layer += 0.85 * strength * _fill(distance - 0.34 * size, (0.2 + softness) * size)


def _smooth_lucency(
    scene: Scene, patch: _Patch, size: float, strength: float, softness: float, rng: np.random.Generator
) -> None:
    """A nutrient canal or a fold of skin: one long, straight, blurred dark line, and gas or fat beside it."""
    offset = patch.v - 0.12 * np.square(patch.u) / size * rng.uniform(-1, 1)
    canal = _line(offset, (0.03 + 0.2 * softness) * size) * _fill(np.abs(patch.u) - 0.8 * size, 0.5 * size)
    layer = patch.of(scene.bone)
    layer *= 1 - 0.6 * strength * canal


_Painter = Callable[[Scene, _Patch, Site, float, float, np.random.Generator], None]
_SmoothPainter = Callable[[Scene, _Patch, float, float, float, np.random.Generator], None]
_FINDING: dict[str, _Painter] = {
    "fracture": _fracture, "hardware": _hardware, "degenerative": _degenerative, "lesion": _lesion,
}  # fmt: skip
_COUNTERPART: dict[str, _SmoothPainter] = {
    "fracture": _smooth_lucency, "hardware": _smooth_metal, "degenerative": _smooth_calcification,
    "lesion": _smooth_calcification,
}  # fmt: skip
