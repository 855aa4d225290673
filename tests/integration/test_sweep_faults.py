"""A search in which one trial's loss becomes NaN, and another's own process is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mura_ray import convert
from mura_ray.data import phantom
from mura_ray.model.ensemble import read_description

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SPACE: dict[str, Any] = {
    "num_trials": 2,
    "ensemble_size": 1,
    "cpus_per_worker": 2,  # all that there are: one trial after the other
    "seed": 0,
    "fixed": {"image_size": 64, "initial_weights": "random", "batch_size": 8, "epochs": 3},
    # Too much for float32: the first step makes every weight NaN.
    "search": {"learning_rate": {"log_uniform": [1e-4, 1e-3]}, "weight_decay": {"choice": [0.0, 1.0e39]}},
}


def trial_processes(search: int) -> list[int]:
    """Process ids of a search's trials: the descendants in which Tune runs them."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    parents = {int(stat.split()[0]): int(stat.rpartition(")")[2].split()[1]) for stat in stats}

    def descends(pid: int) -> bool:
        return pid == search or (pid in parents and descends(parents[pid]))

    return [pid for pid in parents if descends(pid) and "ImplicitFunc" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, str]:
    """The search's folder, its output, and the ids of the trial that failed and of the one that lost its process."""
    folder = tmp_path_factory.mktemp("faults")
    phantom.write_phantom(str(folder / "source"), num_train_studies=21, num_valid_studies=7, difficulty="easy")
    command = ["--format", "phantom", "--source", f"{folder}/source", "--dest", f"{folder}/shards"]
    assert convert.main([*command, "--image-size", "64", "--valid-fraction", "0.3"]) == 0
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    home = folder / "runs" / "search"
    command = [sys.executable, "-m", "mura_ray.tune", "--space", f"{folder}/space.yaml", "--data", f"{folder}/shards"]
    log = folder / "log"
    with log.open("w") as out:
        search = subprocess.Popen(
            [*command, "--runs", f"{folder}/runs", "--name", "search"], stdout=out, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + 500
    while not (begun := list(home.glob("training/*/epochs.jsonl"))):
        assert search.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    for pid in trial_processes(search.pid):
        os.kill(pid, signal.SIGKILL)
    assert search.wait(timeout=400) == 0, log.read_text()
    settings = {path.parent.name: json.loads(path.read_text())["config"] for path in home.glob("training/*/run.json")}
    (failed,) = [trial for trial, config in settings.items() if config["weight_decay"]]
    return home, log.read_text(), failed, begun[0].parent.name


def test_a_loss_that_is_not_finite_ends_its_trial_without_another_try(searched: tuple[Path, str, str, str]) -> None:
    home, output, failed, _ = searched
    error = (home / "training" / failed / "error.txt").read_text()
    assert re.match(r"the training loss became nan at batch 1 of epoch 1; a smaller learning_rate, or", error)
    assert re.search(r"^sample ids: \[\d+(, \d+){7}\]$", error, re.MULTILINE)
    assert re.search(r"^settings: .*weight_decay=1e\+39", error, re.MULTILINE)
    assert not list((home / "training" / failed).glob("checkpoint_*"))
    assert f"{failed} failed: the training loss became nan at batch 1" in output
    assert f"its log: {home}/training/{failed}/error.txt" in output


def test_a_trial_that_lost_its_process_continues_in_another(searched: tuple[Path, str, str, str]) -> None:
    home, output, _, lost = searched
    assert f"{lost} lost its process; it continues in another" in output
    rows = [json.loads(line) for line in (home / "training" / lost / "epochs.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [member.trial for member in read_description(str(home / "ensemble")).members] == [lost]


def test_the_page_shows_the_failed_trials_log_and_the_member(searched: tuple[Path, str, str, str]) -> None:
    home, _, failed, lost = searched
    page = (home / "sweep.html").read_text()
    assert read_description(str(home / "ensemble")).id in page
    assert "1 finished, 1 failed" in page
    assert f"{home}/training/{failed}/error.txt" in page
    assert "sample ids: [" in page
    assert re.search(rf"<td>{lost}</td>\s*<td>member 1</td>", page)
