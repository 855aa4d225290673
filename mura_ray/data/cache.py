"""A verified local copy of a split: all its shards in one .beton, made once a node and checked at every use.

FFCV answers a damaged file with wrong images or a crash, so nothing is opened that was not hashed before. The copies
lie in MURA_CACHE, or ~/.cache/mura_ray, under names made of the shards' hashes. Those that nobody uses may be removed
at any time; the least recently used go by themselves when MURA_CACHE_GB, or the disk, is full.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import xxhash

from mura_ray import store
from mura_ray.config import cache_budget_bytes, cache_folder
from mura_ray.data.manifest import Shard, read_manifest
from mura_ray.data.shards import Merger

Progress = Callable[[int, int], None]
"""Called with the number of bytes that are there, and of all."""

SHARDS_AT_ONCE = 3
"""Each is held in memory, 128 MiB at most, until its hash is verified."""

LET_GO_WITHIN_S = 300.0
"""How long whoever is to make a copy waits for the others that look at it: for their hash of a large file."""

_READ_BYTES = 16 * 2**20
_logger = logging.getLogger(__name__)


@contextmanager
def local_split(
    data: str, split: str, *, cache: Path | None = None, progress: Progress | None = None
) -> Iterator[Path]:
    """The split's images as one file on this machine, made by the first process that asks and shared by the others.

    Inside the block the file stays: nothing evicts it.

    Args:
        data: a converted data set.
        split: one of its splits.
        cache: folder of the copies; None: MURA_CACHE, or else ~/.cache/mura_ray.
        progress: is told how far the copy is, where one is made.

    Yields:
        A file for `SplitLoader`, whose content was verified by this call.

    Raises:
        ValueError: the data set has no such split, a shard of it is missing or damaged, there is no room for the copy,
            or the one that is there was damaged while others use it.
        StorageError: a shard cannot be read.
    """
    manifest = read_manifest(data)
    if split not in manifest.splits:
        raise ValueError(f"{data!r} has no split {split!r}; it has {', '.join(manifest.splits)}")
    shards = manifest.splits[split].shards
    folder = cache or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
    copy = _Copy(folder, f"{split}-{key}")
    with copy.lock.open("w") as lock:  # locks end with the process, however that ends
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not copy.is_sound():
            # Whoever makes the copy keeps it for hours: the others must let go before, and wait by another lock.
            fcntl.flock(lock, fcntl.LOCK_UN)
            with copy.making.open("w") as making:
                fcntl.flock(making, fcntl.LOCK_EX)
                fcntl.flock(lock, fcntl.LOCK_SH)
                if copy.is_sound():
                    break
                _lock_alone(copy, lock)
                _make(copy, data, shards, progress)
            fcntl.flock(lock, fcntl.LOCK_SH)  # an eviction may come between the two locks
        os.utime(copy.seal)
        yield copy.path


def file_sha256(path: Path) -> str:
    """Hash of a file's content; 1 to 2 GB/s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Copy:
    """The files of one copy: the images, the seal (size and hash; its age is that of the last use), two locks.

    Whoever reads the images holds `lock` shared, whoever makes or removes them alone; `making` is held by the one that
    is to make them. The locks' files stay.
    """

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.beton"

    @property
    def seal(self) -> Path:
        return self.folder / f"{self.name}.seal"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.name}.lock"

    @property
    def making(self) -> Path:
        return self.folder / f"{self.name}.making.lock"

    def is_sound(self) -> bool:
        """Whether the images are there and what was sealed; the hash runs at memory speed."""
        try:
            seal = json.loads(self.seal.read_text())
            return self.path.stat().st_size == seal["bytes"] and _fast_hash(self.path) == seal["xxh3_128"]
        except (OSError, ValueError, KeyError):
            return False

    def write_seal(self) -> None:
        content = {"bytes": self.path.stat().st_size, "xxh3_128": _fast_hash(self.path)}
        store.write_bytes(str(self.seal), json.dumps(content).encode())

    def remove(self) -> None:
        self.seal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _fast_hash(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_READ_BYTES)
        while num_bytes := file.readinto(buffer):
            hasher.update(memoryview(buffer)[:num_bytes])
    return hasher.hexdigest()


