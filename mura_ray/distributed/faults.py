"""What befalls trials: the faults that they come through, those that are worth no other try, a failed trial's log.

Ray Train continues a run whose workers failed, and Tune a trial whose own process was lost: `Recovery.max_failures`
times each. What neither mends is the trial's failure, and stands in `<runs>/<name>/training/<trial>/error.txt`.
"""

import json
import time
import traceback
from datetime import UTC, datetime
from typing import Any

import ray.exceptions
import ray.train

from mura_ray import store
from mura_ray.training.loop import NonFiniteLossError

ERROR_FILE, FAULTS_FILE = "error.txt", "faults.jsonl"
REASON_CHARS = 2000
"""Of each worker's reason in a run's log of faults: the end."""


class TrialFailedError(RuntimeError):
    """A trial failed for good, and its log is written; the text is the log's first line."""


class FaultLog(ray.train.UserCallback):
    """Keeps what a run came through: `faults.jsonl` in its folder, a row for each loss of workers.

    Args:
        folder: URI of the run.
    """

    def __init__(self, folder: str) -> None:
        self._uri = store.join(folder, FAULTS_FILE)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Workers failed, or their node did."""
        reasons = {str(rank): str(error).strip()[-REASON_CHARS:] for rank, error in sorted(worker_exceptions.items())}
        row = json.dumps({"time": time.time(), "workers": reasons}).encode() + b"\n"
        try:  # what a callback raises would end the run
            rows = store.read_bytes(self._uri) if store.exists(self._uri) else b""
            store.write_bytes(self._uri, rows + row)
        except OSError as error:
            print(f"{run_context.run_config.name}: cannot note the fault in {self._uri}: {error}", flush=True)
        first = next(iter(reasons.values())).splitlines() or [""]
        print(f"{run_context.run_config.name} lost {len(reasons)} worker(s): {first[-1]}", flush=True)


class StopAtNonFiniteLoss(ray.train.UserCallback):
    """Ends a run at once where a worker's loss became NaN or infinite.

    One worker is enough: the others may wait for it in a collective operation. Ray Train tries again after what workers
    raise, but not after what a callback raises.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Some workers raised."""
        found = [error for error in worker_exceptions.values() if isinstance(error, NonFiniteLossError)]
        if found:  # a later batch's loss only follows from the gradients of the first
            raise min(found, key=lambda error: error.args[2])


def reason(error: BaseException) -> str:
    """What went wrong in a run or trial, without what Ray says around it."""
    if isinstance(error, ray.train.ControllerError):
        return reason(error.controller_failure)
    if isinstance(error, ray.train.WorkerGroupError):
        rank, failure = min(error.worker_failures.items())
        return f"worker {rank}: {reason(failure)}"
    if isinstance(error, ray.exceptions.RayActorError):
        return f"a process was lost: {str(error).strip()}"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def write_error(folder: str, error: BaseException) -> str:
    """Leaves a failed trial's log in its folder: the reason first, then all that Ray says. Returns its first line."""
    why, when = reason(error), datetime.now(UTC).isoformat(timespec="seconds")
    details = "".join(traceback.format_exception(error))
    store.write_bytes(store.join(folder, ERROR_FILE), f"{why}\n\nfailed at {when}\n\n{details}".encode())
    return first_line(why)


def read_error(folder: str) -> str | None:
    """A failed trial's log; None where it did not fail."""
    uri = store.join(folder, ERROR_FILE)
    return store.read_bytes(uri).decode(errors="replace") if store.is_file(uri) else None


def first_line(log: str) -> str:
    """Of a failed trial's log: why it failed."""
    return log.partition("\n")[0]


def read_errors(training: str) -> dict[str, str]:
    """The logs of a search's failed trials, by trial.

    Args:
        training: URI of the folder with a folder for each trial.
    """
    trials = [entry.name for entry in store.tree(training).entries() if entry.is_folder]
    logs = {trial: read_error(store.join(training, trial)) for trial in trials}
    return {trial: log for trial, log in logs.items() if log is not None}


def forget_errors(training: str) -> None:
    """Removes the logs of a search's failed trials, which are then tried again."""
    store.remove_files([store.join(training, trial, ERROR_FILE) for trial in read_errors(training)])
