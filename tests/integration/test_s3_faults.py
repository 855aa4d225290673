"""Conversion to S3 and the download from it under the faults that networks, servers and machines really have.

Whatever happens, the result is the undisturbed one to the byte, or a clear error: never a wrong image.
`MURA_KILLS` (default 6) is how often a conversion, and how often a download, is killed.
"""

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Event

import pytest

from mura_ray import s3, store
from mura_ray.data import phantom
from mura_ray.data.cache import local_split
from tests.ray_nodes import TOKEN, one_node
from tests.s3_server import BUCKET, Fault, Proxy, Request, environment, get_folder, plain_client, put_folder, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("MURA_KILLS", "6"))
SIZE = 512  # with a page a shard, each holds 8 images

CONVERT = f"""
import sys
from mura_ray import cli, convert
from mura_ray.data import shard_plan
from mura_ray.distributed.conversion import run_conversion

shard_plan._PAGES_PER_SHARD = 1  # many small shards: many moments to be killed at
source, dest = sys.argv[1:]
collection = convert.read_collection("phantom", source, valid_fraction=0.3)
sys.exit(cli.run(lambda: run_conversion(collection, dest, image_size={SIZE}, allow_damaged=False) and None))
"""


def uri(*parts: str) -> str:
    return "/".join([f"s3://{BUCKET}", *parts])


class Place:
    """A bucket with radiographs behind a proxy, and a Ray cluster whose tasks see it through that."""

    def __init__(self, proxy: Proxy, url: str, folder: Path) -> None:
        self.proxy, self.url, self.folder = proxy, url, folder
        self.environment = {**environment(url), **TOKEN}

    def start_convert(self, dest: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", CONVERT, uri("source"), uri(dest)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, **self.environment},
        )  # fmt: skip

    def convert(self, dest: str) -> dict[str, bytes]:
        process = self.start_convert(dest)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return get_folder(self.proxy.upstream, dest)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("faults")
    phantom.write_phantom(str(folder / "source"), num_train_studies=42, num_valid_studies=14, difficulty="easy")
    with s3_server(folder / "s3.log") as server:
        put_folder(server, folder / "source", "source")
        proxy = Proxy(server)
        with proxy.running() as url:
            place = Place(proxy, url, folder)
            with one_node(place.environment) as address:
                place.environment["RAY_ADDRESS"] = address
                yield place


@pytest.fixture
def faults(place: Place) -> Iterator[Proxy]:
    """The proxy, without faults before and after the test."""
    place.proxy.requests.clear()
    place.proxy.faults.clear()
    yield place.proxy
    place.proxy.fault = lambda _: None


@pytest.fixture(scope="module")
def expected(place: Place) -> dict[str, bytes]:
    """The undisturbed conversion, which lies at `sound`."""
    return place.convert("sound")


