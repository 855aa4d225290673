"""What the nodes of a cluster say of themselves, compared: where they differ, what fails, and what helps."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from mura_ray.data.checks import MAX_CLOCK_SKEW_S, Finding
from mura_ray.distributed.all_reduce import AllReduce
from mura_ray.distributed.node_probe import NodeReport, Places

CLOCK_WARNING_S = 1.0
NO_ANSWER = "see `ray status` and the newest logs in /tmp/ray/session_latest/logs there; restart Ray on it"
NOT_SHARED = "mount the same file system there on every node (NFS, EFS), or name an s3:// location"


@dataclass(frozen=True, slots=True)
class Node:
    """A node as Ray knows it.

    Attributes:
        node_id: Ray's.
        address: its IP address.
        hostname: its name.
        is_head: whether it is the cluster's head.
        num_cpus: that Ray gives out.
        num_gpus: that Ray gives out.
    """

    node_id: str
    address: str
    hostname: str
    is_head: bool
    num_cpus: float
    num_gpus: int

    @property
    def name(self) -> str:
        """What findings call it: several nodes may share an address."""
        return f"{self.address} ({self.node_id[:8]})"


@dataclass(frozen=True, slots=True)
class Clock:
    """How far a node's clock is ahead of this process's, and how wrong that may be, in seconds."""

    offset_s: float
    uncertainty_s: float


def check_size(nodes: Sequence[Node], capacity: Mapping[str, float]) -> Finding:
    """What there is, and whether there may be more.

    Args:
        nodes: that are there.
        capacity: resources by name that the cluster has or its autoscaler may bring.
    """
    cpus, gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    detail = f"{len(nodes)} in the cluster, with {cpus:g} CPUs and {gpus} GPUs"
    most_cpus, most_gpus = capacity.get("CPU", 0), capacity.get("GPU", 0)
    if most_cpus <= cpus and most_gpus <= gpus:
        return Finding("nodes", "ok", detail)
    return Finding(
        "nodes",
        "note",
        f"{detail}; its autoscaler may bring {most_cpus:g} CPUs and {most_gpus:g} GPUs, which are examined once they "
        "are there: run this again while a search runs",
    )


def merge(found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """What the nodes' own checks found, in a line each: one for what is well everywhere, one for each trouble.

    Args:
        found: findings by the node's name; notes are left out.
    """
    nodes: dict[Finding, list[str]] = defaultdict(list)
    sound: dict[str, set[str]] = defaultdict(set)
    for name, findings in found.items():
        for finding in findings:
            if finding.status == "ok":
                sound[finding.check].add(name)
            elif finding.status != "note":
                nodes[finding].append(name)
    everywhere = [check for check, names in sound.items() if len(names) == len(found)]
    merged = [Finding("nodes", "ok", f"{', '.join(everywhere)}: well on {_names(found, found)}")] if everywhere else []
    return merged + [
        replace(finding, detail=f"{_names(names, found)}: {finding.detail}") for finding, names in nodes.items()
    ]


def compare_reports(reports: Mapping[Node, NodeReport], here: Mapping[str, str], places: Places) -> list[Finding]:
    """What the nodes found each by itself, and where they differ.

    Args:
        reports: of the nodes that answered.
        here: versions of this process, by name.
        places: what they tried.
    """
    named = {node.name: report for node, report in reports.items()}
    found = merge({name: report.findings for name, report in named.items()})
    if places.converted:  # the radiographs are needed no more
        found = [replace(f, status="warn") if (f.check, f.status) == ("source", "FAIL") else f for f in found]
    found += compare_versions({name: report.versions for name, report in named.items()}, here)
    for node, report in reports.items():
        found += check_gpus(node, report)
    for check, uri, digests in (
        ("data", places.data, {name: report.manifest for name, report in named.items()}),
        ("source", places.source_file, {name: report.source_file for name, report in named.items()}),
    ):
        found += compare_content(check, uri or "", {name: digest for name, digest in digests.items() if digest})
    return found


def compare_versions(versions: Mapping[str, Mapping[str, str]], here: Mapping[str, str]) -> list[Finding]:
    """Whether all nodes have the versions of this process.

    Args:
        versions: by the node's name and the package's.
        here: this process's, by the package's name.
    """
    found = []
    for package, expected in here.items():
        others: dict[str, list[str]] = defaultdict(list)
        for name, of_node in versions.items():
            if package in of_node and of_node[package] != expected:  # a missing one is the node's own finding
                others[of_node[package]].append(name)
        if not others:
            continue
        differing = "; ".join(f"{version} on {_names(names, versions)}" for version, names in others.items())
        if package == "mura_ray":
            detail, remedy = (
                f"mura_ray's files are {expected} here, {differing}",
                "bring the same checkout to every node",
            )
        else:
            detail, remedy = (
                f"{package} is {expected} here, {differing}",
                "run cluster/setup-node.sh of one checkout on every node",
            )
        found.append(Finding("versions", "FAIL", detail, f"{remedy} and restart Ray there"))
    return found or [Finding("versions", "ok", f"those of this process on {_names(versions, versions)}")]


def compare_clocks(clocks: Mapping[str, Clock]) -> list[Finding]:
    """Whether the nodes' clocks agree with this process's.

    Args:
        clocks: by the node's name.
    """
    found, widest = [], 0.0
    for name, clock in clocks.items():
        widest = max(widest, abs(clock.offset_s) + clock.uncertainty_s)
        certain_s = abs(clock.offset_s) - clock.uncertainty_s
        if certain_s <= CLOCK_WARNING_S:
            continue
        status = "FAIL" if certain_s > MAX_CLOCK_SKEW_S else "warn"
        sense = "ahead of" if clock.offset_s > 0 else "behind"
        detail = (
            f"{name}: its clock is {abs(clock.offset_s):.1f} s {sense} this machine's (+-{clock.uncertainty_s:.3f} s)"
        )
        remedy = "set it, e.g. with NTP: from 15 minutes on S3 refuses requests"
        found.append(Finding("clocks", status, detail, remedy))
    if found or not clocks:
        return found
    return [Finding("clocks", "ok", f"within {widest * 1000:.1f} ms of this machine's on {_names(clocks, clocks)}")]


def check_gpus(node: Node, report: NodeReport) -> list[Finding]:
    """Whether torch can use the GPUs that Ray gives out on a node."""
    usable, installed = len(report.gpus), len(report.installed_gpus)
    seen = f"torch sees {usable}, the driver ({report.driver or 'none'}) {installed}"
    if node.num_gpus > usable:
        remedy = (
            "update the driver (CUDA 13 needs 580) and look at CUDA_VISIBLE_DEVICES"
            if installed
            else "install the NVIDIA driver, in a container start it with --gpus=all, or start Ray with --num-gpus=0"
        )
        return [Finding("gpus", "FAIL", f"{node.name}: Ray gives out {node.num_gpus} GPUs, {seen}", remedy)]
    if node.num_gpus < max(usable, installed):
        return [Finding("gpus", "note", f"{node.name}: Ray gives out {node.num_gpus} GPUs, {seen}: the rest lies idle")]
    return [Finding("gpus", "ok", f"{node.name}: {', '.join(report.gpus)}")] if usable else []


def compare_content(check: str, uri: str, digests: Mapping[str, str]) -> list[Finding]:
    """Whether all nodes read the same there.

    Args:
        check: named in the finding.
        uri: what was read.
        digests: hash of what was read, by the name of the node that read something.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name, digest in digests.items():
        groups[digest].append(name)
    if len(groups) < 2:
        return []
    return [Finding(check, "FAIL", f"{uri} is not the same everywhere: {_groups(groups.values())}", NOT_SHARED)]


