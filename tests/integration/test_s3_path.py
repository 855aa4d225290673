"""The whole path with everything in S3: radiographs, shards, a run, a search, its ensemble, predictions."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from mura_ray.data import phantom
from mura_ray.data.augment import to_unit
from mura_ray.data.cache import local_split
from mura_ray.data.loader import SplitLoader
from mura_ray.data.manifest import read_manifest
from mura_ray.domain import weights_matrix
from mura_ray.model.checkpoint import load_network, read_meta
from mura_ray.model.loss import weighted_bce_sum
from tests.ray_nodes import TOKEN, one_node
from tests.s3_server import BUCKET, Proxy, environment, get_folder, list_folder, plain_client, put_folder, s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SIZE = 64
SPACE: dict[str, Any] = {
    "num_trials": 2,
    "ensemble_size": 2,
    "fixed": {"image_size": SIZE, "initial_weights": "random", "batch_size": 8, "epochs": 1},
    "search": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}},
}


def s3(*parts: str) -> str:
    return "/".join([f"s3://{BUCKET}", *parts])


def losses_of(log: bytes) -> list[float]:
    """Validation losses of a run's `epochs.jsonl`, an epoch each."""
    return [json.loads(line)["val_loss"] for line in log.splitlines()]


class Place:
    """The bucket behind its proxy, a folder of this machine with the same radiographs, and a cluster that sees both."""

    def __init__(self, proxy: Proxy, folder: Path, variables: dict[str, str]) -> None:
        self.proxy, self.folder, self._variables = proxy, folder, variables
        self.server = proxy.upstream  # for what the tests ask themselves: it is not counted

    def command(self, module: str, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"mura_ray.{module}", *arguments],
            capture_output=True, text=True, timeout=timeout, cwd=self.folder,
            env={**os.environ, **self._variables, "MURA_CACHE": str(self.folder / f"cache-{module}")},
        )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("path")
    phantom.write_phantom(str(folder / "source"), num_train_studies=42, num_valid_studies=14, difficulty="easy")
    with s3_server(folder / "s3.log") as server:
        put_folder(server, folder / "source", "source")
        proxy = Proxy(server)
        with proxy.running() as url:
            variables = {**environment(url), **TOKEN}
            with one_node({**variables, "MURA_CACHE": str(folder / "cache")}) as address:
                yield Place(proxy, folder, {**variables, "RAY_ADDRESS": address})


@pytest.fixture(scope="module")
def shards(place: Place) -> str:
    options = ["--format", "phantom", "--image-size", str(SIZE), "--valid-fraction", "0.3"]
    for source, dest in ((s3("source"), s3("shards")), ("source", "shards")):
        done = place.command("convert", *options, "--source", source, "--dest", dest)
        assert done.returncode == 0, done.stdout + done.stderr
    return s3("shards")


