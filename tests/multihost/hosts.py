"""Whole hosts on one machine: network namespaces on a bridge, each with its own processes, address, name and files.

A host has its own process table, /tmp, /dev/shm, /run and home folder; it sees this repository and its Python
environment, but what it writes into them stays its own. A host's home outlives it, as a disk outlives a power cut.
"""

import contextlib
import hashlib
import ipaddress
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = Path("/root")
NODE = HOME / "mura-ray-node"
"""Where cluster/local.yaml puts the project on a host."""

PREFIX = Path(sys.prefix).resolve()
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "rsync", "ssh", "ssh-keygen", "/usr/sbin/sshd")

BOOT = """
set -eu
hostname "$HOST_NAME"
mount --make-rprivate /
mkdir -p "$STATE/home" "$STATE/tmp" "$STATE/run"
mount -t tmpfs tmpfs "$STATE/run"
mkdir "$STATE/run/sshd" "$STATE/run/upper" "$STATE/run/work"
if [ -d "$STATE/environment" ]; then
    cp -r "$STATE/environment/." "$STATE/run/upper/"
    mount -t overlay overlay -o "lowerdir=$PREFIX,upperdir=$STATE/run/upper,workdir=$STATE/run/work" "$PREFIX"
fi
keep() {  # what lies under a folder that is about to be covered stays visible there
    case $1 in "$2"/*) mkdir -p "$3/${1#"$2"/}" && mount --rbind "$1" "$3/${1#"$2"/}" ;; esac
}
for needed in $NEEDED; do
    keep "$needed" "$HOME" "$STATE/home"
    keep "$needed" /tmp "$STATE/tmp"
done
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --rbind "$STATE/home" "$HOME"
mount --rbind "$STATE/run" /run
mount --rbind "$STATE/tmp" /tmp
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add "$ADDRESS" dev eth0
ip link set eth0 up
cd "$HOME"
echo up >"$HOME/.up"
exec "$@"
"""

SSHD = ["/usr/sbin/sshd", "-D", "-e", "-f", str(HOME / ".sshd" / "config")]
SSHD_CONFIG = f"""
HostKey {HOME}/.sshd/key
AuthorizedKeysFile {HOME}/.sshd/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
"""


def missing() -> str | None:
    """Why there can be no hosts here, or None."""
    if os.geteuid() != 0:
        return "hosts need root: network namespaces"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"hosts need {', '.join(absent)}: install iproute2, openssh-server and rsync"
    probe = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run"]
    result = subprocess.run(probe, capture_output=True, text=True)
    return f"namespaces are refused here: {result.stderr.strip()}" if result.returncode else None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One host. `service` is its first process: the host lives as long as that."""

    network: "Network"
    name: str
    address: str
    state: Path
    service: Sequence[str]
    _process: subprocess.Popen | None = field(default=None, init=False)
    _first: int = field(default=0, init=False)

    @property
    def home(self) -> Path:
        """The host's home folder, as seen from here."""
        return self.state / "home"

    @property
    def link(self) -> str:
        """The bridge's end of this host's cable."""
        return f"{self.network.bridge}{self.name}"

    def start(self) -> None:
        """Switches the host on, and returns when its network is up."""
        shutil.rmtree(self.state / "tmp", ignore_errors=True)  # as after a boot
        (self.home / ".up").unlink(missing_ok=True)
        with (self.state / "console").open("a") as console:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork",
                 "--kill-child", "--mount-proc", "bash", "-c", BOOT, "boot", *self.service],
                stdout=console, stderr=console, stdin=subprocess.DEVNULL, start_new_session=True,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(HOME), "HOST_NAME": self.name,
                     "LANG": "C.UTF-8", "STATE": str(self.state), "PREFIX": str(PREFIX),
                     "ADDRESS": f"{self.address}/24",
                     "NEEDED": " ".join(map(str, {ROOT, PREFIX, Path(sys.base_prefix).resolve()}))},
            )  # fmt: skip
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._wait(lambda: bool(children.read_text().split()))
        self._first = int(children.read_text().split()[0])
        # The same hardware address at each start, as of a real card: else others go on sending to the one before it.
        card = "02:00:" + ipaddress.IPv4Address(self.address).packed.hex(":")
        _ip(
            "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "address", card, "netns", str(self._first)
        )
        _ip("link", "set", self.link, "master", self.network.bridge, "up")
        self._wait((self.home / ".up").exists)

    def kill(self) -> None:
        """Ends all its processes at once and takes its network away, as a power cut does: nobody is told."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.link)
        self._process.kill()
        self._process.wait()
        self._process = None

    def cut_network(self) -> None:
        """Pulls the cable; what runs goes on."""
        _ip("link", "set", self.link, "down")

    def restore_network(self) -> None:
        """Plugs it in again."""
        _ip("link", "set", self.link, "up")

    def popen(self, command: str, **options: Any) -> subprocess.Popen:
        """Starts a shell command on the host, in its home folder."""
        inside = ["nsenter", "--target", str(self._first), "--net", "--mount", "--pid", "--uts", "--ipc"]
        clean = ["env", "-i", f"HOME={HOME}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TERM=dumb"]
        return subprocess.Popen(
            [*inside, *clean, "bash", "-c", f"cd; {command}"], stdin=subprocess.DEVNULL, text=True, **options
        )

    def run(self, command: str, timeout_s: float = 300) -> str:
        """Runs a shell command on the host to a good end, and gives what it printed."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(
                f"{self.name}: {command}: no end in {timeout_s} s: {process.communicate()[0]}"
            ) from None
        assert process.returncode == 0, f"{self.name}: {command}: exit {process.returncode}: {output}"
        return output

    def pids(self, pattern: str) -> list[int]:
        """Processes of the host whose command line contains a text, by their numbers on the host, oldest first."""
        listed = self.run(f"pgrep -f {shlex.quote(pattern)} || true").split()
        return [int(pid) for pid in listed]

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 20
        while not is_ready():
            console = (self.state / "console").read_text()
            assert self._process.poll() is None, f"{self.name} did not start: {console}"
            assert time.monotonic() < deadline, f"{self.name} did not start: {console}"
            time.sleep(0.02)


