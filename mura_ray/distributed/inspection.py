"""Looks at every node of the cluster that this process has joined, and has what they say compared.

An actor without CPUs goes to each node, so that a busy cluster is looked at too. Whatever a node does or does not
answer, every wait has an end, and the node is named.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mura_ray import store
from mura_ray.data.checks import SET_UP, Finding, failure
from mura_ray.distributed.all_reduce import AllReduce, GroupError, explain, measure_all_reduce
from mura_ray.distributed.comparison import (
    NO_ANSWER,
    Clock,
    Node,
    check_size,
    compare_clocks,
    compare_reports,
    compare_storage,
    describe_all_reduce,
    group_failure,
    merge,
)
from mura_ray.distributed.node_probe import NodeProbe, NodeReport, Places, program_versions
from mura_ray.distributed.session import cluster_capacity

Tell = Callable[[Finding], None]
"""Called with each finding as soon as there is one."""

CLOCK_ROUNDS = 10
START_TIMEOUT_S = 120.0
"""For the first answer of a node: a process starts there and imports this project."""

REPORT_TIMEOUT_S = 330.0
"""For a node's checks, each of which gives up by itself earlier."""

STORAGE_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node, and what it said; None where it did not answer."""

    node: Node
    clock: Clock | None
    report: NodeReport | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was measured; the findings were told on the way."""

    rows: list[NodeRow]
    all_reduce: AllReduce | None


def inspect_cluster(data: str | None, runs: str | None, source: str | None, tell: Tell) -> Inspection:
    """Looks at the cluster that this process has joined.

    Args:
        data: URI of the data set, converted or yet to be; None skips what concerns it.
        runs: URI where runs will lie; None skips what concerns it.
        source: URI of the radiographs; None skips what concerns them.
        tell: is told the findings.
    """
    places = _places(data, runs, source, tell)
    nodes = sorted(
        (_node(node) for node in ray.nodes() if node["Alive"]), key=lambda node: (not node.is_head, node.name)
    )
    tell(check_size(nodes, cluster_capacity()))
    probes = _Probes(nodes, tell)
    try:
        clocks = probes.clocks()
        reports: dict[Node, NodeReport] = probes.ask("report", REPORT_TIMEOUT_S, places)
        findings = compare_clocks({node.name: clock for node, clock in clocks.items()})
        findings += compare_reports(reports, program_versions(), places)
        for finding in findings:
            tell(finding)
        for uri in places.written:
            for finding in probes.try_storage(uri):
                tell(finding)
    finally:
        probes.end()
    all_reduce, findings = _try_all_reduce(reports)
    for finding in findings:
        tell(finding)
    return Inspection([NodeRow(node, clocks.get(node), reports.get(node)) for node in nodes], all_reduce)


def _places(data: str | None, runs: str | None, source: str | None, tell: Tell) -> Places:
    """What is to be tried from every node. A data set that is yet to be converted will be written by all of them."""
    converted, file = False, None
    try:
        converted = data is not None and store.exists(store.join(data, "manifest.json"))
        file = store.find_file(source) if source else None
        if source and file is None:
            status = "warn" if converted else "FAIL"
            tell(Finding("source", status, f"there is no file at {source}", "correct --source or MURA_SOURCE"))
    except (ValueError, OSError) as error:
        tell(failure("source", error))
    written = (runs, data if source and not converted else None)
    return Places(
        data=data,
        converted=converted,
        written=tuple(uri for uri in written if uri),
        source_file=file,
        s3=tuple(uri for uri in (runs, data, source) if uri),
    )


def _node(node: Mapping[str, Any]) -> Node:
    resources = node["Resources"]
    return Node(
        node_id=node["NodeID"],
        address=node["NodeManagerAddress"],
        hostname=node["NodeManagerHostname"],
        is_head="node:__internal_head__" in resources,
        num_cpus=resources.get("CPU", 0.0),
        num_gpus=int(resources.get("GPU", 0)),
    )


