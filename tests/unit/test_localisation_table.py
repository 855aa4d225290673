from collections.abc import Sequence

import numpy as np
import pytest

from mura_ray.stats.estimates import Estimate
from mura_ray.stats.localisation import BoxedView, pointing_game
from mura_ray.stats.localisation_table import MEASURES, SIZES, Localisation, centre_map, localisation
from mura_ray.stats.overlap import GRID, candidate_thresholds, coverage, energy_in_boxes, own_iou, upscaled


def hump(x: float, y: float, spread: float = 0.12, height: float = 8) -> np.ndarray:
    """A map that is hot around one place and cold elsewhere."""
    rows, columns = (np.mgrid[:10, :10] + 0.5) / 10
    return (height * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2)) - 1).astype(np.float32)


def views_of(number: int, *, right: float, seed: int = 0, side: float = 0.16, copies: int = 1) -> list[BoxedView]:
    """Views of two types with one box each; that share of the maps is hot on it, the others elsewhere."""
    generator = np.random.default_rng(seed)
    views = []
    for index in range(number):
        x, y = generator.uniform(0.15, 0.85, 2)
        at = (x, y) if generator.random() < right else tuple(generator.uniform(0.15, 0.85, 2))
        box = np.array([[x - side / 2, y - side / 2, x + side / 2, y + side / 2]])
        views += [BoxedView(("hand", "wrist")[index % 2], f"p{index}", hump(*at), box)] * copies
    return views


def row_of(rows: Sequence[Localisation], measure: str, size: str = "all", source: str = "ensemble") -> Localisation:
    [row] = [row for row in rows if (row.source, row.measure, row.size) == (source, measure, size)]
    return row


