import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from mura_ray.domain import StudyPrediction, ViewPrediction
from serve.batching import Batcher, Grays
from serve.metrics import BATCH_VIEWS, STAGE_SECONDS, Metrics


def study(value: int, num_views: int) -> list[np.ndarray]:
    return [np.full((2, 3), value, np.uint8) for _ in range(num_views)]


class Values:
    """A study's probability is its first view's value over 255; a pass with the value 13 cannot be computed."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()
        if not held:
            self.go.set()

    def __call__(self, studies: Sequence[Grays]) -> list[StudyPrediction]:
        self.batches.append([int(views[0][0, 0]) for views in studies])
        self.started.set()
        assert self.go.wait(30)
        if 13 in self.batches[-1]:
            raise RuntimeError("13")
        return [
            StudyPrediction(
                probability=views[0][0, 0] / 255,
                abnormal=False,
                threshold=0.5,
                views=tuple(ViewPrediction(3, 2, 0.0, np.zeros((1, 1), np.float32)) for _ in views),
                members=(),
            )
            for views in studies
        ]


async def started(values: Values) -> None:
    while not values.started.is_set():
        await asyncio.sleep(0.001)


async def behind_a_first(values: Values, batcher: Batcher, studies: Sequence[Grays]) -> list[asyncio.Task]:
    """Predictions of studies that came, in this order, while a pass over another was computed."""
    first = asyncio.create_task(batcher.predict(study(1, 1)))
    await started(values)
    waiting = []
    for views in studies:
        waiting.append(asyncio.create_task(batcher.predict(views)))
        await asyncio.sleep(0)
    values.go.set()
    return [first, *waiting]


def predicted(values: Values, studies: Sequence[Grays], max_views: int = 4, metrics: Metrics | None = None) -> list:
    async def scenario() -> list:
        batcher = Batcher(values, max_views, metrics or Metrics())
        tasks = await behind_a_first(values, batcher, studies)
        return (await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30))[1:]

    return asyncio.run(scenario())


def test_studies_of_several_sizes_come_back_to_their_callers():
    sizes = [1, 3, 2, 4, 1, 1, 7, 2]
    found = predicted(Values(held=True), [study(20 + place, size) for place, size in enumerate(sizes)])
    assert [round(one.probability * 255) for one in found] == [20 + place for place in range(len(sizes))]
    assert [len(one.views) for one in found] == sizes


def test_passes_hold_as_many_views_as_fit_in_the_order_of_arrival():
    values = Values(held=True)
    sizes = {20: 1, 21: 3, 22: 2, 23: 3, 24: 1, 25: 6, 26: 1}
    predicted(values, [study(value, size) for value, size in sizes.items()])
    # 23 does not fit behind 22, and 24, which would, does not overtake it; 25 is larger than a pass and goes alone.
    assert values.batches == [[1], [20, 21], [22], [23, 24], [25], [26]]


def test_a_study_alone_waits_for_nobody():
    values = Values()
    assert asyncio.run(Batcher(values, 4, Metrics()).predict(study(51, 1))).probability == pytest.approx(0.2)
    assert values.batches == [[51]]


def test_a_study_that_cannot_be_computed_fails_no_other():
    values = Values(held=True)
    before, bad, after = predicted(values, [study(20, 1), study(13, 1), study(21, 2)])
    assert (round(before.probability * 255), round(after.probability * 255)) == (20, 21)
    assert isinstance(bad, RuntimeError)
    assert values.batches == [[1], [20, 13, 21], [20], [13], [21]]


def test_it_goes_on_after_a_failure_and_in_another_event_loop():
    values = Values()
    batcher = Batcher(values, 4, Metrics())
    with pytest.raises(RuntimeError, match="13"):
        asyncio.run(batcher.predict(study(13, 1)))
    assert asyncio.run(batcher.predict(study(255, 1))).probability == 1


def test_a_study_whose_caller_left_is_not_computed():
    values = Values(held=True)

    async def scenario() -> float:
        batcher = Batcher(values, 4, Metrics())
        first = asyncio.create_task(batcher.predict(study(1, 1)))
        await started(values)
        left, stays = (asyncio.create_task(batcher.predict(study(value, 1))) for value in (20, 21))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        values.go.set()
        await first
        return (await stays).probability

    assert asyncio.run(scenario()) == pytest.approx(21 / 255)
    assert values.batches == [[1], [21]]


def test_one_whose_caller_leaves_during_its_pass_does_not_stop_the_next():
    values = Values(held=True)

    async def scenario() -> float:
        batcher = Batcher(values, 4, Metrics())
        first = asyncio.create_task(batcher.predict(study(1, 1)))
        await started(values)
        stays = asyncio.create_task(batcher.predict(study(21, 1)))
        first.cancel()
        await asyncio.sleep(0)
        values.go.set()
        return (await asyncio.wait_for(stays, 30)).probability

    assert asyncio.run(scenario()) == pytest.approx(21 / 255)


def test_the_event_loop_is_free_while_a_pass_is_computed():
    values = Values(held=True)

    async def scenario() -> int:
        answer = asyncio.create_task(Batcher(values, 4, Metrics()).predict(study(1, 1)))
        await started(values)  # cannot return before the pass has ended if the pass holds the loop
        values.go.set()
        return len((await answer).views)

    assert asyncio.run(scenario()) == 1


def test_passes_and_waiting_are_measured():
    records: list[tuple[str, float, dict[str, str]]] = []
    metrics = Metrics(lambda *record: records.append(record))
    predicted(Values(held=True), [study(20, 1), study(21, 3)], metrics=metrics)
    assert [value for name, value, _ in records if name == BATCH_VIEWS.name] == [1, 4]
    stages = [tags["stage"] for name, _, tags in records if name == STAGE_SECONDS.name]
    assert (stages.count("wait"), stages.count("forward")) == (3, 2)
    assert all(value >= 0 for _, value, _ in records)
