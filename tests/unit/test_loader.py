import resource
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from mura_ray.config import Augmentation
from mura_ray.data import loader, shards
from mura_ray.data.augment import augment
from mura_ray.data.loader import Batch, SplitLoader, global_order, worker_slice

NUM_IMAGES, SIZE = 37, 8
IDS = np.random.default_rng(1).integers(0, 2**63 - 1, NUM_IMAGES, endpoint=True)
IDS[5] = 2**63 - 1  # would not survive a float
IMAGES = np.random.default_rng(2).integers(0, 256, (NUM_IMAGES, SIZE, SIZE), dtype=np.uint8)
LABELS = np.arange(NUM_IMAGES) % 2
TYPES = np.arange(NUM_IMAGES) % 7


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("loader") / "split.beton"
    shards.write_shard(file, IMAGES, LABELS, TYPES, IDS)
    return file


@pytest.fixture(scope="module")
def training(path: Path) -> Iterator[list[list[SplitLoader]]]:
    """Loaders for batches of 8, for 1, 2, 3 and 4 workers."""
    teams = [[open_training(path, rank, workers) for rank in range(workers)] for workers in (1, 2, 3, 4)]
    yield teams
    for member in (member for team in teams for member in team):
        member.close()


def open_training(path: Path, rank: int = 0, workers: int = 1) -> SplitLoader:
    return SplitLoader(path, batch_size=8, rank=rank, world_size=workers, shuffle=True, seed=3)


def rows(batches: list[Batch]) -> list[int]:
    """Places in the file of the batches' images, after checking that all parts of a batch belong together."""
    found = []
    for batch in batches:
        places = [int(np.flatnonzero(sample_id == IDS)[0]) for sample_id in batch.sample_ids.numpy()]
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(places), 1, SIZE, SIZE)
        assert batch.labels.dtype == torch.float32
        np.testing.assert_array_equal(batch.images[:, 0].numpy(), IMAGES[places])
        np.testing.assert_array_equal(batch.labels.numpy(), LABELS[places])
        np.testing.assert_array_equal(batch.type_index.numpy(), TYPES[places])
        found.extend(places)
    return found


def test_parts_of_a_batch_are_near_equal_and_complete() -> None:
    for batch_size in range(9):
        for workers in range(1, 9):
            parts = [worker_slice(batch_size, rank, workers) for rank in range(workers)]
            assert [place for part in parts for place in range(part.start, part.stop)] == list(range(batch_size))
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1
            assert sizes == sorted(sizes, reverse=True)


def test_the_order_is_a_permutation_by_seed_and_epoch() -> None:
    order = global_order(100, 0, 0)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(100))
    np.testing.assert_array_equal(order, global_order(100, 0, 0))
    assert (order != global_order(100, 0, 1)).any()
    assert (order != global_order(100, 1, 0)).any()


def test_any_number_of_workers_sees_the_same_global_batches_and_augmentations(
    training: list[list[SplitLoader]],
) -> None:
    settings = Augmentation(scale=0.2, translation=0.1, brightness=0.1, contrast=0.2)
    seen = []
    for team in training:
        steps = list(zip(*(member.epoch(2) for member in team), strict=True))
        assert [batch.index for parts in steps for batch in parts] == [i for i in range(4) for _ in team]
        assert {batch.global_size for parts in steps for batch in parts} == {8}
        changed = [
            augment(batch.images, batch.sample_ids, seed=3, epoch=2, settings=settings)
            for parts in steps
            for batch in parts
        ]
        seen.append((rows([batch for parts in steps for batch in parts]), torch.cat(changed)))
    for places, changed in seen:
        assert places == global_order(NUM_IMAGES, 3, 2)[:32].tolist()
        assert torch.equal(changed, seen[0][1])


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_validation_visits_every_image_once(path: Path, workers: int) -> None:
    team = [SplitLoader(path, batch_size=6, rank=rank, world_size=workers, shuffle=False) for rank in range(workers)]
    steps = list(zip(*(member.epoch() for member in team), strict=True))  # strict: all take equally many steps
    assert rows([batch for parts in steps for batch in parts]) == list(range(NUM_IMAGES))
    assert [parts[0].global_size for parts in steps] == [6] * 6 + [1]
    assert [len(batch.labels) for batch in steps[-1]] == [1] + [0] * (workers - 1)


