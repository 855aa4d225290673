"""Training that loses workers and nodes: what it ends with, and what of its work it does again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from mura_ray.config import TrialConfig
from mura_ray.data import phantom
from mura_ray.data.cache import local_split
from mura_ray.data.loader import SplitLoader, global_order
from mura_ray.data.manifest import read_manifest, read_table
from mura_ray.domain import weights_matrix
from mura_ray.model.densenet import build_network
from mura_ray.ports import free_port
from mura_ray.training import loop
from tests.ray_nodes import TOKEN, three_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

BATCH, EPOCHS, INTERVAL, WORKERS = 6, 2, 4, 2
SETTINGS = {"image_size": 64, "initial_weights": "random", "batch_size": BATCH}


def samples_of(folder: Path) -> Path:
    """Where the workers of a training in this folder note their steps; a cluster must know it before it starts."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    return folder / "samples"


class Training:
    """`python -m mura_ray.train` as a process, and what its workers note of each step."""

    def __init__(self, data: str, folder: Path, *options: str, epochs: int = EPOCHS, **environment: str) -> None:
        self.home, self._samples = folder / "run", samples_of(folder)
        self._log = folder / "log"
        arguments = [sys.executable, "-m", "mura_ray.train", "--data", data, "--runs", str(folder), "--name", "run"]
        arguments += ["--workers", f"{WORKERS}", f"--recovery=checkpoint_steps={INTERVAL}", *options]
        arguments += [f"--set={name}={value}" for name, value in {**SETTINGS, "epochs": epochs}.items()]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                arguments, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **environment, "MURA_SAMPLE_LOG": str(self._samples)},
            )  # fmt: skip

    def steps(self) -> list[dict[str, Any]]:
        """What all workers noted, by time; each row with the process that wrote it."""
        rows = []
        for path in self._samples.glob("*.jsonl"):
            pid = int(path.stem.rpartition("-")[2])
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            rows += [{**json.loads(line), "pid": pid} for line in lines]
        return sorted(rows, key=lambda row: row["time"])

    def wait_for(self, epoch: int, batch: int, after_s: float = 0, workers: int = WORKERS) -> dict[str, Any]:
        """The first step of that epoch from that batch on, on so many workers, later than a time."""
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            for row in self.steps():
                place = (row["epoch"], row["batch"]) >= (epoch, batch)
                if place and row["time"] > after_s and row["workers"] == workers:
                    return row
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.05)
        raise AssertionError(self._log.read_text())

    def end(self) -> list[dict[str, Any]]:
        """Waits for a good end; what was logged of the epochs."""
        assert self.process.wait(timeout=600) == 0, self._log.read_text()
        return [json.loads(line) for line in (self.home / "epochs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("recovery")
    phantom.write_phantom(str(folder / "source"), num_train_studies=42, num_valid_studies=7, difficulty="easy")
    options = ["--format", "phantom", "--source", str(folder / "source"), "--dest", str(folder / "shards")]
    options += ["--image-size", "64", "--valid-fraction", "0.2"]
    subprocess.run([sys.executable, "-m", "mura_ray.convert", *options], check=True, capture_output=True, timeout=300)
    return str(folder / "shards")


def train_without_ray(rank: int, port: int, data: str, folder: str) -> None:
    """A worker of the same training, in a process of its own; leaves what its epochs came to."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    config = TrialConfig.model_validate({**SETTINGS, "epochs": EPOCHS})

    def open_split(path: Path, size: int, shuffle: bool) -> SplitLoader:
        return SplitLoader(path, batch_size=size, rank=rank, world_size=WORKERS, shuffle=shuffle, seed=config.seed)

    weights = torch.from_numpy(weights_matrix(read_manifest(data).class_weights))
    with local_split(data, "train") as train, local_split(data, "valid") as valid:
        loaders = open_split(train, BATCH, True), open_split(valid, loop.VALIDATION_BATCH, False)
        run = loop.prepare_run(config, build_network(None, config.seed), *loaders, weights, torch.device("cpu"))
        rows = []
        while not loop.is_complete(run):
            epoch = run.progress.epochs_done + 1
            rows.append({"epoch": epoch, "train_loss": loop.train_epoch(run, epoch), "val_loss": loop.validate(run)})
            loop.finish_epoch(run, epoch, rows[-1]["val_loss"])
        for loader in loaders:
            loader.close()
    Path(folder, f"{rank}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def undisturbed(data: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The epochs of a training that nothing can befall: on as many workers, without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage]
        train_without_ray, (free_port(), data, str(folder)), nprocs=WORKERS, daemon=True
    )
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORKERS))
    assert first == second
    return first


def assert_same_epochs(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["epoch"] for row in found] == [row["epoch"] for row in expected] == list(range(1, EPOCHS + 1))
    for name in ("val_loss", "train_loss"):
        assert np.allclose([row[name] for row in found], [row[name] for row in expected], atol=1e-4), name


def attempts(steps: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The steps of each worker group that the run had, one group after the other."""
    groups: list[list[dict[str, Any]]] = []
    pids: set[int] = set()
    for row in steps:
        if row["pid"] not in pids:
            if not groups or len(pids) == groups[-1][0]["workers"] or row["workers"] != groups[-1][0]["workers"]:
                groups.append([])
                pids = set()
            pids.add(row["pid"])
        groups[-1].append(row)
    return groups


def assert_every_batch_once_in_order(data: str, steps: list[dict[str, Any]], epochs: int = EPOCHS) -> None:
    """The steps that count, those that no later fault undid, are the global batches of each epoch in their order."""
    sample_ids = read_table(data, "train")["sample_id"].to_numpy()
    num_batches = read_manifest(data).splits["train"].num_images // BATCH
    counted: dict[tuple[int, int], dict[int, list[int]]] = {}
    for number, rows in enumerate(attempts(steps)):
        first = min((row["epoch"], row["batch"]) for row in rows)
        if number:  # what came after the checkpoint that this attempt began with is undone
            counted = {place: parts for place, parts in counted.items() if place < first}
        for row in rows:
            counted.setdefault((row["epoch"], row["batch"]), {})[row["rank"]] = row["sample_ids"]
    assert sorted(counted) == [(epoch, batch) for epoch in range(1, epochs + 1) for batch in range(num_batches)]
    for (epoch, batch), parts in counted.items():
        order = global_order(len(sample_ids), 0, epoch)[batch * BATCH : (batch + 1) * BATCH]
        seen = [sample for rank in sorted(parts) for sample in parts[rank]]
        assert seen == sample_ids[order].tolist(), (epoch, batch)


def test_a_killed_worker_costs_no_more_than_the_steps_since_the_last_checkpoint(
    data: str, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    training = Training(data, tmp_path)
    last = training.wait_for(epoch=1, batch=5)
    os.kill(last["pid"], signal.SIGKILL)
    killed_s = time.time()
    found = training.end()
    assert_same_epochs(found, undisturbed)
    steps = training.steps()
    assert_every_batch_once_in_order(data, steps)
    before = max(row["batch"] for row in steps if row["time"] <= killed_s)
    old = {row["pid"] for row in steps if row["time"] <= killed_s}
    first = next(row for row in steps if row["pid"] not in old)
    assert before - first["batch"] + 1 <= INTERVAL
    assert first["batch"] > 0, "nothing was kept"


@pytest.mark.faults
def test_a_run_killed_inside_an_epoch_continues_there(
    data: str, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    killed = Training(data, tmp_path)
    killed.wait_for(epoch=2, batch=7)
    os.killpg(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    old = {row["pid"] for row in killed.steps()}
    continued = Training(data, tmp_path)
    assert_same_epochs(continued.end(), undisturbed)
    first = next(row for row in continued.steps() if row["pid"] not in old)
    assert (first["epoch"], first["batch"]) > (2, 0)
    assert_every_batch_once_in_order(data, continued.steps())


FASTER = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",  # how long Ray waits for a lost node before it goes on without
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
ELASTIC, ELASTIC_EPOCHS = ("--min-workers", "1", "--recovery=resize_every_s=3"), 10
NOTICE_EPOCHS = 40  # shorter ones: there are no checkpoints inside them


@pytest.mark.faults
def test_an_elastic_run_goes_on_with_one_worker_and_again_with_two(data: str, tmp_path: Path) -> None:
    with three_nodes(**FASTER, MURA_SAMPLE_LOG=str(samples_of(tmp_path))) as (address, _, tell):
        variables = {**TOKEN, **FASTER, "RAY_ADDRESS": address}
        training = Training(data, tmp_path, *ELASTIC, epochs=ELASTIC_EPOCHS, **variables)
        training.wait_for(epoch=1, batch=3)
        tell("remove")
        removed_s = time.time()
        training.wait_for(epoch=1, batch=0, after_s=removed_s, workers=1)
        tell("add")
        training.wait_for(epoch=1, batch=0, after_s=time.time(), workers=2)
        training.end()
    steps = training.steps()
    assert_every_batch_once_in_order(data, steps, epochs=ELASTIC_EPOCHS)
    workers = [row["workers"] for row in steps]
    assert [count for place, count in enumerate(workers) if place == 0 or workers[place - 1] != count] == [2, 1, 2]


class Metadata(BaseHTTPRequestHandler):
    """EC2's metadata service, as IMDSv2: nothing without a token, no notice until there is one."""

    notice: str | None = None

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 404, b"token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "token":
            self._answer(401, b"")
        elif self.path == "/latest/meta-data/spot/instance-action" and Metadata.notice:
            self._answer(200, json.dumps({"action": "terminate", "time": Metadata.notice}).encode())
        else:
            self._answer(404, b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def metadata() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
    Metadata.notice = None


@pytest.mark.faults
def test_a_node_that_is_taken_away_with_notice_costs_no_step(data: str, tmp_path: Path, metadata: str) -> None:
    with three_nodes(**FASTER, MURA_SAMPLE_LOG=str(samples_of(tmp_path))) as (address, node_ids, tell):
        variables = {**TOKEN, **FASTER, "RAY_ADDRESS": address, "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata}
        with (tmp_path / "spot.log").open("w") as log:
            watcher = subprocess.Popen(
                [sys.executable, "-m", "mura_ray.distributed.spot", "--node-id", node_ids[-1]],
                stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **variables},
            )  # fmt: skip
        # No checkpoint but those that the notice brings.
        options = ["--min-workers", "1", "--recovery=checkpoint_steps=100000"]
        training = Training(data, tmp_path, *options, epochs=NOTICE_EPOCHS, **variables)
        training.wait_for(epoch=1, batch=2)
        deadline = datetime.now(UTC) + timedelta(seconds=40)
        Metadata.notice = deadline.strftime("%Y-%m-%dT%H:%M:%SZ")
        assert watcher.wait(timeout=60) == 0, (tmp_path / "spot.log").read_text()
        time.sleep(max(0, deadline.timestamp() - time.time()))
        tell("remove")
        training.wait_for(epoch=1, batch=0, after_s=deadline.timestamp(), workers=1)
        training.end()
    steps = training.steps()
    assert_every_batch_once_in_order(data, steps, epochs=NOTICE_EPOCHS)
    trained = [(row["epoch"], row["batch"]) for row in steps if row["rank"] == 0]
    assert len(trained) == len(set(trained)), "a step was taken twice: the first time was for nothing"
