import itertools

import numpy as np
import pytest
import torch

from mura_ray.stats.estimates import Estimate
from mura_ray.stats.localisation import BoxedView, hit_matrix, pointing_game, rate_and_baseline


def peak(row: int, column: int, shape: tuple[int, int] = (4, 4)) -> np.ndarray:
    cam = np.zeros(shape, dtype=np.float32)
    cam[row, column] = 1
    return cam


def view(cam: np.ndarray, *boxes: tuple[float, float, float, float], patient: str = "p", study_type: str = "hand"):
    return BoxedView(study_type, patient, cam, np.array(boxes, dtype=np.float64).reshape(-1, 4))


QUARTERS = [(0.05, 0.05, 0.2, 0.2), (0.55, 0.05, 0.7, 0.2), (0.05, 0.55, 0.2, 0.7), (0.55, 0.55, 0.7, 0.7)]
CELLS = [(0, 0), (0, 2), (2, 0), (2, 2)]


def test_the_maximum_of_the_upscaled_map_is_the_centre_of_its_largest_cell():
    cam = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    cam[2, 1] = 4
    upscaled = torch.nn.functional.interpolate(
        torch.from_numpy(cam)[None, None], size=(505, 404), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    row, column = np.unravel_index(upscaled.argmax(), upscaled.shape)
    assert ((row + 0.5) / 505, (column + 0.5) / 404) == pytest.approx((2.5 / 5, 1.5 / 4), abs=0.002)
    near = [(1.5 / 4 - 0.01, 2.5 / 5 - 0.01, 1.5 / 4 + 0.01, 2.5 / 5 + 0.01)]
    assert hit_matrix([view(cam, *near)])[0, 0] == 1


def test_the_box_grows_by_half_a_cell_of_each_axis():
    cam = peak(1, 1, (4, 2))  # centre (0.75, 0.375); half a cell is 0.25 across and 0.125 down
    boxes = [
        ((0.2, 0.3, 0.51, 0.4), 1),  # right edge 0.24 to the left of it
        ((0.2, 0.3, 0.49, 0.4), 0),
        ((0.7, 0.49, 0.8, 0.6), 1),  # top edge 0.115 below
        ((0.7, 0.51, 0.8, 0.6), 0),
        ((0.7, 0.1, 0.8, 0.26), 1),
        ((0.7, 0.1, 0.8, 0.24), 0),
    ]
    for box, hit in boxes:
        assert hit_matrix([view(cam, box)])[0, 0] == hit, box


def test_hit_matrix_is_indexed_map_then_boxes_and_takes_any_box():
    views = [view(peak(0, 0), QUARTERS[1], QUARTERS[0]), view(peak(2, 2), QUARTERS[2]), view(peak(2, 0), QUARTERS[3])]
    np.testing.assert_array_equal(hit_matrix(views), [[1, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_a_flat_map_earns_chance():
    views = [view(np.zeros((4, 4)), (0.0, 0.0, 0.2, 0.2))]
    assert hit_matrix(views)[0, 0] == 1 / 16


def test_perfect_maps_have_the_ratio_of_the_hand_count():
    # Twelve views, their boxes in four quarters, three in each: of 11 other views 2 have theirs in the same quarter.
    views = [view(peak(*CELLS[i % 4]), QUARTERS[i % 4], patient=f"p{i}") for i in range(12)]
    game = pointing_game(views)
    assert (game.num_views, game.num_patients, game.left_out) == (12, 12, ())
    assert (game.rate, game.baseline) == pytest.approx((1, 2 / 11))
    assert game.ratio.value == pytest.approx(5.5)
    assert game.ratio.low is not None
    assert game.ratio.low > 1


def test_maps_that_always_point_at_the_same_place_score_a_ratio_of_one():
    views = [view(peak(0, 0), QUARTERS[i % 2], patient=f"p{i}") for i in range(40)]
    game = pointing_game(views)
    assert game.rate == game.baseline == 0.5
    assert game.ratio.value == 1


def test_types_are_permuted_apart_and_weighed_by_their_views():
    hand = [view(peak(0, 0), QUARTERS[0], patient=f"h{i}") for i in range(6)]  # rate 1, baseline 1
    wrist = [view(peak(2, 2), QUARTERS[0], patient=f"w{i}", study_type="wrist") for i in range(2)]  # 0 and 0
    alone = [view(peak(0, 0), QUARTERS[0], patient="e", study_type="elbow")]
    game = pointing_game([*wrist, *hand, *alone])
    assert (game.num_views, game.num_patients, game.left_out) == (8, 8, ("elbow",))
    assert game.rate == game.baseline == 6 / 8


def test_baseline_is_the_mean_over_permutations_without_fixed_points():
    generator = np.random.default_rng(3)
    hits = generator.integers(0, 2, (5, 5)).astype(float)
    moved = [order for order in itertools.permutations(range(5)) if all(i != j for i, j in enumerate(order))]
    expected = np.mean([hits[range(5), order].mean() for order in moved])
    rate, baseline = rate_and_baseline([hits], np.ones((1, 5), dtype=int))
    assert (rate[0], baseline[0]) == pytest.approx((hits.diagonal().mean(), expected))


def test_a_draw_counts_copies_but_never_pairs_a_view_with_its_copy():
    hits = np.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]])
    other = np.eye(2)
    weights = np.array([[2, 0, 1, 3, 0]])  # the second type has one different view in this draw: left out
    rate, baseline = rate_and_baseline([hits, other], weights)
    assert rate[0] == pytest.approx(2 / 3)
    # Ordered pairs of different views: two copies of map 0 with boxes 2 (hits), map 2 with two copies of boxes 0 (no).
    assert baseline[0] == pytest.approx(2 / 4)
    rate, baseline = rate_and_baseline([hits, other], np.array([[0, 0, 3, 0, 2]]))
    assert np.isnan(rate[0])
    assert np.isnan(baseline[0])


def test_views_of_one_patient_do_not_narrow_the_interval():
    def game(copies: int, *, as_if_independent: bool):
        return pointing_game(
            [
                view(peak(*CELLS[i % 3 and i % 4]), QUARTERS[i % 4], patient=f"{i}-{c if as_if_independent else ''}")
                for i in range(40)
                for c in range(copies)
            ]
        ).ratio

    whole, split = game(8, as_if_independent=False), game(8, as_if_independent=True)
    assert whole.value == split.value
    assert width(split) < 0.6 * width(whole)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_a_baseline_of_zero_is_not_estimable():
    views = [view(peak(i, i, (8, 8)), ((i + 0.4) / 8, (i + 0.4) / 8, (i + 0.6) / 8, (i + 0.6) / 8)) for i in range(8)]
    game = pointing_game(views)
    assert (game.rate, game.baseline, game.ratio) == (1, 0, Estimate())


def test_a_baseline_of_zero_in_some_draws_leaves_no_interval():
    boxes = [QUARTERS[0], QUARTERS[0], *[QUARTERS[3]] * 10]
    views = [view(peak(*CELLS[0 if i < 2 else 1]), boxes[i], patient=f"p{i}") for i in range(12)]
    game = pointing_game(views)
    assert game.ratio.value == pytest.approx((2 / 12) / (2 / (12 * 11)))
    assert (game.ratio.low, game.ratio.high) == (None, None)


def test_few_views_or_patients():
    few = [view(peak(0, 0), QUARTERS[0], patient=f"p{i}") for i in range(4)]
    game = pointing_game(few)
    assert (game.num_views, game.rate, game.baseline, game.ratio) == (4, None, None, Estimate())
    one_patient = [view(peak(0, 0), QUARTERS[0]) for _ in range(6)]
    assert pointing_game(one_patient).ratio == Estimate(1.0)
    assert pointing_game([]).rate is None


def test_refuses_what_has_no_maximum_or_no_box():
    with pytest.raises(ValueError, match=r"patient p \(hand\) is empty or not finite"):
        pointing_game([view(np.full((4, 4), np.nan), QUARTERS[0])])
    with pytest.raises(ValueError, match="no finite boxes"):
        pointing_game([view(peak(0, 0))])
    with pytest.raises(ValueError, match="no finite boxes"):
        pointing_game([view(peak(0, 0), (0, 0, np.inf, 1))])
