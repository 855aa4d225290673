import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, get_ident, local

import numpy as np
import pytest

from mura_ray.data import cache
from mura_ray.data.cache import file_sha256, local_split
from mura_ray.data.manifest import Manifest, Shard, Split, write_manifest
from mura_ray.data.shards import read_facts, write_shard


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set whose split train has two shards of 3 and 2 images."""
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    made = []
    for number, count in enumerate((3, 2)):
        key = f"train/shard-{number:05d}.beton"
        zeros = np.zeros(count, int)
        write_shard(folder / key, np.full((count, 8, 8), number, np.uint8), zeros, zeros, zeros)
        made.append(Shard(key=key, bytes=(folder / key).stat().st_size, sha256=file_sha256(folder / key), count=count))
    split = Split(shards=tuple(made), table_sha256="", counts={})
    manifest = Manifest(
        name="x", id="y", source_id="z", split_policy="given", image_size=8, splits={"train": split}, class_weights={}
    )
    write_manifest(str(folder), manifest)
    return folder


def path_of(data: Path, cache: Path) -> Path:
    with local_split(str(data), "train", cache=cache) as path:
        return path


def test_all_shards_of_a_split_become_one_file_made_once(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: path_of(data, cache), range(4)))
    (path,) = paths
    assert read_facts(path).num_images == 5
    before = path.stat()
    (data / "train/shard-00000.beton").unlink()  # not needed again
    assert path_of(data, cache) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_workers_that_find_nothing_at_the_same_moment_have_the_copy_at_the_same_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looked, have_it = cache._Copy.is_sound, Barrier(2, timeout=60), Barrier(2, timeout=60)
    made, first = [], local()

    def look_together(copy: cache._Copy) -> bool:
        found = look(copy)
        if not hasattr(first, "done"):
            first.done = looked.wait()
        return found

    def work(_: int) -> None:
        with local_split(str(data), "train", cache=tmp_path / "cache", progress=lambda *_: made.append(get_ident())):
            have_it.wait()  # as workers do, who train together

    monkeypatch.setattr(cache._Copy, "is_sound", look_together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert len(set(made)) == 1


def test_a_copy_that_is_damaged_while_it_is_used_is_told_of(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LET_GO_WITHIN_S", 0.2)
    with local_split(str(data), "train", cache=tmp_path / "cache") as path:
        path.write_bytes(b"damaged")
        with pytest.raises(ValueError, match=f"{path} is not what was sealed, and other runs use it: end them"):
            path_of(data, tmp_path / "cache")
    assert read_facts(path_of(data, tmp_path / "cache")).num_images == 5


def test_the_environment_names_the_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MURA_CACHE", str(tmp_path / "elsewhere"))
    with local_split(str(data), "train") as path:
        assert path.parent == tmp_path / "elsewhere"
    monkeypatch.delenv("MURA_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with local_split(str(data), "train") as path:
        assert path.parent == tmp_path / "home/.cache/mura_ray"


@pytest.mark.parametrize("damage", ["flip", "cut", "no seal", "left over"])
def test_a_copy_that_is_not_whole_is_made_again(data: Path, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    path = path_of(data, cache)
    whole = path.read_bytes()
    left_over = cache / f".{path.name}.0123.partial"
    if damage == "flip":
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        os.truncate(path, 1000)
    elif damage == "no seal":
        path.with_suffix(".seal").unlink()
    else:
        path.unlink()
        left_over.write_bytes(b"of a killed process")
    assert path_of(data, cache).read_bytes() == whole
    assert not left_over.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_shard_is_never_opened(data: Path, tmp_path: Path, damage: str) -> None:
    shard = data / "train/shard-00001.beton"
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        os.truncate(shard, 100)
    else:
        shard.unlink()
    with pytest.raises(ValueError, match=r"shard .*shard-00001.beton is (missing|not the file)"):
        path_of(data, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.beton"))


def test_an_unknown_split_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no split 'test'; it has train"), local_split(str(data), "test"):
        pass


def test_other_shards_have_another_copy(data: Path, tmp_path: Path) -> None:
    first = path_of(data, tmp_path / "cache")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"].pop()
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert path_of(data, tmp_path / "cache") != first


def another(data: Path, number: int) -> Path:
    """A data set with other pixels, and so with another copy, of the same size."""
    folder = data.with_name(f"data-{number}")
    (folder / "train").mkdir(parents=True)
    key, zeros = "train/shard-00000.beton", np.zeros(3, int)
    write_shard(folder / key, np.full((3, 8, 8), 100 + number, np.uint8), zeros, zeros, zeros)
    shard = Shard(key=key, bytes=(folder / key).stat().st_size, sha256=file_sha256(folder / key), count=3)
    split = Split(shards=(shard,), table_sha256="", counts={})
    manifest = Manifest(
        name="x", id="y", source_id="z", split_policy="given", image_size=8, splits={"train": split}, class_weights={}
    )
    write_manifest(str(folder), manifest)
    return folder


def test_a_full_budget_evicts_what_was_used_longest_ago_and_nothing_in_use(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first, second, third, fourth = (another(data, number) for number in range(4))
    size = (first / "train/shard-00000.beton").stat().st_size
    monkeypatch.setenv("MURA_CACHE_GB", str(2.5 * size / 1e9))
    paths = {}
    for number, folder in enumerate((first, second)):
        paths[folder] = path_of(folder, cache)
        os.utime(paths[folder].with_suffix(".seal"), (number, number))
    path_of(first, cache)  # used again: now the second is the oldest
    paths[third] = path_of(third, cache)
    assert [folder.name for folder in paths if paths[folder].exists()] == ["data-0", "data-2"]

    with local_split(str(first), "train", cache=cache), local_split(str(third), "train", cache=cache):
        os.utime(paths[first].with_suffix(".seal"), (0, 0))
        with pytest.raises(ValueError, match=r"MURA_CACHE_GB=.* does not leave beside the copies in use: raise it"):
            path_of(fourth, cache)
        assert paths[first].exists()
        assert paths[third].exists()
    paths[fourth] = path_of(fourth, cache)
    assert [folder.name for folder in paths if paths[folder].exists()] == ["data-2", "data-3"]


@pytest.mark.parametrize("budget", ["much", "-1", "0", "nan"])
def test_a_budget_that_is_none_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    monkeypatch.setenv("MURA_CACHE_GB", budget)
    with pytest.raises(ValueError, match=f"MURA_CACHE_GB is '{budget}': pass a number of gigabytes"):
        path_of(data, tmp_path)


def test_progress_tells_the_bytes_that_are_there(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    total = sum(path.stat().st_size for path in data.rglob("*.beton"))
    with local_split(str(data), "train", cache=tmp_path, progress=lambda *now: seen.append(now)):
        assert seen[-1] == (total, total)
        assert sorted(seen) == seen
    seen.clear()
    with local_split(str(data), "train", cache=tmp_path, progress=lambda *now: seen.append(now)):
        assert not seen
