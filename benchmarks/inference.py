"""How fast can all members of an ensemble be computed, how exactly, and what do pytorch-grad-cam's maps take?

    python -m benchmarks.inference --json inference.json

Compares, in one process, the ways to compute an ensemble of DenseNet-169: on a GPU where there is one, else on the
CPU. Ours give the maps too, the others logits alone. Rounds of all ways take turns, and ratios are those within a
round; errors are against eager fp32 on the CPU.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from benchmarks import harness
from benchmarks.ensembles import add_options, read_networks, write_trained_like_ensemble
from benchmarks.harness import Goals, Isolated, Spread, machine, markdown_table, write_json
from benchmarks.loader.radiographs import draw
from mura_ray.images import resize_gray
from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.ensemble import read_description
from mura_ray.model.inference import has_bf16, make_engine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NUM_VIEWS = {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 8, 32)}[DEVICE]
LEAST_S = {"cpu": 0.0, "cuda": 0.5}[DEVICE]
"""A pass is repeated until it has taken so long."""

NUM_COMPARED = 8
"""Views of which the errors are."""

WINOGRAD_SAVES = 4
"""Times fewer products that Winograd's F(4x4, 3x3) has in a 3 x 3 convolution; its additions come on top."""

GOAL_PROBABILITY, GOAL_CAM_TIMES = 2e-3, 3.0

Way = Callable[[torch.Tensor], np.ndarray]
"""From pixels, uint8 [N, 1, S, S], to logits [M, N]."""


def main() -> int:
    """Measures and reports; 1 where a goal is missed."""
    arguments = _parser().parse_args()
    described = machine(("torch", "openvino", "grad-cam"))
    described["gpu"] = torch.cuda.get_device_name() if DEVICE == "cuda" else "none"
    for name, value in described.items():
        print(f"{name:9} {value}")
    with tempfile.TemporaryDirectory(prefix="inference-benchmark-") as folder, Isolated() as process:
        uri = arguments.ensemble or process.call(write_trained_like_ensemble, Path(folder), arguments.size)
        result = process.call(measure, uri, arguments.rounds, arguments.only)
    print(
        f"\nAll members, {result['size']} px, logits' standard deviation {result['logits_std']:.2f}\n{table(result)}\n"
    )
    print(*bounds(result), sep="\n")
    goals = _goals(result)
    goals.report()
    if arguments.json:
        write_json(arguments.json, {"machine": described, "result": result, "goals": goals.found})
    return 0 if goals.are_met else 1


def _parser() -> argparse.ArgumentParser:
    parser = harness.parser("inference", __doc__)
    add_options(parser)
    parser.add_argument(
        "--only", nargs="+", choices=list(WAYS), metavar="WAY", default=[way for way in WAYS if way != "compiled"],
        help=f"of {', '.join(WAYS)} (default: all but compiled, which takes minutes)",
    )  # fmt: skip
    return parser


def _eager(
    networks: Sequence[AbnormalityNet], *, channels_last: bool = False, reduced: torch.dtype | None = None
) -> Way:
    networks = [network.to(DEVICE) for network in networks]
    if channels_last:
        networks = [network.to(memory_format=torch.channels_last) for network in networks]  # pyright: ignore
    return _torch_way(networks, reduced)


def _torch_way(networks: Sequence[Callable[..., torch.Tensor]], reduced: torch.dtype | None = None) -> Way:
    @torch.inference_mode()
    def run(pixels: torch.Tensor) -> np.ndarray:
        with torch.autocast(DEVICE, reduced, enabled=reduced is not None):
            gray = pixels.to(DEVICE).float() / 255
            return torch.stack([network(gray) for network in networks]).float().cpu().numpy()

    return run


def _engine(precision: Any) -> Callable[[Sequence[AbnormalityNet], int], Way]:
    def make(networks: Sequence[AbnormalityNet], size: int) -> Way:
        engine = make_engine(networks, size, DEVICE, precision)
        return lambda pixels: engine(pixels)[0]

    return make


