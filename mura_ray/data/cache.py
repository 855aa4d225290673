"""A verified local copy of a split: all its shards in one .beton, made once a node and checked at every use.

FFCV answers a damaged file with wrong images or a crash, so nothing is opened that was not hashed before. The copy lies
in MURA_CACHE, or ~/.cache/mura_ray, under a name made of the shards' hashes; it can be removed at any time.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mura_ray import store
from mura_ray.data.manifest import Shard, read_manifest
from mura_ray.data.shards import merge_shards


def local_split(data: str, split: str, cache: Path | None = None) -> Path:
    """The split's images as one file on this machine, made by the first process that asks and shared by the others.

    Args:
        data: a converted data set.
        split: one of its splits.
        cache: folder of the copies; None: MURA_CACHE, or else ~/.cache/mura_ray.

    Returns:
        A file for `SplitLoader`, whose content was verified by this call.

    Raises:
        ValueError: the data set has no such split, or a shard of it is missing or damaged.
    """
    manifest = read_manifest(data)
    if split not in manifest.splits:
        raise ValueError(f"{data!r} has no split {split!r}; it has {', '.join(manifest.splits)}")
    shards = manifest.splits[split].shards
    folder = cache or Path(os.environ.get("MURA_CACHE") or "~/.cache/mura_ray").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
    path, seal = folder / f"{split}-{key}.beton", folder / f"{split}-{key}.sha256"
    with _locked(folder / f"{split}-{key}.lock"):
        if not (path.exists() and seal.exists() and seal.read_text() == file_sha256(path)):
            for left_over in folder.glob(f".{path.name}.*.partial"):  # of a process that was killed here
                left_over.unlink()
            sources = [_verified(data, shard) for shard in shards]
            with store.atomic_path(path) as partial:
                merge_shards(sources, partial)
                sha256 = file_sha256(partial)
            store.write_bytes(str(seal), sha256.encode())
    return path


def file_sha256(path: Path) -> str:
    """Hash of a file's content; 1 to 2 GB/s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verified(data: str, shard: Shard) -> Path:
    path = store.resolve(store.join(data, shard.key))
    if not path.is_file():
        raise ValueError(f"shard {path} is missing: restore it, or convert again to another folder")
    if path.stat().st_size != shard.bytes or file_sha256(path) != shard.sha256:
        raise ValueError(f"shard {path} is not the file that manifest.json describes: restore it, or convert again")
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock among the processes of this machine; it ends with the process, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
