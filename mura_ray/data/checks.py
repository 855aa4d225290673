"""Whether this machine can do the work: each check measures one thing and says what it found.

Nothing here imports torch or FFCV into the process that asks, nor what imports them (`cache`, `shards`, `loader`): a
broken installation may end a process by a signal, so they are tried in processes of their own.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, ParamSpec

import numpy as np

from mura_ray import s3, store
from mura_ray.config import cache_budget_bytes, cache_folder
from mura_ray.data.manifest import Manifest, Shard, read_boxes, read_manifest, read_table

P = ParamSpec("P")
Progress = Callable[[int, int], None]
"""Called with the number of bytes that are done, and of all."""

PACKAGES = ("torch", "torchvision", "ray", "ffcv", "numba", "numpy")
MIN_SHARED_MEMORY_BYTES = 2**30
MIN_SHARED_MEMORY_FREE_BYTES = 64 * 2**20
"""All that a container has by default, which is known to be too little."""

MAX_CLOCK_SKEW_S = 60.0
"""S3 refuses requests from 15 minutes on; certificates and the order of logs suffer earlier."""

SHARDS_AT_ONCE = 3
"""Each is held in memory, 128 MiB at most, until its hash is verified."""

LARGE_BYTES = 32 * 2**20
"""Of the file that measures the speed of the runs' location; in S3 it goes in parts, as weights do."""

PROBE_TIMEOUT_S = 300.0
SET_UP = "run cluster/setup-node.sh (here: `make`) again"
UNSOUND = "repair this storage, or use another"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `detail` is what was measured, or what failed; `remedy` helps where it did.

    FAIL must be repaired, warn may be harmful, note is no judgement.
    """

    check: str
    status: Literal["ok", "FAIL", "warn", "note"]
    detail: str
    remedy: str = ""


def _reports(check: str) -> Callable[[Callable[P, list[Finding]]], Callable[P, list[Finding]]]:
    """Has a check report the errors of storage and of settings, instead of raising them."""

    def decorate(examine: Callable[P, list[Finding]]) -> Callable[P, list[Finding]]:
        @functools.wraps(examine)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> list[Finding]:
            try:
                return examine(*args, **kwargs)
            except (ValueError, OSError) as error:
                return [failure(check, error)]

        return guarded

    return decorate


def failure(check: str, error: ValueError | OSError) -> Finding:
    """What an error of storage or of settings says."""
    if isinstance(error, ValueError | store.StorageError):  # these say what helps
        return Finding(check, "FAIL", str(error))
    return Finding(check, "FAIL", str(error), "check the path, its permissions and the space left")


def installed_versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages that are installed, by name."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def check_versions() -> list[Finding]:
    """The interpreter and the packages that have to fit together."""
    versions = installed_versions()
    missing = [package for package in PACKAGES if package not in versions]
    if missing:
        return [Finding("versions", "FAIL", f"not installed: {', '.join(missing)}", SET_UP)]
    return [Finding("versions", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))]


def check_torch() -> tuple[list[str], list[Finding]]:
    """Whether torch and torchvision are built for each other, and the CUDA devices that they see."""
    devices, problem = _in_process("probe_torch")
    if problem:
        return [], [Finding("torch", "FAIL", problem, SET_UP)]
    works = Finding("torch", "ok", "torch and torchvision work together")
    if not devices:
        return [], [works, Finding("cuda", "note", "no CUDA device: everything runs on the CPU")]
    return devices, [works, Finding("cuda", "ok", f"{len(devices)} CUDA devices: {', '.join(devices)}")]


def probe_torch() -> list[str]:
    """Runs an operator of torchvision's own on the CPU; names and memory of the CUDA devices."""
    import torch  # here and in `probe_ffcv`: see the module's docstring
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    if nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5).tolist() != [0, 2]:
        raise SystemExit("torchvision.ops.nms gives a wrong answer")
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{device.name} {device.total_memory / 2**30:.0f} GiB" for device in devices]


def check_ffcv() -> list[Finding]:
    """Whether FFCV reads what it wrote, with numba on the threading layer that survives forks."""
    with tempfile.TemporaryDirectory(prefix="mura-doctor-") as folder:  # here: a crash would leave it behind
        facts, problem = _in_process("probe_ffcv", folder)
    if problem:
        return [Finding("ffcv", "FAIL", problem, SET_UP)]
    return [Finding("ffcv", "ok", f"a shard was written and read, pixel for pixel; {facts[0]}")]


def probe_ffcv(folder: str) -> list[str]:
    """Writes and reads a shard of a few images; says numba's threading layer."""
    import numba

    from mura_ray.data.loader import SplitLoader
    from mura_ray.data.shards import write_shard

    path, integers = Path(folder, "shard.beton"), np.arange(5) % 2
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16), np.uint8)
    write_shard(path, images, integers, integers, integers)
    loader = SplitLoader(path, batch_size=4, shuffle=False)
    read = np.concatenate([batch.images[:, 0].numpy() for batch in loader.epoch()])
    if not np.array_equal(read, images):
        raise SystemExit("FFCV read other pixels than it wrote")
    layer = numba.threading_layer()  # pyright: ignore[reportPrivateImportUsage] - documented, but not in __all__
    if layer != "tbb":
        raise SystemExit(f"numba's threading layer is {layer!r}, not 'tbb': forks will hang or abort")
    return [f"numba's threading layer is {layer}"]


