import numpy as np
import pytest

from mura_ray.model.cam import upscale_map
from mura_ray.stats.overlap import (
    GRID,
    candidate_thresholds,
    coverage,
    energy_in_boxes,
    hot_iou,
    own_iou,
    upscaled,
)

FINE = 2000


def smooth_map(seed: int, side: int = 10) -> np.ndarray:
    """A map such as networks draw: one hump over a restless ground around zero."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    hump = 8 * np.exp(-((x - generator.random()) ** 2 + (y - generator.random()) ** 2) / 0.03)
    return (hump + generator.normal(-0.5, 1, (side, side))).astype(np.float32)


def random_boxes(seed: int, number: int = 3, smallest: float = 0.03) -> np.ndarray:
    generator = np.random.default_rng(seed)
    corner, size = generator.random((number, 2)) * 0.7, smallest + generator.random((number, 2)) * 0.25
    return np.concatenate([corner, corner + size], axis=1)


def fine_mask(boxes: np.ndarray) -> np.ndarray:
    centres = (np.arange(FINE) + 0.5) / FINE
    x, y = centres[None, :], centres[:, None]
    return np.any([(box[0] < x) & (x < box[2]) & (box[1] < y) & (y < box[3]) for box in boxes], axis=0)


def test_maps_are_upscaled_as_overlays_are():
    maps = [smooth_map(0), smooth_map(1)]
    for cam, grid in zip(maps, upscaled(maps), strict=True):
        np.testing.assert_allclose(grid.reshape(GRID, GRID), upscale_map(cam, GRID, GRID), atol=1e-5)


def test_coverage_is_exact_for_boxes_that_overlap_and_end_inside_tiles():
    tile = 1 / GRID
    boxes = np.array([[0.25 * tile, 0, 1.5 * tile, tile], [tile, 0.5 * tile, 2 * tile, 2 * tile]])
    grid = coverage(boxes).reshape(GRID, GRID)
    expected = np.zeros((GRID, GRID))
    expected[0, :2] = 0.75, 0.5 + 0.25
    expected[1, 1] = 1
    np.testing.assert_allclose(grid, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_coverage_adds_up_to_the_area_of_the_union(seed: int):
    boxes = random_boxes(seed, 5)
    assert coverage(boxes).mean() == pytest.approx(fine_mask(boxes).mean(), abs=1e-3)


def test_what_lies_outside_the_view_is_cut_off_and_a_box_without_area_covers_nothing():
    half_outside = coverage(np.array([[-0.5, 0.25, 0.5, 0.5]]))
    np.testing.assert_array_equal(half_outside, coverage(np.array([[0, 0.25, 0.5, 0.5]])))
    assert half_outside.mean() == pytest.approx(0.125)
    assert coverage(np.array([[0.3, 0.3, 0.3, 0.8]])).sum() == 0
    nothing = coverage(np.array([[1.2, 0.1, 1.4, 0.3]]))[None]
    assert nothing.sum() == 0
    assert hot_iou(np.zeros((1, GRID**2), np.float32), nothing, np.array([1.0]))[0, 0] == 0


@pytest.mark.parametrize("seed", range(6))
def test_energy_agrees_with_a_twentyfold_finer_grid(seed: int):
    cam, boxes = smooth_map(seed), random_boxes(seed)
    positive = np.maximum(upscale_map(cam, FINE, FINE), 0).astype(np.float64)
    expected = positive[fine_mask(boxes)].sum() / positive.sum()
    assert 0.01 < expected < 0.99
    assert energy_in_boxes(upscaled([cam]), coverage(boxes)[None])[0, 0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("seed", range(6))
def test_iou_agrees_with_a_twentyfold_finer_grid(seed: int):
    cam, boxes = smooth_map(seed), random_boxes(seed, smallest=0.1)
    hot, mask = upscale_map(cam, FINE, FINE) > 1.5, fine_mask(boxes)
    found = hot_iou(upscaled([cam]), coverage(boxes)[None], np.array([1.5]))[0, 0]
    assert found == pytest.approx((hot & mask).sum() / (hot | mask).sum(), abs=0.01)


def test_energy_and_iou_are_indexed_map_then_boxes():
    left, right = np.zeros((10, 10), np.float32), np.zeros((10, 10), np.float32)
    left[:, :3], right[:, 7:] = 1, 1
    covered = np.stack([coverage(np.array([[0, 0, 0.4, 1]])), coverage(np.array([[0, 0, 1, 1]]))])
    energy = energy_in_boxes(upscaled([left, right]), covered)
    np.testing.assert_allclose(energy, [[1, 1], [0, 1]], atol=1e-6)
    iou = hot_iou(upscaled([left, right]), covered, np.array([0.5, 0.5]))
    np.testing.assert_allclose(iou, [[0.3 / 0.4, 0.3], [0, 0.3]], atol=1e-6)


def test_what_speaks_against_an_abnormality_is_no_energy():
    against = -np.ones((10, 10), np.float32)
    against[:5] = 1
    lower_half = coverage(np.array([[0, 0.55, 1, 1]]))[None]
    assert energy_in_boxes(upscaled([against]), lower_half)[0, 0] == 0
    assert energy_in_boxes(upscaled([-np.ones((10, 10))]), lower_half)[0, 0] == 0


def test_own_iou_is_the_iou_at_each_threshold():
    values = upscaled([smooth_map(seed) for seed in range(5)])
    covered = np.stack([coverage(random_boxes(seed)) for seed in range(5)])
    thresholds = candidate_thresholds(values)
    assert (np.diff(thresholds) > 0).all()
    curves = own_iou(values, covered, thresholds)
    assert np.ptp(curves, axis=1).min() > 0.02
    for place, threshold in enumerate(thresholds):
        expected = np.diag(hot_iou(values, covered, np.full(5, threshold)))
        np.testing.assert_allclose(curves[:, place], expected, atol=1e-5)


def test_thresholds_leave_from_half_to_a_thousandth_of_the_area_hot():
    values = upscaled([smooth_map(seed) for seed in range(5)])
    thresholds = candidate_thresholds(values)
    shares = [(values > threshold).mean() for threshold in thresholds[[0, -1]]]
    assert shares == pytest.approx([0.5, 0.001], rel=0.02)
