"""The space file: what a search varies, what it holds fixed, how many trials, and what each takes of the cluster.

Knows nothing of running trials (sweep.py) but how to say the space in Ray Tune's own distributions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ray.tune
import ray.tune.schedulers
import ray.tune.search
import ray.tune.search.optuna
import yaml
from pydantic import Field, ValidationError, model_validator

from mura_ray.config import ENSEMBLE_SIZE, Settings, TrialConfig, explain, nested
from mura_ray.distributed.recovery import Recovery

NEVER_SEARCHED = ("image_size", "initial_weights", "epochs")
"""One data set, one starting point and one budget for all trials of a search, or their losses would not compare."""


class Distribution(Settings):
    """Where one setting's values are drawn from: exactly one of these, each with both bounds included in meaning."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_of(self) -> "Distribution":
        if sum(value is not None for value in (self.uniform, self.log_uniform, self.choice)) != 1:
            raise ValueError("give exactly one of uniform: [low, high], log_uniform: [low, high], choice: [...]")
        bounds = self.uniform or self.log_uniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"the lower bound {bounds[0]} is not below the upper bound {bounds[1]}")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform needs positive bounds, not {self.log_uniform[0]}")
        return self

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that stand for all: the bounds, or every choice."""
        return self.choice or self.uniform or self.log_uniform or ()

    def for_tune(self) -> Any:
        """The same as one of Ray Tune's distributions."""
        if self.choice is not None:
            return ray.tune.choice(list(self.choice))
        if self.log_uniform is not None:
            return ray.tune.loguniform(*self.log_uniform)
        assert self.uniform is not None
        return ray.tune.uniform(*self.uniform)


class Asha(Settings):
    """Asynchronous successive halving: trials that are behind after few epochs stop early."""

    grace_epochs: int = Field(default=1, ge=1, description="epochs that every trial gets")
    reduction_factor: int = Field(default=3, ge=2, description="one trial in so many goes on at each rung")


class Space(Settings):
    """A space file. `fixed` and `search` name settings of `TrialConfig`; nested ones with a dot in `search`."""

    num_trials: int = Field(ge=1)
    ensemble_size: int = Field(default=ENSEMBLE_SIZE, ge=1)
    searcher: Literal["random", "optuna"] = "random"
    scheduler: Literal["fifo", "asha"] = "fifo"
    asha: Asha = Asha()
    seed: int = Field(default=0, ge=0, lt=2**31)
    workers_per_trial: int = Field(default=1, ge=1)
    min_workers_per_trial: int | None = Field(default=None, ge=1, description="fewer while nodes are missing")
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: float | None = Field(default=None, ge=0, description="default: one where the cluster has GPUs")
    recovery: Recovery = Recovery()
    fixed: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Distribution] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_trial_config(self) -> "Space":
        if self.num_trials < self.ensemble_size:
            raise ValueError(f"num_trials is {self.num_trials}, an ensemble of {self.ensemble_size} needs as many")
        if self.min_workers_per_trial and self.min_workers_per_trial > self.workers_per_trial:
            raise ValueError(
                f"min_workers_per_trial is {self.min_workers_per_trial}, more than workers_per_trial, "
                f"{self.workers_per_trial}"
            )
        for name in NEVER_SEARCHED:
            if name in self.search:
                raise ValueError(f"search: {name} cannot be searched; set it under fixed")
        for name, distribution in self.search.items():
            for value in distribution.extremes:
                try:
                    trial_config(self, {name: value})
                except ValidationError as error:
                    raise ValueError(f"search: {name}: {value!r} is not possible: {explain(error)}") from error
        return self


def read_space(path: str, changes: Mapping[str, Any] | None = None) -> Space:
    """Reads a space file.

    Args:
        path: of the file.
        changes: settings of every trial, by dotted name, instead of what the file has under `fixed`.

    Raises:
        ValueError: no such file, no YAML, an unknown name or an impossible value, with the key and the remedy; or a
            change of what the file searches.
    """
    if not Path(path).is_file():
        raise ValueError(f"no space file at {path!r}; those of the project are in tune_spaces/")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold settings as `name: value`")
    try:
        space = Space.model_validate(content)
        if searched := sorted(set(changes or ()) & set(space.search)):
            raise ValueError(f"{searched[0]} is searched by {path}, it cannot be set as well")
        return Space.model_validate(content | {"fixed": nested(dict(changes or {}), over=space.fixed)})
    except ValidationError as error:
        changed = f" with {', '.join(changes)} changed" if changes else ""
        raise ValueError(f"{path}{changed} is not a valid space file: {explain(error)}") from error


def trial_config(space: Space, sampled: dict[str, Any]) -> TrialConfig:
    """The settings of one trial: the paper's, with `fixed` over them and the sampled values over both."""
    return TrialConfig.model_validate(nested(sampled, over=space.fixed))


def param_space(space: Space) -> dict[str, Any]:
    """The searched settings as Ray Tune's distributions, and a seed for each trial unless the file sets one."""
    distributions = {name: distribution.for_tune() for name, distribution in space.search.items()}
    if "seed" not in space.fixed and "seed" not in space.search:
        distributions["seed"] = ray.tune.randint(0, 2**31 - 1)
    return distributions


def searcher(space: Space, max_concurrent: int) -> Any:
    """The search algorithm, seeded, that proposes at most so many trials at once."""
    if space.searcher == "random":
        return ray.tune.search.BasicVariantGenerator(random_state=space.seed, max_concurrent=max_concurrent)
    optuna = ray.tune.search.optuna.OptunaSearch(metric="val_loss", mode="min", seed=space.seed)
    return ray.tune.search.ConcurrencyLimiter(optuna, max_concurrent=max_concurrent)


def scheduler(space: Space) -> Any:
    """The trial scheduler. ASHA counts epochs: after a restore, Tune's own count of reports starts again."""
    if space.scheduler == "fifo":
        return ray.tune.schedulers.FIFOScheduler()
    return ray.tune.schedulers.ASHAScheduler(
        time_attr="epoch",
        max_t=trial_config(space, {}).epochs,
        grace_period=space.asha.grace_epochs,
        reduction_factor=space.asha.reduction_factor,
    )
