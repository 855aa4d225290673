"""Batches on their way to the device: prepared on a stream of their own, one ahead of the step that uses them.

On a CPU there is no such stream: each batch is prepared when it is asked for.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Tensors = TypeVar("Tensors", bound=tuple[torch.Tensor, ...])


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device; to a GPU without waiting, for the copy itself or for anything before it."""
    if device.type != "cuda":
        return tensor.to(device)
    # From ordinary memory the host would wait. torch keeps the pinned copy until the GPU has read it, then reuses it.
    return tensor.pin_memory().to(device, non_blocking=True)


def prefetch(
    batches: Generator[T, None, None], prepare: Callable[[T], Tensors], device: torch.device
) -> Generator[tuple[T, Tensors], None, None]:
    """Each batch with what `prepare` makes of it on the device. Ends `batches` when it ends or is closed.

    Args:
        batches: on the host.
        prepare: from a batch to tensors on the device, by means of `to_device`.
        device: with a GPU, copies and kernels of `prepare` run beside the step before.
    """
    with closing(batches):
        if device.type != "cuda":
            for batch in batches:
                yield batch, prepare(batch)
            return
        stream, ahead = torch.cuda.Stream(device), None
        for batch in batches:
            with torch.cuda.stream(stream):
                tensors = prepare(batch)
            following = batch, tensors, stream.record_event()
            if ahead is not None:
                yield _arrived(*ahead, device)
            ahead = following
        if ahead is not None:
            yield _arrived(*ahead, device)


def _arrived(batch: T, tensors: Tensors, ready: Any, device: torch.device) -> tuple[T, Tensors]:
    """Has the current stream wait for the event `ready`, and the tensors' memory until that stream is done with it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(ready)
    for tensor in tensors:
        tensor.record_stream(stream)
    return batch, tensors