class _Probes:
    """An actor on each node. Those that fail to answer once are asked no more."""

    def __init__(self, nodes: Sequence[Node], tell: Tell) -> None:
        self._tell = tell
        remote: Any = ray.remote(num_cpus=0)(NodeProbe)
        self._all: dict[Node, Any] = {
            node: remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(
                node.address
            )
            for node in nodes
        }
        self._answering = dict(self._all)

    def ask(self, method: str, timeout_s: float, *arguments: object) -> dict[Node, Any]:
        """Calls a method on all nodes at once. Returns what they answer, those left out that do not."""
        return self.ask_each(method, timeout_s, dict.fromkeys(self._answering, arguments))

    def ask_each(self, method: str, timeout_s: float, arguments: Mapping[Node, Sequence[object]]) -> dict[Node, Any]:
        """The same with arguments for each node."""
        refs = {node: getattr(self._answering[node], method).remote(*given) for node, given in arguments.items()}
        ready = set(ray.wait(list(refs.values()), num_returns=len(refs), timeout=timeout_s)[0]) if refs else set()
        answers = {}
        for node, ref in refs.items():
            if ref not in ready:
                self._lose(node, f"no answer to {method!r} in {timeout_s:.0f} s", NO_ANSWER)
                continue
            try:
                answers[node] = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                self._lose(node, explain(error), f"it may have another checkout or broken packages: {SET_UP}")
            except ray.exceptions.RayError as error:
                self._lose(node, explain(error), NO_ANSWER)
        return answers

    def clocks(self) -> dict[Node, Clock]:
        """How far each node's clock is off, from the shortest of some round trips."""
        self.ask("time", START_TIMEOUT_S)
        clocks = {}
        for node in list(self._answering):
            found = [clock for _ in range(CLOCK_ROUNDS) if (clock := self._clock(node)) is not None]
            if found:
                clocks[node] = min(found, key=lambda clock: clock.uncertainty_s)
        return clocks

    def _clock(self, node: Node) -> Clock | None:
        if node not in self._answering:
            return None
        before, started = time.time(), time.monotonic()
        answers = self.ask_each("time", START_TIMEOUT_S, {node: ()})
        half = (time.monotonic() - started) / 2
        return Clock(answers[node] - (before + half), half) if node in answers else None

    def try_storage(self, uri: str) -> list[Finding]:
        """Every node writes a file of its own there and reads those of all; nothing is left."""
        home = store.join(uri, f".doctor-{uuid.uuid4().hex}")
        files = {node: (store.join(home, node.node_id), node.node_id.encode()) for node in self._answering}
        found: list[Finding] = []
        try:
            arguments = {node: ({file: content},) for node, (file, content) in files.items()}
            wrote = self.ask_each("write", STORAGE_TIMEOUT_S, arguments)
            found += merge({node.name: findings for node, findings in wrote.items()})
            contents = dict(files[node] for node, failures in wrote.items() if not failures)
            read = self.ask("read", STORAGE_TIMEOUT_S, contents)
            found += merge({node.name: findings for node, (_, findings) in read.items()})
            authors = {file: node.name for node, (file, _) in files.items()}
            seen = {node.name: {authors[file] for file in files_seen} for node, (files_seen, _) in read.items()}
        finally:
            removed = self.ask("remove", STORAGE_TIMEOUT_S)
            self.ask("remove_folders", STORAGE_TIMEOUT_S)
        found += merge({node.name: findings for node, findings in removed.items()})
        if any(finding.status == "FAIL" for finding in found):
            return found
        return [compare_storage(uri, {node.name for node in wrote}, seen)]

    def end(self) -> None:
        """Ends the actors."""
        for probe in self._all.values():
            ray.kill(probe)

    def _lose(self, node: Node, reason: str, remedy: str) -> None:
        del self._answering[node]
        self._tell(Finding("nodes", "FAIL", f"{node.name}: {reason}", remedy))


def _try_all_reduce(reports: Mapping[Node, NodeReport]) -> tuple[AllReduce | None, list[Finding]]:
    """Times the exchange of gradients between all GPUs, or else between the nodes that training may run on."""
    gpus = [node for node in reports for _ in range(node.num_gpus)]
    backend, workers, found = "nccl", gpus, []
    if gpus and ray.available_resources().get("GPU", 0) < len(gpus):
        detail = (
            f"some of the {len(gpus)} GPUs are in use: run this again when they are not. Measured without GPUs instead"
        )
        found.append(Finding("all-reduce", "note", detail))
        backend, workers = "gloo", list(dict.fromkeys(gpus))
    elif not gpus:
        backend, workers = "gloo", [node for node in reports if node.num_cpus]
    if len(workers) < 2:
        what = "GPU" if backend == "nccl" else "node"
        return None, [*found, Finding("all-reduce", "note", f"{len(workers)} {what} that trains: nothing to exchange")]
    try:
        measured = measure_all_reduce(backend, [node.node_id for node in workers])
    except GroupError as error:
        interfaces = {node.name: _interface(backend, reports[node]) for node in workers}
        return None, [*found, group_failure(backend, len(workers), str(error), error.address, interfaces)]
    return measured, [*found, describe_all_reduce(measured)]


def _interface(backend: str, report: NodeReport) -> str:
    return report.nccl or "NCCL's choice" if backend == "nccl" else report.gloo
