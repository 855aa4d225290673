"""Keeps what people see of a search or run up to date while it lasts: the page of a search, and trackers.

Everything is read from what the trials left in storage, by a thread of the driver, so it is the same after the driver
was started again. What only shows a search never ends it: what fails here is said once, and tried again at the next look.
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
from mura_ray.distributed.faults import ERROR_FILE, first_line, read_error, write_error
from mura_ray.distributed.naming import RUN_FILE
from mura_ray.distributed.space import Distribution, Space, trial_config
from mura_ray.distributed.tracking import LIVE, LiveTrial, read_epochs
from mura_ray.distributed.trackers import TrackedRun, Tracker, without_secrets
from mura_ray.distributed.worker import RunSpec
from mura_ray.model.ensemble import read_description
from mura_ray.render import sweep_page
from mura_ray.render.sweep_charts import Axis

LOOK_EVERY_S = 10.0
LAST_LOOK_S = 90.0
"""How long the end of a search waits for its last look: for trackers whose servers do not answer."""

PAGE_FILE = "sweep.html"

ENDED = ("finished", "stopped early", "failed")


class Watch:
    """Looks every so many seconds, for the life of the block, and once more at its end.

    Args:
        look: what to do.
        every_s: seconds between two looks.
    """

    def __init__(self, look: Callable[[], None], every_s: float = LOOK_EVERY_S) -> None:
        self._look, self._every_s = look, every_s
        self._over = Event()
        self._thread = Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(LAST_LOOK_S)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()
        self._look()


class Warnings:
    """Does things of which none may end a search, and says of each once why it could not be done."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def attempt(self, what: str, action: Callable[[], None]) -> None:
        """Does something; whatever it raises becomes a line on stderr, the first time."""
        try:
            action()
        except Exception as error:  # any library's any error
            if what not in self._told:
                self._told.add(what)
                why = without_secrets(str(error).partition("\n")[0][:300])
                print(f"warning: {what}: {why or type(error).__name__}; will try again", file=sys.stderr, flush=True)


class SweepView:
    """A search as its folder shows it, for its page and for trackers.

    Args:
        home: URI of the search's folder.
        name: of the search.
        space: its space file.
        data: URI of the data set.
    """

    def __init__(self, home: str, name: str, space: Space, data: str) -> None:
        self._home, self._name, self._space = home, name, space
        self._data = read_manifest(data)
        self._specs: dict[str, RunSpec] = {}
        self._ended: dict[str, sweep_page.Trial] = {}
        self._shown: sweep_page.Sweep | None = None

    def leave_errors(self) -> None:
        """Writes the logs of trials that could not do so themselves."""
        for trial, live in list(LIVE.items()):
            folder = store.join(self._home, "training", trial)
            if live.error is not None and read_error(folder) is None:
                write_error(folder, _why_lost(live.error), live.error)

    def read(self) -> sweep_page.Sweep:
        """The search as it stands."""
        live = dict(LIVE)
        trials = sorted(live or self._folders())
        ensemble = store.join(self._home, "ensemble")
        is_over = store.exists(store.join(ensemble, "ensemble.json"))
        description = read_description(ensemble) if is_over else None
        read = [self._trial(trial, live.get(trial), is_over) for trial in trials]
        return sweep_page.Sweep(
            name=self._name,
            data=self._data.name,
            data_id=self._data.id,
            num_trials=self._space.num_trials,
            epochs=trial_config(self._space, {}).epochs,
            ensemble_size=self._space.ensemble_size,
            axes=[_axis(self._space, name, found) for name, found in self._space.search.items()],
            trials=[trial for trial in read if trial is not None],
            members=[member.trial for member in description.members] if description else [],
            ensemble_id=description.id if description else None,
        )

    def write_page(self, sweep: sweep_page.Sweep) -> None:
        """Writes the page, where something changed since it was last written."""
        if sweep != self._shown:
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            store.write_bytes(self.page, sweep_page.sweep_page(sweep, now).encode())
            self._shown = sweep

    def tracked(self, sweep: sweep_page.Sweep) -> list[TrackedRun]:
        """Its trials, as trackers are told of them."""
        return [
            TrackedRun(
                id=trial.id,
                name=trial.id,
                config=flat(self._specs[trial.id].config),
                epochs=trial.epochs,
                status={"failed": "failed", "finished": "finished", "stopped early": "finished"}.get(
                    trial.status, "running"
                ),
                error=first_line(trial.error) if trial.error else None,
                member=sweep.members.index(trial.id) + 1 if trial.id in sweep.members else None,
                ensemble_id=sweep.ensemble_id,
            )
            for trial in sweep.trials
        ]

    @property
    def page(self) -> str:
        """URI of the page."""
        return store.join(self._home, PAGE_FILE)

    def _folders(self) -> list[str]:
        tree = store.tree(store.join(self._home, "training"))
        return [entry.name for entry in tree.entries() if entry.is_folder]

    def _trial(self, trial: str, live: LiveTrial | None, is_over: bool) -> sweep_page.Trial | None:
        """A trial; None before it began."""
        if trial in self._ended:
            return self._ended[trial]
        folder = store.join(self._home, "training", trial)
        if trial not in self._specs:
            if not store.exists(store.join(folder, RUN_FILE)):
                return None
            self._specs[trial] = RunSpec.model_validate_json(store.read_bytes(store.join(folder, RUN_FILE)))
        spec = self._specs[trial]
        settings = flat(spec.config)
        epochs = read_epochs(folder)
        error = read_error(folder)
        read = sweep_page.Trial(
            id=trial,
            settings={name: settings[name] for name in self._space.search},
            epochs=[{"workers": spec.resources.workers, **row} for row in epochs],
            status=_status(live, error, len(epochs) >= spec.config.epochs, is_over),
            cpus_per_worker=spec.resources.cpus_per_worker,
            gpus_per_worker=spec.resources.gpus_per_worker,
            error=error,
            log=store.join(folder, ERROR_FILE),
        )
        if read.status in ENDED and live is not None and live.status in ("TERMINATED", "ERROR"):
            self._ended[trial] = read
        return read


