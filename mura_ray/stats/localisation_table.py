"""How class activation maps lie over findings: four measures, by size of finding and source, beside two baselines.

The baselines say what a map earns that knows nothing of its view: `permuted`, the same maps with the boxes of other
views of their type (and size); `centre`, one fixed map for all views, a Gaussian in the middle (`centre_map`).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mura_ray.stats.estimates import MIN_COUNT, Estimate, percentile_interval, resamples
from mura_ray.stats.localisation import BoxedView, check_view, hit_matrix, rate_and_baseline
from mura_ray.stats.overlap import candidate_thresholds, coverage, energy_in_boxes, hot_iou, own_iou, upscaled

MEASURES = {
    "pointing": "share of the views in which the map's maximum lies in a box, grown by half a map cell",
    "energy": "mean share of the map's positive part that lies in the boxes",
    "iou": "mean intersection over union of the boxes and the map above one threshold, chosen as the best for these "
    "very views: optimistic",
    "iou_held_out": "the same, each patient's views at the threshold that is the best for all other patients",
}

NOT_ESTIMABLE = Estimate()

ALL_SIZES = "all"
SIZES = {ALL_SIZES: (0.0, 1.0), "below 1 %": (0.0, 0.01), "1 to 5 %": (0.01, 0.05), "above 5 %": (0.05, 1.0)}
"""From and up to which share of their view's area the boxes of a view cover together; the lower bound is not in it."""

CENTRE_SPREAD = 0.25
"""Standard deviation of the centre map, as a share of the view's width and of its height."""


@dataclass(frozen=True, slots=True)
class Localisation:
    """How the maps of one source lie over the boxes of abnormal views: one measure, one size of findings.

    Every measure is within 0 and 1, and more is better. Views without another of their type and size are left out.

    Attributes:
        source: who drew the maps.
        measure: one of `MEASURES`.
        size: one of `SIZES`.
        num_views: abnormal views with boxes of that size.
        num_patients: whose these are.
        value: what the maps reach.
        permuted: what they reach with boxes of other views, at the same threshold.
        centre: what the centre map reaches with the views' own boxes, at its own best threshold.
        above_permuted: `value` less `permuted`, paired.
        above_centre: `value` less `centre`, paired.
        threshold: in the map's logits, of the measure "iou".
    """

    source: str
    measure: str
    size: str
    num_views: int
    num_patients: int
    value: Estimate = NOT_ESTIMABLE
    permuted: float | None = None
    centre: float | None = None
    above_permuted: Estimate = NOT_ESTIMABLE
    above_centre: Estimate = NOT_ESTIMABLE
    threshold: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Scores:
    """A measure of map i on the boxes of view j, float64 [n, n], and of the centre map on each view's, [n]."""

    matrix: np.ndarray
    centre: np.ndarray
    threshold: float | None = None


def localisation(sources: Mapping[str, Sequence[BoxedView]], *, seed: int = 0) -> list[Localisation]:
    """Measures the maps of each source, for all measures and sizes.

    The 95 % intervals are percentile intervals of a bootstrap that draws whole patients; thresholds are not chosen anew
    in its draws. In a simulation of 50 patients with one to three views they held the truth in 92 to 95 % of the cases.
    Fewer than `MIN_COUNT` views, or views of one patient alone: nothing is estimable; fewer than `MIN_COUNT` patients:
    no interval.

    Args:
        sources: by the name of who drew the maps (the ensemble, a member's trial), the same abnormal views, in the same
            order, each time with its maps.
        seed: of the bootstrap.

    Raises:
        ValueError: a map is not finite, or a view has no box.
    """
    for view in itertools.chain.from_iterable(sources.values()):
        check_view(view)
    views = next(iter(sources.values()), ())
    scores = _scores(sources) if views else {}
    patients = np.array([view.patient_id for view in views])
    types = np.array([view.study_type for view in views])
    areas = np.array([coverage(view.boxes).mean() for view in views])
    rows = []
    for size, (low, high) in SIZES.items():
        of_size = (areas > low) & (areas <= high) if size != ALL_SIZES else np.full(len(views), True)
        groups = [np.flatnonzero(of_size & (types == name)) for name in np.unique(types)]
        groups = [group for group in groups if len(group) > 1]
        order = np.concatenate([*groups, np.array([], dtype=np.int64)])
        num_views, num_patients = len(order), len(np.unique(patients[order]))
        names = [
            Localisation(source, measure, size, num_views, num_patients) for source in sources for measure in MEASURES
        ]
        if num_views < MIN_COUNT or num_patients < 2:
            rows += names
            continue
        draws = [np.ones((1, num_views), dtype=np.int64)]
        if num_patients >= MIN_COUNT:
            draws += resamples(patients[order], seed=seed)
        rows += [_measured(row, scores[row.source, row.measure], groups, draws) for row in names]
    return sorted(rows, key=lambda row: (list(sources).index(row.source), list(MEASURES).index(row.measure)))


