"""Outlines of bones and soft tissue for the seven study types, in a frame of about unit height.

Knows nothing of pixels, exposure or findings: `phantom_render` draws what stands here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Bone:
    """One bone in projection: a tube or a pebble of cortex around marrow.

    Attributes:
        outline: float [N, 2], closed polygon of (x, y), y pointing down.
        axis: float [M, 2], points along its middle, where findings may sit.
        half_width: half of its width at the middle; also the radius of the tube that is projected.
        cortex: thickness of the cortex as a share of `half_width`.
        density: attenuation relative to a long bone.
        hosts_findings: whether a finding may be planted in it.
    """

    outline: np.ndarray
    axis: np.ndarray
    half_width: float
    cortex: float = 0.3
    density: float = 1.0
    hosts_findings: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Tissue:
    """Soft tissue around a line: float [M, 2] and a radius."""

    line: np.ndarray
    radius: float


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """All of a study type, centred on the origin, and the (width, height) of the frame that an exposure takes."""

    bones: tuple[Bone, ...]
    tissues: tuple[Tissue, ...]
    frame: tuple[float, float]

    def transformed(self, matrix: np.ndarray) -> "Anatomy":
        """The same after an affine map float [2, 3]; lengths are scaled by the root of its determinant."""
        scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))

        def mapped(points: np.ndarray) -> np.ndarray:
            return points @ matrix[:, :2].T + matrix[:, 2]

        return Anatomy(
            bones=tuple(
                replace(bone, outline=mapped(bone.outline), axis=mapped(bone.axis), half_width=bone.half_width * scale)
                for bone in self.bones
            ),
            tissues=tuple(Tissue(mapped(tissue.line), tissue.radius * scale) for tissue in self.tissues),
            frame=self.frame,
        )


def build_anatomy(study_type: str, rng: np.random.Generator) -> Anatomy:
    """Draws the anatomy of one person for a study type (`domain.STUDY_TYPES`)."""
    return _BUILDERS[study_type](rng)


def _points(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, dtype=float)


def _direction(degrees: float) -> np.ndarray:
    """Unit vector at an angle from straight up, clockwise."""
    angle = np.deg2rad(degrees)
    return np.array([np.sin(angle), -np.cos(angle)])


def _shaft(
    start: np.ndarray | tuple[float, float],
    end: np.ndarray | tuple[float, float],
    half_width: float,
    flare: tuple[float, float] = (1.4, 1.4),
    bow: float = 0.0,
    cortex: float = 0.3,
    density: float = 1.0,
    hosts_findings: bool = True,
) -> Bone:
    """A long bone: half width at the middle, factors by which its two ends flare, sideways bow as a share of length."""
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    along = end - start
    length = float(np.hypot(*along))
    across = np.array([-along[1], along[0]]) / length
    t = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 33))  # dense at the rounded ends
    axis = start + t[:, None] * along + (bow * length * np.sin(np.pi * t))[:, None] * across
    reach = max(0.16, min(0.3, 2.2 * half_width / length))
    width = half_width * (
        1 + (flare[0] - 1) * np.exp(-((t / reach) ** 2)) + (flare[1] - 1) * np.exp(-(((1 - t) / reach) ** 2))
    )
    cap = min(0.3, 1.1 * half_width / length)  # share of the length over which an end is rounded
    nearest_end = np.minimum(t, 1 - t)
    width *= np.sqrt(np.clip(1 - (1 - np.minimum(nearest_end / cap, 1)) ** 3, 0, 1))
    offset = width[:, None] * across
    inner = (t > 0.04) & (t < 0.96)
    return Bone(
        np.concatenate([axis + offset, (axis - offset)[::-1]]), axis[inner], half_width, cortex, density, hosts_findings
    )


def _pebble(
    centre: tuple[float, float] | np.ndarray,
    radii: tuple[float, float],
    rng: np.random.Generator,
    tilt_deg: float = 0.0,
    cortex: float = 0.18,
    hosts_findings: bool = True,
) -> Bone:
    """A short bone: an ellipse with a slightly irregular outline."""
    theta = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 1 + sum(
        rng.normal(0, 0.07 / order) * np.cos(order * theta + rng.uniform(0, 2 * np.pi)) for order in (2, 3, 4)
    )
    ellipse = np.stack([radii[0] * radius * np.cos(theta), radii[1] * radius * np.sin(theta)], axis=1)
    angle = np.deg2rad(tilt_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.asarray(centre, dtype=float)
    return Bone(ellipse @ turn.T + middle, middle[None], min(radii), cortex, hosts_findings=hosts_findings)


def _ray(
    base: np.ndarray, degrees: float, lengths: tuple[float, ...], half_width: float, bend: float
) -> tuple[list[Bone], Tissue]:
    """Bones of a finger from its base outwards, with joint gaps between them, and its soft tissue."""
    bones, line, point = [], [base], base
    for index, length in enumerate(lengths):
        heading = _direction(degrees + bend * index)
        end = point + length * heading
        thin = half_width * (1 - 0.12 * index)
        bones.append(_shaft(point, end, thin, flare=(1.55, 1.45), cortex=0.36))
        point = end + 0.45 * half_width * heading
        line.append(end)
    return bones, Tissue(np.array(line), 2.4 * half_width)


def _carpus(centre: tuple[float, float], scale: float, rng: np.random.Generator) -> list[Bone]:
    """Eight carpal bones in two rows, and the ends of radius and ulna that run out of the picture below."""
    x, y = centre
    bones = []
    for row, (height, places) in enumerate(
        ((0.030, (-0.085, -0.028, 0.028, 0.08)), (-0.036, (-0.09, -0.033, 0.022, 0.082)))
    ):
        for index, place in enumerate(places):
            arch = 0.018 * np.cos(2.4 * (index - 1.5) / 1.5)
            radii = (scale * 0.0275 * rng.uniform(0.9, 1.1), scale * (0.031 + 0.004 * row) * rng.uniform(0.92, 1.08))
            at = (x + scale * place, y + scale * (height - arch + 0.012))
            bones.append(_pebble(at, radii, rng, rng.uniform(-25, 25)))
    top = y + scale * 0.085
    bones.append(
        _shaft((x - 0.048 * scale, top), (x - 0.035 * scale, top + 0.75), 0.030 * scale, (2.0, 1.2), cortex=0.32)
    )
    bones.append(
        _shaft(
            (x + 0.068 * scale, top + 0.018 * scale),
            (x + 0.05 * scale, top + 0.78),
            0.021 * scale,
            (1.5, 1.2),
            cortex=0.32,
        )
    )
    return bones


def _hand(rng: np.random.Generator) -> Anatomy:
    bones, tissues = _carpus((0.0, 0.345), 1.0, rng), []
    spread, bend = rng.uniform(0.7, 1.3), rng.uniform(-3, 3)
    fingers = (
        ((-0.078, 0.265), -13, (0.245, 0.16, 0.095, 0.07)),
        ((-0.026, 0.258), -4, (0.24, 0.175, 0.115, 0.075)),
        ((0.026, 0.265), 5, (0.22, 0.165, 0.11, 0.075)),
        ((0.072, 0.28), 15, (0.20, 0.13, 0.08, 0.068)),
        ((-0.115, 0.305), -42, (0.165, 0.12, 0.09)),
    )
    for base, degrees, lengths in fingers:
        ray, tissue = _ray(np.array(base), degrees * spread, lengths, rng.uniform(0.0175, 0.0205), bend)
        bones += ray
        tissues.append(tissue)
    tissues += [Tissue(_points((-0.01, 0.3), (-0.01, 0.12)), 0.13), Tissue(_points((0, 0.33), (0.01, 0.9)), 0.11)]
    return Anatomy(tuple(bones), tuple(tissues), (0.80, 1.06))


def _finger(rng: np.random.Generator) -> Anatomy:
    bend = rng.uniform(-5, 5)
    half_width = rng.uniform(0.042, 0.05)
    bones, tissue = _ray(np.array([0.0, 0.28]), rng.uniform(-3, 3), (0.34, 0.22, 0.15), half_width, bend)
    bones.append(_shaft((0.0, 0.31), (0.0, 0.95), 1.05 * half_width, (1.6, 1.3), cortex=0.36))
    tissues = [tissue, Tissue(_points((0.0, 0.3), (0.0, 1.0)), 0.17)]
    for side in (-1, 1):
        if rng.random() < 0.5:  # a neighbour finger reaches into the picture
            base = np.array([side * 0.235, 0.40 + rng.uniform(0, 0.1)])
            neighbour, flesh = _ray(base, side * rng.uniform(2, 9), (0.33, 0.21, 0.14), half_width, bend)
            bones += [replace(bone, hosts_findings=False) for bone in neighbour]
            tissues.append(flesh)
    return Anatomy(tuple(bones), tuple(tissues), (0.50, 1.06))


def _wrist(rng: np.random.Generator) -> Anatomy:
    scale = 2.15
    bones = _carpus((0.0, 0.03), scale, rng)
    for place, degrees in zip((-0.22, -0.15, -0.05, 0.05, 0.145), (-40, -10, -3, 4, 12), strict=True):
        base = np.array([place, -0.125 + 0.55 * abs(place + 0.03) ** 1.5])
        bones.append(_shaft(base, base + 0.48 * _direction(degrees), 0.036, (1.6, 1.4), cortex=0.36))
    tissues = (
        Tissue(_points((0, -0.9), (0, -0.15)), 0.30),
        Tissue(_points((0, -0.1), (0, 0.95)), 0.235),
        Tissue(_points((-0.2, -0.1), (-0.45, -0.4)), 0.09),
    )
    return Anatomy(tuple(bones), tissues, (0.74, 1.02))


def _forearm(rng: np.random.Generator) -> Anatomy:
    bow = rng.uniform(0.02, 0.05)
    bones = [
        _shaft((-0.05, -0.36), (-0.055, 0.40), 0.026, (1.35, 2.1), bow=bow, cortex=0.42),
        _shaft((0.035, -0.43), (0.05, 0.40), 0.026, (2.0, 1.25), bow=-0.4 * bow, cortex=0.42),
        _shaft((0.0, -1.1), (-0.005, -0.405), 0.045, (1.2, 2.1), cortex=0.36, hosts_findings=False),
    ]
    bones += [replace(bone, hosts_findings=False) for bone in _carpus((-0.01, 0.47), 0.95, rng)[:8]]
    tissues = (
        Tissue(_points((0, -0.9), (0, -0.3)), 0.16),
        Tissue(_points((0, -0.3), (0, 0.25)), 0.14),
        Tissue(_points((0, 0.1), (0, 0.9)), 0.115),
    )
    return Anatomy(tuple(bones), tissues, (0.40, 1.06))


def _humerus(rng: np.random.Generator) -> Anatomy:
    width = rng.uniform(0.040, 0.048)
    bones = (
        _pebble((-0.035, -0.40), (0.082, 0.085), rng, cortex=0.12),
        _shaft((0.0, -0.42), (0.0, 0.43), width, (1.5, 2.1), bow=rng.uniform(-0.02, 0.02), cortex=0.42),
        _pebble((-0.15, -0.385), (0.022, 0.075), rng, hosts_findings=False),
        _shaft((-0.25, -0.54), (0.05, -0.525), 0.022, (1.3, 1.3), hosts_findings=False),
        _shaft((-0.035, 0.455), (-0.05, 1.1), 0.028, (1.6, 1.2), hosts_findings=False),
        _shaft((0.04, 0.445), (0.05, 1.1), 0.033, (1.8, 1.2), hosts_findings=False),
    )
    tissues = (
        Tissue(_points((-0.15, -0.5), (0, -0.33)), 0.2),
        Tissue(_points((0, -0.4), (0, 0.9)), 0.155),
    )
    return Anatomy(bones, tissues, (0.44, 1.08))


def _elbow(rng: np.random.Generator) -> Anatomy:
    flexion = rng.uniform(4, 22) if rng.random() < 0.5 else rng.uniform(70, 100)
    heading, across = _direction(180 - flexion), _direction(90 - flexion)
    joint = np.array([-0.12 * flexion / 90, 0.02])
    upper = joint + 0.8 * _direction(rng.uniform(-6, 6))
    side = np.cos(np.deg2rad(flexion))
    radial = joint + 0.105 * heading - 0.085 * across
    ulnar = joint + (0.02 + 0.05 * side) * heading + (0.07 + 0.02 * side) * across
    bones = (
        _shaft(upper, joint + 0.07 * _direction(180), 0.062, (1.2, 1.55 + 0.65 * side), cortex=0.4),
        _shaft(radial, radial + 0.9 * heading, 0.040, (1.5, 1.3), bow=0.02, cortex=0.36),
        _shaft(ulnar - 0.09 * heading, ulnar + 0.9 * heading, 0.045, (1.9, 1.2), cortex=0.38),
    )
    tissues = (Tissue(np.array([upper, joint]), 0.2), Tissue(np.array([joint, joint + 0.9 * heading]), 0.185))
    return Anatomy(bones, tissues, (0.86, 0.98))


def _shoulder(rng: np.random.Generator) -> Anatomy:
    abduction = rng.uniform(-8, 30)
    head = np.array([0.16, -0.10])
    shaft_end = head + 0.85 * _direction(180 - abduction)
    scapula = _points(
        (-0.02, -0.14), (-0.03, 0.03), (-0.1, 0.3), (-0.2, 0.42), (-0.27, 0.1), (-0.26, -0.16), (-0.1, -0.2)
    )
    bones = [
        Bone(scapula, scapula[3:4], 0.06, cortex=0.12, density=0.45, hosts_findings=False),
        _pebble((0.0, -0.07), (0.036, 0.105), rng, 8),
        _pebble(head, (0.125, 0.13), rng, cortex=0.1),
        _shaft(head + 0.02 * _direction(180), shaft_end, 0.056, (1.65, 1.3), cortex=0.42),
        _shaft((-0.22, -0.2), (0.2, -0.30), 0.028, (1.2, 1.5), bow=-0.05, cortex=0.32),
        _shaft((-0.65, -0.22), (0.05, -0.335), 0.028, (1.2, 1.3), bow=rng.uniform(-0.06, 0.06), cortex=0.36),
    ]
    for index in range(4):
        start = np.array([-0.7, -0.12 + 0.15 * index])
        bones.append(
            _shaft(start, start + np.array([0.42, 0.16]), 0.018, (1, 1), bow=-0.16, density=0.5, hosts_findings=False)
        )
    tissues = (
        Tissue(_points((-0.6, 0.25), (-0.35, 0.25)), 0.42),
        Tissue(_points((-0.5, -0.2), (0.13, -0.12)), 0.22),
        Tissue(np.array([head, shaft_end]), 0.17),
    )
    return Anatomy(tuple(bones), tissues, (0.98, 0.92))


_BUILDERS: dict[str, Callable[[np.random.Generator], Anatomy]] = {
    "elbow": _elbow,
    "finger": _finger,
    "forearm": _forearm,
    "hand": _hand,
    "humerus": _humerus,
    "shoulder": _shoulder,
    "wrist": _wrist,
}
