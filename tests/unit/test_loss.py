import math

import numpy as np
import pytest
import torch

from mura_ray.domain import STUDY_TYPES, Study, View, class_weights, weights_matrix
from mura_ray.model.loss import weighted_bce, weighted_bce_sum

ELBOW, HAND = STUDY_TYPES.index("elbow"), STUDY_TYPES.index("hand")


def weights_of(pairs: dict[int, tuple[float, float]]) -> torch.Tensor:
    weights = torch.full((7, 2), math.nan, dtype=torch.float64)
    for index, pair in pairs.items():
        weights[index] = torch.tensor(pair, dtype=torch.float64)
    return weights


def paper_formula(logits: np.ndarray, labels: np.ndarray, types: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """L(X, y) = -w_T1 * y * log p(Y = 1 | X) - w_T0 * (1 - y) * log p(Y = 0 | X), as the paper writes it."""
    p = 1 / (1 + np.exp(-logits))
    return -weights[types, 1] * labels * np.log(p) - weights[types, 0] * (1 - labels) * np.log(1 - p)


def test_hand_worked_case():
    # p = 0.5: -log p = log 2 whichever the label. p = 0.8 (logit log 4): -log 0.8 abnormal, -log 0.2 normal.
    logits = torch.tensor([0.0, 0.0, math.log(4), math.log(4)], dtype=torch.float64)
    labels = torch.tensor([1, 0, 1, 0])
    types = torch.tensor([ELBOW, ELBOW, HAND, HAND])
    weights = weights_of({ELBOW: (0.25, 0.75), HAND: (0.4, 0.6)})
    terms = [0.75 * math.log(2), 0.25 * math.log(2), -0.6 * math.log(0.8), -0.4 * math.log(0.2)]
    assert weighted_bce(logits, labels, types, weights).item() == pytest.approx(sum(terms) / 4, abs=1e-12)
    assert weighted_bce_sum(logits, labels, types, weights).item() == pytest.approx(sum(terms), abs=1e-12)


def test_equals_the_papers_formula_on_random_cases():
    random = np.random.default_rng(0)
    for num_images in (1, 2, 7, 500):
        logits = random.normal(0, 6, num_images)
        labels = random.integers(0, 2, num_images)
        types = random.integers(0, 7, num_images)
        weights = random.uniform(0, 1, (7, 2))
        expected = paper_formula(logits, labels, types, weights)
        arguments = [torch.from_numpy(array) for array in (logits, labels, types, weights)]
        assert abs(weighted_bce(*arguments).item() - expected.mean()) < 1e-6
        assert abs(weighted_bce_sum(*arguments).item() - expected.sum()) < 1e-6 * num_images


def test_weights_come_from_image_counts():
    # Elbow: 3 normal images in one study, 1 abnormal image in another: w_1 = 3 / 4 and w_0 = 1 / 4, not 1 / 2 each.
    views = [View(f"{index}.png") for index in range(4)]
    studies = [Study("elbow", "p1", "s1", 0, tuple(views[:3])), Study("elbow", "p2", "s1", 1, tuple(views[3:]))]
    weights = torch.from_numpy(weights_matrix(class_weights(studies)))
    loss = weighted_bce(torch.zeros(4), torch.tensor([0, 0, 0, 1]), torch.full((4,), ELBOW), weights)
    assert loss.item() == pytest.approx((3 * 0.25 + 0.75) * math.log(2) / 4, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("logit", "label", "loss"), [(1e4, 0, 2e3), (-1e4, 1, 8e3), (1e4, 1, 0.0), (-1e4, 0, 0.0)])
def test_finite_at_extreme_logits(dtype: torch.dtype, logit: float, label: int, loss: float):
    logits = torch.tensor([logit], dtype=dtype, requires_grad=True)
    value = weighted_bce(logits, torch.tensor([label]), torch.tensor([HAND]), weights_of({HAND: (0.2, 0.8)}))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.dtype == dtype
    assert value.item() == pytest.approx(loss, rel=1e-6)
    # dL / dlogit = w * (p - y), and p is 0 or 1 here.
    assert gradient.item() == pytest.approx(0.2 * (logit > 0) if label == 0 else -0.8 * (logit < 0))


def test_gradient_equals_finite_differences():
    logits = torch.tensor([-3.0, 0.2, 5.0], dtype=torch.float64, requires_grad=True)
    labels, types = torch.tensor([1, 0, 0]), torch.tensor([ELBOW, HAND, ELBOW])
    weights = weights_of({ELBOW: (0.3, 0.7), HAND: (0.9, 0.1)})
    assert torch.autograd.gradcheck(lambda z: weighted_bce(z, labels, types, weights), logits)


def test_study_type_without_weights_is_named():
    weights = weights_of({ELBOW: (0.5, 0.5)})
    with pytest.raises(ValueError, match="no loss weights for study type hand, wrist: the training set has no image"):
        weighted_bce(torch.zeros(3), torch.tensor([0, 1, 1]), torch.tensor([HAND, ELBOW, 6]), weights)


def test_worker_without_images_adds_nothing():
    empty = torch.zeros(0, dtype=torch.long)
    assert weighted_bce_sum(torch.zeros(0), empty, empty, weights_of({})).item() == 0
