"""`python -m mura_ray.tune`: searches the settings and keeps the lowest validation losses as the ensemble."""

import argparse
from contextlib import ExitStack
from pathlib import Path

import yaml

from mura_ray import cli, convert, store
from mura_ray.config import Locations
from mura_ray.data.manifest import read_manifest
from mura_ray.distributed.faults import ERROR_FILE, first_line, read_errors
from mura_ray.distributed.naming import check_name
from mura_ray.distributed.session import cluster_capacity, ray_session
from mura_ray.distributed.space import Space, read_space, trial_config
from mura_ray.distributed.sweep import Plan, Sweep, check_sweep, describe_sweep, is_searched, plan_sweep, run_sweep
from mura_ray.distributed.trackers import TRACK, TRACKERS, check_trackers, open_trackers, parse_trackers
from mura_ray.distributed.watch import PAGE_FILE
from mura_ray.model.ensemble import read_description

SPACES = Path(__file__).resolve().parent.parent / "tune_spaces"

EPILOG = """example:
  python -m mura_ray.tune --space tune_spaces/paper.yaml --data shards --runs runs

Without arguments it works from MURA_DATA and MURA_RUNS, and converts MURA_SOURCE first where MURA_DATA holds no shards
yet. The same command continues an interrupted search. The result is <runs>/<name>/ensemble/."""


def main(argv: list[str] | None = None) -> int:
    """Parses, converts where needed, searches, reports."""
    locations = Locations.from_environment()
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.tune",
        description="Searches learning rate and augmentation; the lowest validation losses become the ensemble.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--space", default=str(SPACES / "paper.yaml"), help="space file (default: %(default)s)")
    parser.add_argument("--data", default=locations.data, help="converted data set (default: $MURA_DATA)")
    parser.add_argument("--runs", default=locations.runs, help="where searches are written (default: $MURA_RUNS)")
    parser.add_argument(
        "--source", default=locations.source, help="radiographs to convert first (default: $MURA_SOURCE)"
    )
    parser.add_argument("--format", default="mura", choices=convert.FORMATS, help="of --source (default: %(default)s)")
    parser.add_argument("--name", help="name of the search (default: the space file's name and the data set's id)")
    parser.add_argument("--track", action="append", default=[], metavar="NAME",
                        help=f"log the trials there: {', '.join(TRACKERS)} (always); default: ${TRACK}")  # fmt: skip
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE",
                        help="a setting of every trial instead of the file's, e.g. image_size=160")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and the plan, and stop")
    return cli.run(lambda: _tune(parser.parse_args(argv)))


def _tune(arguments: argparse.Namespace) -> None:
    data, runs = cli.location(arguments.data, "data"), cli.location(arguments.runs, "runs")
    space = read_space(arguments.space, cli.assignments(arguments.settings, "--set"))
    track = parse_trackers(arguments.track)
    check_trackers(track)
    _convert_once(data, trial_config(space, {}).image_size, arguments)
    name = check_name(arguments.name or f"{Path(arguments.space).stem}-{read_manifest(data).id[:8]}")
    sweep = describe_sweep(name, space, data)
    check_sweep(sweep, runs)
    plan = None
    with ExitStack() as cluster:
        if arguments.dry_run or not is_searched(sweep, runs):
            cluster.enter_context(ray_session(worker_logs=False))  # the table of trials tells what they do
            plan = plan_sweep(sweep, cluster_capacity())
            _print_plan(sweep, plan)
        if arguments.dry_run:
            return
        trackers = open_trackers(track, name)
        try:
            ensemble = run_sweep(sweep, plan, runs, trackers)
        finally:
            _print_failed(store.join(runs, name, "training"))
            print(f"page: {store.join(runs, name, PAGE_FILE)}")
    description = read_description(ensemble)
    print(f"ensemble {description.id}: {ensemble}")
    for member in description.members:
        print(f"  {member.trial}: validation loss {member.val_loss:.4f}, epoch {member.epoch}")
    print(f"TensorBoard: tensorboard --logdir {store.join(runs, name)}")


def _print_failed(training: str) -> None:
    for trial, log in read_errors(training).items():
        print(f"{trial} failed: {first_line(log)}\n  its log: {store.join(training, trial, ERROR_FILE)}")


def _convert_once(data: str, image_size: int, arguments: argparse.Namespace) -> None:
    """Where there are no shards yet and a source is named, converts it."""
    if store.exists(store.join(data, "manifest.json")):
        return
    if arguments.source is None:
        raise ValueError(
            f"{data!r} holds no converted data set: name the radiographs with --source or MURA_SOURCE to convert them "
            "first, or a converted data set with --data or MURA_DATA"
        )
    if arguments.dry_run:
        raise ValueError(
            f"{data!r} holds no converted data set yet, and --dry-run converts nothing: leave it out, or run "
            "`python -m mura_ray.convert` first"
        )
    command = ["--format", arguments.format, "--source", arguments.source, "--dest", data]
    command += ["--image-size", str(image_size)]
    if convert.main(command) != 0:
        raise ValueError(
            f"the conversion of {arguments.source!r} failed: python -m mura_ray.convert {' '.join(command)}"
        )


def _print_plan(sweep: Sweep, plan: Plan) -> None:
    space: Space = sweep.space
    resources = plan.resources
    config = trial_config(space, {})
    print(f"search {sweep.name}: {space.num_trials} trials, {space.searcher} search, {space.scheduler} scheduler")
    print(
        f"  each: {config.epochs} epochs of {plan.steps_per_epoch} steps of {config.batch_size} images, "
        f"{resources.workers} worker(s) of {resources.cpus_per_worker} CPU and {resources.gpus_per_worker:g} GPU"
    )
    most = "" if space.scheduler == "fifo" and "batch_size" not in space.search else "at most "
    print(f"  {plan.max_concurrent_trials} at once; {most}{plan.total_steps:,} steps in all")
    print(f"  the {space.ensemble_size} lowest validation losses become the ensemble")
    print("searched:")
    searched = {key: value.model_dump(mode="json", exclude_none=True) for key, value in space.search.items()}
    print(_indented(searched))
    print("the rest:")
    fixed = config.model_dump(mode="json")
    for key in space.search:
        level = fixed
        *parents, leaf = key.split(".")
        for parent in parents:
            level = level[parent]
        level.pop(leaf)
    print(_indented(fixed))


def _indented(settings: dict) -> str:
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    return "\n".join(f"  {line}" for line in text.splitlines())


if __name__ == "__main__":
    raise SystemExit(main())
