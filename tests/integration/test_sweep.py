"""The search as users start it: as a process, on a small phantom of 64 pixels."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mura_ray import convert, train, tune
from mura_ray.data import phantom
from mura_ray.model.ensemble import read_description

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SPACE: dict[str, Any] = {
    "num_trials": 4,
    "ensemble_size": 2,
    "searcher": "optuna",
    "scheduler": "asha",
    "asha": {"grace_epochs": 1, "reduction_factor": 2},
    # An epoch takes a second here and a stop may take longer to arrive, so there are more epochs than rungs to stop at.
    "fixed": {"image_size": 64, "initial_weights": "random", "batch_size": 8, "epochs": 8},
    "search": {
        "learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "augmentation.rotation_deg": {"uniform": [0, 30]},
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("phantom")
    source, dest = folder / "source", folder / "shards"
    phantom.write_phantom(str(source), num_train_studies=21, num_valid_studies=7, difficulty="easy")
    command = ["--format", "phantom", "--source", str(source), "--dest", str(dest), "--image-size", "64"]
    assert convert.main([*command, "--valid-fraction", "0.3"]) == 0
    return str(dest)


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"mura_ray.{module}", *arguments]


def trial_logs(home: Path) -> dict[str, list[dict[str, Any]]]:
    """What each trial itself logged, by trial: a row an epoch."""
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in home.glob("training/*/epochs.jsonl")
    }


def sampled(home: Path) -> dict[str, Any]:
    """Each trial's settings, by trial."""
    return {path.parent.name: json.loads(path.read_text())["config"] for path in home.glob("training/*/run.json")}


def wait_for_epochs(search: "subprocess.Popen[bytes]", home: Path, count: int, log: Path) -> None:
    """Returns when a running search's trials have logged so many epochs in all."""
    deadline = time.monotonic() + 600
    while sum(map(len, trial_logs(home).values())) < count:
        assert search.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def swept(data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A search killed in its middle, and continued by the same command."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    home = folder / "runs" / "search"
    arguments = command(
        "tune",
        "--space",
        str(folder / "space.yaml"),
        "--data",
        data,
        "--runs",
        str(folder / "runs"),
        "--name",
        "search",
    )
    with (folder / "first.log").open("w") as log:
        first = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for_epochs(first, home, 3, folder / "first.log")
    finally:
        first.kill()
        first.wait()
    before = {"logs": trial_logs(home), "sampled": sampled(home)}
    assert not (home / "ensemble").exists()
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    no_cluster = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    again = subprocess.run(arguments, capture_output=True, text=True, timeout=200, env=no_cluster)
    return {"home": home, "before": before, "output": done.stdout, "again": again, "folder": folder}


def test_a_killed_search_continues_and_ends_with_the_same_trials(swept: dict[str, Any]) -> None:
    home, before = swept["home"], swept["before"]
    after = sampled(home)
    assert len(after) == SPACE["num_trials"]
    for trial, settings in before["sampled"].items():
        assert after[trial] == settings
    for trial, rows in before["logs"].items():
        epochs = [row["epoch"] for row in trial_logs(home)[trial]]
        assert epochs[: len(rows)] == [row["epoch"] for row in rows]
    for trial, rows in trial_logs(home).items():
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1)), trial


def test_halving_stops_trials_early(swept: dict[str, Any]) -> None:
    lengths = [len(rows) for rows in trial_logs(swept["home"]).values()]
    assert min(lengths) < SPACE["fixed"]["epochs"], "no trial was stopped early"
    assert max(lengths) == SPACE["fixed"]["epochs"]


def test_epochs_done_before_the_kill_are_not_trained_again(swept: dict[str, Any]) -> None:
    for trial, rows in swept["before"]["logs"].items():
        after = trial_logs(swept["home"])[trial]
        assert [row["val_loss"] for row in after[: len(rows)]] == [row["val_loss"] for row in rows]


def test_the_members_are_the_lowest_of_all_trials_best_epochs(swept: dict[str, Any]) -> None:
    best = {
        trial: min((row["val_loss"], row["epoch"]) for row in rows) for trial, rows in trial_logs(swept["home"]).items()
    }
    expected = sorted((loss, epoch, trial) for trial, (loss, epoch) in best.items())[: SPACE["ensemble_size"]]
    members = read_description(str(swept["home"] / "ensemble")).members
    assert [member.trial for member in members] == [trial for _, _, trial in expected]
    assert [member.epoch for member in members] == [epoch for _, epoch, _ in expected]
    assert np.allclose([member.val_loss for member in members], [loss for loss, _, _ in expected], rtol=1e-9)
    for member in members:
        assert member.config.model_dump(mode="json") == sampled(swept["home"])[member.trial]


def test_a_finished_search_says_so_without_a_cluster(swept: dict[str, Any]) -> None:
    assert swept["again"].returncode == 0, swept["again"].stderr
    assert read_description(str(swept["home"] / "ensemble")).id in swept["again"].stdout
    assert "started" not in swept["again"].stdout


def test_another_search_cannot_take_the_name(swept: dict[str, Any], data: str) -> None:
    other = swept["folder"] / "other.yaml"
    other.write_text(yaml.safe_dump({**SPACE, "num_trials": 7}))
    done = subprocess.run(
        command("tune", "--space", str(other), "--data", data, "--runs", str(swept["folder"] / "runs"),
                "--name", "search"),
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1
    assert "another space" in done.stderr
    assert "--name" in done.stderr


def test_ctrl_c_in_the_last_trial_makes_no_ensemble_of_a_half_trained_one(data: str, tmp_path: Path) -> None:
    space = {**SPACE, "num_trials": 1, "ensemble_size": 1, "fixed": {**SPACE["fixed"], "epochs": 50}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    arguments = command(
        "tune", "--space", f"{tmp_path}/space.yaml", "--data", data, "--runs", str(tmp_path), "--name", "cut"
    )
    with (tmp_path / "log").open("w") as log:
        search = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_epochs(search, tmp_path / "cut", 1, tmp_path / "log")
        search.send_signal(signal.SIGINT)
        assert search.wait(timeout=300) == 130, (tmp_path / "log").read_text()
    finally:
        search.kill()
        search.wait()
    assert not (tmp_path / "cut" / "ensemble").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "--runs", "x"], "pass --data URI or set MURA_DATA"),
        (["tune", "--data", "nowhere", "--runs", "x"], "MURA_SOURCE"),
        (["tune", "--data", "nowhere", "--runs", "x", "--space", "none.yaml"], "no space file at 'none.yaml'"),
        (["tune", "--data", "nowhere", "--runs", "x", "--source", "y", "--dry-run"], "--dry-run converts nothing"),
        (["train", "--data", "nowhere", "--runs", "x", "--set", "epoch=3"], "epoch: Extra inputs"),
        (["train", "--data", "nowhere", "--runs", "x", "--name", "../x"], "--name '../x': use letters"),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"tune": tune, "train": train}[arguments[0]].main(arguments[1:]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
