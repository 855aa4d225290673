"""`python -m mura_ray.doctor`: whether this machine can do the work, and what to do where it cannot."""

import argparse
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mura_ray import cli, store
from mura_ray.config import Locations
from mura_ray.data import checks
from mura_ray.data.checks import Finding
from mura_ray.data.manifest import Manifest

EPILOG = """example:
  python -m mura_ray.doctor --data s3://hospital/mura-shards --runs s3://hospital/runs

Prints a line a check: ok, FAIL with the remedy, or a note, which is no judgement. Reads the whole data set, and writes
some files to the runs' location, which it removes again. Exits 0 if nothing failed."""


def main(argv: list[str] | None = None) -> int:
    """Parses, examines, reports."""
    locations = Locations.from_environment()
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.doctor",
        description="Checks this machine: packages, memory, disk, and where data and runs lie.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", metavar="URI", default=locations.data, help="converted data set (default: $MURA_DATA)"
    )
    parser.add_argument(
        "--runs", metavar="URI", default=locations.runs, help="where runs will lie (default: $MURA_RUNS)"
    )
    return cli.run(lambda: _examine(parser.parse_args(argv)))


def _examine(arguments: argparse.Namespace) -> int:
    data, runs = (store.absolute(uri) if uri else None for uri in (arguments.data, arguments.runs))
    num_failed = 0
    for finding in findings(data, runs):
        print(line(finding), flush=True)
        num_failed += finding.status == "FAIL"
    if num_failed:
        print(f"error: {num_failed} failed: see the lines that begin with FAIL", file=sys.stderr)
    return 1 if num_failed else 0


def findings(data: str | None, runs: str | None) -> Iterator[Finding]:
    """What each check finds, as soon as it does.

    Args:
        data: URI of a converted data set; None skips what concerns it.
        runs: URI where runs will lie; None skips what concerns it.
    """
    yield from checks.check_versions()
    yield from checks.check_torch()
    yield from checks.check_ffcv()
    yield from checks.check_machine()
    yield from checks.check_shared_memory()
    yield from checks.check_clock([uri for uri in (runs, data) if uri])
    manifest = None
    if data:
        manifest, found = checks.check_manifest(data)
        yield from found
    else:
        yield Finding("data", "note", "skipped: pass --data URI or set MURA_DATA")
    yield from checks.check_cache(manifest)
    yield from checks.check_cache_budget(manifest)
    if data and manifest:
        yield from checks.check_tables(data, manifest)
        yield from _check_shards(data, manifest)
    if runs:
        yield from checks.check_runs(runs)
    else:
        yield Finding("runs", "note", "skipped: pass --runs URI or set MURA_RUNS")


def line(finding: Finding) -> str:
    """A finding in one line."""
    detail = " ".join(finding.detail.split())
    return f"{finding.status:<4}  {finding.check:<13}  {detail}" + (f"; {finding.remedy}" if finding.remedy else "")


def _check_shards(data: str, manifest: Manifest) -> list[Finding]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading shards", total=None)
        return checks.check_shards(
            data, manifest, lambda done, total: progress.update(task, completed=done, total=total)
        )


if __name__ == "__main__":
    raise SystemExit(main())