@pytest.fixture(scope="module")
def good() -> list[Localisation]:
    return localisation({"ensemble": views_of(60, right=0.9)})


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def number(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value


def test_a_row_for_each_source_measure_and_size_in_their_order():
    views = views_of(20, right=1)
    flipped = [BoxedView(v.study_type, v.patient_id, v.cam[::-1], v.boxes) for v in views]
    rows = localisation({"ensemble": views, "trial-b": flipped})
    assert [(row.source, row.measure, row.size) for row in rows] == [
        (source, measure, size) for source in ("ensemble", "trial-b") for measure in MEASURES for size in SIZES
    ]
    assert number(row_of(rows, "energy").value) > number(row_of(rows, "energy", source="trial-b").value)


@pytest.mark.parametrize("measure", MEASURES)
def test_maps_on_their_findings_are_above_both_baselines(good: list[Localisation], measure: str):
    row = row_of(good, measure)
    assert (row.num_views, row.num_patients) == (60, 60)
    assert row.permuted is not None
    assert row.centre is not None
    assert number(row.above_permuted) == pytest.approx(number(row.value) - row.permuted)
    assert number(row.above_centre) == pytest.approx(number(row.value) - row.centre)
    assert bounds(row.above_permuted)[0] > 0
    assert bounds(row.above_centre)[0] > 0
    low, high = bounds(row.value)
    assert 0 < low < number(row.value) < high < 1


@pytest.mark.parametrize("measure", MEASURES)
def test_maps_that_know_nothing_are_not_above_permuted_boxes(measure: str):
    row = row_of(localisation({"ensemble": views_of(60, right=0)}), measure)
    low, high = bounds(row.above_permuted)
    assert low < 0 < high


@pytest.mark.parametrize("measure", MEASURES)
def test_the_centre_map_is_its_own_baseline(measure: str):
    views = [BoxedView(v.study_type, v.patient_id, centre_map((10, 10)), v.boxes) for v in views_of(60, right=0)]
    row = row_of(localisation({"ensemble": views}), measure)
    assert number(row.value) == pytest.approx(row.centre, abs=2e-3)
    assert number(row.above_centre) == pytest.approx(0, abs=2e-3)


def test_pointing_agrees_with_the_pointing_game(good: list[Localisation]):
    game, row = pointing_game(views_of(60, right=0.9)), row_of(good, "pointing")
    assert number(row.value) == pytest.approx(game.rate)
    assert row.permuted == pytest.approx(game.baseline)


def test_energy_is_the_mean_over_the_views(good: list[Localisation]):
    shares = [
        energy_in_boxes(upscaled([view.cam]), coverage(view.boxes)[None])[0, 0] for view in views_of(60, right=0.9)
    ]
    assert number(row_of(good, "energy").value) == pytest.approx(np.mean(shares), abs=1e-6)


def test_iou_is_the_best_over_the_thresholds_and_names_its_own(good: list[Localisation]):
    views = views_of(60, right=0.9)
    values, covered = upscaled([v.cam for v in views]), np.stack([coverage(v.boxes) for v in views])
    thresholds = candidate_thresholds(values)
    means = own_iou(values, covered, thresholds).mean(axis=0)
    row = row_of(good, "iou")
    assert number(row.value) == pytest.approx(means.max(), abs=1e-6)
    assert row.threshold == pytest.approx(thresholds[means.argmax()])
    assert row_of(good, "energy").threshold is row_of(good, "iou_held_out").threshold is None


def test_a_patient_has_no_part_in_the_threshold_that_its_views_are_held_to():
    # One patient's many views are twice as hot as all others': the best threshold for all is made for them.
    few, many = views_of(8, right=1), views_of(12, right=1, seed=1)
    many = [BoxedView(v.study_type, "one", 2 * v.cam, v.boxes) for v in many]
    rows = localisation({"ensemble": [*few, *many]})
    values = upscaled([v.cam for v in [*few, *many]])
    covered = np.stack([coverage(v.boxes) for v in [*few, *many]])
    curves = own_iou(values, covered, candidate_thresholds(values))
    ends = [curves[8:, curves[:8].mean(axis=0).argmax()]]
    ends += [curves[i, np.delete(curves, i, axis=0).mean(axis=0).argmax()] for i in range(8)]
    assert number(row_of(rows, "iou_held_out").value) == pytest.approx(np.hstack(ends).mean(), abs=1e-6)
    assert number(row_of(rows, "iou_held_out").value) < number(row_of(rows, "iou").value)


def test_findings_are_told_apart_by_the_share_of_the_view_that_they_cover():
    sides = {"below 1 %": 0.08, "1 to 5 %": 0.2, "above 5 %": 0.3}
    views = [
        BoxedView(v.study_type, f"{size}{v.patient_id}", v.cam, v.boxes)
        for size, side in sides.items()
        for v in views_of(12 if side < 0.3 else 6, right=1, side=side)
    ]
    rows = localisation({"ensemble": views})
    assert [row_of(rows, "energy", size).num_views for size in SIZES] == [30, 12, 12, 6]
    energies = [number(row_of(rows, "energy", size).value) for size in sides]
    assert energies == sorted(energies)
    assert len({row_of(rows, "iou", size).threshold for size in SIZES}) == 1


def test_two_boxes_count_as_the_area_they_cover_together():
    halves = np.array([[0.4, 0.4, 0.5, 0.6], [0.45, 0.4, 0.6, 0.6]])  # 4 % together; 5 % if added
    views = [BoxedView("hand", f"p{i}", hump(0.5, 0.5), halves) for i in range(6)]
    assert row_of(localisation({"ensemble": views}), "energy", "1 to 5 %").num_views == 6


def test_copies_of_a_patients_views_do_not_narrow_the_interval():
    def width(views: list[BoxedView]) -> float:
        low, high = bounds(row_of(localisation({"ensemble": views}), "energy").value)
        return high - low

    whole = views_of(30, right=0.6, copies=6)
    split = [BoxedView(v.study_type, f"{v.patient_id}-{i}", v.cam, v.boxes) for i, v in enumerate(whole)]
    assert width(split) < 0.6 * width(whole)


def test_too_few_views_or_patients():
    few = localisation({"ensemble": views_of(4, right=1)})
    assert {(row.num_views, row.value, row.permuted, row.centre) for row in few if row.size == "all"} == {
        (4, Estimate(), None, None)
    }
    none = localisation({"ensemble": []})
    assert len(none) == len(MEASURES) * len(SIZES)
    assert {(row.num_views, row.value) for row in none} == {(0, Estimate())}
    one_patient = [BoxedView(v.study_type, "p", v.cam, v.boxes) for v in views_of(12, right=1)]
    assert row_of(localisation({"ensemble": one_patient}), "energy").value == Estimate()
    four = [BoxedView(v.study_type, f"p{i % 4}", v.cam, v.boxes) for i, v in enumerate(views_of(12, right=1))]
    row = row_of(localisation({"ensemble": four}), "energy")
    assert (row.num_views, row.num_patients) == (12, 4)
    assert row.value.value is not None
    assert row.value.low is row.above_permuted.low is None


def test_a_view_alone_of_its_type_and_size_is_left_out():
    views = views_of(12, right=1)
    alone = BoxedView("elbow", "e", views[0].cam, views[0].boxes)
    assert row_of(localisation({"ensemble": [*views, alone]}), "energy").num_views == 12


def test_refuses_a_map_that_is_not_finite_or_a_view_without_boxes():
    views = views_of(6, right=1)
    with pytest.raises(ValueError, match="not finite"):
        localisation({"ensemble": [*views, BoxedView("hand", "p", np.full((10, 10), np.nan), views[0].boxes)]})
    with pytest.raises(ValueError, match="no finite boxes"):
        localisation({"ensemble": [*views, BoxedView("hand", "p", views[0].cam, np.zeros((0, 4)))]})


def test_the_centre_map_is_a_gaussian_of_a_quarter_of_each_side():
    cam = centre_map((GRID, GRID))
    mid, off = GRID // 2, GRID // 2 + GRID // 4
    assert cam[mid, off] / cam[mid, mid] == pytest.approx(np.exp(-0.5), rel=0.02)
    assert centre_map((10, 5)).shape == (10, 5)
    np.testing.assert_allclose(centre_map((10, 5)), centre_map((10, 5))[::-1, ::-1])
