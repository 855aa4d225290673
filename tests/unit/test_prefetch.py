from collections.abc import Generator
from contextlib import closing

import pytest
import torch

from mura_ray.data.prefetch import prefetch, to_device

CPU = torch.device("cpu")


class Source:
    def __init__(self) -> None:
        self.taken, self.closed = [], False

    def batches(self) -> Generator[int, None, None]:
        try:
            for number in range(5):
                self.taken.append(number)
                yield number
        finally:
            self.closed = True


def prepare(number: int) -> tuple[torch.Tensor, ...]:
    return (to_device(torch.tensor([number]), CPU) * 10,)


def test_every_batch_comes_once_and_in_order_with_its_tensors() -> None:
    source = Source()
    found = [(number, tensor.item()) for number, (tensor,) in prefetch(source.batches(), prepare, CPU)]
    assert found == [(number, 10 * number) for number in range(5)]
    assert source.closed


def test_leaving_early_ends_the_source() -> None:
    source = Source()
    with closing(prefetch(source.batches(), prepare, CPU)) as batches:
        assert next(batches)[0] == 0
        assert not source.closed
    assert source.closed
    assert source.taken == [0]


def test_an_error_in_preparing_ends_the_source_and_reaches_the_user() -> None:
    source = Source()

    def fail(number: int) -> tuple[torch.Tensor, ...]:
        raise ValueError(f"batch {number}")

    with pytest.raises(ValueError, match="batch 0"):
        list(prefetch(source.batches(), fail, CPU))
    assert source.closed


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, CPU).data_ptr() == tensor.data_ptr()
