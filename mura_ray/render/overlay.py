"""A class activation map painted over its view: the picture that shows why (paper, section 5).

One fixed scale in logits for all views, whatever the decision. Scaling each map to its own range would paint a hottest
spot on every normal view. Two values say nothing of where, and are not painted: what speaks against an abnormality
(below 0), and what the map says everywhere (its least value, where that is above 0).
"""

import io

import matplotlib
import numpy as np
from PIL import Image

from mura_ray.model.cam import upscale_map

FULL_LOGIT = 10.0
"""A map's value that is painted in full. A map's mean is the view's logit, bias aside, and a finding fills a small part
of its view, so the cells on it hold several times the logit that they make."""

FULL_OPACITY = 0.5
"""Of the strongest paint: the bone stays visible under it."""


def overlay(gray: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Paints a map over its view; where the map says nothing, the radiograph is left as it is.

    Args:
        gray: uint8 [H, W].
        cam: float32 [h, w], the raw map in logits.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    height, width = gray.shape
    return _PAINTED[gray, paint_level(cam, width, height)]


def paint_level(cam: np.ndarray, width: int, height: int) -> np.ndarray:
    """How strongly each pixel of a view is painted: 255 from `FULL_LOGIT` above the ground on, linear below.

    Args:
        cam: float32 [h, w], the raw map in logits.
        width: of the view, in pixels.
        height: of the view, in pixels.

    Returns:
        uint8 [height, width].
    """
    excess = upscale_map(cam, width, height) - ground(cam)
    return np.rint(np.clip(excess * (255 / FULL_LOGIT), 0, 255)).astype(np.uint8)


def ground(cam: np.ndarray) -> float:
    """The logit up to which a map is not painted: 0, or its least value where that is above 0."""
    return max(0.0, float(cam.min()))


def painted(cam: np.ndarray) -> tuple[float, float]:
    """How much of its view a map paints: the share of the pixels, and their mean strength over the whole view.

    Both are within 0 and 1, and the same for a view of any size; full strength is `FULL_OPACITY`.
    """
    level = paint_level(cam, *_GRID)
    return float((level > 0).mean()), float(level.mean() / 255)


_GRID = (128, 128)
"""Pixels in which painted shares are counted."""


def paint_colors() -> np.ndarray:
    """The color of each paint level, float64 [256, 3] from 0 to 255; its opacity is `FULL_OPACITY` * level / 255."""
    # The darkest third of the table is left out: faint paint in dark colors would look like shadow on the radiograph.
    return matplotlib.colormaps["inferno"](np.linspace(0.35, 1, 256))[:, :3] * 255


def _painted() -> np.ndarray:
    """The color of each gray value under each paint level: uint8 [256, 256, 3]."""
    strength = np.linspace(0, 1, 256)[:, None]
    gray = np.arange(256)[:, None, None]
    return np.rint(gray + FULL_OPACITY * strength * (paint_colors() - gray)).astype(np.uint8)


_PAINTED = _painted()


def encode_png(pixels: np.ndarray, compress_level: int = 6) -> bytes:
    """A PNG file of uint8 pixels, [H, W] gray or [H, W, 3] RGB; `compress_level` from 0, large, to 9, slow."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=compress_level)
    return file.getvalue()