def _in_process(probe: str, *arguments: str) -> tuple[list[str], str]:
    """Runs a function of this module in a process of its own.

    Returns:
        What the function returned, and what went wrong: "" where nothing did.
    """
    code = f"import json, sys; from mura_ray.data import checks; print(json.dumps(checks.{probe}(*sys.argv[1:])))"
    command = [sys.executable, "-c", code, *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [], f"hangs: no answer in {PROBE_TIMEOUT_S:.0f} s"
    if ended.returncode < 0:
        return [], f"crashed with {signal.Signals(-ended.returncode).name}"
    if ended.returncode > 0:
        return [], (ended.stderr.strip().splitlines() or [f"ended with exit code {ended.returncode}"])[-1]
    return json.loads(ended.stdout.splitlines()[-1]), ""


@_reports("memory")
def check_machine() -> list[Finding]:
    """Processors that this process may use, and the machine's memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    memory = f"{_size(kib['MemTotal'] * 1024)}, {_size(kib['MemAvailable'] * 1024)} of it available"
    return [Finding("cpus", "note", str(len(os.sched_getaffinity(0)))), Finding("memory", "note", memory)]


@_reports("shared memory")
def check_shared_memory() -> list[Finding]:
    """Whether /dev/shm is large enough for Ray and for trainers of several processes."""
    total, free = shared_memory_bytes()
    detail = f"/dev/shm has {_size(total)}, {_size(free)} free"
    if total < MIN_SHARED_MEMORY_BYTES:
        remedy = "Ray and its workers need 1 GiB: start the container with --shm-size=1g, or more"
        return [Finding("shared memory", "FAIL", detail, remedy)]
    if free < MIN_SHARED_MEMORY_FREE_BYTES:
        remedy = "end what fills it, or remove what ended processes left there"
        return [Finding("shared memory", "FAIL", detail, remedy)]
    return [Finding("shared memory", "ok", detail)]


def shared_memory_bytes() -> tuple[int, int]:
    """Size of /dev/shm, and what is free there."""
    usage = shutil.disk_usage("/dev/shm")
    return usage.total, usage.free


def check_manifest(data: str) -> tuple[Manifest | None, list[Finding]]:
    """Reads what the data set consists of; None where that fails."""
    try:
        manifest = read_manifest(data)
    except (ValueError, OSError) as error:
        return None, [failure("data", error)]
    detail = f"{data}: {manifest.name} {manifest.id}, {manifest.image_size} px, splits {', '.join(manifest.splits)}"
    return manifest, [Finding("data", "ok", detail)]


@_reports("tables")
def check_tables(data: str, manifest: Manifest) -> list[Finding]:
    """Reads each split's tables, which are verified by that, and counts what they list."""
    counts, failures = [], []
    for split in manifest.splits:
        try:
            table = read_table(data, split)
            read_boxes(data, split)
        except (ValueError, OSError) as error:
            failures.append(failure("tables", error))
        else:
            num_studies = len(table[["study_type", "patient_id", "study_id"]].drop_duplicates())
            counts.append(f"{split} {len(table):,} images of {num_studies:,} studies")
    return failures or [Finding("tables", "ok", ", ".join(counts))]


@_reports("shards")
def check_shards(data: str, manifest: Manifest, progress: Progress) -> list[Finding]:
    """Reads every shard and compares size and SHA-256 with the manifest's; a finding for each that differs."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    total, done, started = sum(shard.bytes for shard in shards), 0, time.monotonic()
    found = store.stat_files(data, [shard.key for shard in shards])
    progress(0, total)
    running: dict[Future[list[Finding]], Shard] = {}
    with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="shard") as pool:
        try:
            for shard in shards:
                running[pool.submit(_check_shard, data, shard, found.get(shard.key))] = shard
            for future in as_completed(running):
                done += running[future].bytes
                progress(done, total)
        finally:
            for future in running:
                future.cancel()
    failures = [finding for future in running for finding in future.result()]
    speed = _speed(total, time.monotonic() - started)
    return failures or [Finding("shards", "ok", f"{len(shards)} shards, {_size(total)}, read and verified at {speed}")]


@_reports("shards")
def _check_shard(data: str, shard: Shard, stat: s3.FileStat | None) -> list[Finding]:
    uri, remedy = store.join(data, shard.key), "restore it, or convert again to another folder"
    if stat is None:
        return [Finding("shards", "FAIL", f"{uri} is missing", remedy)]
    if stat.num_bytes != shard.bytes:
        detail = f"{uri} has {stat.num_bytes:,} bytes, {shard.bytes:,} in manifest.json"
        return [Finding("shards", "FAIL", detail, remedy)]
    if hashlib.sha256(store.read_bytes(uri)).hexdigest() != shard.sha256:
        return [Finding("shards", "FAIL", f"{uri} is damaged: its SHA-256 is not that in manifest.json", remedy)]
    return []


@_reports("cache")
def check_cache(manifest: Manifest | None) -> list[Finding]:
    """Whether the folder of the verified copies can be written and has room for what is used at a time.

    Args:
        manifest: of the data set that will be copied; None where it is not known.
    """
    folder, needed = cache_folder(), bytes_in_use(manifest) if manifest else 0
    with no_new_folders(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"doctor")
        copies = sum(path.stat().st_size for path in folder.glob("*.beton"))
        room = shutil.disk_usage(folder).free + copies  # copies make way for others, or are those that are needed
    detail = f"{folder} is writable and has room for {_size(room)}" + (f", {_size(needed)} needed" if needed else "")
    if room < needed:
        remedy = "free some of the disk, or set MURA_CACHE to a folder on a larger one"
        return [Finding("cache", "FAIL", detail, remedy)]
    return [Finding("cache", "ok", detail)]


def cache_free_bytes() -> int | None:
    """What is free where this machine's copies of data sets go; None where that cannot be told."""
    folder = cache_folder().absolute()
    with suppress(OSError):
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    return None


@_reports("cache budget")
def check_cache_budget(manifest: Manifest | None) -> list[Finding]:
    """Whether MURA_CACHE_GB is a number, and enough for what is used at a time."""
    budget, needed = cache_budget_bytes(), bytes_in_use(manifest) if manifest else 0
    if budget is None:
        return [Finding("cache budget", "ok", "MURA_CACHE_GB is not set: copies may fill the disk")]
    detail = f"MURA_CACHE_GB is {budget / 1e9:g}" + (f", {_size(needed)} needed" if needed else "")
    if budget < needed:
        return [Finding("cache budget", "FAIL", detail, "raise it, or unset it")]
    return [Finding("cache budget", "ok", detail)]


def bytes_in_use(manifest: Manifest) -> int:
    """Bytes of the copies in use at a time: train and valid together in training, any split alone in evaluation."""
    sizes = {name: sum(shard.bytes for shard in split.shards) for name, split in manifest.splits.items()}
    return max([sizes.get("train", 0) + sizes.get("valid", 0), *sizes.values()])


@_reports("runs")
def check_runs(runs: str) -> list[Finding]:
    """Writes, lists, reads and removes files where the runs will lie. Leaves nothing there."""
    home = store.join(runs, f".doctor-{uuid.uuid4().hex}")
    contents = {store.join(home, "small"): b"doctor\n", store.join(home, "large"): os.urandom(LARGE_BYTES)}
    with no_new_folders(None if store.is_s3(home) else store.resolve(home)):
        try:
            found = _check_writing(home, contents)
        finally:
            removed = _check_removing(home, list(contents))
    return found + removed


@_reports("runs")
def _check_writing(home: str, contents: dict[str, bytes]) -> list[Finding]:
    started = time.monotonic()
    for uri, content in contents.items():
        store.write_bytes(uri, content)
    written = time.monotonic()
    listed = sorted(store.list_files(home))
    listing_s = time.monotonic() - written
    for uri, content in contents.items():
        if store.read_bytes(uri) != content:
            return [Finding("runs", "FAIL", f"{uri} was read with another content than written", UNSOUND)]
    read_s = time.monotonic() - written - listing_s
    if listed != sorted(map(store.name, contents)):
        return [Finding("runs", "FAIL", f"{home} lists {listed}, not what was written", UNSOUND)]
    total = sum(map(len, contents.values()))
    speeds = f"written at {_speed(total, written - started)}, read at {_speed(total, read_s)}"
    return [Finding("runs", "ok", f"{store.parent(home)}: {_size(total)} {speeds}")]


@_reports("runs")
def _check_removing(home: str, uris: Sequence[str]) -> list[Finding]:
    store.remove_files(uris)
    left = store.list_files(home)
    return [Finding("runs", "FAIL", f"{home} still lists {left} after their removal", UNSOUND)] if left else []


@contextmanager
def no_new_folders(folder: Path | None) -> Iterator[None]:
    """Afterwards removes the folder and those above it which the block made, where they are empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()] if folder else []
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


@_reports("clock")
def check_clock(uris: Sequence[str]) -> list[Finding]:
    """Compares this machine's clock with that of the S3 server which holds the URIs, if one does."""
    uri = next(filter(store.is_s3, uris), None)
    if uri is None:
        return [Finding("clock", "note", "skipped: no location in S3 was given")]
    before = time.time()
    server = s3.server_time(uri)
    after = time.time()
    skew = max(before - 1 - server, server - after, 0.0)  # the server leaves its fractions of a second out
    detail = f"{skew:.0f} s from that of the server of {uri}"
    if skew > MAX_CLOCK_SKEW_S:
        return [Finding("clock", "FAIL", detail, "set this machine's clock, e.g. with NTP")]
    return [Finding("clock", "ok", detail)]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _speed(num_bytes: int, seconds: float) -> str:
    return f"{num_bytes / 1e6 / max(seconds, 1e-6):,.0f} MB/s"
