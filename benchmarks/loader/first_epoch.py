"""From an S3 server and nothing on this machine: how long to the first batch and through the first two epochs?

The server is moto's, behind a proxy that is a network link of fixed speed, shared by all connections, without latency.
"""

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.harness import Isolated
from benchmarks.loader import measure, radiographs
from benchmarks.loader.contenders import CONTENDERS, OURS, Contender, Data
from benchmarks.loader.measure import FirstEpoch
from benchmarks.loader.report import RemoteResult
from tests import s3_server

PREFIX = "radiographs"
WORKERS = (1, 2, 4)
_PIECE = 2**17
_NAMES = (OURS, "webdataset_raw", "webdataset_jpeg", "streaming_raw", "streaming_jpeg")


@dataclass
class Link(s3_server.Proxy):
    """A proxy whose connections share `bytes_per_s`; `sent` counts the bytes."""

    sent: int = 0
    _free_at: float = field(default=0.0, init=False)

    def turn_s(self, num_bytes: int) -> float:
        """Claims the link for so many bytes. Returns how long to wait until they are through."""
        assert self.bytes_per_s is not None
        with self.lock:
            self.sent += num_bytes
            now = time.monotonic()
            # What a late wake-up lost may be made good, up to a fiftieth of a second.
            self._free_at = max(self._free_at, now - 0.02) + num_bytes / self.bytes_per_s
            return self._free_at - now

    @contextmanager
    def running(self) -> Iterator[str]:
        """Listens on loopback; gives the URL."""
        handler = type("Handler", (_LinkHandler,), {"proxy": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()


class _LinkHandler(s3_server._Handler):
    proxy: Any  # a Link

    def _write(self, content: bytes) -> None:
        for start in range(0, len(content), _PIECE):
            piece = content[start : start + _PIECE]
            time.sleep(max(self.proxy.turn_s(len(piece)), 0))
            self.wfile.write(piece)


def run(data: Data, rounds: int, bytes_per_s: float) -> list[RemoteResult]:
    """Measures all contenders that read from S3; the runs of a contender with the best number of workers."""
    data.folder.parent.mkdir(exist_ok=True)
    with Isolated() as maker:
        maker.call(radiographs.make, data)
    contenders = [one for one in CONTENDERS if one.name in _NAMES and one.is_installed]
    with s3_server.s3_server(data.folder / "moto.log") as upstream:
        for folder in {one.folder for one in contenders}:
            _upload(data.folder / folder, upstream)
        link = Link(upstream, bytes_per_s=bytes_per_s)
        with link.running() as url:
            best = [_tuned(one, data, url, link) for one in contenders]
            for _ in range(rounds - 1):
                for result in best:
                    result.epochs.append(_one(result.contender, data, url, result.workers))
    return best


def _upload(folder: Path, url: str) -> None:
    """Uploads a folder, readable without a signature: WebDataset's way to S3 is curl."""
    s3_server.put_folder(url, folder, f"{PREFIX}/{folder.name}")
    client = s3_server.plain_client(url)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        key = f"{PREFIX}/{folder.name}/{path.relative_to(folder).as_posix()}"
        client.put_object_acl(Bucket=s3_server.BUCKET, Key=key, ACL="public-read")


def _tuned(contender: Contender, data: Data, url: str, link: Link) -> RemoteResult:
    candidates: Sequence[int] = (0,) if contender.name == OURS else WORKERS
    found = []
    for workers in candidates:
        before = link.sent
        epoch = _one(contender, data, url, workers)
        # WebDataset reads everything again in the second epoch, the others from their copy.
        num_epochs = 2 if contender.package == "webdataset" else 1
        found.append(RemoteResult(contender, workers, (link.sent - before) / num_epochs / 1e6, [epoch]))
    return min(found, key=lambda result: result.epochs[0].epoch_s)


def _one(contender: Contender, data: Data, url: str, workers: int) -> FirstEpoch:
    remote = f"s3://{s3_server.BUCKET}/{PREFIX}"
    if contender.package == "webdataset":
        remote = f"pipe:curl --silent --fail {url}/{s3_server.BUCKET}/{PREFIX}"
    folder = Path(mkdtemp(prefix="empty-"))
    environment = {**s3_server.environment(url), "S3_ENDPOINT_URL": url}
    try:
        with Isolated() as process:
            nothing_here = replace(data, folder=folder, remote=remote)
            return process.call(measure.first_epochs, contender, nothing_here, workers, environment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