def _ways() -> dict[str, Callable[[Sequence[AbnormalityNet], int], Way]]:
    name, reduced = ("fp16", torch.float16) if DEVICE == "cuda" else ("bf16", torch.bfloat16)
    ways = {
        "plain eager": lambda networks, size: _eager(networks),
        "eager, channels last": lambda networks, size: _eager(networks, channels_last=True),
        f"{name} autocast": lambda networks, size: _eager(networks, channels_last=True, reduced=reduced),
        "compiled": lambda networks, size: _torch_way([torch.compile(network.to(DEVICE)) for network in networks]),
        "ours: fp32": _engine("fp32"),
        "ours: auto": _engine("auto"),
    }
    if DEVICE == "cpu" and not has_bf16():
        del ways["bf16 autocast"]  # emulated: minutes a pass
        return ways
    return ways | {f"ours: {name}": _engine(name)}


WAYS = _ways()
FIRST, SERVED = "plain eager", "ours: auto"


def measure(uri: str, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Views/s and errors of each way, and seconds of pytorch-grad-cam's maps; in a process of its own."""
    size, most = read_description(uri).image_size, NUM_VIEWS[-1]
    pixels = torch.from_numpy(np.stack([resize_gray(draw(100 + number), size) for number in range(most)])[:, None])
    ways, start_s = {}, {}
    for name in names:
        started = time.perf_counter()
        ways[name] = WAYS[name](read_networks(uri), size)
        for number in NUM_VIEWS:
            ways[name](pixels[:number])
        start_s[name] = time.perf_counter() - started
        print(f"{name}: ready after {start_s[name]:.0f} s", file=sys.stderr, flush=True)
    cam = grad_cam(read_networks(uri)) if find_spec("pytorch_grad_cam") and SERVED in ways else None
    views_per_s: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in names}
    grad_cam_s, served_s, peaks = [], [], []
    for round_number in range(rounds):
        print(f"round {round_number + 1} of {rounds}", file=sys.stderr, flush=True)
        for number in NUM_VIEWS:
            for name, run in ways.items():
                views_per_s[name][number].append(number / _seconds(run, pixels[:number]))
        peaks.append(_peak())
        if cam is not None:
            grad_cam_s.append(_seconds(cam, pixels[:2]))
            served_s.append(_seconds(ways[SERVED], pixels[:2]))
    expected = _expected(read_networks(uri), pixels[:NUM_COMPARED])
    return {
        "peak_gflop_per_s": peaks, "gflop_a_view": _gflop_a_view(read_networks(uri), size),
        "winograd_gflop_a_view": _gflop_a_view(read_networks(uri), size, WINOGRAD_SAVES),
        "size": size, "start_s": start_s, "views_per_s": views_per_s,
        "errors": {name: _errors(run(pixels[:NUM_COMPARED]), expected) for name, run in ways.items()},
        "logits_std": float(expected.std()), "grad_cam_s": grad_cam_s, "served_s": served_s,
    }  # fmt: skip


def grad_cam(networks: Sequence[AbnormalityNet]) -> Callable[[torch.Tensor], np.ndarray]:
    """pytorch-grad-cam's maps of an ensemble: from pixels, uint8 [N, 1, S, S], to the mean map, float32 [N, h, w].

    Its GradCAM of the last norm is the nearest that it has to the paper's map; it takes a backward pass.
    """
    from pytorch_grad_cam import GradCAM  # pyright: ignore[reportMissingImports]
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # pyright: ignore[reportMissingImports]

    # It wants a dimension of classes.
    cams: list[Any] = [
        GradCAM(torch.nn.Sequential(network.to(DEVICE), torch.nn.Unflatten(0, (-1, 1))), [network.features[-1]])
        for network in networks
    ]

    def maps(pixels: torch.Tensor) -> np.ndarray:
        gray = pixels.to(DEVICE).float() / 255
        targets = [ClassifierOutputTarget(0) for _ in pixels]
        return np.mean([cam(input_tensor=gray, targets=targets) for cam in cams], axis=0)

    return maps


def _peak() -> float:
    """GFLOP/s of fp32 matrix products, the best of ten: what convolutions done as such products cannot exceed."""
    first, second = torch.rand(2, 4096, 4096, device=DEVICE)
    return max(2 * 4096**3 / 1e9 / _seconds(lambda _: (first @ second)[0, 0].item(), first) for _ in range(10))