def watch_sweep(view: SweepView, trackers: Sequence[Tracker]) -> Callable[[], None]:
    """What to do at each look at a search."""
    warnings = Warnings()

    def look() -> None:
        warnings.attempt(f"cannot bring {view.page} up to date", show)

    def show() -> None:
        view.leave_errors()
        sweep = view.read()
        view.write_page(sweep)
        _sync(trackers, view.tracked(sweep), warnings)

    return look


def watch_run(home: str, key: str, spec: RunSpec, trackers: Sequence[Tracker]) -> Callable[[str], None]:
    """What to do at each look at a single run, given its status (see `TrackedRun`).

    Args:
        home: URI of its folder.
        key: id of the run for trackers.
        spec: what it trains.
        trackers: whom to tell.
    """
    warnings = Warnings()

    def look(status: str) -> None:
        warnings.attempt("cannot read the run's log", lambda: tell(status))

    def tell(status: str) -> None:
        run = TrackedRun(key, spec.trial, flat(spec.config), read_epochs(home), status)
        _sync(trackers, [run], warnings)

    return look


def flat(config: TrialConfig) -> dict[str, Any]:
    """Settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        found |= {f"{name}.{key}": below for key, below in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _sync(trackers: Sequence[Tracker], runs: Sequence[TrackedRun], warnings: Warnings) -> None:
    for tracker in trackers:

        def tell(tracker: Tracker = tracker) -> None:
            for run in runs:
                tracker.sync(run)

        warnings.attempt(f"cannot log to {tracker.name}", tell)


def _status(live: LiveTrial | None, error: str | None, is_complete: bool, is_over: bool) -> sweep_page.Status:
    if error is not None:
        return "failed"
    if live is not None and live.status in ("RUNNING", "PENDING", "PAUSED"):
        return "running"
    if is_complete:
        return "finished"
    return "stopped early" if is_over or live is not None else "interrupted"


def _axis(space: Space, name: str, found: Distribution) -> Axis:
    """An axis whose values are those that the settings come to: `1e-5` in YAML is text."""
    values = tuple(dict.fromkeys(flat(trial_config(space, {name: value}))[name] for value in found.extremes))
    if found.choice is not None:
        return Axis(name, "choice", values)
    return Axis(name, "log" if found.log_uniform else "linear", values)


def _why_lost(log: str) -> str:
    """The reason in Tune's log of a trial whose own process told none: the last line of a traceback, or the first."""
    lines = [line for line in log.rpartition("Failure # ")[2].splitlines()[1:] if line.strip()]
    if not lines:
        return "it failed without a word"
    is_traceback = any(line.startswith("Traceback") for line in lines)
    return lines[-1] if is_traceback else f"its own process was lost: {lines[0]}"
