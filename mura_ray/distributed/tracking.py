"""What people see of runs while they last: a table of a search's trials, a line an epoch, TensorBoard logs."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.tune
from rich.console import Console
from rich.live import Live
from rich.table import Table
from tensorboardX import SummaryWriter

from mura_ray import store
from mura_ray.config import TrialConfig
from mura_ray.data.cache import Progress as CopyProgress
from mura_ray.data.loader import Batch
from mura_ray.distributed.faults import ERROR_FILE, TrialFailedError
from mura_ray.scratch import scratch_folder
from mura_ray.training.loop import OnBatch

EPOCHS_FILE = "epochs.jsonl"
PROGRESS_EVERY_S = 15.0
STATUS_STYLES = {"RUNNING": "cyan", "TERMINATED": "green", "ERROR": "red"}

STATUS: dict[str, str] = {}
"""What Tune says of the trials of this process's search, by id. Not in `TrialTable`: a search that continues takes its
callbacks from storage, so that nobody here holds the one at work."""


class TrialTable(ray.tune.Callback):
    """A live table of the trials on a terminal; elsewhere a line for every epoch, and the table at the end.

    Args:
        num_trials: trials of the whole search.
        epochs: epochs of a trial that is not stopped early.
        searched: names of the settings to show.
    """

    def __init__(self, num_trials: int, epochs: int, searched: list[str]) -> None:
        self._num_trials, self._epochs, self._searched = num_trials, epochs, searched
        self._best: dict[str, tuple[float, int]] = {}
        self._epochs_seen = 0
        self._started = 0.0
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Ray stores callbacks with the search; what belongs to this terminal stays out."""
        return {**self.__dict__, "_live": None}

    def setup(self, *_: Any, **__: Any) -> None:
        """Called once before the first trial."""
        self._started, self._epochs_seen = time.monotonic(), 0
        STATUS.clear()
        if sys.stdout.isatty():
            self._live = Live(refresh_per_second=1)
            self._live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial begins or continues."""
        self._show(trials, f"{trial.trial_id} started: {self._settings(trial)}")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **_: Any) -> None:
        """A trial finished an epoch."""
        self._epochs_seen += 1
        best = self._best.get(trial.trial_id)
        if best is None or result["val_loss"] < best[0]:
            self._best[trial.trial_id] = (result["val_loss"], result["epoch"])
        line = (
            f"{trial.trial_id} epoch {result['epoch']}/{self._epochs}: validation loss {result['val_loss']:.4f}, "
            f"training loss {result['train_loss']:.4f}, {result['epoch_s']:.0f} s"
        )
        self._show(trials, f"{line}; {self._time_left(trials)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial ended well, by itself or stopped early by the scheduler."""
        self._show(trials, f"{trial.trial_id} done")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial raised, or its own process was lost; Tune is about to start it again."""
        last = Path(trial.error_file).read_text(errors="replace").rpartition("Failure # ")[2]
        if TrialFailedError.__name__ in last:
            trial.run_metadata.num_failures = trial.max_failures  # the next process finds the trial's log, and no more
        else:
            self._show(trials, f"{trial.trial_id} lost its process; it continues in another")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial failed for good."""
        self._show(trials, f"{trial.trial_id} FAILED; its log is training/{trial.trial_id}/{ERROR_FILE}")

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """All trials ended, or the search was interrupted."""
        self._note(trials)
        if self._live is not None:
            self._live.update(self._table(trials))
            self._live.stop()
            self._live = None
        else:
            Console(width=140).print(self._table(trials))

    def _show(self, trials: list[Any], line: str) -> None:
        self._note(trials)
        if self._live is not None:
            self._live.update(self._table(trials))
        else:
            print(f"[search] {line}", flush=True)

    def _note(self, trials: list[Any]) -> None:
        STATUS.update({trial.trial_id: trial.status for trial in trials})

    def _settings(self, trial: Any) -> str:
        return ", ".join(f"{name} {_short(trial.config.get(name))}" for name in self._searched)

    def _time_left(self, trials: list[Any]) -> str:
        ended = sum(trial.is_finished() for trial in trials)
        running = sum((trial.last_result or {}).get("epoch", 0) for trial in trials if not trial.is_finished())
        left = (self._num_trials - ended) * self._epochs - running
        seconds = (time.monotonic() - self._started) / self._epochs_seen * left
        return f"{ended} of {self._num_trials} trials ended, at most {seconds / 60:.0f} min left"

    def _table(self, trials: list[Any]) -> Table:
        caption = self._time_left(trials) if self._epochs_seen else None
        table = Table("trial", "status", *(name.rpartition(".")[2] for name in self._searched), caption=caption)
        for name in ("epoch", "val. loss", "best", "at epoch"):
            table.add_column(name, justify="right")
        for trial in trials:
            result = trial.last_result or {}
            best = self._best.get(trial.trial_id)
            table.add_row(
                trial.trial_id,
                f"[{STATUS_STYLES.get(trial.status, 'dim')}]{trial.status.lower()}",
                *(_short(trial.config.get(name)) for name in self._searched),
                str(result.get("epoch", "")),
                _short(result.get("val_loss")),
                _short(best[0] if best else None),
                str(best[1]) if best else "",
            )
        return table