def _gflop_a_view(networks: Sequence[AbnormalityNet], size: int, three_by_three_saves: float = 1) -> float:
    """GFLOP of all members' convolutions for a view, those with 3 x 3 kernels divided by what an algorithm saves."""
    found = []

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        assert isinstance(module, torch.nn.Conv2d)
        assert module.groups == 1
        height, width = module.kernel_size
        saves = three_by_three_saves if (height, width) == (3, 3) else 1
        found.append(2 * output.numel() * module.in_channels * height * width / saves)

    for module in networks[0].modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        networks[0](torch.zeros(1, 1, size, size))
    return sum(found) * len(networks) / 1e9


@torch.inference_mode()
def _expected(networks: Sequence[AbnormalityNet], pixels: torch.Tensor) -> np.ndarray:
    gray = pixels.float() / 255
    return torch.stack([network(gray) for network in networks]).numpy()


def _seconds(run: Callable[[torch.Tensor], Any], pixels: torch.Tensor) -> float:
    """Of one pass; each ends with its result on the host."""
    started, times = time.perf_counter(), 0
    while times == 0 or time.perf_counter() - started < LEAST_S:
        run(pixels)
        times += 1
    return (time.perf_counter() - started) / times


def _errors(logits: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    found, wanted = expit(logits.astype(np.float64)), expit(expected.astype(np.float64))
    return {
        "logit": float(np.abs(logits - expected).max()),
        "member": float(np.abs(found - wanted).max()),
        "view": float(np.abs(found.mean(axis=0) - wanted.mean(axis=0)).max()),
    }


def table(result: dict[str, Any]) -> str:
    """A row for each way; ratios are within a round, at the most views."""
    speeds, most = result["views_per_s"], NUM_VIEWS[-1]
    first = speeds.get(FIRST, next(iter(speeds.values())))
    head = [
        "way", *(f"views/s at {number}" for number in NUM_VIEWS), f"x the first at {most}", f"% of the peak at {most}",
        "logit error", "member's", "view's", "start s",
    ]  # fmt: skip
    peak_percent = 100 * result["gflop_a_view"] / statistics.median(result["peak_gflop_per_s"])
    rows = []
    for name, by_number in speeds.items():
        ratios = [mine / theirs for mine, theirs in zip(by_number[most], first[most], strict=True)]
        rows.append([
            name, *(Spread.of(by_number[number]).text(2) for number in NUM_VIEWS), Spread.of(ratios).text(2),
            f"{peak_percent * statistics.median(by_number[most]):.0f}",
            *(f"{result['errors'][name][of]:.5f}" for of in ("logit", "member", "view")),
            f"{result['start_s'][name]:.1f}",
        ])  # fmt: skip
    return markdown_table(head, rows)


def bounds(result: dict[str, Any]) -> list[str]:
    """How many times plain eager's speed fp32 can have: all products at the round's peak, and all else for nothing."""

    def bound(number: int, gflop_a_view: float) -> str:
        rounds = zip(result["peak_gflop_per_s"], result["views_per_s"][FIRST][number], strict=True)
        return Spread.of([peak / gflop_a_view / plain for peak, plain in rounds]).text(1)

    if FIRST not in result["views_per_s"]:
        return []
    return [
        f"bound on fp32 at {number} views: {bound(number, result['gflop_a_view'])} x plain eager; "
        f"{bound(number, result['winograd_gflop_a_view'])} x with Winograd's F(4x4, 3x3) in every 3 x 3 convolution"
        for number in NUM_VIEWS
    ]


def _goals(result: dict[str, Any]) -> Goals:
    goals = Goals()
    if SERVED in result["errors"]:
        error = result["errors"][SERVED]["member"]
        goals.add("error of a member's probability", f"{error:.1e}", error <= GOAL_PROBABILITY, "at most 2e-3")
    if result["grad_cam_s"]:
        times = Spread.of([b / a for a, b in zip(result["served_s"], result["grad_cam_s"], strict=True)])
        met = times.median >= GOAL_CAM_TIMES
        goals.add("maps, faster than pytorch-grad-cam's", f"{times.text(1)} x", met, "at least 3")
    return goals


if __name__ == "__main__":
    sys.exit(main())