@dataclass
class Network:
    """A bridge on this machine, with hosts on it. `address` is this machine's own there."""

    folder: Path
    bridge: str
    subnet: ipaddress.IPv4Network
    hosts: list[Host] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.subnet[1])

    def add_host(self, name: str, service: Sequence[str] = ("sleep", "infinity")) -> Host:
        """A host of that name (unique, at most 6 letters), switched on."""
        return self._add(name, service)

    def add_server(self, name: str, public_key: Path) -> Host:
        """A host that one can log into by SSH, set up for mura_ray as a node's image would be."""
        home = self.folder / name / "home"
        (home / ".sshd").mkdir(parents=True)
        (home / ".sshd" / "config").write_text(SSHD_CONFIG)
        (home / ".sshd" / "authorized_keys").write_text(public_key.read_text())
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / ".sshd" / "key"], check=True)
        (home / NODE.name).mkdir()
        (home / NODE.name / ".venv").symlink_to(PREFIX)
        _write_environment(self.folder / name / "environment")
        return self._add(name, SSHD)

    def _add(self, name: str, service: Sequence[str]) -> Host:
        (self.folder / name / "home").mkdir(parents=True, exist_ok=True)
        host = Host(self, name, str(self.subnet[10 + len(self.hosts)]), self.folder / name, service)
        self.hosts.append(host)
        host.start()
        return host


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network of no hosts yet. At the end all of it is taken away."""
    number = os.getpid() % 4096
    subnet = ipaddress.IPv4Network(f"10.{208 + number // 256}.{number % 256}.0/24")
    made = Network(folder, f"mr{number:x}", subnet)
    _ip("link", "add", made.bridge, "type", "bridge")
    try:
        _ip("addr", "add", f"{made.address}/24", "dev", made.bridge)
        _ip("link", "set", made.bridge, "up")
        yield made
    finally:
        for host in made.hosts:
            host.kill()
        _ip("link", "del", made.bridge)


def _write_environment(folder: Path) -> None:
    """What lies over the Python environment on a host: `import mura_ray` finds what `ray up` copied there.

    And setup-node.sh finds its stamp, so that it has nothing to install, as in the image of cluster/Dockerfile.
    """
    site = next((PREFIX / "lib").glob("python*/site-packages"))
    finder = next(site.glob("__editable___mura_ray_*_finder.py"))
    over = folder / finder.relative_to(PREFIX)
    over.parent.mkdir(parents=True)
    over.write_text(finder.read_text().replace(str(ROOT), str(NODE)))
    names = ("pyproject.toml", "requirements.txt", "requirements-dev.txt", "cluster/setup-node.sh")
    inputs = [*(ROOT / name for name in names), ROOT / "cluster/ffcv-build/opencv4.pc"]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    (folder / ".mura-ray-setup").write_text(f"{NODE} requirements.txt {digest}  -\n")
