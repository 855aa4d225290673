import io

import numpy as np
import pytest
from PIL import Image

from mura_ray.render.overlay import FULL_LOGIT, FULL_OPACITY, encode_png, ground, overlay, paint_level, painted


@pytest.fixture(scope="module")
def gray() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 45), dtype=np.uint8)


def some_map(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (10, 10)).astype(np.float32)


@pytest.mark.parametrize(
    "cam",
    [np.zeros((4, 4)), np.full((4, 4), -7.0), -np.abs(some_map()), np.full((10, 10), 3.3), np.full((1, 1), 1e4)],
)
def test_a_map_without_evidence_paints_nothing(gray: np.ndarray, cam: np.ndarray):
    painted = overlay(gray, cam.astype(np.float32))
    assert painted.dtype == np.uint8
    assert np.array_equal(painted, np.repeat(gray[..., None], 3, axis=2))


def test_paint_is_where_the_map_is_positive_and_in_the_views_own_pixels():
    cam = np.full((2, 2), -4.0, np.float32)
    cam[0, 1] = 6  # top right
    painted = overlay(np.full((40, 90), 100, np.uint8), cam)
    changed = (painted != 100).any(axis=2)
    assert painted.shape == (40, 90, 3)
    assert changed[:10, 70:].all()
    assert not changed[:, :40].any()
    assert not changed[25:].any()


@pytest.mark.parametrize("offset", [-2, 0, 5, 30])
def test_doubling_a_map_never_paints_less(offset: float):
    for seed in range(5):
        cam = some_map(seed) + offset
        assert (paint_level(2 * cam, 40, 30) >= paint_level(cam, 40, 30)).all()
    assert (paint_level(2 * some_map(), 40, 30) > paint_level(some_map(), 40, 30)).any()


def test_scale_is_fixed_and_saturates():
    cam = np.array([[-1, 0, FULL_LOGIT / 2, FULL_LOGIT, 1000]], np.float32)
    assert paint_level(cam, 5, 1).tolist() == [[0, 0, 128, 255, 255]]


def test_what_a_map_says_everywhere_is_not_painted():
    cam = np.abs(some_map())
    cam[0, 0] = 0
    np.testing.assert_allclose(paint_level(cam + 6, 40, 30), paint_level(cam, 40, 30), atol=1)
    assert ground(some_map()) == 0  # evidence against an abnormality somewhere leaves nothing to take away


def test_a_finding_elsewhere_does_not_change_a_pixels_paint(gray: np.ndarray):
    weak, beside_strong = np.array([[-1.0], [1], [1]], np.float32), np.array([[-1.0], [1], [40]], np.float32)
    assert np.array_equal(overlay(gray, weak)[:30], overlay(gray, beside_strong)[:30])


def test_full_paint_leaves_the_radiograph_visible():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 2, axis=0)
    painted_ramp = overlay(ramp, np.array([[0], [100]], np.float32))[1].astype(int)
    assert (np.diff(painted_ramp, axis=0) >= 0).all()
    np.testing.assert_allclose(painted_ramp[255] - painted_ramp[0], (1 - FULL_OPACITY) * 255, atol=1)


def test_stronger_is_lighter_on_a_dark_ground():
    values = np.linspace(0, FULL_LOGIT, 30, dtype=np.float32)
    painted_black = overlay(np.zeros((1, 30), np.uint8), values[None])[0]
    luma = painted_black @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) > 0).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_holds_the_pixels(shape: tuple[int, ...]):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), pixels)


def test_painted_share_and_strength_of_a_view():
    half = np.full((2, 2), -2000, np.float32)
    assert painted(half) == (0, 0)
    half[0] = 2000
    share, strength = painted(half)
    assert share == pytest.approx(0.5, abs=0.03)
    assert strength == pytest.approx(share, abs=0.01)
    assert painted(np.array([[0, FULL_LOGIT / 10] * 2], np.float32))[1] < 0.1
