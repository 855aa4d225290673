"""`python -m mura_ray.doctor`: whether this machine, and the cluster if there is one, can do the work, and what to do.

Where something cannot, a line says so with the remedy.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from mura_ray import cli, store
from mura_ray.config import Locations
from mura_ray.data import checks
from mura_ray.data.checks import Finding
from mura_ray.data.manifest import Manifest

if TYPE_CHECKING:
    from mura_ray.distributed.inspection import Inspection, NodeRow

EPILOG = """example:
  python -m mura_ray.doctor --data s3://hospital/mura-shards --runs s3://hospital/runs

Prints a line a check: ok, FAIL with the remedy, warn for what may do harm, or a note, which is no judgement. Reads the
whole data set, and writes some files to the runs' location, which it removes again. Where RAY_ADDRESS is set or a
cluster runs on this machine, every node of it is looked at in the same way, and the exchange of gradients is timed; it
takes a minute, and no CPUs. Exits 0 if nothing failed."""


def main(argv: list[str] | None = None) -> int:
    """Parses, examines, reports."""
    locations = Locations.from_environment()
    parser = argparse.ArgumentParser(
        prog="python -m mura_ray.doctor",
        description="Checks this machine and its cluster: packages, memory, GPUs, network, where data and runs lie.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", metavar="URI", default=locations.data, help="converted data set (default: $MURA_DATA)"
    )
    parser.add_argument(
        "--runs", metavar="URI", default=locations.runs, help="where runs will lie (default: $MURA_RUNS)"
    )
    parser.add_argument(
        "--source", metavar="URI", default=locations.source, help="radiographs to convert (default: $MURA_SOURCE)"
    )
    parser.add_argument(
        "--cluster", action=argparse.BooleanOptionalAction,
        help="fail where no cluster runs, or do not look for one (default: look at it if there is one)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object in the end instead")
    return cli.run(lambda: _examine(parser.parse_args(argv)))


def _examine(arguments: argparse.Namespace) -> int:
    data, runs, source = (
        store.absolute(uri) if uri else None for uri in (arguments.data, arguments.runs, arguments.source)
    )
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if not arguments.json:
            print(line(finding), flush=True)

    for finding in findings(data, runs, source):
        tell(finding)
    inspection = _look_at_cluster(data, runs, source, arguments.cluster, tell)
    if arguments.json:
        print(json.dumps({"findings": [asdict(finding) for finding in found], "cluster": _plain(inspection)}, indent=2))
    elif inspection:
        _print_nodes(inspection.rows)
    num_failed = sum(finding.status == "FAIL" for finding in found)
    if num_failed:
        print(f"error: {num_failed} failed: see the lines that begin with FAIL", file=sys.stderr)
    return 1 if num_failed else 0


def findings(data: str | None, runs: str | None, source: str | None = None) -> Iterator[Finding]:
    """What each check of this machine finds, as soon as it does.

    Args:
        data: URI of a converted data set; None skips what concerns it.
        runs: URI where runs will lie; None skips what concerns it.
        source: URI of the radiographs that the data set may yet be converted from.
    """
    yield from checks.check_versions()
    yield from checks.check_torch()[1]
    yield from checks.check_ffcv()
    yield from checks.check_machine()
    yield from checks.check_shared_memory()
    yield from checks.check_clock([uri for uri in (runs, data) if uri])
    manifest = None
    if not data:
        yield Finding("data", "note", "skipped: pass --data URI or set MURA_DATA")
    elif source and not _is_converted(data):
        yield Finding("data", "note", f"nothing at {data} yet: `python -m mura_ray.tune` converts {source} first")
    else:
        manifest, found = checks.check_manifest(data)
        yield from found
    yield from checks.check_cache(manifest)
    yield from checks.check_cache_budget(manifest)
    if data and manifest:
        yield from checks.check_tables(data, manifest)
        yield from _check_shards(data, manifest)
    if runs:
        yield from checks.check_runs(runs)
    else:
        yield Finding("runs", "note", "skipped: pass --runs URI or set MURA_RUNS")


def _is_converted(data: str) -> bool:
    try:
        return store.exists(store.join(data, "manifest.json"))
    except OSError:  # the checks tell of it
        return True


def _look_at_cluster(
    data: str | None, runs: str | None, source: str | None, wanted: bool | None, tell: Callable[[Finding], None]
) -> "Inspection | None":
    """Looks at every node of the cluster that the other commands would join; starts none."""
    if wanted is False:
        return None
    try:
        # Here, because Ray itself may be broken.
        from mura_ray.distributed.inspection import inspect_cluster
        from mura_ray.distributed.session import running_cluster

        with running_cluster() as is_running:
            if is_running:
                return inspect_cluster(data, runs, source, tell)
    except (ImportError, ValueError) as error:
        tell(Finding("cluster", "FAIL", str(error), checks.SET_UP if isinstance(error, ImportError) else ""))
        return None
    none_runs = "none runs on this machine, and RAY_ADDRESS names none"
    if wanted:
        tell(Finding("cluster", "FAIL", none_runs, "start it (cluster/README.md), or run this on its head"))
    else:
        tell(Finding("cluster", "note", f"skipped: {none_runs}"))
    return None


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


def _print_nodes(rows: Sequence["NodeRow"]) -> None:
    """A line a node, as wide as it needs to be where the output is no terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("node", "host", "CPUs", "GPUs", "driver", "clock", "/dev/shm", "cache disk", "network", "program"):
        table.add_column(column, justify="right" if column in ("CPUs", "clock", "/dev/shm", "cache disk") else "left")
    for row in rows:
        node, clock, report = row.node, row.clock, row.report
        known = [node.name, f"{node.hostname}{' (head)' if node.is_head else ''}", f"{node.num_cpus:g}"]
        if report is None:
            table.add_row(*known, str(node.num_gpus), "no answer")
            continue
        offset = f"{clock.offset_s * 1000:+.1f} ms" if clock else ""
        free = "" if report.cache_free is None else f"{report.cache_free / 1e9:,.0f} GB free"
        gpus = ", ".join(f"{count} x {gpu}" for gpu, count in Counter(report.installed_gpus or report.gpus).items())
        revision, dirty, _ = report.revision.partition("-dirty")
        program = report.versions["mura_ray"] if revision == "unknown" else revision[:12] + dirty
        table.add_row(
            *known, gpus or str(node.num_gpus), report.driver or "-", offset, f"{report.shared_memory / 1e9:.1f} GB",
            free, report.interface, program,
        )  # fmt: skip
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    print()
    console.print(table)


def _plain(inspection: "Inspection | None") -> dict[str, Any] | None:
    """What was measured in the cluster, for JSON."""
    if inspection is None:
        return None
    plain, measured = asdict(inspection), inspection.all_reduce
    if measured:
        bandwidths = {"algorithm_bandwidth": measured.algorithm_bandwidth, "bus_bandwidth": measured.bus_bandwidth}
        plain["all_reduce"] |= bandwidths
    return plain


if __name__ == "__main__":
    raise SystemExit(main())
