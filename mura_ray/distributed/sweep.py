"""The search: trials under Ray Tune, each a run under Ray Train, and at the end the ensemble of the best.

Everything of a search lies under `<runs>/<name>/`: `sweep.json` (what was asked for), Tune's own state, a folder
`training/<trial>/` with each trial's settings (run.json), log (epochs.jsonl, TensorBoard), checkpoints and, where it
failed, error.txt, the page `sweep.html`, and `ensemble/`, written last.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from mura_ray import store
from mura_ray.config import Settings
from mura_ray.data.manifest import manifest_sha256, read_manifest
from mura_ray.distributed.faults import TrialFailedError, first_line, forget_errors, read_error, write_error
from mura_ray.distributed.naming import RUN_FILE, SWEEP_FILE, check_claim, claim
from mura_ray.distributed.recovery import log_event
from mura_ray.distributed.space import Space, param_space, scheduler, searcher, trial_config
from mura_ray.distributed.trackers import Tracker
from mura_ray.distributed.tracking import EpochLog, TrialTable, is_epoch, read_epochs
from mura_ray.distributed.watch import SweepView, Watch
from mura_ray.distributed.worker import Resources, RunSpec, checkpoint_uri, run_spec, torch_trainer
from mura_ray.model.densenet import prepare_initial_weights
from mura_ray.model.ensemble import MemberSource, write_ensemble
from mura_ray.training.selection import Candidate, choose_members

DRIVER = "driver"
"""Resource of the nodes for trials' own processes: on demand, where the workers' are spot (cluster/gpu.yaml)."""


class Sweep(Settings):
    """What was asked for: kept as `sweep.json`, so that a search is only ever continued as what it began as."""

    name: str
    space: Space
    data: str
    data_id: str


class Plan(Settings):
    """A search fitted to a cluster. Steps are those of trials not stopped early, at the smallest batch size."""

    resources: Resources
    max_concurrent_trials: int
    on_driver_node: bool
    steps_per_epoch: int
    total_steps: int


def plan_sweep(sweep: Sweep, cluster: Mapping[str, float]) -> Plan:
    """Fits a search to the resources of a cluster (`cluster_capacity()`).

    Tune does not see the workers that Ray Train starts inside a trial, so the number of trials at once is computed
    here; with more, trials would hold some of their workers and wait for each other's.

    Raises:
        ValueError: not even one trial fits.
    """
    space = sweep.space
    gpus = space.gpus_per_worker if space.gpus_per_worker is not None else float(cluster.get("GPU", 0) >= 1)
    resources = Resources(
        workers=space.workers_per_trial,
        min_workers=space.min_workers_per_trial,
        cpus_per_worker=space.cpus_per_worker,
        gpus_per_worker=gpus,
    )
    needed = {"CPU": resources.workers * resources.cpus_per_worker, "GPU": resources.workers * gpus}
    fits = min(math.floor(cluster.get(kind, 0) / amount) for kind, amount in needed.items() if amount)
    if fits < 1:
        raise ValueError(
            f"a trial of {resources.workers} workers takes {needed['CPU']} CPUs and {needed['GPU']:g} GPUs, the "
            f"cluster has {cluster.get('CPU', 0):g} and {cluster.get('GPU', 0):g}: lower workers_per_trial, "
            "cpus_per_worker or gpus_per_worker in the space file, or add nodes"
        )
    batch_sizes = space.search["batch_size"].extremes if "batch_size" in space.search else ()
    configs = [trial_config(space, {"batch_size": size}) for size in batch_sizes] or [trial_config(space, {})]
    steps = read_manifest(sweep.data).splits["train"].num_images // min(config.batch_size for config in configs)
    return Plan(
        resources=resources,
        max_concurrent_trials=min(fits, space.num_trials),
        on_driver_node=cluster.get(DRIVER, 0) >= 1,
        steps_per_epoch=steps,
        total_steps=steps * configs[0].epochs * space.num_trials,
    )


def describe_sweep(name: str, space: Space, data: str) -> Sweep:
    """A search of a space on a data set, checked before anything starts.

    Raises:
        ValueError: settings that do not fit the data set or each other.
    """
    sweep = Sweep(name=name, space=space, data=data, data_id=read_manifest(data).id)
    # Which GPUs there are is for `plan_sweep` to know: until then as if there were some.
    gpus = 1.0 if space.gpus_per_worker is None else space.gpus_per_worker
    resources = Resources(workers=space.workers_per_trial, gpus_per_worker=gpus)
    for setting, distribution in space.search.items():
        for value in distribution.extremes:
            run_spec(name, trial_config(space, {setting: value}), data, None, resources)
    return sweep


def check_sweep(sweep: Sweep, runs: str) -> None:
    """Checks that no other search goes by a search's name.

    Raises:
        ValueError: one does.
    """
    check_claim(store.join(runs, sweep.name), SWEEP_FILE, sweep, same=("space", "data_id"))


def is_searched(sweep: Sweep, runs: str) -> bool:
    """Whether a search has its ensemble."""
    return store.exists(store.join(_ensemble_of(sweep, runs), "ensemble.json"))


def run_sweep(sweep: Sweep, plan: Plan | None, runs: str, trackers: Sequence[Tracker] = ()) -> str:
    """Runs a search, or continues it where one of the same name was interrupted, and writes its ensemble and its page.

    Args:
        sweep: what to search, which `check_sweep` has passed.
        plan: how, on this cluster; None for what `is_searched`: its page and trackers hear of the end once more.
        runs: URI under which `<name>/` is written.
        trackers: to be told of the trials, besides TensorBoard.

    Returns:
        URI of the ensemble.

    Raises:
        ValueError: the search was interrupted; too few trials were eligible.
    """
    view = SweepView(store.join(runs, sweep.name), sweep.name, sweep.space, sweep.data, trackers)
    with Watch(view.look, trackers):
        if plan is not None:
            _search(sweep, plan, runs)
    return _ensemble_of(sweep, runs)


def _ensemble_of(sweep: Sweep, runs: str) -> str:
    return store.join(runs, sweep.name, "ensemble")


def _search(sweep: Sweep, plan: Plan, runs: str) -> None:
    home = store.join(runs, sweep.name)
    initial_weights = prepare_initial_weights(trial_config(sweep.space, {}).initial_weights, runs)
    claim(home, SWEEP_FILE, sweep)
    forget_errors(store.join(home, "training"))
    results = _tuner(sweep, plan, runs, initial_weights).fit()
    for result in results:
        folder = store.join(home, "training", _trial_id(result))
        if result.error is not None and read_error(folder) is None:  # its own process could not write it
            write_error(folder, result.error)
    if results.num_terminated + results.num_errors < sweep.space.num_trials:
        raise ValueError(
            f"the search {sweep.name!r} was interrupted after {results.num_terminated} of {sweep.space.num_trials} "
            "trials; the same command continues it"
        )
    members = choose_members(eligible_candidates(results, home), sweep.space.ensemble_size)
    write_ensemble(
        _ensemble_of(sweep, runs),
        [
            MemberSource(
                trial=member.trial,
                epoch=member.epoch,
                val_loss=member.val_loss,
                config=_config_of(results, sweep.space, member.trial),
                checkpoint=member.checkpoint,
            )
            for member in members
        ],
        data_id=sweep.data_id,
        data_manifest_sha256=manifest_sha256(sweep.data),
    )


def run_trial(sampled: dict[str, Any], *, sweep: Sweep, plan: Plan, home: str, initial_weights: str | None) -> None:
    """One trial: a run under Ray Train that reports each epoch to Tune.

    Its name is the trial's id, so that a restored trial finds its own checkpoints and continues.
    """
    trial = ray.tune.get_context().get_trial_id()
    assert trial is not None
    config = trial_config(sweep.space, sampled)
    spec = run_spec(trial, config, sweep.data, initial_weights, plan.resources, sweep.space.recovery)
    folder = store.join(home, "training", trial)
    if (error := read_error(folder)) is not None:  # Tune tries again after whatever a trial raises
        raise TrialFailedError(first_line(error))
    try:
        _train_trial(spec, folder)
    except ray.exceptions.RayActorError:  # a process was lost, nothing failed: for Tune to start again
        raise
    except Exception as error:
        raise TrialFailedError(write_error(folder, error)) from None


def _train_trial(spec: RunSpec, folder: str) -> None:
    """A trial's run, from where it is."""
    claim(folder, RUN_FILE, spec)
    epochs_done = max((epochs_in(metrics) for _, metrics in kept_checkpoints(folder)), default=0)
    for metrics in read_epochs(folder):
        # A trial that continues: Tune forgot what it reported, and takes a trial without any report for a failed one.
        if metrics["epoch"] <= epochs_done:
            ray.tune.report(metrics)
    log_event(spec.trial, "begun")
    callbacks = [EpochLog(folder, spec.config.epochs), EpochReports()]
    torch_trainer(spec, store.parent(folder), callbacks).fit()


