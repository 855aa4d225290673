"""Compiled training against eager training on the CPU. CUDA graphs are in tests/gpu."""

import copy
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
import torch._inductor.config

from mura_ray.config import TrialConfig
from mura_ray.training import loop
from tests.batches import CONFIG, SIZE, WEIGHTS, MemoryLoader, SmallNetwork, torch_settings_kept


@pytest.fixture(autouse=True)
def compile_here() -> Iterator[None]:
    """Compiles in this process: the pool of processes that torch starts for it would outlive the tests."""
    with torch._inductor.config.patch(compile_threads=1):
        yield


@pytest.fixture(autouse=True)
def process_wide_settings() -> Iterator[None]:
    with torch_settings_kept():
        yield


def make_run(**settings: Any) -> loop.Run:
    config = TrialConfig.model_validate(CONFIG.model_dump() | settings)
    train, valid = MemoryLoader(24, SIZE), MemoryLoader(20, SIZE)
    return loop.prepare_run(config, SmallNetwork(), cast(Any, train), cast(Any, valid), WEIGHTS, torch.device("cpu"))


def train_epoch(run: loop.Run) -> list[float]:
    epoch = run.progress.epochs_done + 1
    losses = [loop.train_epoch(run, epoch), loop.validate(run)]
    loop.finish_epoch(run, epoch, losses[1])
    return losses


def assert_same_network(found: loop.Run, expected: loop.Run) -> None:
    state = found.network.state_dict()
    assert list(state) == list(SmallNetwork().state_dict())
    for name, tensor in expected.network.state_dict().items():
        torch.testing.assert_close(
            state[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name} {text}"
        )


def test_compiled_training_has_eager_losses_and_either_continues_from_the_others_checkpoint() -> None:
    eager, compiled = make_run(compile="none"), make_run(compile="kernels")
    assert train_epoch(compiled) == pytest.approx(train_epoch(eager), rel=1e-4)
    assert_same_network(compiled, eager)
    assert compiled.model is not compiled.network
    assert eager.model is eager.network
    checkpoints = {run: copy.deepcopy((run.network.state_dict(), loop.run_state(run))) for run in (eager, compiled)}

    eager_losses = train_epoch(eager)
    later = make_run(compile="none")
    loop.restore_run(later, *checkpoints[compiled])
    assert train_epoch(later) == pytest.approx(eager_losses, rel=1e-3)
    assert_same_network(later, eager)

    loop.restore_run(compiled, *checkpoints[eager])
    assert train_epoch(compiled) == pytest.approx(eager_losses, rel=1e-3)
    assert_same_network(compiled, eager)


def test_a_run_that_stops_early_ends_its_loader() -> None:
    run = make_run()

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train_epoch(run, 1, stop)
    assert cast(Any, run.train).closed == 1
    assert run.progress.batches_done == 1


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_only_tf32_has_gpus_round_fp32(precision: str, allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not allowed
    make_run(precision=precision)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (allowed, allowed)


@pytest.mark.parametrize(
    ("asked", "device", "workers", "taken"),
    [
        ("auto", "cuda", 1, "graphs"),
        ("auto", "cuda", 2, "none"),
        ("auto", "cpu", 1, "none"),
        ("none", "cuda", 1, "none"),
        ("kernels", "cuda", 1, "kernels"),
        ("kernels", "cpu", 2, "kernels"),
        ("graphs", "cuda", 1, "graphs"),
    ],
)
def test_what_is_compiled(asked: Any, device: str, workers: int, taken: str) -> None:
    assert loop.compile_mode(CONFIG.model_copy(update={"compile": asked}), device, workers) == taken


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ValueError, match="compile: graphs needs a GPU"):
        make_run(compile="graphs")


def test_graphs_are_of_one_worker() -> None:
    config = CONFIG.model_copy(update={"compile": "graphs", "sync_batch_norm": False})
    with pytest.raises(ValueError, match="one worker a trial, not 2 on cuda"):
        loop.compile_mode(config, "cuda", 2)


def test_synchronised_batch_norm_is_not_compiled() -> None:
    config = CONFIG.model_copy(update={"compile": "kernels"})
    with pytest.raises(ValueError, match="compile: kernels on 2 GPUs"):
        loop.compile_mode(config, "cuda", 2)
    assert loop.compile_mode(config.model_copy(update={"sync_batch_norm": False}), "cuda", 2) == "kernels"
