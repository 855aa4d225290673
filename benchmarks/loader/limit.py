"""The limit: plain copies out of a memory-mapped array."""

import queue
import threading

import numpy as np
import torch

from benchmarks.loader.contenders import Data, Epoch, Epochs

NUM_BUFFERS = 4


def open_memmap(data: Data, workers: int) -> Epochs:
    """Two threads copy shuffled batches into memory that is used again; the batches come in any order."""
    del workers
    shape = (1, data.size, data.size)
    array = np.memmap(data.raw, np.uint8, "r", shape=(data.num_images, *shape))
    rng = np.random.default_rng(0)
    free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
    for _ in range(NUM_BUFFERS):
        free.put(np.empty((data.batch, *shape), np.uint8))

    def copy(parts: np.ndarray, full: "queue.SimpleQueue[tuple[np.ndarray, np.ndarray]]") -> None:
        for part in parts:
            buffer = free.get()
            array.take(part, axis=0, out=buffer, mode="clip")  # any other mode copies twice
            full.put((buffer, part))

    def epoch() -> Epoch:
        batches = rng.permutation(data.num_images).reshape(-1, data.batch)
        full: queue.SimpleQueue[tuple[np.ndarray, np.ndarray]] = queue.SimpleQueue()
        for first in range(2):
            threading.Thread(target=copy, args=(batches[first::2], full), daemon=True).start()
        for _ in batches:
            buffer, part = full.get()
            yield torch.from_numpy(buffer), torch.from_numpy(part)
            free.put(buffer)

    return epoch
