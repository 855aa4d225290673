"""Experiment trackers by name, beside the TensorBoard logs that every run keeps: MLflow and Weights & Biases.

Each trial is a run of theirs, in an experiment (MLflow) or project (W&B) named after the search, and is found again by
the trial's id where a search continues. They are brought up to date from what trials logged (`watch.py`), so whatever
could not be told while a server was away is told later.
"""

import importlib
import importlib.util
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
TRACKERS = ("tensorboard", *PACKAGES)
TRACK = "MURA_TRACK"
"""Environment variable: trackers where a command names none."""

TRIAL_TAG = "mura_ray.trial"
OUR_TAGS = MEMBER_TAG, ENSEMBLE_TAG, ERROR_TAG = "mura_ray.member", "mura_ray.ensemble", "mura_ray.error"
METRICS = ("val_loss", "train_loss", "learning_rate", "epoch_s")


@dataclass(frozen=True)
class TrackedRun:
    """A trial, as trackers are told of it.

    Attributes:
        id: unique in the experiment, and the same where the trial continues.
        name: of the trial.
        config: its settings, by dotted name.
        epochs: what it logged, a row an epoch.
        status: running, finished or failed.
        error: why it failed, in a line.
        member: its place in the ensemble from 1 on; None where it is no member, or none is chosen yet.
        ensemble_id: of that ensemble.
    """

    id: str
    name: str
    config: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]
    status: str
    error: str | None = None
    member: int | None = None
    ensemble_id: str | None = None


class Tracker(Protocol):
    """Where runs are logged to."""

    name: str

    def sync(self, run: TrackedRun) -> None:
        """Logs what of a run was not logged yet. Raises whatever its library raises where that is not possible."""
        ...

    def close(self) -> None:
        """Ends what is still open."""
        ...


def parse_trackers(values: Sequence[str]) -> list[str]:
    """Names of trackers from an option that may be repeated, or else `TRACK`; each may hold several, with commas.

    Raises:
        ValueError: an unknown name.
    """
    given = values or [os.environ.get(TRACK, "")]
    names = dict.fromkeys(name.strip() for value in given for name in value.split(",") if name.strip())
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--track {name!r}: choose from {', '.join(TRACKERS)}, several with commas between them")
    return [name for name in names if name in PACKAGES]  # TensorBoard's logs are always written


def check_trackers(names: Sequence[str]) -> None:
    """Checks trackers' packages, keys and servers, before anything starts.

    Raises:
        ValueError: one is missing or cannot be reached, with the remedy.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--track {name} needs a package that is not installed: pip install {PACKAGES[name]}")
    if "mlflow" in names:
        _mlflow_client()
    if "wandb" in names:
        _wandb()


def open_trackers(names: Sequence[str], experiment: str) -> list[Tracker]:
    """Trackers of a search or run, of which `check_trackers` has found the packages.

    Args:
        names: of the trackers.
        experiment: name of the search or run.

    Raises:
        ValueError: a key is missing, or a server cannot be reached, with the remedy.
    """
    kinds = {"mlflow": MlflowTracker, "wandb": WandbTracker}
    return [kinds[name](experiment) for name in names]


def without_secrets(text: str) -> str:
    """Text with what addresses and tokens in it would give away left out."""
    text = re.sub(r"//[^/@\s]+@", "//***@", text)
    for name, value in os.environ.items():
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name) and len(value) >= 8:
            text = text.replace(value, "***")
    return text


class MlflowTracker:
    """Runs in MLflow, at MLFLOW_TRACKING_URI or else at MLflow's own default.

    Args:
        experiment: name of MLflow's experiment.
    """

    name = "mlflow"

    def __init__(self, experiment: str) -> None:
        self._client = _mlflow_client()
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._runs: dict[str, _MlflowRun] = {}
        found = self._client.get_experiment_by_name(experiment)
        self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)

    def sync(self, run: TrackedRun) -> None:
        """See `Tracker`."""
        known = self._runs.get(run.id) or self._open(run)
        for row in run.epochs:
            if row["epoch"] > known.epoch:
                now_ms = int(1000 * time.time())
                values = [self._entities.Metric(key, row[key], now_ms, row["epoch"]) for key in METRICS]
                self._client.log_batch(known.id, metrics=values)
                known.epoch = row["epoch"]
        tags = _tags(run)
        if tags != known.tags:
            self._client.log_batch(known.id, tags=[self._entities.RunTag(*tag) for tag in tags.items()])
            for gone in known.tags.keys() - tags.keys():  # a failed trial that was tried again
                self._client.delete_tag(known.id, gone)
            known.tags = tags
        if run.status != known.status:
            self._client.update_run(known.id, status=run.status.upper())
            known.status = run.status

    def close(self) -> None:
        """See `Tracker`."""

    def _open(self, run: TrackedRun) -> "_MlflowRun":
        found = self._client.search_runs([self._experiment], f"tags.`{TRIAL_TAG}` = '{run.id}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
            logged = self._client.get_metric_history(run_id, "val_loss")
            epoch = max((metric.step for metric in logged), default=0)
            status = found[0].info.status.lower()
            tags = {name: value for name, value in found[0].data.tags.items() if name in OUR_TAGS}
        else:
            created = self._client.create_run(self._experiment, run_name=run.name, tags={TRIAL_TAG: run.id})
            run_id, epoch, status, tags = created.info.run_id, 0, "running", {}
            params = [self._entities.Param(key, str(value)) for key, value in run.config.items()]
            self._client.log_batch(run_id, params=params)
        self._runs[run.id] = _MlflowRun(run_id, epoch, status, tags)
        return self._runs[run.id]


@dataclass
class _MlflowRun:
    """What MLflow has of a run: its id there, the last epoch, the status, the tags besides the trial's."""

    id: str
    epoch: int
    status: str
    tags: dict[str, str]