def compare_storage(uri: str, writers: Collection[str], seen: Mapping[str, Collection[str]]) -> Finding:
    """Whether a location is one and the same on every node.

    Args:
        uri: the location.
        writers: names of the nodes that wrote there.
        seen: by the name of the node that read, the names of those whose file it found.
    """
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for name, found in seen.items():
        groups[frozenset(found)].append(name)
    if set(groups) <= {frozenset(writers)}:
        return Finding("storage", "ok", f"{uri}: {_names(seen, seen)} wrote there, and read what all wrote")
    detail = f"{uri} is not the same place on every node, where one writes not all can read: {_groups(groups.values())}"
    return Finding("storage", "FAIL", detail, NOT_SHARED)


def group_failure(backend: str, num_workers: int, reason: str, address: str, interfaces: Mapping[str, str]) -> Finding:
    """Why workers could not exchange gradients, and what helps.

    Args:
        backend: nccl or gloo.
        num_workers: that should have.
        reason: what the first of them to fail said.
        address: where the first worker listened; "" where none came that far.
        interfaces: that the backend takes, by the node's name.
    """
    detail = f"{num_workers} workers ({backend}) could not exchange gradients: {reason}"
    if not address:
        return Finding("all-reduce", "FAIL", detail, NO_ANSWER)
    taken = ", ".join(f"{interface} on {name}" for name, interface in interfaces.items())
    remedy = (
        f"the nodes must reach each other on all TCP ports (they met at {address}, the other ports are chosen freely): "
        f"open the firewall between them; set {backend.upper()}_SOCKET_IFNAME, where Ray is started, to the network "
        f"interface that they share (now: {taken})"
    )
    return Finding("all-reduce", "FAIL", detail, remedy)


def describe_all_reduce(measured: AllReduce) -> Finding:
    """The measurement in a line."""
    detail = (
        f"{measured.num_workers} workers ({measured.backend}) on {measured.num_nodes} nodes: "
        f"{measured.num_bytes / 1e6:.1f} MB of gradients in {measured.seconds * 1000:.1f} ms: "
        f"algorithm bandwidth {measured.algorithm_bandwidth / 1e9:.2f} GB/s, "
        f"bus bandwidth {measured.bus_bandwidth / 1e9:.2f} GB/s; adds at most that to a step (DDP hides it in part "
        "behind the backward pass)"
    )
    return Finding("all-reduce", "ok", detail)


def _names(names: Collection[str], among: Collection[str]) -> str:
    if len(names) == len(among) > 1:
        return f"all {len(names)} nodes"
    return ", ".join(names)


def _groups(groups: Collection[Sequence[str]]) -> str:
    """Names by what they have in common."""
    return " | ".join(", ".join(names) for names in groups)
