import pickle
from pathlib import Path

import pytest
import ray.exceptions
import ray.train

from mura_ray.distributed import faults
from mura_ray.training.loop import NonFiniteLossError

FIRST = NonFiniteLossError("the training loss became nan at batch 3", "sample ids: [1]", 3)
LATER = NonFiniteLossError("the training loss became nan at batch 4", "sample ids: [2]", 4)


def test_of_several_workers_losses_the_first_batch_ends_the_run() -> None:
    with pytest.raises(NonFiniteLossError, match="batch 3"):
        faults.StopAtNonFiniteLoss().after_exception(None, {0: LATER, 1: FIRST, 2: ConnectionError("gloo")})


def test_what_may_pass_is_left_to_ray_trains_retries() -> None:
    faults.StopAtNonFiniteLoss().after_exception(None, {0: ConnectionError("gloo")})


def test_a_failed_trials_log_begins_with_the_reason(tmp_path: Path) -> None:
    travelled = pickle.loads(pickle.dumps(FIRST))  # noqa: S301 - our own
    error = ray.train.ControllerError(travelled)
    assert faults.write_error(f"{tmp_path}/training/a", error) == "the training loss became nan at batch 3"
    log = faults.read_errors(f"{tmp_path}/training")["a"]
    assert log.startswith("the training loss became nan at batch 3\nsample ids: [1]\n\nfailed at 20")
    assert "ControllerError" in log


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ray.train.WorkerGroupError("...", {1: KeyError("x")}), "worker 1: KeyError: 'x'"),
        (ray.exceptions.ActorDiedError(), "a process was lost: "),
        (ValueError("--data: no"), "--data: no"),
    ],
)
def test_a_reason_is_told_without_what_ray_says_around_it(error: Exception, told: str) -> None:
    assert faults.reason(error).startswith(told)


def test_forgotten_errors_are_gone_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").touch()
    faults.write_error(f"{tmp_path}/a", ValueError("no"))
    faults.forget_errors(str(tmp_path))
    assert faults.read_errors(str(tmp_path)) == {}
    assert (tmp_path / "a" / "run.json").exists()