class EpochReports(TuneReportCallback):
    """Tells Tune of whole epochs only: it takes a report without a validation loss for an error."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """All workers reported."""
        if is_epoch(metrics[0]):
            super().after_report(run_context, metrics, checkpoint)


def epochs_in(metrics: dict[str, Any]) -> int:
    """Whole epochs of training in a checkpoint that was reported with these metrics."""
    return metrics["epoch"] if is_epoch(metrics) else metrics["epoch"] - 1


def eligible_candidates(results: ray.tune.ResultGrid, home: str) -> list[Candidate]:
    """The best epoch of every trial that did not fail and has a validated checkpoint, one stopped early too."""
    candidates = []
    for result in results:
        trial = _trial_id(result)
        kept = [pair for pair in kept_checkpoints(store.join(home, "training", trial)) if is_epoch(pair[1])]
        if result.error is None and kept:
            checkpoint, metrics = min(kept, key=lambda pair: pair[1]["val_loss"])
            uri = checkpoint_uri(checkpoint, home)
            candidates.append(Candidate(trial, metrics["epoch"], metrics["val_loss"], uri))
    return candidates


def kept_checkpoints(folder: str) -> list[tuple[ray.train.Checkpoint, dict[str, Any]]]:
    """The checkpoints that a run keeps, the best and the latest, each with its metrics.

    Raises:
        ValueError: Ray Train's record of them is damaged.
    """
    try:
        return ray.train.Result.from_path(folder).best_checkpoints or []
    except RuntimeError:  # Ray's way to say that the run has stored none yet
        return []
    except Exception as error:  # Ray writes the record in place, and has no public name for what a torn one raises
        raise ValueError(
            f"the record of checkpoints in {folder} is damaged: remove this folder, and the same command trains the "
            f"trial again ({error})"
        ) from error


def _tuner(sweep: Sweep, plan: Plan, runs: str, initial_weights: str | None) -> ray.tune.Tuner:
    home = store.join(runs, sweep.name)
    space = sweep.space
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would pass trials cut off by Ctrl-C for finished
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # each run keeps its own log
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # which looks for their files
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its output cannot be silenced; TrialTable tells instead
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, sweep=sweep, plan=plan, home=home, initial_weights=initial_weights),
        # The trial's own process only waits for its workers, which bring their own placement group; Tune refuses to ask
        # for nothing, so it asks for a byte; and for a node that nobody takes away, where the cluster has marked one.
        {"memory": 1, DRIVER: 1} if plan.on_driver_node else {"memory": 1},
    )
    if ray.tune.Tuner.can_restore(home):
        return ray.tune.Tuner.restore(home, trainable, resume_unfinished=True, resume_errored=True)
    return ray.tune.Tuner(
        trainable,
        param_space=param_space(space),
        tune_config=ray.tune.TuneConfig(
            metric="val_loss",
            mode="min",
            num_samples=space.num_trials,
            search_alg=searcher(space, plan.max_concurrent_trials),
            scheduler=scheduler(space),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=sweep.name,
            storage_path=runs,
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=space.recovery.max_failures),
            callbacks=[TrialTable(space.num_trials, trial_config(space, {}).epochs, list(space.search))],
        ),
    )


def _trial_id(result: ray.tune.Result) -> str:
    return Path(result.path).name


def _config_of(results: ray.tune.ResultGrid, space: Space, trial: str) -> Any:
    sampled = next(result.config for result in results if _trial_id(result) == trial)
    assert sampled is not None
    return trial_config(space, sampled)
