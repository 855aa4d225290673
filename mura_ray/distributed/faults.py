"""Trials that fail: which faults are worth another try, and the log that a failed trial leaves.

Ray Train continues a run whose workers failed, `Recovery.max_failures` times; Tune does the same for a trial whose own
process was lost. What neither mends is the trial's failure, and stands in `<runs>/<name>/training/<trial>/error.txt`.
"""

from datetime import UTC, datetime
from typing import Any

import ray.train

from mura_ray import store
from mura_ray.training.loop import NonFiniteLossError

ERROR_FILE = "error.txt"


class TrialFailedError(RuntimeError):
    """A trial's training failed for good; its text is the reason's first line and the place of the log."""


class StopWhereRetriesAreInVain(ray.train.UserCallback):
    """Ends a run at once where a worker's loss became NaN or infinite.

    One worker is enough: the others may wait for it in a collective operation. Ray Train tries again after what workers
    raise, but not after what a callback raises.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Some workers raised."""
        for error in worker_exceptions.values():
            if isinstance(error, NonFiniteLossError):
                raise error


def reason(error: ray.train.TrainingFailedError) -> str:
    """What went wrong in a run, without what Ray Train says around it."""
    if isinstance(error, ray.train.ControllerError):
        return _told(error.controller_failure)
    if isinstance(error, ray.train.WorkerGroupError):
        rank, failure = min(error.worker_failures.items())
        return f"worker {rank}: {_told(failure)}"
    return str(error)


def write_error(folder: str, why: str, details: str) -> None:
    """Leaves a failed trial's log in its folder: the reason first, then what Ray says of it."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    store.write_bytes(store.join(folder, ERROR_FILE), f"{why.strip()}\n\nfailed at {when}\n\n{details}\n".encode())


def read_error(folder: str) -> str | None:
    """A failed trial's log; None where it did not fail."""
    uri = store.join(folder, ERROR_FILE)
    return store.read_bytes(uri).decode(errors="replace") if store.exists(uri) else None


def forget_errors(training: str) -> None:
    """Removes the logs of failed trials, which are then tried again.

    Args:
        training: URI of the folder with a folder for each trial.
    """
    trials = [entry.name for entry in store.tree(training).entries() if entry.is_folder]
    store.remove_files([store.join(training, trial, ERROR_FILE) for trial in trials])


def first_line(text: str) -> str:
    """Of a failed trial's log: why it failed."""
    return text.partition("\n")[0]


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