@pytest.fixture(scope="module")
def searched(place: Place, shards: str) -> str:
    shutil.rmtree(place.folder / "cache", ignore_errors=True)
    (place.folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    options = ["--space", "space.yaml", "--data", shards, "--runs", s3("runs"), "--name", "search"]
    done = place.command("tune", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return s3("runs", "search", "ensemble")


def test_the_data_set_is_that_of_the_same_radiographs_in_a_folder(place: Place, shards: str) -> None:
    local = place.folder / "shards"
    expected = {path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()}
    assert get_folder(place.server, "shards") == expected


@pytest.fixture(scope="module")
def trained(place: Place, shards: str) -> str:
    """What a run on two workers, each a group of its own, printed."""
    shutil.rmtree(place.folder / "cache", ignore_errors=True)
    place.proxy.requests.clear()
    options = ["--data", shards, "--runs", s3("runs"), "--workers", "2", "--name", "pair"]
    settings = ("image_size=64", "initial_weights=random", "epochs=1", "batch_size=6")
    done = place.command("train", *options, *(f"--set={setting}" for setting in settings))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_worker_groups_download_each_shard_once(place: Place, trained: str) -> None:
    keys = [key for key in list_folder(place.server, "shards") if key.endswith(".beton")]
    assert {key: place.proxy.count("GET", key) for key in keys if not key.startswith("test")} == {
        key: 1 for key in keys if not key.startswith("test")
    }
    found = re.search(r"epoch 1: (s3://\S+)", trained)
    assert found, trained
    assert found[1].startswith(s3("runs", "pair", "checkpoint_"))
    assert any("tensorboard/events" in key for key in list_folder(place.server, "runs/pair"))
    assert len(losses_of(get_folder(place.server, "runs/pair", "epochs.jsonl")["epochs.jsonl"])) == 1


def test_a_run_on_two_workers_reports_the_exact_validation_loss(place: Place, trained: str, tmp_path: Path) -> None:
    for key, content in get_folder(place.server, "runs/pair", ".safetensors", ".json").items():
        if key.startswith("checkpoint_"):
            (tmp_path / key.rpartition("/")[2]).write_bytes(content)
    reported = read_meta(tmp_path).val_loss
    assert f"best validation loss {reported:.4f}, epoch 1" in trained

    data = str(place.folder / "shards")
    network = load_network(tmp_path).eval()
    weights = torch.from_numpy(weights_matrix(read_manifest(data).class_weights))
    with (
        local_split(data, "valid") as path,
        closing(SplitLoader(path, batch_size=4, shuffle=False)) as loader,
        torch.no_grad(),
    ):
        total = sum(
            float(weighted_bce_sum(network(to_unit(batch.images)), batch.labels, batch.type_index, weights))
            for batch in loader.epoch()
        )
    assert total / loader.num_images == pytest.approx(reported, rel=1e-5)


def test_a_search_ends_with_its_ensemble_in_s3(place: Place, searched: str) -> None:
    assert {key for key in list_folder(place.server, "runs/search") if key.startswith("ensemble/")} == {
        "ensemble/ensemble.json", "ensemble/member-0.safetensors", "ensemble/member-1.safetensors",
    }  # fmt: skip
    files = get_folder(place.server, "runs/search", "ensemble.json", "epochs.jsonl")
    members = json.loads(files["ensemble/ensemble.json"])["members"]
    losses = [losses_of(content) for key, content in files.items() if key.endswith("epochs.jsonl")]
    assert [member["val_loss"] for member in members] == pytest.approx(sorted(map(min, losses)))
    again = place.command("tune", "--space", "space.yaml", "--data", s3("shards"), "--runs", s3("runs"),
                          "--name", "search")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "started" not in again.stdout


def test_prediction_and_evaluation_read_and_write_s3(place: Place, searched: str) -> None:
    done = place.command("predict", "--ensemble", searched, "--source", s3("source/MURA-v1.1/valid"),
                         "--out", s3("predictions"))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    local = place.command("predict", "--ensemble", searched, "--source",
                          str(place.folder / "source/MURA-v1.1/valid"), "--out", "predictions")  # fmt: skip
    assert local.returncode == 0, local.stdout + local.stderr
    files = get_folder(place.server, "predictions")
    written = place.folder / "predictions"
    assert files == {
        path.relative_to(written).as_posix(): path.read_bytes() for path in written.rglob("*") if path.is_file()
    }
    done = place.command("evaluate", "--ensemble", f"{searched}/ensemble.json", "--data", s3("shards"))
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = get_folder(place.server, "runs/search", "studies.csv").values()
    predicted = pd.read_csv(written / "studies.csv")["probability"].sort_values()
    evaluated = pd.read_csv(io.BytesIO(table))["probability"].sort_values()
    assert evaluated.to_numpy() == pytest.approx(predicted.to_numpy(), abs=1e-5)


def test_a_damaged_or_missing_shard_stops_a_run_before_anything_is_read(place: Place, shards: str) -> None:
    client = plain_client(place.server)
    for key, content in get_folder(place.server, "shards").items():
        if key != "train/shard-00000.beton":
            client.put_object(Bucket=BUCKET, Key=f"missing/{key}", Body=content)
            client.put_object(Bucket=BUCKET, Key=f"damaged/{key}", Body=content)
        else:
            flipped = (
                content[: len(content) // 2]
                + bytes([content[len(content) // 2] ^ 1])
                + content[len(content) // 2 + 1 :]
            )
            client.put_object(Bucket=BUCKET, Key=f"damaged/{key}", Body=flipped)
    for data, message in (("missing", "is missing: restore it"), ("damaged", "is not the file that manifest.json")):
        done = place.command(
            "evaluate", "--ensemble", s3("runs/search/ensemble"), "--data", s3(data), "--split", "train"
        )
        assert done.returncode == 1
        assert f"error: shard {s3(data)}/train/shard-00000.beton {message}" in done.stderr
