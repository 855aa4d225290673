"""`python -m mura_ray.convert`: radiographs to a data set of shards, which the other commands read."""

import argparse
import sys
import time
from dataclasses import replace
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mura_ray import cli, store
from mura_ray.config import Locations
from mura_ray.data import fracatlas, mura, phantom, table
from mura_ray.data.collection import Collection, summary
from mura_ray.data.manifest import Manifest
from mura_ray.distributed.conversion import run_conversion
from mura_ray.distributed.session import ray_session

MURA_IMAGES = 40_005
"""In the public MURA-v1.1 (paper, section 2)."""

FORMATS = ("mura", "fracatlas", "table", "phantom")

# What a reader takes besides the source.
_OPTIONS = {
    "mura": {"splits", "valid_fraction", "seed"},
    "fracatlas": set(),
    "table": {"seed"},
    "phantom": {"splits", "valid_fraction", "seed"},
}

EPILOG = """\
example:
  python -m mura_ray.convert --format mura --source ~/MURA-v1.1 --dest ~/mura-shards
  python -m mura_ray.convert --format table --source hospital/studies.csv --dest shards --allow-damaged
  python -m mura_ray.convert --source s3://hospital/MURA-v1.1 --dest s3://hospital/mura-shards

Run again after an interruption, the same command goes on where it was. The data set is complete once its manifest.json
is there.
"""


def main(argv: list[str] | None = None) -> int:
    """Parses, converts, reports."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not arguments.source:
        parser.error("no radiographs: pass --source or set MURA_SOURCE")
    if not arguments.dest:
        parser.error("no place for the shards: pass --dest or set MURA_DATA")
    options = {
        name: value for name in ("splits", "valid_fraction", "seed") if (value := getattr(arguments, name)) is not None
    }
    for name in options.keys() - _OPTIONS[arguments.format]:
        parser.error(f"--{name.replace('_', '-')} does not apply to --format {arguments.format}: leave it out")
    return cli.run(lambda: _convert(arguments, options))


def read_collection(source_format: str, source: str, **options: Any) -> Collection:
    """Reads a collection of one of the `FORMATS`; the options are those of its reader.

    Raises:
        ValueError: the collection has faults; all of them.
    """
    if source_format == "fracatlas":
        return fracatlas.read_collection(source)
    if source_format == "table":
        return table.read_collection(source, **options)
    collection = mura.read_collection(source, **options)
    if source_format == "mura":
        return collection
    boxes = phantom.read_findings(collection.root)
    splits = {
        split: [
            replace(study, views=tuple(replace(view, boxes=boxes.get(view.path, ())) for view in study.views))
            for study in studies
        ]
        for split, studies in collection.splits.items()
    }
    return replace(collection, name="phantom", splits=splits)


def _parser() -> argparse.ArgumentParser:
    locations = Locations.from_environment()
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.convert",
        description="Reads a collection of radiographs, scales them to the network's input, and writes shards.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=FORMATS, default="mura", help="of the source (default: %(default)s)")
    parser.add_argument(
        "--source",
        default=locations.source,
        help="the collection's folder or s3:// URI, or a table's CSV file (default: $MURA_SOURCE)",
    )
    parser.add_argument(
        "--dest", default=locations.data, help="folder or s3:// URI of the data set (default: $MURA_DATA)"
    )
    parser.add_argument(
        "--image-size", type=_image_size, default=320, help="side of the stored images in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-damaged", action="store_true", help="leave damaged images out; the manifest will list them"
    )
    parser.add_argument(
        "--splits",
        choices=("patient", "official"),
        help="mura, phantom: patient (default) takes valid from the training set's patients and keeps the official "
        "validation set as test; official is the paper's way and has no test",
    )
    parser.add_argument(
        "--valid-fraction",
        type=_fraction,
        help="mura, phantom: share of the training patients for valid (default: 0.1)",
    )
    parser.add_argument("--seed", type=_seed, help="mura, phantom, table: of the choice of patients (default: 0)")
    return parser


def _image_size(text: str) -> int:
    if not text.isdecimal() or not 32 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: pass a whole number from 32 to 1024")
    return int(text)


def _fraction(text: str) -> float:
    try:
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: pass a number between 0 and 1")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: pass a whole number, 0 or more")
    return int(text)


def _convert(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    collection = read_collection(arguments.format, arguments.source, **options)
    for note in collection.notes:
        print(f"note: {note}", file=sys.stderr)
    print(summary(collection), flush=True)
    started = time.monotonic()
    seen: list[tuple[float, int]] = []  # when, and how many images were done by then
    with ray_session(worker_logs=False, trains=False), _progress_bar() as bar:
        task = bar.add_task("images", total=None)

        def progress(done: int, total: int) -> None:
            seen.append((time.monotonic(), done))
            bar.update(task, completed=done, total=total)

        manifest = run_conversion(
            collection,
            arguments.dest,
            image_size=arguments.image_size,
            allow_damaged=arguments.allow_damaged,
            progress=progress,
        )
        num_cores = int(ray.cluster_resources().get("CPU", 1))
    print(f"\n{_report(manifest, store.absolute(arguments.dest))}")
    if not seen:
        print("nothing to do: this conversion was finished before")
        return
    print(f"{time.monotonic() - started:.1f} s{_speed(seen, num_cores)}")


def _speed(seen: list[tuple[float, int]], num_cores: int) -> str:
    """Images a second and core, and what they make of all of MURA; nothing where too few were converted to tell."""
    (first, before), (last, done) = seen[0], seen[-1]
    if done - before < 100:
        return ""
    per_core = (done - before) / (last - first) / num_cores
    minutes = {cores: MURA_IMAGES / per_core / cores / 60 for cores in (num_cores, 64)}
    times = ", ".join(f"{minute:.2g} min on {cores} cores" for cores, minute in minutes.items())
    return f"; {per_core:.0f} images/s on each of {num_cores} cores: all of MURA takes {times}"


def _report(manifest: Manifest, dest: str) -> str:
    lines = [f"{manifest.name}, data set {manifest.id}, images of {manifest.image_size} px: {dest}"]
    for name, split in manifest.splits.items():
        num_studies = sum(sum(count.studies) for count in split.counts.values())
        megabytes = sum(shard.bytes for shard in split.shards) / 1e6
        lines.append(
            f"  {name}: {split.num_images:,} images, {num_studies:,} studies, {len(split.shards)} shard(s), "
            f"{megabytes:,.1f} MB"
        )
    if manifest.class_weights:
        lines.append("weights of the loss (normal, abnormal):")
    for study_type, (normal, abnormal) in manifest.class_weights.items():
        lines.append(f"  {study_type}: {normal:.4f}, {abnormal:.4f}")
    if manifest.quarantined:
        lines.append(f"{len(manifest.quarantined)} damaged images are left out:")
    for entry in manifest.quarantined:
        lost = f"; with it study {entry.lost_study}" if entry.lost_study else ""
        lines.append(f"  {entry.path}: {entry.reason}{lost}")
    lines += [f"note: {one.split}, {one.path}: {one.warning} ({one.count} such)" for one in manifest.warned]
    return "\n".join(lines)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        cli.SpeedColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    sys.exit(main())
