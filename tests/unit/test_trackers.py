import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from mura_ray.distributed import trackers, watch
from mura_ray.distributed.trackers import TrackedRun, open_trackers, parse_trackers, without_secrets

EPOCHS = [
    {"epoch": epoch, "val_loss": 1 / epoch, "train_loss": 1.0, "learning_rate": 1e-4, "epoch_s": 2.0}
    for epoch in (1, 2, 3)
]
CONFIG = {"learning_rate": 1e-4, "augmentation.rotation_deg": 30.0}


def test_a_missing_package_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"--track wandb needs a package that is not installed: pip install wandb"):
        trackers.check_trackers(["wandb"])


def test_no_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    told = without_secrets("https://user:hunter2@mlflow.example/api refused 0123456789abcdef")
    assert told == "https://***@mlflow.example/api refused ***"


def test_a_tracker_that_fails_is_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConnectionError("no route to host")

    told: set[str] = set()
    watch.attempt("cannot log to mlflow", fail, told)
    watch.attempt("cannot log to mlflow", fail, told)
    assert capsys.readouterr().err == "warning: cannot log to mlflow: no route to host; will try again\n"


@pytest.fixture
def mlflow_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    return MlflowClient()


@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")
def test_mlflow_continues_the_run_of_a_trial_that_continues(mlflow_client: Any) -> None:
    for epochs, status in ((EPOCHS[:1], "running"), (EPOCHS, "finished")):
        (tracker,) = open_trackers(["mlflow"], "search")  # anew: the driver was started again
        tracker.sync(TrackedRun("a_1", "a_1", CONFIG, epochs, status))
    tracker.sync(TrackedRun("a_1", "a_1", CONFIG, EPOCHS, "finished", member=2, ensemble_id="abc"))
    (run,) = mlflow_client.search_runs([mlflow_client.get_experiment_by_name("search").experiment_id])
    assert run.data.params == {"learning_rate": "0.0001", "augmentation.rotation_deg": "30.0"}
    history = mlflow_client.get_metric_history(run.info.run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a_1"
    assert (run.data.tags[trackers.MEMBER_TAG], run.data.tags[trackers.ENSEMBLE_TAG]) == ("2", "abc")


@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")
def test_mlflow_says_why_a_trial_failed_until_it_is_tried_again(mlflow_client: Any) -> None:
    (tracker,) = open_trackers(["mlflow"], "search")
    tracker.sync(TrackedRun("a_1", "a_1", CONFIG, EPOCHS, "failed", error="the training loss became nan"))
    (run,) = mlflow_client.search_runs([mlflow_client.get_experiment_by_name("search").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags[trackers.ERROR_TAG] == "the training loss became nan"
    (tracker,) = open_trackers(["mlflow"], "search")
    tracker.sync(TrackedRun("a_1", "a_1", CONFIG, EPOCHS, "running"))
    run = mlflow_client.get_run(run.info.run_id)
    assert run.info.status == "RUNNING"
    assert trackers.ERROR_TAG not in run.data.tags


def test_wandb_without_a_key_names_it_and_the_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(mode="online", api_key=None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(setup=lambda: SimpleNamespace(settings=settings)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"WANDB_API_KEY.*WANDB_MODE=offline"):
        open_trackers(["wandb"], "search")


@pytest.mark.parametrize(
    ("values", "variable", "names"),
    [
        ([], "", []),
        (["tensorboard"], "wandb", []),
        (["mlflow, wandb", "mlflow"], "", ["mlflow", "wandb"]),
        ([], "mlflow,tensorboard", ["mlflow"]),
    ],
)
def test_trackers_are_named_by_option_or_environment(
    values: list[str], variable: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MURA_TRACK", variable)
    assert parse_trackers(values) == names


def test_an_unknown_tracker_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"--track 'mlfow': choose from tensorboard, mlflow, wandb"):
        parse_trackers(["wandb,mlfow"])


def test_an_mlflow_server_that_does_not_answer_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
    with pytest.raises(ValueError, match=r"http://\*\*\*@127.0.0.1:9 does not answer.*MLFLOW_TRACKING_URI") as raised:
        trackers.check_trackers(["mlflow"])
    assert "hunter2" not in str(raised.value)


def test_wandb_writes_a_run_for_each_trial_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tracker,) = open_trackers(["wandb"], "search")
    for trial in ("a_1", "a_2"):
        tracker.sync(TrackedRun(trial, trial, CONFIG, EPOCHS[:1], "running"))
    tracker.sync(TrackedRun("a_1", "a_1", CONFIG, EPOCHS, "finished"))
    tracker.close()
    written = {path.name for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb") if path.stat().st_size}
    assert written == {"run-a_1.wandb", "run-a_2.wandb"}
