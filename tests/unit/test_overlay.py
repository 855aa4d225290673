import io

import numpy as np
import pytest
from PIL import Image

from mura_ray.render.overlay import FULL_LOGIT, FULL_OPACITY, encode_png, overlay, paint_level


@pytest.fixture(scope="module")
def gray() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 45), dtype=np.uint8)


def some_map(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (10, 10)).astype(np.float32)


@pytest.mark.parametrize("cam", [np.zeros((4, 4)), np.full((4, 4), -7.0), -np.abs(some_map())])
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


def test_doubling_a_map_never_paints_less():
    for seed in range(5):
        cam = some_map(seed)
        assert (paint_level(2 * cam) >= paint_level(cam)).all()
    assert (paint_level(2 * some_map()) > paint_level(some_map())).any()


def test_scale_is_fixed_and_saturates():
    values = np.array([-1, 0, FULL_LOGIT / 2, FULL_LOGIT, 1000], np.float32)
    assert paint_level(values).tolist() == [0, 0, 128, 255, 255]


def test_a_pixel_depends_on_its_value_alone(gray: np.ndarray):
    # A strong finding elsewhere must not make the same value fainter, nor its absence stronger (no scaling by range).
    weak = np.full((2, 1), 1.0, np.float32)
    beside_strong = np.array([[1.0], [40.0]], np.float32)
    assert np.array_equal(overlay(gray, weak)[:15], overlay(gray, beside_strong)[:15])


def test_full_paint_leaves_the_radiograph_visible():
    ramp = np.arange(256, dtype=np.uint8)[None]
    painted = overlay(ramp, np.full((1, 1), 100, np.float32)).astype(int)
    assert (np.diff(painted, axis=1) >= 0).all()
    np.testing.assert_allclose(painted[0, 255] - painted[0, 0], (1 - FULL_OPACITY) * 255, atol=1)


def test_stronger_is_lighter_on_a_dark_ground():
    values = np.linspace(0, FULL_LOGIT, 30, dtype=np.float32)
    luma = [overlay(np.zeros((1, 1), np.uint8), value.reshape(1, 1))[0, 0] @ [0.299, 0.587, 0.114] for value in values]
    assert (np.diff(luma) > 0).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_holds_the_pixels(shape: tuple[int, ...]):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), pixels)