def centre_map(shape: tuple[int, int]) -> np.ndarray:
    """A map whose mass lies at the view's centre: a Gaussian of `CENTRE_SPREAD`, read at the cells' centres.

    Args:
        shape: h, w of the map.

    Returns:
        float32 [h, w].
    """
    y, x = (((np.arange(side) + 0.5) / side - 0.5) / CENTRE_SPREAD for side in shape)
    return np.exp(-(y[:, None] ** 2 + x**2) / 2).astype(np.float32)


def _scores(sources: Mapping[str, Sequence[BoxedView]]) -> dict[tuple[str, str], _Scores]:
    """By source and measure."""
    first = next(iter(sources.values()))
    covered = np.stack([coverage(view.boxes) for view in first])
    patients = np.array([view.patient_id for view in first])
    scores = {}
    for source, views in sources.items():
        assert all(np.array_equal(view.boxes, other.boxes) for view, other in zip(views, first, strict=True)), source
        scores |= {(source, measure): found for measure, found in _scores_of(views, covered, patients).items()}
    return scores


def _scores_of(views: Sequence[BoxedView], covered: np.ndarray, patients: np.ndarray) -> dict[str, _Scores]:
    """By measure; every one that `MEASURES` names."""
    values = upscaled([view.cam for view in views])
    centred = [replace(view, cam=centre_map(view.cam.shape)) for view in views]
    centre = upscaled([view.cam for view in centred])
    thresholds, centre_thresholds = candidate_thresholds(values), candidate_thresholds(centre[:1])
    curves, centre_curves = own_iou(values, covered, thresholds), own_iou(centre, covered, centre_thresholds)
    best, held_out = _best(curves), _best_of_others(curves, patients)
    every = np.arange(len(views))
    return {
        "pointing": _Scores(hit_matrix(views), np.diag(hit_matrix(centred))),
        "energy": _Scores(energy_in_boxes(values, covered), np.diag(energy_in_boxes(centre, covered))),
        "iou": _Scores(
            hot_iou(values, covered, np.full(len(views), thresholds[best])),
            centre_curves[:, _best(centre_curves)],
            float(thresholds[best]),
        ),
        "iou_held_out": _Scores(
            hot_iou(values, covered, thresholds[held_out]),
            centre_curves[every, _best_of_others(centre_curves, patients)],
        ),
    }


def _best(curves: np.ndarray) -> int:
    """The place of the best mean of curves, [n, T]."""
    return int(curves.mean(axis=0).argmax())


def _best_of_others(curves: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """For each view, the place of the best mean of the other patients' curves, [n]."""
    _, patient_of = np.unique(patients, return_inverse=True)
    own = np.zeros((patient_of.max() + 1, curves.shape[1]))
    np.add.at(own, patient_of, curves)
    return (curves.sum(axis=0) - own).argmax(axis=1)[patient_of]


def _measured(
    row: Localisation, scores: _Scores, groups: Sequence[np.ndarray], draws: Sequence[np.ndarray]
) -> Localisation:
    """A row with its numbers.

    Args:
        row: its names and counts.
        scores: of the row's source and measure.
        groups: the places of the row's views, an array for each type.
        draws: how often each view is in a draw, in the order of the groups, [some draws, n]; in the first once.
    """
    blocks = [scores.matrix[np.ix_(group, group)] for group in groups]
    centres = [scores.centre[group] for group in groups]
    levels = np.concatenate(
        [[*rate_and_baseline(blocks, weights), _mean(centres, weights)] for weights in draws], axis=1
    )  # value, permuted and centre of each draw
    value, above_permuted, above_centre = (
        _estimate(draw) for draw in (levels[0], levels[0] - levels[1], levels[0] - levels[2])
    )
    return replace(
        row,
        value=value,
        permuted=float(levels[1, 0]),
        centre=float(levels[2, 0]),
        above_permuted=above_permuted,
        above_centre=above_centre,
        threshold=scores.threshold,
    )


def _mean(values: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The mean of each draw over the same views as in `rate_and_baseline`, [draws]."""
    total, start = np.zeros((2, len(weights))), 0
    for value in values:
        w = weights[:, start : start + len(value)]
        start += len(value)
        total += np.where((w > 0).sum(axis=1) > 1, [w.sum(axis=1), w @ value], 0)
    return total[1] / np.where(total[0] > 0, total[0], np.nan)


def _estimate(draws: np.ndarray) -> Estimate:
    """The number, which is first, with the interval of the draws after it."""
    return percentile_interval(float(draws[0]), draws[1:])
