"""How a class activation map lies over boxes: the energy in them, and the intersection over union of its hot part.

A map is thought of as upscaled bilinearly to its view (align_corners=False, as overlays are) and read at the centres of
`GRID` x `GRID` equal tiles of the view. How much of a tile the boxes cover is exact, so that small boxes do not fall
between tiles: energies are right to 0.002, intersections over union to 0.02 for boxes of a map's cell or larger.
"""

from collections.abc import Sequence

import cv2
import numpy as np

GRID = 100

HOT_SHARES = np.geomspace(0.5, 1e-3, 60)
"""Shares of all views' area that the thresholds tried leave hot."""


def upscaled(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Maps, float [h, w] each, at the tiles' centres: float32 [n, GRID * GRID]."""
    size = (GRID, GRID)
    grids = [cv2.resize(cam.astype(np.float32), size, interpolation=cv2.INTER_LINEAR).ravel() for cam in maps]
    return np.stack(grids)


def coverage(boxes: np.ndarray) -> np.ndarray:
    """The share of each tile that the union of boxes covers.

    Args:
        boxes: [num_boxes, 4], left, top, right and bottom edge as shares of the view; what lies outside is cut off.

    Returns:
        float32 [GRID * GRID], row by row.
    """
    left, top, right, bottom = np.clip(boxes, 0, 1).T
    across, down = np.unique([left, right]), np.unique([top, bottom])
    x, y = (across[:-1] + across[1:]) / 2, (down[:-1] + down[1:]) / 2
    in_columns = (left[:, None] < x) & (x < right[:, None])
    in_rows = (top[:, None] < y) & (y < bottom[:, None])
    inside = (in_rows[:, :, None] & in_columns[:, None, :]).any(axis=0)  # [intervals down, intervals across]
    return (_in_tiles(down).T @ inside @ _in_tiles(across)).astype(np.float32).ravel()


def energy_in_boxes(values: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """The share of each map's positive part that lies in each view's boxes.

    A map without a positive part has none in any box: 0.

    Args:
        values: float32 [n, GRID * GRID], maps as `upscaled` gives them.
        covered: float32 [m, GRID * GRID], `coverage` of views.

    Returns:
        float64 [n, m], indexed [map, view with the boxes].
    """
    positive = np.maximum(values, 0)
    total = positive.sum(axis=1, dtype=np.float64)[:, None]
    return _share((positive @ covered.T).astype(np.float64), total)


def hot_iou(values: np.ndarray, covered: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Intersection over union of each map's part above its threshold with each view's boxes.

    Args:
        values: float32 [n, GRID * GRID], maps as `upscaled` gives them.
        covered: float32 [m, GRID * GRID], `coverage` of views.
        thresholds: of each map, in its unit, [n].

    Returns:
        float64 [n, m], indexed [map, view with the boxes].
    """
    hot = (values > thresholds[:, None]).astype(np.float32)
    both = (hot @ covered.T).astype(np.float64)
    return _share(both, hot.sum(axis=1)[:, None] + covered.sum(axis=1) - both)


def candidate_thresholds(values: np.ndarray) -> np.ndarray:
    """Thresholds to choose from, ascending, [T]: those that leave `HOT_SHARES` of all views' area hot."""
    return np.quantile(values, 1 - HOT_SHARES)


def own_iou(values: np.ndarray, covered: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """`hot_iou` of each map with its own view's boxes at every threshold.

    Args:
        values: float32 [n, GRID * GRID], maps as `upscaled` gives them.
        covered: float32 [n, GRID * GRID], `coverage` of the same views.
        thresholds: ascending, [T].

    Returns:
        float64 [n, T].
    """
    rows = []
    for value, cover in zip(values, covered, strict=True):
        passed = np.searchsorted(thresholds, value)  # how many of the thresholds each tile is above
        hot, both = (
            np.bincount(passed, weights, len(thresholds) + 1)[::-1].cumsum()[::-1][1:] for weights in (None, cover)
        )
        rows.append(_share(both, hot + cover.sum() - both))
    return np.stack(rows)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _in_tiles(edges: np.ndarray) -> np.ndarray:
    """How much of each tile's side lies in each interval between edges: [intervals, GRID]."""
    tiles = np.arange(GRID) / GRID
    ends = np.minimum(edges[1:, None], tiles + 1 / GRID) - np.maximum(edges[:-1, None], tiles)
    return np.maximum(ends, 0) * GRID
