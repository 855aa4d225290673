"""What `train_step` measures: this project's step in several settings, and the plain loop."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models import densenet169
from torchvision.transforms import v2

from benchmarks.loader.contenders import Data
from mura_ray.config import TrialConfig
from mura_ray.data.cache import local_split
from mura_ray.data.loader import SplitLoader
from mura_ray.domain import STUDY_TYPES
from mura_ray.model.densenet import IMAGENET_MEAN, IMAGENET_STD, build_network
from mura_ray.training import loop

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
NUM_PRELOADED = 4
WARM_UP = 12 if ON_GPU else 2
"""Steps before the clock starts: cuDNN tries its algorithms, and CUDA graphs are recorded."""

CLASS_WEIGHTS = torch.tensor([0.4, 0.6])
PLAIN = "plain"


@dataclass(frozen=True)
class Step:
    """A way to train; `settings` are those of `TrialConfig`, of which the plain loop has none."""

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def _ours(name: str, title: str, precision: str, channels_last: bool, compiled: str) -> Step:
    return Step(name, title, {"precision": precision, "channels_last": channels_last, "compile": compiled})


STEPS = (
    Step(PLAIN, "plain loop: eager, TF32"),
    _ours("fp32", "ours: eager, fp32", "fp32", False, "none"),
    _ours("channels_last", "+ channels-last", "fp32", True, "none"),
    _ours("bf16", "+ bf16", "bf16", True, "none"),
    _ours("graphs", "+ CUDA graphs", "bf16", True, "graphs"),
    _ours("kernels", "ours: bf16, channels-last, compiled", "bf16", True, "kernels"),
    _ours("fp32_graphs", "ours: fp32, channels-last, CUDA graphs", "fp32", True, "graphs"),
    _ours("tf32_graphs", "the same in TF32", "tf32", True, "graphs"),
)
ON_CPU = (PLAIN, "fp32", "channels_last", "bf16")


@dataclass(frozen=True)
class Round:
    """Images/s of a step on tensors that lie on the device, and with its input; seconds that its first steps took."""

    preloaded: float
    attached: float
    start_s: float

    @property
    def input_percent(self) -> float:
        """Share of the time with input that is not the step's."""
        return 100 * (1 - self.attached / self.preloaded)


def measure(step: Step, data: Data, workers: int, seconds: float) -> Round:
    """One round of a step, in a process of its own.

    Args:
        step: which.
        data: the radiographs, and the batch size.
        workers: of the plain loop's DataLoader.
        seconds: of each of the two measurements.
    """
    return _measure_ours(step, data, seconds) if step.settings else _measure_plain(data, workers, seconds)


class _Clock:
    """Counts the steps after the first ones, until the time is over."""

    def __init__(self, batch: int, seconds: float) -> None:
        self._batch, self._seconds, self._steps, self._started = batch, seconds, -WARM_UP, 0.0
        self._made, self.start_s = time.perf_counter(), 0.0

    def is_over(self) -> bool:
        """Called after each step."""
        self._steps += 1
        if self._steps == 0:
            _wait()
            self._started = time.perf_counter()
            self.start_s = self._started - self._made
        return self._steps > 0 and time.perf_counter() - self._started >= self._seconds

    def images_per_s(self) -> float:
        """Called once it is over."""
        _wait()  # for the steps that are queued
        return self._steps * self._batch / (time.perf_counter() - self._started)


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def _run(take_step: Callable[..., Any], feed: Iterable[tuple[Any, ...]], batch: int, seconds: float) -> _Clock:
    clock = _Clock(batch, seconds)
    for inputs in feed:
        take_step(*inputs)
        if clock.is_over():
            break
    return clock


class _Enough(Exception):  # noqa: N818 - ends a measurement, no error
    pass


def _measure_ours(step: Step, data: Data, seconds: float) -> Round:
    config = TrialConfig.model_validate(
        {"image_size": data.size, "initial_weights": "random", "batch_size": data.batch, **step.settings}
    )
    with (
        local_split(str(data.folder / "shards"), "train", cache=data.folder / "cache") as path,
        closing(SplitLoader(path, batch_size=data.batch, shuffle=True)) as loader,
    ):
        weights = CLASS_WEIGHTS.repeat(len(STUDY_TYPES), 1)
        run = loop.prepare_run(config, build_network(None, 0), loader, loader, weights, DEVICE)
        run.model.train()
        with closing(loop.train_inputs(run, 1)) as batches:
            preloaded = [(inputs, data.batch) for _, inputs in itertools.islice(batches, NUM_PRELOADED)]

        def take_step(inputs: loop.Inputs, global_size: int) -> None:
            loop.train_step(run, inputs, global_size)

        alone = _run(take_step, itertools.cycle(preloaded), data.batch, seconds)
        images_per_s = alone.images_per_s()
        clock = _Clock(data.batch, seconds)

        def after_step(_: object) -> None:
            if clock.is_over():
                raise _Enough

        with suppress(_Enough):
            for epoch in itertools.count(1):
                run.progress = loop.Progress()
                loop.train_epoch(run, epoch, after_step)
        return Round(images_per_s, clock.images_per_s(), alone.start_s)


def _measure_plain(data: Data, workers: int, seconds: float) -> Round:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    network, class_weights = densenet169(num_classes=1).to(DEVICE), CLASS_WEIGHTS.to(DEVICE)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    loader = DataLoader(
        _Pngs(data), batch_size=data.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=ON_GPU, drop_last=True,
    )  # fmt: skip

    def take_step(images: torch.Tensor, labels: torch.Tensor) -> None:
        images, labels = (tensor.to(DEVICE, non_blocking=True) for tensor in (images, labels))
        logits = network(images).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(logits, labels, weight=class_weights[labels.long()])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    preloaded = [tuple(tensor.to(DEVICE) for tensor in batch) for batch in itertools.islice(loader, NUM_PRELOADED)]
    alone = _run(take_step, itertools.cycle(preloaded), data.batch, seconds)
    images_per_s = alone.images_per_s()
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    return Round(images_per_s, _run(take_step, epochs, data.batch, seconds).images_per_s(), alone.start_s)


class _Pngs(Dataset):
    def __init__(self, data: Data) -> None:
        self._data = data
        self._transform = v2.Compose([
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(30, interpolation=v2.InterpolationMode.BILINEAR),  # pyright: ignore[reportArgumentType]
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return self._data.num_images

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        side = self._data.size
        with Image.open(self._data.png(number)) as file:
            image = file.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        return self._transform(image), torch.tensor(float(number % 2))