class EpochLog(ray.train.UserCallback):
    """A run's own log, which goes on where the run continues: `epochs.jsonl` and TensorBoard scalars.

    Tune's loggers would not do: without checkpoints of its own, Tune empties their files when it restores a trial.

    Args:
        folder: URI of the run's.
        epochs: epochs of the whole run.
    """

    def __init__(self, folder: str, epochs: int) -> None:
        self._folder, self._epochs = folder, epochs
        self._writer: SummaryWriter | None = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """All workers reported; rank 0's metrics are for all of them. A checkpoint inside an epoch is no row."""
        values = metrics[0]
        if not is_epoch(values):
            print(f"checkpoint inside epoch {values['epoch']}, after batch {values['batches_done']}", flush=True)
            return
        # An epoch is trained again where the run's end came between its checkpoint and this row.
        rows = [row for row in read_epochs(self._folder) if row["epoch"] < values["epoch"]] + [values]
        content = "".join(f"{json.dumps(row)}\n" for row in rows)
        store.write_bytes(store.join(self._folder, EPOCHS_FILE), content.encode())
        self._write_scalars(rows)
        left_s = values["epoch_s"] * (self._epochs - values["epoch"])
        print(
            f"epoch {values['epoch']}/{self._epochs}: validation loss {values['val_loss']:.4f}, training loss "
            f"{values['train_loss']:.4f}, learning rate {values['learning_rate']:.2g}, {values['epoch_s']:.0f} s; "
            f"at most {left_s / 60:.1f} min left",
            flush=True,
        )

    def _write_scalars(self, rows: list[dict[str, Any]]) -> None:
        """Adds the last epoch to the TensorBoard log; in S3, where nothing can be added to a file, writes it anew."""
        folder = store.join(self._folder, "tensorboard")
        if store.is_s3(folder):
            with tempfile.TemporaryDirectory(dir=scratch_folder()) as local:
                with SummaryWriter(local) as writer:
                    for row in rows:
                        _add_scalars(writer, row)
                (events,) = Path(local).iterdir()
                store.write_bytes(store.join(folder, "events.out.tfevents.run"), events.read_bytes())
            return
        if self._writer is None:  # made where the callback runs, in Ray Train's controller
            self._writer = SummaryWriter(str(store.resolve(folder)))
        _add_scalars(self._writer, rows[-1])
        self._writer.flush()


def _add_scalars(writer: SummaryWriter, row: dict[str, Any]) -> None:
    for name, value in row.items():
        writer.add_scalar(name, value, row["epoch"])


def is_epoch(metrics: dict[str, Any]) -> bool:
    """Whether what a run reported is a whole epoch, and not a place inside one."""
    return metrics["batches_done"] == 0


def read_epochs(folder: str) -> list[dict[str, Any]]:
    """What a run's `EpochLog` wrote, a row an epoch; nothing where it wrote nothing yet."""
    uri = store.join(folder, EPOCHS_FILE)
    return [json.loads(line) for line in store.read_bytes(uri).splitlines()] if store.exists(uri) else []


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def copy_printer(trial: str, split: str) -> CopyProgress:
    """Says how far the local copy of a split is, every quarter of a minute and at its end."""
    started = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < PROGRESS_EVERY_S:
            return
        last = now
        speed = done / max(now - started, 1e-3)
        print(
            f"{trial}: local copy of {split}: {done / 1e9:.2f} of {total / 1e9:.2f} GB at {speed / 1e6:.0f} MB/s, "
            f"{(total - done) / speed:.0f} s left",
            flush=True,
        )

    return progress


def step_printer(trial: str, config: TrialConfig, epoch: int, num_batches: int, start: int) -> OnBatch:
    """Says where an epoch stands, every quarter of a minute, with the rate and the time left in the run.

    Args:
        trial: whose epoch it is.
        config: its settings.
        epoch: number of the epoch.
        num_batches: of an epoch.
        start: the first of them that is trained now.
    """
    started = last = time.monotonic()

    def on_batch(batch: Batch) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PROGRESS_EVERY_S:
            return
        last = now
        done = batch.index + 1
        batches_per_s = (done - start) / (now - started)
        left = num_batches * (config.epochs - epoch + 1) - done
        print(
            f"{trial}: epoch {epoch}/{config.epochs}, batch {done}/{num_batches}, "
            f"{batches_per_s * config.batch_size:.1f} images/s, at most {left / batches_per_s:.0f} s left",
            flush=True,
        )

    return on_batch