class WandbTracker:
    """Runs in Weights & Biases, whose own environment variables say where: WANDB_API_KEY, WANDB_ENTITY, WANDB_MODE, ...

    Args:
        project: name of W&B's project.
    """

    name = "wandb"

    def __init__(self, project: str) -> None:
        self._wandb, self._project = _wandb(), project
        self._open: dict[str, Any] = {}
        self._told: dict[str, TrackedRun] = {}

    def sync(self, run: TrackedRun) -> None:
        """See `Tracker`."""
        told = self._told.get(run.id)
        if told == run:
            return
        opened = self._open.get(run.id) or self._start(run)
        logged = told.epochs[-1]["epoch"] if told and told.epochs else int(opened.summary.get("epoch") or 0)
        for row in run.epochs:
            if row["epoch"] > logged:
                opened.log({key: row[key] for key in ("epoch", *METRICS)}, step=row["epoch"])
        for key, value in _tags(run).items():
            opened.summary[key] = value
        if run.member is not None:
            opened.tags = tuple({*(opened.tags or ()), "ensemble"})
        if run.status != "running":
            del self._open[run.id]
            opened.finish(exit_code=int(run.status == "failed"))
        self._told[run.id] = run

    def close(self) -> None:
        """See `Tracker`."""
        for opened in self._open.values():
            opened.finish()
        self._open.clear()

    def _start(self, run: TrackedRun) -> Any:
        settings = self._wandb.Settings(
            silent=True, console="off", disable_git=True, x_disable_stats=True, init_timeout=30, finish_timeout=30,
        )  # fmt: skip
        self._open[run.id] = self._wandb.init(
            project=self._project,
            id=run.id,
            name=run.name,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        return self._open[run.id]


def _tags(run: TrackedRun) -> dict[str, str]:
    tags = {
        MEMBER_TAG: str(run.member) if run.member else None,
        ENSEMBLE_TAG: run.ensemble_id if run.member else None,
        ERROR_TAG: run.error,
    }
    return {name: value for name, value in tags.items() if value is not None}


def _mlflow_client() -> Any:
    """MLflow's client, of a server or store that answers."""
    # A server that does not answer is asked again at the next look, so a look need not take MLflow's four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    client = importlib.import_module("mlflow.tracking").MlflowClient()
    try:
        client.search_experiments(max_results=1)
    except Exception as error:  # its own, requests', SQLAlchemy's
        raise ValueError(
            f"--track mlflow: {without_secrets(client.tracking_uri)} does not answer: "
            f"{without_secrets(_first_line(error))}; check MLFLOW_TRACKING_URI and its credentials"
        ) from error
    return client


def _wandb() -> Any:
    """W&B's module, where it has a key or needs none."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, at their import
        wandb = importlib.import_module("wandb")
    settings = wandb.setup().settings
    if settings.mode not in ("offline", "disabled") and not settings.api_key:
        raise ValueError(
            "--track wandb: no key: set WANDB_API_KEY or run `wandb login`; or set WANDB_MODE=offline, and "
            "`wandb sync` what lies in wandb/ later"
        )
    return wandb


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300] or type(error).__name__
