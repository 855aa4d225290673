"""What doctor has run on every node of a cluster: facts, the checks of `data.checks`, and storage tried from there.

Imports no torch: a broken one is to be told of, and the checks try it in a process of its own.
"""

import hashlib
import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass

from mura_ray import revision, store
from mura_ray.data import checks
from mura_ray.data.checks import Finding
from mura_ray.data.manifest import manifest_sha256
from mura_ray.distributed.interface import gloo_interface, interface_of


@dataclass(frozen=True, slots=True)
class Places:
    """What is tried from every node.

    Attributes:
        data: URI of the data set; None where none is named.
        converted: whether there is a data set yet.
        written: URIs that every node writes to.
        source_file: URI of one file of the radiographs; None where they are not looked at.
        s3: URIs, of which one in S3 tells the server's clock.
    """

    data: str | None
    converted: bool
    written: tuple[str, ...]
    source_file: str | None
    s3: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself.

    Attributes:
        versions: of the interpreter, packages and this program, by name.
        revision: this program's commit; "unknown" where its files came without.
        gpus: name and memory of each that torch sees.
        installed_gpus: name and memory of each that the driver lists, whether torch can use it or not.
        driver: the NVIDIA driver's version; "" where there is none.
        cache_free: bytes free where copies of the data set go; None where that cannot be told.
        shared_memory: bytes of /dev/shm.
        interface: the network interface with the node's address, or that address where none has it.
        gloo: the interface that CPU workers exchange gradients over.
        nccl: the same of GPU workers; "" where NCCL chooses.
        manifest: SHA-256 of the data set's manifest; "" where none was read.
        source_file: SHA-256 of a file of the radiographs; "" where none was read.
        findings: of the checks.
    """

    versions: dict[str, str]
    revision: str
    gpus: list[str]
    installed_gpus: list[str]
    driver: str
    cache_free: int | None
    shared_memory: int
    interface: str
    gloo: str
    nccl: str
    manifest: str
    source_file: str
    findings: list[Finding]


class NodeProbe:
    """An actor on the node."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._written: list[str] = []
        self._new_folders = ExitStack()

    def time(self) -> float:
        """The node's clock, in seconds since the epoch."""
        return time.time()

    def report(self, places: Places) -> NodeReport:
        """Looks at everything that concerns this node alone, and reads what all nodes should find equal."""
        gpus, findings = checks.check_torch()
        findings += [*checks.check_versions(), *checks.check_ffcv(), *checks.check_shared_memory()]
        findings += checks.check_clock(places.s3)
        manifest, manifest_hash, source_hash = None, "", ""
        if places.data and places.converted:
            manifest, found = checks.check_manifest(places.data)
            findings += found
            manifest_hash = manifest_sha256(places.data) if manifest else ""
        if places.source_file:
            source_hash, found = _hash_source(places.source_file)
            findings += found
        cache = checks.check_cache(manifest)
        findings += [*cache, *checks.check_cache_budget(manifest)]
        driver, installed = nvidia_gpus()
        return NodeReport(
            versions=program_versions(),
            revision=revision.git_revision(),
            gpus=gpus,
            installed_gpus=installed,
            driver=driver,
            cache_free=checks.cache_free_bytes(),
            shared_memory=checks.shared_memory_bytes()[0],
            interface=interface_of(self._address) or self._address,
            gloo=gloo_interface(self._address) or self._address,
            nccl=os.environ.get("NCCL_SOCKET_IFNAME", ""),
            manifest=manifest_hash,
            source_file=source_hash,
            findings=findings,
        )

    def write(self, uris: dict[str, bytes]) -> list[Finding]:
        """Writes files, and remembers what is to be removed; what failed."""
        failures = []
        for uri, content in uris.items():
            folder = None if store.is_s3(uri) else store.resolve(uri).parent
            self._new_folders.enter_context(checks.no_new_folders(folder))
            try:
                store.write_bytes(uri, content)
            except (ValueError, OSError) as error:
                failures.append(checks.failure("storage", error))
            else:
                self._written.append(uri)
        return failures

    def read(self, contents: dict[str, bytes]) -> tuple[list[str], list[Finding]]:
        """Which of these files this node finds, with this content, and what failed."""
        seen, failures = [], []
        for uri, content in contents.items():
            try:
                if store.is_file(uri) and store.read_bytes(uri) == content:
                    seen.append(uri)
            except (ValueError, OSError) as error:
                failures.append(checks.failure("storage", error))
        return seen, failures

    def remove(self) -> list[Finding]:
        """Removes the files that it wrote; what failed."""
        try:
            store.remove_files(self._written)
        except (ValueError, OSError) as error:
            return [checks.failure("storage", error)]
        return []

    def remove_folders(self) -> None:
        """Removes the folders that it made, once every node has removed its files."""
        self._new_folders.close()


def program_versions() -> dict[str, str]:
    """Versions of all that has to be the same on every node; this program's is a hash of its files."""
    return {**checks.installed_versions(), "mura_ray": revision.source_hash()}


def nvidia_gpus() -> tuple[str, list[str]]:
    """The NVIDIA driver's version, and name and memory of each GPU that it lists; ("", []) without a driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "", []
    rows = [line.split(", ", 2) for line in listed.splitlines()]
    return rows[0][0] if rows else "", [f"{name} {float(mib) / 1024:.0f} GiB" for _, mib, name in rows]


def _hash_source(uri: str) -> tuple[str, list[Finding]]:
    try:
        content = store.read_bytes(uri)
    except (ValueError, OSError) as error:
        return "", [checks.failure("source", error)]
    return hashlib.sha256(content).hexdigest(), [Finding("source", "ok", f"{uri} was read")]
