"""Imports FFCV without its side effects; `shards` and `loader` take it from here.

Importing FFCV starts numba's threads, sets torch's number of threads to one, and compiles for seconds a dictionary that
only its colour images use. Of numba's threading layers only tbb survives forks and several loaders, and the system's
loader does not look where pip puts that library, so it is loaded beforehand.
"""

import ctypes
import importlib.metadata
from unittest import mock

import numba.core.config
import numba.typed
import torch

_TBB = "libtbb.so.12"


def _load_tbb() -> None:
    for file in importlib.metadata.files("tbb") or ():
        if file.name == _TBB:
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)


_num_threads = torch.get_num_threads()
_load_tbb()
numba.core.config.THREADING_LAYER = "tbb"  # pyright: ignore[reportAttributeAccessIssue]

with mock.patch.object(numba.typed, "Dict", dict):
    from ffcv.fields import IntField, NDArrayField
    from ffcv.fields.base import Field
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.loader import Loader, epoch_iterator
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType
    from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter, worker_job_indexed_dataset

torch.set_num_threads(_num_threads)
epoch_iterator.IS_CUDA = False  # batches stay on the host here: no CUDA context for each process that reads
EpochIterator = epoch_iterator.EpochIterator

__all__ = [
    "ALLOC_TABLE_TYPE",
    "CURRENT_VERSION",
    "MIN_PAGE_SIZE",
    "DatasetWriter",
    "EpochIterator",
    "Field",
    "FieldDescType",
    "HeaderType",
    "IntDecoder",
    "IntField",
    "Loader",
    "MemoryAllocator",
    "NDArrayDecoder",
    "NDArrayField",
    "worker_job_indexed_dataset",
]
