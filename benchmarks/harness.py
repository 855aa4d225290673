"""What the benchmarks share: a process of its own for each thing measured, its time and memory, the machine, tables.

Knows nothing of what is measured.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil

P = ParamSpec("P")
T = TypeVar("T")

EXIT_TIMEOUT_S = 20.0


class Isolated:
    """A fresh process, in which functions are called one after the other; use as a context manager.

    Threads, memory and compiled code of what it measures are in no other process. Functions must be importable.
    """

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_fork_from_here)
        self.pid = self.call(os.getpid)

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result; what it raises is raised here."""
        return self._pool.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        """Ends the process, and all that it started."""
        family = _family(self.pid)
        self._pool.shutdown(wait=False)
        for process in psutil.wait_procs(family, timeout=EXIT_TIMEOUT_S)[1]:
            process.kill()


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process and of those below it that are alive or were waited for."""
    total = 0.0
    for process in _family(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


@dataclass
class Memory:
    """Peaks over a family of processes, in bytes.

    Attributes:
        rss: the sum of what each has in memory; pages that several share, and mapped files, count each time.
        own: what no file holds (anonymous and shared memory), with what they share counted once.
    """

    rss: int = 0
    own: int = 0

    def sample(self, pid: int) -> None:
        """Takes the present use into account."""
        rss = own = 0
        for process in _family(pid):
            try:
                rss += process.memory_info().rss
                own += _own_bytes(process.pid)
            except (psutil.NoSuchProcess, OSError):
                continue
        self.rss, self.own = max(self.rss, rss), max(self.own, own)


@contextmanager
def watched_memory(pid: int, interval_s: float = 0.1) -> Iterator[Memory]:
    """Samples the memory of a process and of those below it while the block runs."""
    memory, stopped = Memory(), threading.Event()

    def watch() -> None:
        while True:
            memory.sample(pid)
            if stopped.wait(interval_s):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
        memory.sample(pid)
    finally:
        stopped.set()
        thread.join()


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of a measure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """From the rounds' values."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, decimals: int = 0) -> str:
        """As `median (low - high)`."""
        return f"{self.median:,.{decimals}f} ({self.low:,.{decimals}f} - {self.high:,.{decimals}f})"


class Goals:
    """What a benchmark holds its figures against.

    Attributes:
        found: of each goal its words, what was measured, whether that meets it, and the aim.
    """

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def add(self, goal: str, measured: str, met: bool, aim: str) -> None:
        """One more."""
        self.found.append({"goal": goal, "measured": measured, "met": bool(met), "aim": aim})

    def report(self) -> None:
        """Prints a line for each."""
        for goal in self.found:
            print(f"{'pass' if goal['met'] else 'FAIL'}  {goal['goal']}: {goal['measured']}; {goal['aim']}")

    @property
    def are_met(self) -> bool:
        """All of them."""
        return all(goal["met"] for goal in self.found)


def machine(packages: Sequence[str]) -> dict[str, str]:
    """The machine and the versions of what runs on it; packages that are not installed are left out."""
    cpus = os.sched_getaffinity(0)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": f"{model} ({platform.machine()}), {len(cpus)} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load": f"{os.getloadavg()[0]:.1f} before the start",
        "date": time.strftime("%Y-%m-%d"),
        "versions": ", ".join(f"{name} {version}" for name, version in found.items()),
    }


def parser(name: str, documentation: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark's command line: what its module's docstring says, and `--json`."""
    description, _, epilog = (documentation or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--json", type=Path, help="where to write all figures")
    return made


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as plain text too; all columns but the first are right-aligned."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(aligned)} |"

    rule = [f"{'-' * (width + 1)}:" for width in widths]
    rule[0] = "-" * (widths[0] + 2)
    return "\n".join([line(head), f"|{'|'.join(rule)}|", *(line(row) for row in rows)])


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a benchmark's figures."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def disk_bytes(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _fork_from_here() -> None:
    """Has a spawned process fork its own children, as is usual on Linux; it would spawn them too."""
    set_start_method("fork", force=True)


def _family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _own_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
