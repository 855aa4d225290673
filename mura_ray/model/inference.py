"""How the members of an ensemble are computed: exactly, or arranged for speed on this machine.

An engine takes pixels and gives all members' logits and raw maps from one pass. It knows no studies and no
probabilities.
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol, get_args

import numpy as np
import openvino
import torch

from mura_ray.model.densenet import AbnormalityNet
from mura_ray.model.openvino_graph import build_graph

Precision = Literal["fp32", "openvino", "graphs", "bf16", "fp16", "auto"]
"""fp32: PyTorch, the exact results. openvino: a CPU in float32, rounded in another order (probabilities to 1e-5).
graphs: the same of a GPU. bf16, a CPU's, and fp16, a GPU's, are faster and less exact; on one trained ensemble bf16
moved the ensemble's probability of a view by 1e-2 and a member's by 4e-2. auto: openvino or graphs."""

Output = tuple[np.ndarray, np.ndarray]
"""Logits, float32 [M, N], and the mean of the members' raw maps, float32 [N, S / 32, S / 32]."""


class Engine(Protocol):
    """What computes. Safe to call from several threads."""

    max_views: int
    """In one pass, at most."""

    compiled_for: Sequence[int]
    """Numbers of views that are compiled for when they first come, which takes time and memory."""

    def __call__(self, pixels: torch.Tensor, /) -> Output:
        """From pixels, uint8 [N, 1, S, S]."""
        ...


def make_engine(networks: Sequence[AbnormalityNet], image_size: int, device: str, precision: Precision) -> Engine:
    """The engine for these members.

    Args:
        networks: the members.
        image_size: S, the side of the views in pixels.
        device: "cpu" or "cuda".
        precision: what may be given up for speed.

    Raises:
        ValueError: an unknown precision, or one that the device does not have.
    """
    networks = [network.eval() for network in networks]
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r} is unknown; one of {', '.join(get_args(Precision))}")
    if precision == "fp32":
        return Exact(networks, device)
    if torch.device(device).type == "cuda":
        if precision not in ("graphs", "fp16", "auto"):
            raise ValueError(f"precision {precision!r} is for a CPU; on {device} choose fp32, fp16 or auto")
        return CudaGraphs(networks, image_size, device, fp16=precision == "fp16")
    if precision in ("graphs", "fp16"):
        raise ValueError(f"precision {precision!r} is for a GPU; on a CPU choose fp32, bf16 or auto")
    if precision == "bf16" and not has_bf16():
        raise ValueError("precision 'bf16' is slow here: the processor has no AVX512_BF16 or AMX; choose auto")
    return OpenVino(networks, image_size, bf16=precision == "bf16")


def exact_convolutions() -> AbstractContextManager[None]:
    """Inside it a GPU computes convolutions of fp32 in fp32; by itself torch has it use TF32, of 10 bits."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Exact:
    """PyTorch in fp32, as training validated the members."""

    max_views = 32
    """So that memory does not grow with a study or with an evaluation."""

    compiled_for: Sequence[int] = ()

    def __init__(self, networks: Sequence[AbnormalityNet], device: str) -> None:
        self._device = torch.device(device)
        self._networks = [
            network.to(self._device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            for network in networks
        ]

    def __call__(self, pixels: torch.Tensor) -> Output:
        """Computes one member after the other."""
        logits, maps = self._members(pixels)
        return logits.cpu().numpy(), maps.mean(dim=0).cpu().numpy()

    def member_maps(self, pixels: torch.Tensor) -> Output:
        """The same with each member's raw maps, float32 [M, N, S / 32, S / 32], in the place of their mean."""
        logits, maps = self._members(pixels)
        return logits.cpu().numpy(), maps.cpu().numpy()

    @torch.inference_mode()
    def _members(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gray = pixels.to(self._device).float() / 255
        with exact_convolutions():
            logits, maps = zip(*(network.forward_with_maps(gray) for network in self._networks), strict=True)
        return torch.stack(logits), torch.stack(maps)


class OpenVino:
    """All members in one graph, compiled for this processor. Uses as many threads as torch would."""

    max_views = 4
    """Eight are no faster (benchmarks/README.md, inference), take more memory, and make who comes next wait longer."""

    compiled_for: Sequence[int] = range(1, max_views + 1)

    def __init__(self, networks: Sequence[AbnormalityNet], image_size: int, *, bf16: bool) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        graph = build_graph([network.cpu() for network in networks], image_size)
        self._request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
        self._lock = threading.Lock()

    def __call__(self, pixels: torch.Tensor) -> Output:
        """Computes the graph."""
        with self._lock:
            result = self._request.infer([pixels.numpy()])
            return result[0].T.copy(), result[1].mean(axis=1)


class CudaGraphs:
    """A GPU, channels last, a stream for each member, recorded once for each batch size.

    A pass of five DenseNet-169 launches some thousand kernels of a few microseconds: replayed from one CUDA graph, they
    do not wait for Python. Batches are filled up to powers of two, so few graphs are recorded.
    """

    max_views = 32
    compiled_for: Sequence[int] = (1, 2, 4, 8, 16, 32)

    def __init__(self, networks: Sequence[AbnormalityNet], image_size: int, device: str, *, fp16: bool) -> None:
        self._device, self._fp16 = torch.device(device), fp16
        self._networks = [
            network.to(self._device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            for network in networks
        ]
        self._streams = [torch.cuda.Stream(self._device) for _ in networks]
        self._size = image_size
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> Output:
        """Replays the graph of the next batch size, recording it the first time."""
        num_views = len(pixels)
        filled = 1 << (num_views - 1).bit_length()
        with self._lock, torch.cuda.device(self._device), exact_convolutions():
            if filled not in self._recorded:
                self._recorded[filled] = self._record(filled)
            graph, inputs, logits, maps = self._recorded[filled]
            inputs[:num_views].copy_(pixels)
            graph.replay()
            return logits[:, :num_views].cpu().numpy(), maps[:num_views].cpu().numpy()

    def _record(self, num_views: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = torch.zeros(num_views, 1, self._size, self._size, dtype=torch.uint8, device=self._device)
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # cuDNN chooses its algorithms and the allocator its blocks before the recording
                self._members(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits, maps = self._members(inputs)
        return graph, inputs, logits, maps

    def _members(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        current = torch.cuda.current_stream()
        gray = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
        outputs = []
        # Autocast's cache of cast weights is per block: inside a recording it would keep memory of another stream.
        with torch.autocast("cuda", torch.float16, enabled=self._fp16, cache_enabled=False):
            for network, stream in zip(self._networks, self._streams, strict=True):
                stream.wait_stream(current)
                with torch.cuda.stream(stream):
                    outputs.append(network.forward_with_maps(gray))
        for stream in self._streams:
            current.wait_stream(stream)
        logits, maps = zip(*outputs, strict=True)
        return torch.stack(logits), torch.stack(maps).mean(dim=0)
