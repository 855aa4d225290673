import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.asha import SEARCHES, Curve, Replay, benchmark_space, read_curves, replay, replays_of
from mura_ray.distributed.space import Asha, Space, scheduler

NUM_TRIALS = 6
SEARCH = SEARCHES["trained"]
EPOCHS = SEARCH.epochs
FALLING = tuple(1 - 0.05 * epoch for epoch in range(EPOCHS))
FLAT = (1.5,) * EPOCHS


def space(**changes: Any) -> Space:
    return benchmark_space(SEARCH, NUM_TRIALS, seed=0).model_copy(update=changes)


def asha_space(grace: int) -> Space:
    return space(scheduler="asha", asha=Asha(grace_epochs=grace, reduction_factor=3))


def epochs_of(reports: list[tuple[int, int]]) -> dict[int, int]:
    """How far each trial came."""
    return dict(sorted(reports))


def test_under_fifo_every_trial_runs_to_its_end_and_no_more_than_the_slots_at_once() -> None:
    reports = replay([FALLING] * NUM_TRIALS, scheduler(space()), slots=2, rng=random.Random(0))
    assert sorted(reports) == [(index, epoch) for index in range(NUM_TRIALS) for epoch in range(1, 1 + EPOCHS)]
    running, most = set(), 0
    for index, epoch in reports:
        running.add(index)
        most = max(most, len(running))
        if epoch == EPOCHS:
            running.remove(index)
    assert most == 2


@pytest.mark.parametrize("grace", [1, 2, 3])
def test_a_trial_that_is_behind_at_a_rung_stops_there(grace: int) -> None:
    reports = replay([FALLING, FLAT, FALLING], scheduler(asha_space(grace)), slots=1, rng=random.Random(0))
    assert epochs_of(reports) == {0: EPOCHS, 1: grace, 2: EPOCHS}


def test_a_search_that_stops_trials_is_measured_against_the_same_trials_run_to_their_ends() -> None:
    # The last trial is the worst after one epoch and the best in the end.
    losses = [FALLING, FLAT, FLAT, FLAT, FLAT, (2.0, *([0.5] * (EPOCHS - 1)))]
    curves = [Curve(f"t{index}", 1e-3, each) for index, each in enumerate(losses)]
    found = list(replays_of(curves, asha_space(grace=1), number=30, slots=1))
    assert found == list(replays_of(curves, asha_space(grace=1), number=30, slots=1))
    assert {round(one.best, 9) for one in found} == {1.0, FALLING[-1] / 0.5}, "by whether it came first"
    for one in found:
        assert one.members >= 1
        assert 0 < one.epochs < 1
        assert one.same_members >= 4
    (full,) = replays_of(curves, space(), number=1, slots=4)
    assert full == Replay(best=1.0, epochs=1.0, same_members=5, members=1.0)


def test_trials_that_did_not_run_to_their_ends_are_no_curves(tmp_path: Path) -> None:
    logs = [tmp_path / "training" / f"t_{index}" / "epochs.jsonl" for index in range(NUM_TRIALS)]
    for log in logs:
        log.parent.mkdir(parents=True)
        log.write_text("".join(json.dumps({"val_loss": loss, "learning_rate": 1e-3}) + "\n" for loss in FALLING))
    assert read_curves(tmp_path, space()) == [Curve(f"t_{index}", 1e-3, FALLING) for index in range(NUM_TRIALS)]
    logs[-1].write_text('{"val_loss": 1.0, "learning_rate": 0.001}\n')
    with pytest.raises(ValueError, match=f"1 of {EPOCHS} epochs"):
        read_curves(tmp_path, space())
    logs[-1].unlink()
    with pytest.raises(ValueError, match="5 of 6 trials"):
        read_curves(tmp_path, space())
