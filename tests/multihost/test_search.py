"""From nothing to an ensemble on hosts of one's own, undisturbed and with hosts lost on the way."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mura_ray.data import phantom
from tests.multihost import hosts
from tests.multihost.cluster import Cluster, hosts_of_a_cluster, wait_until
from tests.s3_server import get_folder, put_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

SPACE = {
    "num_trials": 2, "ensemble_size": 2, "workers_per_trial": 2, "gpus_per_worker": 0,
    "recovery": {"checkpoint_steps": 8, "max_failures": 20},
    "fixed": {"image_size": 64, "initial_weights": "random", "epochs": 2, "batch_size": 6},
    "search": {"learning_rate": {"log_uniform": [1e-4, 1e-3]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := hosts.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
    phantom.write_phantom(str(folder / "source"), num_train_studies=42, num_valid_studies=7, difficulty="easy")
    with hosts_of_a_cluster(folder, SPACE) as made:
        put_folder(made.s3_url, folder / "source", "source")
        made.up()
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> dict[str, Any]:
    """The ensemble of a search that was left alone."""
    cluster.wait_for_job(cluster.submit("undisturbed"))
    return cluster.ensemble("undisturbed")


def wait_for_step(cluster: Cluster, trial_number: int, epoch: int, batch: int, after_s: float) -> dict[str, Any]:
    """The first step of a search's trial (from 0) at or after a place, that was made later than a time."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        rows = [row for row in cluster.steps() if row["time"] > after_s]
        trials = list(dict.fromkeys(row["trial"] for row in rows))
        if len(trials) > trial_number:
            found[:] = [
                row
                for row in rows
                if row["trial"] == trials[trial_number] and (row["epoch"], row["batch"]) >= (epoch, batch)
            ]
        return bool(found)

    wait_until(is_there, 900, f"trial {trial_number}, epoch {epoch}, batch {batch}", every_s=0.1)
    return found[0]


def lose_and_regain(cluster: Cluster, worker: int) -> None:
    """A power cut on a worker's host, which comes back half a minute later."""
    cluster.workers[worker].kill()
    time.sleep(30)
    cluster.workers[worker].start()


def test_a_cluster_comes_up_from_nothing_and_finds_an_ensemble(cluster: Cluster, undisturbed: dict[str, Any]) -> None:
    assert len(undisturbed["members"]) == SPACE["ensemble_size"]
    files = get_folder(cluster.s3_url, "runs/undisturbed/ensemble")
    assert {"ensemble.json", "member-0.safetensors", "member-1.safetensors"} <= files.keys()
    assert {row["host"] for row in cluster.steps()} == {worker.name for worker in cluster.workers}


@pytest.mark.faults
def test_a_search_ends_with_the_same_ensemble_though_hosts_are_lost(
    cluster: Cluster, undisturbed: dict[str, Any]
) -> None:
    started_s = time.time()
    job = cluster.submit("disturbed")
    wait_for_step(cluster, 0, epoch=1, batch=5, after_s=started_s)
    lose_and_regain(cluster, 1)
    wait_for_step(cluster, 1, epoch=2, batch=9, after_s=started_s)
    lose_and_regain(cluster, 0)
    cluster.wait_for_job(job)

    expected, found = undisturbed, cluster.ensemble("disturbed")
    workers = {(row["host"], row["pid"]) for row in cluster.steps() if row["time"] > started_s}
    assert len(workers) == 2 * (SPACE["num_trials"] + 2), "each loss brings a group of two new workers"
    assert [number(member) for member in found["members"]] == [number(member) for member in expected["members"]]
    for name in ("epoch", "config"):
        assert [member[name] for member in found["members"]] == [member[name] for member in expected["members"]]
    losses = [[member["val_loss"] for member in members] for members in (found["members"], expected["members"])]
    assert np.allclose(*losses, atol=1e-4)


def number(member: dict[str, Any]) -> int:
    """Which trial of the search a member is; the rest of a trial's name differs from search to search."""
    return int(member["trial"].rpartition("_")[2])
