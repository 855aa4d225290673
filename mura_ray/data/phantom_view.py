"""One view of a synthetic study: its pose, its finding or harmless counterpart, its marker and its exposure."""

from dataclasses import dataclass

import numpy as np

from mura_ray.data.phantom_anatomy import Anatomy, Bone, build_anatomy
from mura_ray.data.phantom_findings import FINDINGS, Scene, Site, plant, plant_counterpart
from mura_ray.data.phantom_render import Exposure, develop, draw_marker, project
from mura_ray.domain import ABNORMAL, Box


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How plain findings are to see. Ranges are (lowest, highest).

    Attributes:
        size: of a finding, as a share of the root of the picture's area.
        strength: contrast of a finding and of its harmless counterpart.
        softness: of the edges of harmless things, as a share of their size: crisp ones look more like a finding.
        noise: standard deviation of the noise as a share of white.
        inverted: share of views with reversed polarity.
        distractors: share of views, normal or not, with one more harmless thing.
    """

    size: tuple[float, float]
    strength: tuple[float, float]
    softness: float
    noise: tuple[float, float]
    inverted: float
    distractors: float


DIFFICULTIES = {
    "easy": Difficulty((0.22, 0.27), (1.7, 2.2), 0.2, (0.01, 0.025), 0.04, 0.05),
    "medium": Difficulty((0.13, 0.20), (0.55, 0.85), 0.06, (0.015, 0.035), 0.12, 0.3),
    "hard": Difficulty((0.09, 0.15), (0.30, 0.55), 0.02, (0.02, 0.05), 0.2, 0.5),
}


@dataclass(frozen=True, slots=True)
class _Case:
    """What all views of a study share."""

    anatomy: Anatomy
    side: str
    kind: str
    bone: int
    place: int
    size: float
    strength: float


def render_view(
    study_type: str, label: int, difficulty: Difficulty, stream: tuple[int, ...], view: int
) -> tuple[np.ndarray, Box | None]:
    """Draws one view.

    Args:
        study_type: one of `domain.STUDY_TYPES`.
        label: 1 plants a finding, 0 its harmless counterpart.
        difficulty: one of `DIFFICULTIES`.
        stream: numbers that name the study's random stream.
        view: index of the view in its study.

    Returns:
        The picture, uint8 [H, W], and where its finding is, None when the label is 0.
    """
    case = _draw_case(study_type, difficulty, np.random.default_rng([*stream, 0]))
    rng = np.random.default_rng([*stream, 1 + view])
    width, height = _picture_size(case.anatomy.frame, rng)
    size = case.size * float(np.sqrt(width * height))
    focus = case.anatomy.bones[case.bone].axis[case.place]
    matrix = _pose(case, focus, (width, height), 0.5 * size, rng)
    anatomy = case.anatomy.transformed(matrix)
    scene = project(anatomy, (height, width), rng)
    site = _site(anatomy.bones[case.bone], case.place)
    if label == ABNORMAL:
        plant(case.kind, scene, site, size, case.strength, rng)
    else:
        _add_harmless(case.kind, scene, site, size, case.strength, difficulty, rng)
    if rng.random() < difficulty.distractors:
        _add_distractor(scene, case, anatomy, size, difficulty, rng)
    if rng.random() < 0.8:
        _add_marker(scene, case.side, rng)
    gray = develop(scene, _collimation(width, height, rng), _exposure(difficulty, rng), rng)
    return gray, _box(case.kind, site, size, (width, height)) if label == ABNORMAL else None


def _draw_case(study_type: str, difficulty: Difficulty, rng: np.random.Generator) -> _Case:
    anatomy = build_anatomy(study_type, rng)
    kind = FINDINGS[rng.integers(len(FINDINGS))]
    bone, place = _draw_place(anatomy, kind, rng)
    return _Case(
        anatomy=anatomy,
        side="LR"[rng.integers(2)],
        kind=kind,
        bone=bone,
        place=place,
        size=rng.uniform(*difficulty.size),
        strength=rng.uniform(*difficulty.strength),
    )


def _draw_place(anatomy: Anatomy, kind: str, rng: np.random.Generator) -> tuple[int, int]:
    """The point of an axis, as (bone, index), nearest to a uniform point of the frame: findings lie all over it."""
    frame = np.array(anatomy.frame)
    target = rng.uniform(-0.46, 0.46, 2) * frame
    best, chosen = np.inf, (0, 0)
    for number, bone in enumerate(anatomy.bones):
        if not bone.hosts_findings:
            continue
        candidates = _candidates(bone, kind)
        points = bone.axis[candidates]
        distance = np.hypot(*(points - target).T) + 10.0 * (np.abs(points) > 0.46 * frame).any(axis=1)
        if distance.min() < best:
            best, chosen = distance.min(), (number, int(candidates[distance.argmin()]))
    return chosen


def _candidates(bone: Bone, kind: str) -> np.ndarray:
    """Indices of a bone's axis where a finding of a kind may sit: at its ends, or away from them."""
    last = len(bone.axis) - 1
    if last == 0:
        return np.array([0])
    return np.array([0, last]) if kind == "degenerative" else np.arange(last // 5, last - last // 5 + 1)


def _site(bone: Bone, index: int) -> Site:
    axis = bone.axis
    if len(axis) == 1:
        return Site(axis[0], np.array([0.0, 1.0]), bone.half_width)
    along = axis[min(index + 1, len(axis) - 1)] - axis[max(index - 1, 0)]
    return Site(axis[index], along / np.hypot(*along), bone.half_width)


def _picture_size(frame: tuple[float, float], rng: np.random.Generator) -> tuple[int, int]:
    """(width, height): the frame's shape within some 15 %, two in five with 512 pixels on the long side."""
    long_side = 512 if rng.random() < 0.4 else int(rng.integers(320, 513))
    ratio = frame[0] / frame[1] * np.exp(rng.uniform(-0.15, 0.15))
    return (long_side, round(long_side / ratio)) if ratio > 1 else (round(long_side * ratio), long_side)


def _pose(
    case: _Case, focus: np.ndarray, picture: tuple[int, int], margin: float, rng: np.random.Generator
) -> np.ndarray:
    """Affine map float [2, 3] from the anatomy to pixels that keeps `focus` at least `margin` inside the picture."""
    extent = np.array(picture, dtype=float)
    scale = float(np.min(extent / case.anatomy.frame)) * rng.uniform(0.95, 1.15)
    angle = np.deg2rad(np.clip(rng.normal(0, 6), -15, 15))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    oblique = rng.uniform(0.85, 1.0) * (-1 if case.side == "L" else 1)
    linear = scale * turn @ np.diag([oblique, 1.0])
    centre = extent * (0.5 + rng.uniform(-0.06, 0.06, 2))
    at = linear @ focus + centre
    inside = np.minimum(margin + 0.06 * extent, 0.5 * extent)
    centre += np.clip(at, inside, extent - inside) - at
    return np.column_stack([linear, centre])


def _add_harmless(
    kind: str,
    scene: Scene,
    site: Site,
    size: float,
    strength: float,
    difficulty: Difficulty,
    rng: np.random.Generator,
) -> None:
    """Paints a finding's counterpart: jewellery and buttons lie at any angle, a canal crosses its bone at a slant."""
    angle = rng.uniform(0, np.pi) if kind == "hardware" else rng.uniform(-0.6, 0.6)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = Site(site.centre, np.array([[cos, -sin], [sin, cos]]) @ site.along, site.half_width)
    plant_counterpart(kind, scene, turned, size, strength, difficulty.softness, rng)


def _add_distractor(
    scene: Scene, case: _Case, anatomy: Anatomy, size: float, difficulty: Difficulty, rng: np.random.Generator
) -> None:
    kind = FINDINGS[rng.integers(len(FINDINGS))]
    bone, place = _draw_place(case.anatomy, kind, rng)
    site = _site(anatomy.bones[bone], place)
    _add_harmless(kind, scene, site, 0.8 * size, case.strength, difficulty, rng)


def _add_marker(scene: Scene, letter: str, rng: np.random.Generator) -> None:
    height, width = scene.bone.shape
    size = rng.uniform(0.045, 0.07) * max(width, height)
    x = width * (0.1 if rng.random() < 0.5 else 0.9) - 0.4 * size
    y = height * (0.12 if rng.random() < 0.5 else 0.92)
    draw_marker(scene, letter, (x, y), size)


def _collimation(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Corners of the open field: up to 5 % of a side is shut, or, on a third of the views, nothing."""
    shut = rng.uniform(-0.02, 0.05, 4) if rng.random() < 0.7 else np.full(4, -0.1)
    left, top, right, bottom = shut[0] * width, shut[1] * height, (1 - shut[2]) * width, (1 - shut[3]) * height
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    angle = np.deg2rad(rng.normal(0, 1.2))
    middle = corners.mean(axis=0)
    return (corners - middle) @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + middle


def _exposure(difficulty: Difficulty, rng: np.random.Generator) -> Exposure:
    return Exposure(
        kilovolt_factor=float(np.exp(rng.uniform(np.log(0.65), np.log(1.4)))),
        gamma=float(np.exp(rng.uniform(np.log(0.75), np.log(1.7)))),
        floor=rng.uniform(0.0, 0.12),
        ceiling=rng.uniform(0.75, 1.0),
        noise=rng.uniform(*difficulty.noise),
        inverted=bool(rng.random() < difficulty.inverted),
    )


def _box(kind: str, site: Site, size: float, picture: tuple[int, int]) -> Box:
    """The square of a finding, cut at the picture's edges."""
    low = np.maximum(np.floor(site.centre - 0.5 * size), 0)
    high = np.minimum(np.ceil(site.centre + 0.5 * size), picture)
    return Box(float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]), kind)
