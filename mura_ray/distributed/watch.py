"""Keeps what people see of a search or run up to date while it lasts: the page of a search, and trackers.

Everything is read from what the trials left in storage, by a thread of the driver, so it is the same after the driver
was started again. What only shows a search never ends it: what fails here is said once, and tried again.
"""

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from threading import Event, Thread
from types import TracebackType
from typing import Any

from mura_ray import store
from mura_ray.config import TrialConfig
from mura_ray.data.manifest import read_manifest
from mura_ray.distributed.faults import ERROR_FILE, first_line, read_error
from mura_ray.distributed.naming import RUN_FILE
from mura_ray.distributed.space import Distribution, Space, trial_config
from mura_ray.distributed.trackers import TrackedRun, Tracker, without_secrets
from mura_ray.distributed.tracking import STATUS, read_epochs
from mura_ray.distributed.worker import RunSpec
from mura_ray.model.ensemble import read_description
from mura_ray.render import sweep_page
from mura_ray.render.sweep_charts import Axis

LOOK_EVERY_S = 15.0
LAST_LOOK_S = 90.0
"""How long the end of a search waits for its last look: trackers' servers may not answer."""

PAGE_FILE = "sweep.html"


class Watch:
    """Looks every so many seconds, for the life of the block, and once more at its end.

    Args:
        look: what to do; told whether it is the last time.
        trackers: closed at the end.
    """

    def __init__(self, look: Callable[[bool], None], trackers: Sequence[Tracker]) -> None:
        self._look, self._trackers = look, trackers
        self._told: set[str] = set()
        self._over = Event()
        self._thread = Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(LAST_LOOK_S)

    def _run(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self._look(False)
        self._look(True)
        for tracker in self._trackers:
            attempt(f"cannot close {tracker.name}", tracker.close, self._told)


def attempt(what: str, action: Callable[[], None], told: set[str]) -> None:
    """Does something that may not end a search: whatever it raises becomes a line on stderr, the first time."""
    try:
        action()
    except Exception as error:  # any library's any error
        if what not in told:
            told.add(what)
            why = without_secrets(str(error).partition("\n")[0][:300])
            print(f"warning: {what}: {why or type(error).__name__}; will try again", file=sys.stderr, flush=True)


class SweepView:
    """A search as its folder shows it, for its page and for trackers.

    Args:
        home: URI of the search's folder.
        name: of the search.
        space: its space file.
        data: URI of the data set.
        trackers: whom to tell of the trials.
    """

    def __init__(self, home: str, name: str, space: Space, data: str, trackers: Sequence[Tracker] = ()) -> None:
        self._home, self._name, self._space, self._trackers = home, name, space, trackers
        self._data = read_manifest(data)
        self._axes = [_axis(space, name, found) for name, found in space.search.items()]
        self._configs: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, sweep_page.Trial] = {}
        self._shown: sweep_page.Sweep | None = None
        self._told: set[str] = set()
        self.page = store.join(home, PAGE_FILE)

    def look(self, is_last: bool) -> None:
        """Brings the page and the trackers up to date. Raises nothing."""
        attempt(f"cannot bring {self.page} up to date", lambda: self._look(is_last), self._told)

    def _look(self, is_last: bool) -> None:
        sweep = self.read(is_last)
        runs = [self._tracked(sweep, trial) for trial in sweep.trials]
        for tracker in self._trackers:
            attempt(f"cannot log to {tracker.name}", lambda tracker=tracker: _sync(tracker, runs), self._told)
        if sweep != self._shown:
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            store.write_bytes(self.page, sweep_page.sweep_page(sweep, now).encode())
            self._shown = sweep

    def read(self, is_last: bool) -> sweep_page.Sweep:
        """The search as it stands."""
        ensemble = store.join(self._home, "ensemble")
        is_done = store.exists(store.join(ensemble, "ensemble.json"))
        description = read_description(ensemble) if is_done else None
        folders = store.tree(store.join(self._home, "training")).entries()
        read = [self._trial(folder.name, is_last, is_done) for folder in folders if folder.is_folder]
        return sweep_page.Sweep(
            name=self._name,
            data=self._data.name,
            data_id=self._data.id,
            num_trials=self._space.num_trials,
            epochs=trial_config(self._space, {}).epochs,
            ensemble_size=self._space.ensemble_size,
            axes=self._axes,
            trials=[trial for trial in read if trial is not None],
            members=[member.trial for member in description.members] if description else [],
            ensemble_id=description.id if description else None,
        )

    def _trial(self, trial: str, is_last: bool, is_done: bool) -> sweep_page.Trial | None:
        """A trial; None before it began."""
        if trial in self._ended:
            return self._ended[trial]
        folder = store.join(self._home, "training", trial)
        if not store.exists(store.join(folder, RUN_FILE)):
            return None
        spec = RunSpec.model_validate_json(store.read_bytes(store.join(folder, RUN_FILE)))
        config = self._configs[trial] = flat(spec.config)
        epochs, error, live = read_epochs(folder), read_error(folder), STATUS.get(trial)
        read = sweep_page.Trial(
            id=trial,
            settings={name: config[name] for name in self._space.search},
            epochs=[{"workers": spec.resources.workers, **row} for row in epochs],
            status=_status(live, error, len(epochs) >= spec.config.epochs, is_last, is_done),
            cpus_per_worker=spec.resources.cpus_per_worker,
            gpus_per_worker=spec.resources.gpus_per_worker,
            error=error,
            log=store.join(folder, ERROR_FILE),
        )
        if live == "TERMINATED" or (live == "ERROR" and error is not None):
            self._ended[trial] = read
        return read

    def _tracked(self, sweep: sweep_page.Sweep, trial: sweep_page.Trial) -> TrackedRun:
        return TrackedRun(
            id=trial.id,
            name=trial.id,
            config=self._configs[trial.id],
            epochs=trial.epochs,
            status={"failed": "failed", "running": "running", "interrupted": "running"}.get(trial.status, "finished"),
            error=first_line(trial.error) if trial.error else None,
            member=sweep.members.index(trial.id) + 1 if trial.id in sweep.members else None,
            ensemble_id=sweep.ensemble_id,
        )


