import numpy as np
import pytest
import torch

from mura_ray.config import Augmentation
from mura_ray.data.augment import AugmentationParameters, _sampling_matrices, augment, augmentation_parameters, to_unit

NOTHING = Augmentation(inversion_probability=0, rotation_deg=0)
EVERYTHING = Augmentation(rotation_deg=30, scale=0.25, translation=0.1, brightness=0.2, contrast=0.5)
IDS = torch.arange(20_000) * 7 + 2**62


def random_images(number: int = 5, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (number, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def apply_to_all(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Makes `augment` do the same to every image."""

    def same(sample_ids: torch.Tensor, *_: object) -> AugmentationParameters:
        number = len(sample_ids)
        neutral = {
            "inverted": 0,
            "rotation_deg": 0,
            "scale": 1,
            "shift_x": 0,
            "shift_y": 0,
            "brightness": 0,
            "contrast": 1,
        }
        arrays = {name: np.full(number, float(value)) for name, value in {**neutral, **values}.items()}
        return AugmentationParameters(**{**arrays, "inverted": arrays["inverted"] > 0})

    monkeypatch.setattr("mura_ray.data.augment.augmentation_parameters", same)


def test_without_changes_it_is_division_by_255() -> None:
    images = random_images()
    result = augment(images, IDS[:5], seed=0, epoch=0, settings=NOTHING)
    assert result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), images.numpy().astype(np.float32) / np.float32(255))
    assert torch.equal(to_unit(images), result)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns_are_counter_clockwise(monkeypatch: pytest.MonkeyPatch, quarters: int) -> None:
    apply_to_all(monkeypatch, rotation_deg=90 * quarters)
    images = random_images()
    result = augment(images, IDS[:5], seed=0, epoch=0, settings=EVERYTHING)
    torch.testing.assert_close(result, torch.rot90(to_unit(images), quarters, (2, 3)), atol=2e-5, rtol=0)


def test_inversion_mirrors_left_to_right(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images()
    expected = to_unit(images).flip(3)
    always = Augmentation(inversion_probability=1, rotation_deg=0)
    torch.testing.assert_close(augment(images, IDS[:5], seed=0, epoch=0, settings=always), expected, atol=1e-5, rtol=0)
    apply_to_all(monkeypatch, inverted=1, rotation_deg=90)  # mirrored first, then turned
    turned = augment(images, IDS[:5], seed=0, epoch=0, settings=EVERYTHING)
    torch.testing.assert_close(turned, torch.rot90(expected, 1, (2, 3)), atol=2e-5, rtol=0)


def test_shifts_are_to_the_right_and_down_with_black_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    apply_to_all(monkeypatch, shift_x=0.25, shift_y=0.5)
    images = random_images()
    expected = torch.zeros(5, 1, 16, 16)
    expected[:, :, 8:, 4:] = to_unit(images)[:, :, :8, :12]
    result = augment(images, IDS[:5], seed=0, epoch=0, settings=EVERYTHING)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


def test_zooming_by_two_shows_the_middle_at_twice_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    apply_to_all(monkeypatch, scale=2)
    images = random_images()
    result = augment(images, IDS[:5], seed=0, epoch=0, settings=EVERYTHING)
    larger = torch.nn.functional.interpolate(to_unit(images), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(result, larger[:, :, 8:24, 8:24], atol=2e-5, rtol=0)


def test_images_that_are_not_square_turn_without_shear() -> None:
    parameters = augmentation_parameters(IDS[:1], 0, 0, Augmentation(inversion_probability=0, rotation_deg=30))
    matrix = _sampling_matrices(parameters, torch.Size([40, 80]))[0, :, :2]
    pixels = np.diag([40.0, 20.0]) @ matrix @ np.diag([1 / 40, 1 / 20])  # from half widths and heights to pixels
    np.testing.assert_allclose(pixels @ pixels.T, np.eye(2), atol=1e-6)


def test_contrast_works_around_mid_gray_and_brightness_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    apply_to_all(monkeypatch, contrast=1.5, brightness=0.1)
    images = torch.tensor([0, 51, 102, 153, 255], dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 4, 4)
    settings = Augmentation(inversion_probability=0, rotation_deg=0, contrast=0.5, brightness=0.5)
    result = augment(images, IDS[:5], seed=0, epoch=0, settings=settings)
    torch.testing.assert_close(result[:, 0, 0, 0], torch.tensor([0, 0.15, 0.45, 0.75, 1.0]))


def test_the_parameters_have_the_right_distribution() -> None:
    parameters = augmentation_parameters(IDS, 0, 0, EVERYTHING)
    assert abs(parameters.inverted.mean() - 0.5) < 0.015  # four standard errors
    for values, low, high in (
        (parameters.rotation_deg, -30, 30),
        (np.log(parameters.scale), -np.log(1.25), np.log(1.25)),
        (parameters.shift_x, -0.1, 0.1),
        (parameters.shift_y, -0.1, 0.1),
        (parameters.brightness, -0.2, 0.2),
        (np.log(parameters.contrast), -np.log(1.5), np.log(1.5)),
    ):
        counts, _ = np.histogram(values, bins=10, range=(low, high))
        assert counts.sum() == len(IDS)
        assert abs(counts - 2000).max() < 200  # five standard deviations
    numbers = np.array([parameters.inverted, parameters.rotation_deg, parameters.scale, parameters.shift_x,
                        parameters.shift_y, parameters.brightness, parameters.contrast])  # fmt: skip
    assert abs(np.corrcoef(numbers) - np.eye(7)).max() < 0.03


def test_the_parameters_depend_on_seed_epoch_and_image_only() -> None:
    whole = augmentation_parameters(IDS[:100], 1, 2, EVERYTHING)
    alone = augmentation_parameters(IDS[57:58], 1, 2, EVERYTHING)
    other = augmentation_parameters(IDS[:100].numpy(), 1, 2, Augmentation(rotation_deg=30))
    for name in ("inverted", "rotation_deg", "scale", "shift_x", "shift_y", "brightness", "contrast"):
        assert getattr(whole, name)[57] == getattr(alone, name)[0]
    np.testing.assert_array_equal(whole.rotation_deg, other.rotation_deg)
    assert (other.scale == 1).all()
    for seed, epoch in ((2, 2), (1, 3), (2, 1)):
        changed = augmentation_parameters(IDS[:100], seed, epoch, EVERYTHING).rotation_deg
        assert abs(np.corrcoef(whole.rotation_deg, changed)[0, 1]) < 0.5


def test_an_image_changes_alike_in_any_batch() -> None:
    images = random_images(13, 64)
    whole = augment(images, IDS[:13], seed=5, epoch=6, settings=EVERYTHING)
    assert 0 <= whole.min() < whole.max() <= 1
    for size in (1, 2, 3, 4, 8):
        parts = [
            augment(some, ids, seed=5, epoch=6, settings=EVERYTHING)
            for some, ids in zip(images.split(size), IDS[:13].split(size), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_an_empty_batch_stays_empty() -> None:
    empty = torch.empty((0, 1, 16, 16), dtype=torch.uint8)
    assert augment(empty, IDS[:0], seed=0, epoch=0, settings=EVERYTHING).shape == (0, 1, 16, 16)
