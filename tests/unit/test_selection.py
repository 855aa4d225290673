import random

import pytest

from mura_ray.training.selection import Candidate, choose_members


def candidate(trial: str, val_loss: float) -> Candidate:
    return Candidate(trial=trial, epoch=1, val_loss=val_loss, checkpoint=f"runs/{trial}")


def test_the_lowest_losses_lowest_first_whatever_the_order() -> None:
    losses = [0.7, 0.3, 0.5, 0.31, 0.9, 0.2, 0.6]
    candidates = [candidate(f"t{i}", loss) for i, loss in enumerate(losses)]
    for seed in range(10):
        random.Random(seed).shuffle(candidates)
        assert [member.val_loss for member in choose_members(candidates, 5)] == [0.2, 0.3, 0.31, 0.5, 0.6]


def test_ties_are_broken_by_the_trial_name() -> None:
    candidates = [candidate(name, 0.5) for name in ("c", "a", "b")]
    assert [member.trial for member in choose_members(candidates, 2)] == ["a", "b"]


def test_too_few_candidates_are_an_error_that_counts_them() -> None:
    with pytest.raises(ValueError, match=r"needs 5 trials .* there are 4"):
        choose_members([candidate(f"t{i}", 0.5) for i in range(4)], 5)


def test_a_loss_that_is_not_finite_is_not_eligible() -> None:
    candidates = [candidate("nan", float("nan")), candidate("inf", float("inf")), candidate("ok", 0.5)]
    assert [member.trial for member in choose_members(candidates, 1)] == ["ok"]
    with pytest.raises(ValueError, match="there are 1"):
        choose_members(candidates, 2)