def watch_run(home: str, spec: RunSpec, run_id: str, trackers: Sequence[Tracker]) -> Callable[[bool], None]:
    """What to do at each look at a single run.

    Args:
        home: URI of its folder.
        spec: what it trains.
        run_id: its id for trackers.
        trackers: whom to tell.
    """
    told: set[str] = set()

    def tell(tracker: Tracker) -> None:
        epochs, error = read_epochs(home), read_error(home)
        status = "failed" if error else "finished" if len(epochs) >= spec.config.epochs else "running"
        why = first_line(error) if error else None
        _sync(tracker, [TrackedRun(run_id, spec.trial, flat(spec.config), epochs, status, why)])

    def look(_: bool) -> None:
        for tracker in trackers:
            attempt(f"cannot log to {tracker.name}", lambda: tell(tracker), told)  # noqa: B023 - called at once

    return look


def flat(config: TrialConfig) -> dict[str, Any]:
    """Settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        found |= {f"{name}.{key}": below for key, below in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _sync(tracker: Tracker, runs: Sequence[TrackedRun]) -> None:
    for run in runs:
        tracker.sync(run)


def _status(live: str | None, error: str | None, is_complete: bool, is_last: bool, is_done: bool) -> sweep_page.Status:
    """Where a trial stands: by its log, by what Tune says (None: nothing), and by whether the search goes on."""
    if error is not None or live == "ERROR":
        return "failed"
    if is_complete:
        return "finished"
    if live == "TERMINATED" or is_done:
        return "stopped early"
    return "interrupted" if is_last else "running"


def _axis(space: Space, name: str, found: Distribution) -> Axis:
    """An axis whose values are those that the settings come to: `1e-5` in YAML is text."""
    values = tuple(dict.fromkeys(flat(trial_config(space, {name: value}))[name] for value in found.extremes))
    scale = "choice" if found.choice is not None else "log" if found.log_uniform else "linear"
    return Axis(name, scale, values)
