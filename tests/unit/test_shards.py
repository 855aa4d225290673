import hashlib
from pathlib import Path

import numpy as np
import pytest

from mura_ray.data import shards
from mura_ray.data._ffcv import DatasetWriter, IntField, Loader, NDArrayField
from mura_ray.data.shard_plan import PAGE_BYTES, num_shards
from mura_ray.data.shards import Merger, read_facts, write_shard

SIZE = 512  # eight images fill a page
Samples = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make(number: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (number, SIZE, SIZE), dtype=np.uint8),
        rng.integers(0, 2, number),
        rng.integers(0, 7, number),
        rng.integers(0, 2**63 - 1, number, endpoint=True),
    )


def read_with_stock_ffcv(path: Path) -> Samples:
    batches = [[part.numpy().copy() for part in batch] for batch in Loader(str(path), 4, 1, drop_last=False, seed=0)]
    images, *numbers = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return images[:, 0], numbers[0][:, 0], numbers[1][:, 0], numbers[2][:, 0]


def assert_same(left: Samples, right: Samples) -> None:
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_shard_is_byte_for_byte_what_ffcv_s_own_writer_makes(tmp_path: Path) -> None:
    samples = make(11, 0)
    write_shard(tmp_path / "a.beton", *samples)
    write_shard(tmp_path / "b.beton", *samples)
    fields = {
        "image": NDArrayField(np.dtype("u1"), (1, SIZE, SIZE)),
        "label": IntField(),
        "study_type": IntField(),
        "sample_id": IntField(),
    }
    writer = DatasetWriter(str(tmp_path / "stock.beton"), fields, page_size=PAGE_BYTES, num_workers=1)
    writer.from_indexed_dataset(list(zip(*samples, strict=True)))
    hashes = {
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.beton", "b.beton", "stock.beton")
    }
    assert len(hashes) == 1
    assert read_facts(tmp_path / "a.beton") == shards.Facts(num_images=11, image_size=SIZE)


def merge_shards(paths: list[Path], dest: Path, order: list[int] | None = None) -> None:
    contents = [path.read_bytes() for path in paths]
    counts = [read_facts(path).num_images for path in paths]
    merger = Merger(dest, list(zip(counts, map(len, contents), strict=True)))
    try:
        for number in order or range(len(paths)):
            merger.place(number, contents[number])
        merger.finish()
    finally:
        merger.close()


def test_stock_ffcv_reads_a_shard_and_several_merged(tmp_path: Path) -> None:
    parts = [make(number, seed) for seed, number in enumerate((11, 1, 8))]
    paths = [tmp_path / f"{number}.beton" for number in range(3)]
    for path, part in zip(paths, parts, strict=True):
        write_shard(path, *part)
    merge_shards(paths, tmp_path / "merged.beton", order=[2, 0, 1])
    assert_same(read_with_stock_ffcv(paths[0]), parts[0])
    images, labels, types, ids = (np.concatenate(each) for each in zip(*parts, strict=True))
    assert_same(read_with_stock_ffcv(tmp_path / "merged.beton"), (images, labels, types, ids))
    assert read_facts(tmp_path / "merged.beton").num_images == 20
    merge_shards(paths[:1], tmp_path / "alone.beton")
    assert (tmp_path / "alone.beton").read_bytes() == paths[0].read_bytes()


def test_metadata_of_the_whole_may_need_more_room_than_those_of_the_parts(tmp_path: Path) -> None:
    number = 40_000  # 40,000 rows of metadata fill more than half a page
    samples = np.zeros((number, 1, 1), np.uint8), np.zeros(number, int), np.zeros(number, int), np.arange(number)
    write_shard(tmp_path / "a.beton", *samples)
    merge_shards([tmp_path / "a.beton"] * 2, tmp_path / "merged.beton")
    assert read_facts(tmp_path / "merged.beton").num_images == 2 * number


@pytest.mark.parametrize("size", [64, 128, 224, 320, 512, 1024])
def test_shards_are_64_to_128_mib_or_a_single_smaller_one(size: int) -> None:
    mib = 2**20
    for number in (1, 100, 1241, 36_808, 500_000):
        count = num_shards(number, size)
        for images in {number // count, -(-number // count)}:
            pages = -(-images // (PAGE_BYTES // size**2))
            num_bytes = (1 + pages) * PAGE_BYTES + 24 * images
            assert num_bytes <= 128 * mib
            assert count == 1 or num_bytes >= 64 * mib


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.beton"
    write_shard(good, *make(2, 0))
    content = good.read_bytes()
    for name, wrong in {
        "empty": b"",
        "text": b"sample_id,path\n" * 1000,
        "cut": content[: len(content) // 2],
        "longer": content + b"x",
        "other fields": content.replace(b"study_type", b"body_part\0"),
        "no images": content[:8] + bytes(8) + content[16:],
    }.items():
        path = tmp_path / name
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=name):
            read_facts(path)
    with pytest.raises(ValueError, match="missing"):
        read_facts(tmp_path / "missing")
    small = tmp_path / "small.beton"
    write_shard(small, np.zeros((1, 4, 4), np.uint8), np.zeros(1, int), np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(ValueError, match="holds images of 4 px"):
        merge_shards([good, small], tmp_path / "merged.beton")