def _lock_alone(copy: _Copy, lock: TextIO) -> None:
    """Locks a copy that is to be made, once the others that look at it, and find it unsound too, have let go.

    Raises:
        ValueError: some do not: they use a copy that has become unsound under them.
    """
    deadline = time.monotonic() + LET_GO_WITHIN_S
    while True:
        with suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.monotonic() > deadline:
            raise ValueError(
                f"the copy {copy.path} is not what was sealed, and other runs use it: end them, or set MURA_CACHE to "
                "another folder"
            )
        time.sleep(0.05)


def _make(copy: _Copy, data: str, shards: Sequence[Shard], progress: Progress | None) -> None:
    """Downloads, verifies and joins all shards; the caller holds the lock alone."""
    if copy.seal.exists():
        _logger.warning("the copy %s is not what was sealed; it is made anew", copy.path)
    copy.remove()
    for left_over in copy.folder.glob(f".{copy.name}.*.partial"):  # of a process that was killed here
        left_over.unlink()
    needed = sum(shard.bytes for shard in shards)
    if (budget := cache_budget_bytes()) is not None:
        _keep_budget(copy, needed, budget)
    with store.atomic_path(copy.path) as partial:
        merger = _with_room(copy, partial, shards)
        try:
            _download(merger, data, shards, progress)
            merger.finish()
        except OSError as error:
            if error.errno == errno.ENOSPC:  # a file system that promises room without keeping it
                raise _no_room(copy, needed) from error
            raise
        finally:
            merger.close()
    copy.write_seal()


def _with_room(copy: _Copy, partial: Path, shards: Sequence[Shard]) -> Merger:
    """Claims the disk space of the copy, after evicting others where there is too little."""
    while True:
        try:
            return Merger(partial, [(shard.count, shard.bytes) for shard in shards])
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            if not _evict_oldest(copy):
                raise _no_room(copy, sum(shard.bytes for shard in shards)) from error


def _download(merger: Merger, data: str, shards: Sequence[Shard], progress: Progress | None) -> None:
    total, done = sum(shard.bytes for shard in shards), 0
    waiting = iter(enumerate(shards))

    def fetch(number: int, shard: Shard) -> int:
        merger.place(number, _verified(data, shard))
        return shard.bytes

    with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="shard") as pool:
        running: set[Future[int]] = set()
        try:
            while True:
                for number, shard in waiting:
                    running.add(pool.submit(fetch, number, shard))
                    if len(running) == SHARDS_AT_ONCE:
                        break
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                done += sum(future.result() for future in finished)
                if progress is not None:
                    progress(done, total)
        finally:
            for future in running:
                future.cancel()


def _verified(data: str, shard: Shard) -> bytes:
    uri = store.join(data, shard.key)
    try:
        content = store.read_bytes(uri)
    except ValueError as error:
        raise ValueError(f"shard {uri} is missing: restore it, or convert again to another folder") from error
    if len(content) != shard.bytes or hashlib.sha256(content).hexdigest() != shard.sha256:
        raise ValueError(f"shard {uri} is not the file that manifest.json describes: restore it, or convert again")
    return content


def _keep_budget(copy: _Copy, needed: int, budget: int) -> None:
    """Evicts until the copy fits the budget."""
    while sum(path.stat().st_size for path in copy.folder.glob("*.beton")) + needed > budget:
        if not _evict_oldest(copy):
            raise ValueError(
                f"the copy {copy.path} needs {needed / 1e9:.2f} GB, which MURA_CACHE_GB={budget / 1e9:g} does not "
                "leave beside the copies in use: raise it, or end the runs that use them"
            )


def _evict_oldest(newcomer: _Copy) -> bool:
    """Removes the least recently used copy that nobody uses. False where there is none."""
    seals = [path for path in newcomer.folder.glob("*.seal") if path != newcomer.seal]
    ages: list[tuple[float, Path]] = []
    for seal in seals:
        with suppress(FileNotFoundError):  # another process evicts too
            ages.append((seal.stat().st_mtime, seal))
    for _, seal in sorted(ages):
        other = _Copy(newcomer.folder, seal.stem)
        with other.lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if seal.exists():
                _logger.info("evicting %s", other.path)
                other.remove()
                return True
    return False


def _no_room(copy: _Copy, needed: int) -> ValueError:
    free = shutil.disk_usage(copy.folder).free
    return ValueError(
        f"the disk of {copy.folder} has {free / 1e9:.2f} GB free, the copy {copy.path.name} needs "
        f"{needed / 1e9:.2f} GB: free some, or set MURA_CACHE to a folder on a larger disk"
    )
