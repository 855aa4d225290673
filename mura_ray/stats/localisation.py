"""Whether class activation maps point at the findings: the pointing game, against boxes of other views as chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mura_ray.stats.estimates import MIN_COUNT, Estimate, resamples


@dataclass(frozen=True, slots=True, eq=False)
class BoxedView:
    """An abnormal view: its raw map, [h, w], and its findings' boxes.

    Boxes are [num_boxes, 4], left, top, right and bottom edge, as shares of the view's width and height.
    """

    study_type: str
    patient_id: str
    cam: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True, slots=True)
class PointingGame:
    """How often a map's maximum lies in a box of its own view, and how often in one of another view of the type.

    `ratio` is the first divided by the second. Types with a single view have no other view and are left out.
    """

    num_views: int
    num_patients: int
    rate: float | None
    baseline: float | None
    ratio: Estimate
    left_out: tuple[str, ...]


def pointing_game(views: Sequence[BoxedView], *, seed: int = 0) -> PointingGame:
    """Plays the pointing game over abnormal views.

    A map is thought of as upscaled bilinearly to its view (align_corners=False); its maximum then is the centre of
    its largest cell. It hits if it lies in a box grown by half a cell to each side, which is: if the cell and the box
    touch. Where cells tie for the largest, the hit is the share of them that hit, so that a flat map earns chance.

    The baseline is the mean over all permutations of the boxes that give each map those of another view of its type,
    types weighed by their views. The ratio's 95 % interval is the percentile interval of a bootstrap that draws whole
    patients and computes rate and baseline anew in each draw. A baseline of zero, in any draw, leaves it not estimable,
    as do fewer than `MIN_COUNT` patients; fewer views leave everything so.

    Raises:
        ValueError: a map is not finite, or a view has no box.
    """
    by_type: dict[str, list[BoxedView]] = {}
    for view in views:
        check_view(view)
        by_type.setdefault(view.study_type, []).append(view)
    left_out = tuple(name for name, group in by_type.items() if len(group) == 1)
    groups = [group for group in by_type.values() if len(group) > 1]
    patients = np.array([view.patient_id for group in groups for view in group])
    num_views, num_patients = len(patients), len(np.unique(patients))
    if num_views < MIN_COUNT:
        return PointingGame(num_views, num_patients, None, None, Estimate(), left_out)
    hits = [hit_matrix(group) for group in groups]
    rate, baseline = (float(value[0]) for value in rate_and_baseline(hits, np.ones((1, num_views), dtype=np.int64)))
    ratio = _ratio(hits, patients, rate, baseline, seed) if baseline > 0 else Estimate()
    return PointingGame(num_views, num_patients, rate, baseline, ratio, left_out)


def hit_matrix(views: Sequence[BoxedView]) -> np.ndarray:
    """Whether the maximum of map i lies in a box of view j.

    Returns:
        float64 [n, n], within 0 and 1, indexed [map, view with the boxes].
    """
    left, top, right, bottom = np.concatenate([view.boxes for view in views]).T
    first_box = np.cumsum([0, *(len(view.boxes) for view in views[:-1])])
    rows = []
    for view in views:
        height, width = view.cam.shape
        row, column = np.nonzero(view.cam == view.cam.max())
        x, y = ((column + 0.5) / width)[:, None], ((row + 0.5) / height)[:, None]
        across = (left - 0.5 / width <= x) & (x <= right + 0.5 / width)
        down = (top - 0.5 / height <= y) & (y <= bottom + 0.5 / height)
        rows.append(np.logical_or.reduceat(across & down, first_box, axis=1).mean(axis=0))
    return np.stack(rows)


def rate_and_baseline(hits: Sequence[np.ndarray], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rate and baseline of each draw.

    Args:
        hits: the hit matrix of each type, float64 [n_T, n_T].
        weights: how often each view is in a draw, types in the order of `hits`, int64 [draws, sum of n_T].

    Returns:
        Two float64 [draws]. A view never lends its boxes to a copy of itself; a type of which a draw has no two
        different views is left out of it, as `pointing_game` does. NaN where that leaves no type.
    """
    total = np.zeros((3, len(weights)))  # views, their hits, their expected hits under permutation
    start = 0
    for matrix in hits:
        w = weights[:, start : start + len(matrix)]
        start += len(matrix)
        others = matrix - np.diag(np.diag(matrix))
        num = w.sum(axis=1)
        pairs = num**2 - (w**2).sum(axis=1)
        by_chance = np.divide(((w @ others) * w).sum(axis=1), pairs, out=np.zeros(len(w)), where=pairs > 0)
        total += np.where(pairs > 0, [num, w @ np.diag(matrix), num * by_chance], 0)
    views = np.where(total[0] > 0, total[0], np.nan)
    return total[1] / views, total[2] / views


def _ratio(hits: Sequence[np.ndarray], patients: np.ndarray, rate: float, baseline: float, seed: int) -> Estimate:
    value = rate / baseline
    if len(np.unique(patients)) < MIN_COUNT:
        return Estimate(value)
    draws = np.concatenate([rate_and_baseline(hits, weights) for weights in resamples(patients, seed=seed)], axis=1)
    rates, baselines = draws[:, ~np.isnan(draws[0])]
    if not (baselines > 0).all():
        return Estimate(value)
    low, high = np.percentile(rates / baselines, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def check_view(view: BoxedView) -> None:
    """Checks that a view has a map with a maximum, and a box.

    Raises:
        ValueError: it has not.
    """
    if view.cam.size == 0 or not np.isfinite(view.cam).all():
        raise ValueError(f"a map of patient {view.patient_id} ({view.study_type}) is empty or not finite: no maximum")
    if view.boxes.ndim != 2 or len(view.boxes) == 0 or not np.isfinite(view.boxes).all():
        raise ValueError(
            f"a view of patient {view.patient_id} ({view.study_type}) has no finite boxes: leave it out of the game"
        )