def every(number: int, fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda request: fault if request.number % number == 0 else None


def share(percent: float, fault: Fault) -> Callable[[Request], Fault | None]:
    rng = random.Random(0)
    return lambda _: fault if rng.random() < percent / 100 else None


def numbered(number: int, fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda request: fault if request.number == number else None


FAULTS = {
    "5 % of the answers are 503": share(5, "slow down"),
    "every 20th connection is reset": every(20, "reset"),
    "an answer stalls for a minute": numbered(40, "stall"),
    "every 15th body is cut off": every(15, "truncate"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_conversion_under_passing_faults_is_the_undisturbed_one(
    place: Place, faults: Proxy, expected: dict[str, bytes], fault: Callable[[Request], Fault | None],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    faults.fault = fault
    dest = f"disturbed-{request.node.name.partition('[')[2][:4].strip()}"
    assert place.convert(dest) == expected
    assert faults.faults, "no request met the fault"


def test_a_conversion_without_credentials_in_its_middle_says_so_and_goes_on_later(
    place: Place, faults: Proxy, expected: dict[str, bytes]
) -> None:
    faults.fault = lambda request: "expired" if request.number > 100 else None
    process = place.start_convert("expired")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "the credentials have expired (ExpiredToken); renew them" in output
    assert "Traceback" not in output
    assert "manifest.json" not in get_folder(faults.upstream, "expired")
    faults.fault = lambda _: None
    assert place.convert("expired") == expected


def test_a_conversion_killed_at_many_moments_ends_as_the_undisturbed_one(
    place: Place, faults: Proxy, expected: dict[str, bytes]
) -> None:
    rng = random.Random(0)
    begun = len(faults.requests)
    place.convert("count")
    num_requests = len(faults.requests) - begun
    cut_off = 0
    for _ in range(ROUNDS):
        reached, moment = Event(), len(faults.requests) + rng.randint(1, num_requests // 4)
        faults.fault = lambda request, at=moment, now=reached: now.set() if request.number >= at else None
        process = place.start_convert("killed")
        while not reached.wait(0.02) and process.poll() is None:
            pass
        cut_off += process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        faults.fault = lambda _: None
        there = get_folder(faults.upstream, "killed")
        assert "manifest.json" not in there or {k: v for k, v in there.items() if not k.startswith("_work")} == expected
    assert cut_off >= ROUNDS // 2, "the rounds were to kill conversions, not to look on as they end"
    assert place.convert("killed") == expected


def download(data: str, cache: str, result: str) -> None:
    """In a process of its own: makes a local copy, and leaves its hash, or what went wrong."""
    s3.BACKOFF_S = 0.05
    try:
        with local_split(data, "train", cache=Path(cache)) as path:
            answer = hashlib.sha256(path.read_bytes()).hexdigest()
    except (ValueError, store.StorageError) as error:
        answer = f"error: {error}"
    Path(result).write_text(answer)


class Downloads:
    """Processes that download, forked from one that has everything imported."""

    def __init__(self, folder: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mura_ray.data.cache", "boto3"])
        self._folder = folder
        self.cache = folder / "cache"

    def start(self, data: str, number: int = 0) -> ForkServerProcess:
        process = self._context.Process(target=download, args=(data, str(self.cache), str(self._folder / f"{number}")))
        process.start()
        return process

    def result(self, number: int = 0) -> str:
        return (self._folder / f"{number}").read_text()

    def run(self, data: str) -> str:
        self.start(data).join()
        return self.result()


@pytest.fixture
def downloads(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Downloads:
    for name, value in environment(place.url).items():
        monkeypatch.setenv(name, value)
    s3._renew_credentials()
    return Downloads(tmp_path)


@pytest.fixture
def whole(place: Place, expected: dict[str, bytes], downloads: Downloads, tmp_path: Path) -> str:
    """The hash of the undisturbed copy."""
    with local_split(uri("sound"), "train", cache=tmp_path / "undisturbed") as path:
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_download_under_passing_faults_is_the_undisturbed_one(
    faults: Proxy, downloads: Downloads, whole: str, fault: Callable[[Request], Fault | None]
) -> None:
    faults.requests.clear()
    # The download has some dozen requests: what is to hit one in 20 or 40 hits one in 4.
    faults.fault = lambda request: fault(
        Request(request.number * 5, request.method, request.key, request.query, request.access_key, request.range)
    )
    assert downloads.run(uri("sound")) == whole


def test_processes_that_start_together_download_each_shard_once(
    place: Place, faults: Proxy, downloads: Downloads, expected: dict[str, bytes], whole: str
) -> None:
    faults.requests.clear()
    processes = [downloads.start(uri("sound"), number) for number in range(4)]
    for process in processes:
        process.join()
    assert {downloads.result(number) for number in range(4)} == {whole}
    shards = [key for key in expected if key.startswith("train/")]
    assert len(shards) > 5
    assert {key: faults.count("GET", f"sound/{key}") for key in shards} == dict.fromkeys(shards, 1)


def test_a_downloader_killed_at_many_moments_leaves_nothing_that_is_trusted(
    place: Place, faults: Proxy, downloads: Downloads, expected: dict[str, bytes], whole: str
) -> None:
    rng = random.Random(1)
    num_requests = sum(key.startswith("train/") for key in expected)
    for number in range(ROUNDS):
        downloads.cache = downloads.cache.with_name(f"cache-{number}")
        reached, moment = Event(), len(faults.requests) + rng.randint(1, num_requests + 2)
        faults.fault = lambda request, at=moment, now=reached: now.set() if request.number >= at else None
        process = downloads.start(uri("sound"))
        assert process.pid
        reached.wait(timeout=30)
        time.sleep(rng.random() * 0.05)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        faults.fault = lambda _: None
        assert downloads.run(uri("sound")) == whole
        assert not list(downloads.cache.glob(".*.partial"))


@pytest.mark.parametrize("fault", ["flip", "missing", "denied", "expired"])
def test_what_is_wrong_for_good_is_a_clear_error_and_no_copy(
    place: Place, faults: Proxy, downloads: Downloads, expected: dict[str, bytes], fault: str
) -> None:
    shard = "train/shard-00003.beton"
    data = "sound"
    if fault == "missing":
        data = "missing"
        for key, content in expected.items():
            if key != shard:
                plain_client(faults.upstream).put_object(Bucket=BUCKET, Key=f"{data}/{key}", Body=content)
        message = f"error: shard {uri(data, shard)} is missing: restore it"
    elif fault == "flip":
        faults.fault = lambda request: "flip" if request.key.endswith(shard) else None
        message = f"error: shard {uri(data, shard)} is not the file that manifest.json describes"
    elif fault == "denied":
        faults.fault = lambda request: "denied" if request.key.endswith(shard) else None
        message = f"error: {uri(data, shard)}: read failed: access denied"
    else:
        faults.fault = lambda request: "expired" if request.key.endswith(shard) else None
        message = f"error: {uri(data, shard)}: read failed after 3 attempts"
    assert downloads.run(uri(data)).startswith(message)
    assert not [path for path in downloads.cache.iterdir() if path.suffix != ".lock"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 30 MiB: room for one of the splits at a time, and little more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)]).returncode:
        pytest.skip("needs root to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_the_cache_stays_whole(
    faults: Proxy, downloads: Downloads, whole: str, small_disk: Path
) -> None:
    downloads.cache = small_disk
    with local_split(uri("sound"), "valid", cache=small_disk) as path:
        before = path.read_bytes()
        assert downloads.run(uri("sound")).startswith(f"error: the disk of {small_disk} has ")
        assert not list(small_disk.glob(".*"))
        assert path.read_bytes() == before, "a copy in use is never evicted"
    (small_disk / "ballast").write_bytes(bytes(30 * 2**20 - len(before) - 4 * 2**20))
    answer = downloads.run(uri("sound"))
    assert answer.startswith("error: the disk of ")
    assert "free some, or set MURA_CACHE to a folder on a larger disk" in answer
