"""`python -m mura_ray.train`: one training run with the paper's recipe."""

import argparse
import hashlib
from collections.abc import Mapping
from typing import TypeVar

import ray.train
import yaml
from pydantic import ValidationError

from mura_ray import cli, store
from mura_ray.config import Locations, Settings, TrialConfig, explain, nested
from mura_ray.data.manifest import read_manifest
from mura_ray.distributed.faults import ERROR_FILE, write_error
from mura_ray.distributed.naming import RUN_FILE, check_claim, check_name, claim
from mura_ray.distributed.recovery import Recovery
from mura_ray.distributed.session import cluster_capacity, ray_session
from mura_ray.distributed.trackers import TRACK, TRACKERS, check_trackers, open_trackers, parse_trackers
from mura_ray.distributed.tracking import EpochLog, is_epoch
from mura_ray.distributed.watch import Watch, watch_run
from mura_ray.distributed.worker import Resources, checkpoint_uri, run_spec, torch_trainer
from mura_ray.model.checkpoint import read_meta
from mura_ray.model.densenet import prepare_initial_weights

S = TypeVar("S", bound=Settings)

EPILOG = """example:
  python -m mura_ray.train --data shards --runs runs --name baseline --workers 2 --set epochs=5

The same command continues an interrupted run. Every setting and its default stands in mura_ray/config.py; the defaults
are the paper's. The result is <runs>/<name>/: checkpoints (the best and the latest epoch) and tensorboard/."""


def main(argv: list[str] | None = None) -> int:
    """Parses, trains, reports."""
    locations = Locations.from_environment()
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.train",
        description="Trains one DenseNet-169 on a converted data set, on any number of workers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default=locations.data, help="converted data set (default: $MURA_DATA)")
    parser.add_argument("--runs", default=locations.runs, help="where runs are written (default: $MURA_RUNS)")
    parser.add_argument("--name", default="train", help="name of the run (default: %(default)s)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE",
                        help="a setting, e.g. epochs=3 or augmentation.rotation_deg=10; may be repeated")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="workers that share each batch (default: %(default)s)")
    parser.add_argument("--min-workers", type=int, help="go on with as few while nodes are missing (default: no fewer)")
    parser.add_argument("--recovery", action="append", default=[], metavar="NAME=VALUE",
                        help="how it comes through faults, e.g. checkpoint_steps=200; may be repeated")  # fmt: skip
    parser.add_argument("--cpus-per-worker", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--gpus-per-worker", type=float, help="default: one where the cluster has GPUs")
    parser.add_argument("--track", action="append", default=[], metavar="NAME",
                        help=f"log the run there: {', '.join(TRACKERS)} (always); default: ${TRACK}")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    return cli.run(lambda: _train(parser.parse_args(argv)))


def _train(arguments: argparse.Namespace) -> None:
    data, runs = cli.location(arguments.data, "data"), cli.location(arguments.runs, "runs")
    track = parse_trackers(arguments.track)
    check_trackers(track)
    config = parse_settings(arguments.settings, TrialConfig, "--set")
    recovery = parse_settings(arguments.recovery, Recovery, "--recovery")
    name = check_name(arguments.name)
    with ray_session():
        cluster = cluster_capacity()
        gpus = arguments.gpus_per_worker
        try:
            resources = Resources(
                workers=arguments.workers,
                min_workers=arguments.min_workers,
                cpus_per_worker=arguments.cpus_per_worker,
                gpus_per_worker=float(cluster.get("GPU", 0) >= 1) if gpus is None else gpus,
            )
        except ValidationError as error:
            raise ValueError(explain(error)) from error
        _check_capacity(resources, cluster)
        spec = run_spec(name, config, data, None, resources, recovery)
        steps = read_manifest(data).splits["train"].num_images // config.batch_size
        print(f"run {name}: {resources.workers} worker(s), {config.epochs} epochs of {steps} steps")
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        home = store.join(runs, spec.trial)
        check_claim(home, RUN_FILE, spec, same=("config", "data_id"))
        if arguments.dry_run:
            return
        trackers = open_trackers(track, spec.trial)
        weights = prepare_initial_weights(config.initial_weights, runs)
        spec = spec.model_copy(update={"initial_weights": weights})
        claim(home, RUN_FILE, spec)
        log = EpochLog(home, config.epochs)
        store.remove_files([store.join(home, ERROR_FILE)])
        run_id = f"{spec.trial}-{hashlib.sha256(home.encode()).hexdigest()[:8]}"
        with Watch(watch_run(home, spec, run_id, trackers), trackers):
            try:
                result = torch_trainer(spec, runs, [log]).fit()
            except SystemExit as error:  # what Ray Train makes of Ctrl-C
                raise KeyboardInterrupt from error
            except ray.train.TrainingFailedError as error:
                raise ValueError(
                    f"the run failed: {write_error(home, error)}\nits log: {store.join(home, ERROR_FILE)}\nthe same "
                    "command continues it from its latest checkpoint"
                ) from error
        checkpoints = [pair for pair in result.best_checkpoints or [] if is_epoch(pair[1])]
        best, checkpoint_metrics = min(checkpoints, key=lambda pair: pair[1]["val_loss"])
        uri = checkpoint_uri(best, runs)
        meta = read_meta(uri)
        print(f"best validation loss {checkpoint_metrics['val_loss']:.4f}, epoch {meta.epoch}: {uri}")


def parse_settings(texts: list[str], kind: type[S], option: str) -> S:
    """Settings given as NAME=VALUE over their defaults.

    Args:
        texts: the values of the option.
        kind: of the settings.
        option: named in errors.

    Raises:
        ValueError: no `=`, an unknown name or an impossible value.
    """
    try:
        return kind.model_validate(nested(cli.assignments(texts, option)))
    except ValidationError as error:
        raise ValueError(f"{option}: {explain(error)}") from error


def _check_capacity(resources: Resources, cluster: Mapping[str, float]) -> None:
    for kind, each in (("CPU", resources.cpus_per_worker), ("GPU", resources.gpus_per_worker)):
        if resources.workers * each > cluster.get(kind, 0):
            raise ValueError(
                f"{resources.workers} workers of {each:g} {kind}s are more than the cluster's "
                f"{cluster.get(kind, 0):g}: lower --workers or --{kind.lower()}s-per-worker, or add nodes"
            )


if __name__ == "__main__":
    raise SystemExit(main())
