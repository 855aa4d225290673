"""The forward and the backward pass of a training step as one CUDA graph.

At the paper's batch of 8 an eager step of DenseNet-169 is some 2,300 launches (3,200 under bf16 autocast), and the GPU
waits for Python at each of them. Recorded once, they are launched at once. Nothing is compiled: recording takes the
time of a few steps, where torch.compile takes minutes for this network.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn


class Inputs(NamedTuple):
    """What a step takes, on the device: images, float32 [n, 1, S, S] in 0 to 1, labels and weights in the loss, [n]."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


Passes = Callable[[Inputs, float], torch.Tensor]
"""From a step's inputs and the factor of its gradients to its loss, [], having left the gradients in the parameters."""


class Recorded:
    """Passes that are recorded at the first call and replayed from then on.

    Gradients lie in the graph's memory, which each replay overwrites: nobody may take them from the parameters.
    """

    def __init__(self, passes: Passes, network: nn.Module) -> None:
        """Takes the passes and the network whose buffers they change."""
        self._passes, self._network = passes, network
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Sequence[torch.Tensor] = ()
        self._factor, self._loss = 0.0, torch.empty(())

    def __call__(self, inputs: Inputs, factor: float) -> torch.Tensor:
        """The loss of these inputs, whose shapes and factor are the first call's."""
        if self._graph is None:
            self._graph = self._record(inputs, factor)
        assert factor == self._factor
        for kept, new in zip(self._inputs, inputs, strict=True):
            assert kept.shape == new.shape
            kept.copy_(new)
        self._graph.replay()
        return self._loss.clone()

    def _record(self, inputs: Inputs, factor: float) -> torch.cuda.CUDAGraph:
        kept = Inputs(*(tensor.clone() for tensor in inputs))
        self._inputs, self._factor = kept, factor
        buffers = [buffer.clone() for buffer in self._network.buffers()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # cuDNN tries its algorithms before the recording
                self._passes(kept, factor)
        torch.cuda.current_stream().wait_stream(side)
        for buffer, before in zip(self._network.buffers(), buffers, strict=True):
            buffer.copy_(before)  # BatchNorm's statistics have seen these inputs thrice
        self._network.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on using the GPU
            self._loss = self._passes(kept, factor)
        return graph
