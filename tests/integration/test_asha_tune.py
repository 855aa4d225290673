"""That the benchmark's replay calls the scheduler as Tune does: both stop the same trials after the same reports."""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import ray.tune

from benchmarks.asha import SEARCHES, benchmark_space, replay
from mura_ray.distributed.session import ray_session
from mura_ray.distributed.space import Asha, scheduler

pytestmark = pytest.mark.slow

NUM_TRIALS, SLOTS = 9, 3
SEARCH = SEARCHES["trained"]
EPOCHS = SEARCH.epochs
PATIENCE_S = 120


class Reports(ray.tune.Callback):
    """Notes each report in a file as Tune takes it: a line `trial epoch`."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **_: Any) -> None:
        with self._file.open("a") as file:
            file.write(f"{trial.config['index']} {result['epoch']}\n")


def test_tune_itself_stops_the_same_trials_after_the_same_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # for a stopped trial to leave its actor to the next
    rng = random.Random(1)
    losses = [[rng.uniform(0.3, 1) / epoch**0.2 for epoch in range(1, 1 + EPOCHS)] for _ in range(NUM_TRIALS)]
    space = benchmark_space(SEARCH, NUM_TRIALS, seed=0).model_copy(
        update={"scheduler": "asha", "asha": Asha(grace_epochs=1, reduction_factor=2)}
    )
    expected = replay(losses, scheduler(space), SLOTS, random.Random(0))
    assert len(set(dict(sorted(expected)).values())) > 2, "trials that stop at several rungs"
    file = tmp_path / "reports"
    file.touch()

    def trainable(sampled: dict[str, Any]) -> None:
        """Reports when it is its turn; where Tune lets go on what the replay stopped, out of turn."""
        for epoch, loss in enumerate(losses[sampled["index"]], start=1):
            report = (sampled["index"], epoch)
            deadline = time.monotonic() + PATIENCE_S
            while report in expected and len(file.read_text().splitlines()) < expected.index(report):
                assert time.monotonic() < deadline, f"{report} waits for its turn"
                time.sleep(0.02)
            ray.tune.report({"epoch": epoch, "val_loss": loss})

    with ray_session(worker_logs=False):
        ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"memory": 1}),
            param_space={"index": ray.tune.grid_search(list(range(NUM_TRIALS)))},
            tune_config=ray.tune.TuneConfig(
                metric="val_loss",
                mode="min",
                scheduler=scheduler(space),
                max_concurrent_trials=SLOTS,
                reuse_actors=True,
            ),
            run_config=ray.tune.RunConfig(storage_path=str(tmp_path), verbose=0, callbacks=[Reports(file)]),
        ).fit()
    assert [tuple(map(int, line.split())) for line in file.read_text().splitlines()] == expected