def test_an_epoch_resumes_at_any_batch(training: list[list[SplitLoader]]) -> None:
    member = training[1][1]
    whole = list(member.epoch(5))
    for start in range(5):
        rest = list(member.epoch(5, start))
        assert [batch.index for batch in rest] == list(range(start, 4))
        assert rows(rest) == rows(whole[start:])


def test_epochs_left_early_leave_nothing_behind(training: list[list[SplitLoader]]) -> None:
    member = training[0][0]
    num_threads, num_torch_threads = threading.active_count(), torch.get_num_threads()
    maps, resident_bytes = [], []
    for epoch in range(50):
        for _ in member.epoch(epoch):
            break
        maps.append(len(Path("/proc/self/maps").read_text().splitlines()))
        resident_bytes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        assert threading.active_count() == num_threads
    assert torch.get_num_threads() == num_torch_threads
    assert maps[-1] - maps[4] < 10
    assert resident_bytes[-1] - resident_bytes[4] < 4 * 2**20

    def stumble() -> None:
        for _ in member.epoch():
            raise KeyError

    with pytest.raises(KeyError) as caught:
        stumble()
    assert caught.tb is not None  # the traceback keeps the epoch alive
    member.close()
    assert threading.active_count() == num_threads


def test_batches_are_copies(training: list[list[SplitLoader]]) -> None:
    batches = []
    for epoch in range(4):
        batches.extend(member for member in training[0][0].epoch(epoch))
    assert rows(batches) == [place for epoch in range(4) for place in global_order(NUM_IMAGES, 3, epoch)[:32]]


def test_batches_that_are_kept_stay_what_they_were(path: Path) -> None:
    rng, kept = np.random.default_rng(0), []
    loader = SplitLoader(path, batch_size=3, shuffle=True)
    expected: dict[int, bytes] = {}
    for epoch in range(30):
        for batch in loader.epoch(epoch):
            for number, image in zip(batch.sample_ids.tolist(), batch.images, strict=True):
                assert expected.setdefault(number, image.numpy().tobytes()) == image.numpy().tobytes()
            if rng.random() < 0.3:
                kept.append(batch)
            if rng.random() < 0.05:
                break
        for batch in kept:
            found = [image.numpy().tobytes() for image in batch.images]
            assert found == [expected[number] for number in batch.sample_ids.tolist()]
        kept = kept[len(kept) // 2 :]
    loader.close()


def test_an_epoch_that_was_overtaken_cannot_be_read_on(training: list[list[SplitLoader]]) -> None:
    member = training[0][0]
    first, second = member.epoch(0), member.epoch(1)
    next(first)
    rows([next(second)])
    with pytest.raises(RuntimeError, match="began another"):
        next(first)
    assert len(list(second)) == 3


def test_an_error_in_ffcv_s_thread_is_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("no room")

    with closing(open_training(path)) as member:
        monkeypatch.setattr(loader.EpochIterator, "run_pipeline", fails)
        with pytest.raises(RuntimeError, match="could not read") as caught:
            next(member.epoch())
        assert isinstance(caught.value.__cause__, MemoryError)


def test_torch_keeps_its_threads_and_numpy_its_random_numbers(path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        state = str(np.random.get_state())
        with closing(open_training(path)) as member:
            assert torch.get_num_threads() == 3
            next(member.epoch())
        assert torch.get_num_threads() == 3
        assert str(np.random.get_state()) == state
    finally:
        torch.set_num_threads(before)


def test_what_cannot_work_is_said_at_once(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="9 workers cannot share batches of 8 images"):
        open_training(path, 0, 9)
    with pytest.raises(ValueError, match="batch of 38 images does not fit a training set of 37"):
        SplitLoader(path, batch_size=38, shuffle=True)
    cut = tmp_path / "cut.beton"
    cut.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off"):
        open_training(cut)
