import cv2
import numpy as np
import torch

from mura_ray.model.cam import class_activation_map, upscale_map


def test_hand_worked_map():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[10.0, 0.0], [0.0, 10.0]]]])  # [1, K = 2, 2, 2]
    cam = class_activation_map(features, torch.tensor([2.0, -0.5]))
    assert torch.equal(cam, torch.tensor([[[-3.0, 4.0], [6.0, 3.0]]]))


def test_mean_of_the_map_is_the_classifier_on_the_averaged_features():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 16, 5, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, generator=generator, dtype=torch.float64)
    cam = class_activation_map(features, weight)
    torch.testing.assert_close(cam.mean(dim=(1, 2)), features.mean(dim=(2, 3)) @ weight)


def test_upscaling_treats_cells_as_areas():
    # Centres of two cells over four pixels lie between pixels 0 and 1, and between 2 and 3.
    row = upscale_map(np.array([[0, 1]], np.float32), width=4, height=1)
    np.testing.assert_allclose(row, [[0, 0.25, 0.75, 1]])


def test_upscaling_to_a_view_that_is_not_square_equals_opencv():
    cam = np.random.default_rng(0).normal(0, 3, (10, 10)).astype(np.float32)
    upscaled = upscale_map(cam, width=321, height=512)
    assert upscaled.shape == (512, 321)
    assert upscaled.dtype == np.float32
    np.testing.assert_allclose(upscaled, cv2.resize(cam, (321, 512), interpolation=cv2.INTER_LINEAR), atol=1e-3)


def test_upscaling_keeps_the_range_and_a_constant():
    np.testing.assert_allclose(upscale_map(np.full((4, 4), -1.5, np.float32), 7, 9), -1.5)
    cam = np.array([[-2, 5], [0, 1]], np.float32)
    upscaled = upscale_map(cam, 50, 40)
    np.testing.assert_allclose([upscaled.min(), upscaled.max()], [-2, 5], atol=1e-6)
