import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mura_ray.config import TrialConfig
from mura_ray.distributed import watch
from mura_ray.distributed.faults import write_error
from mura_ray.distributed.space import Space
from mura_ray.distributed.trackers import TrackedRun
from mura_ray.distributed.worker import Resources, RunSpec

SPACE = Space.model_validate(
    {
        "num_trials": 3,
        "ensemble_size": 1,
        "fixed": {"epochs": 2},
        "search": {"learning_rate": {"choice": ["1e-5", 0.1]}},
    }
)


class Recorder:
    """A tracker whose server may be away."""

    name = "recorder"

    def __init__(self) -> None:
        self.runs: dict[str, TrackedRun] = {}
        self.is_away = False

    def sync(self, run: TrackedRun) -> None:
        if self.is_away:
            raise ConnectionError("away")
        self.runs[run.id] = run

    def close(self) -> None: ...


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A search of which trial a is done, b in its second epoch, c failed, each of four CPUs."""
    monkeypatch.setattr(watch, "read_manifest", lambda _: SimpleNamespace(name="MURA", id="d1"))
    monkeypatch.setattr(watch, "STATUS", {})
    for trial, num_epochs in (("a", 2), ("b", 1), ("c", 0)):
        folder = tmp_path / "training" / trial
        folder.mkdir(parents=True)
        config = TrialConfig(learning_rate=1e-5, epochs=2)
        spec = RunSpec(trial=trial, config=config, data="x", data_id="d1", data_manifest_sha256="",
                       initial_weights=None, resources=Resources(workers=2, cpus_per_worker=2))  # fmt: skip
        (folder / "run.json").write_text(spec.model_dump_json())
        rows = [{"epoch": epoch, "val_loss": 1 / epoch, "epoch_s": 900} for epoch in range(1, num_epochs + 1)]
        (folder / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_error(str(tmp_path / "training" / "c"), ValueError("no room"))
    return str(tmp_path)


def test_a_search_is_read_from_what_its_trials_left(home: str) -> None:
    sweep = watch.SweepView(home, "s", SPACE, "x").read(is_last=False)
    assert [(trial.id, trial.status, trial.hours("CPU")) for trial in sweep.trials] == [
        ("a", "finished", 2.0), ("b", "running", 1.0), ("c", "failed", 0.0),
    ]  # fmt: skip
    assert sweep.axes[0].values == (1e-5, 0.1)


def test_a_tracker_that_is_away_costs_no_page_and_is_told_later(home: str, capsys: Any) -> None:
    recorder = Recorder()
    recorder.is_away = True
    view = watch.SweepView(home, "s", SPACE, "x", [recorder])
    view.look(False)
    view.look(False)
    assert capsys.readouterr().err.count("warning: cannot log to recorder: away") == 1
    assert "no room" in Path(home, "sweep.html").read_text()
    recorder.is_away = False
    view.look(True)
    assert {run.id: (run.status, run.error) for run in recorder.runs.values()} == {
        "a": ("finished", None), "b": ("running", None), "c": ("failed", "no room"),
    }  # fmt: skip


def test_a_page_that_cannot_be_written_is_a_warning(home: str, capsys: Any) -> None:
    Path(home, "sweep.html").mkdir()
    watch.SweepView(home, "s", SPACE, "x").look(True)
    assert "sweep.html up to date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("live", "is_complete", "is_last", "is_done", "status"),
    [
        ("ERROR", False, False, False, "failed"),
        ("TERMINATED", False, False, False, "stopped early"),
        (None, False, True, True, "stopped early"),
        ("RUNNING", False, True, False, "interrupted"),
        ("PENDING", False, False, False, "running"),
        ("TERMINATED", True, True, True, "finished"),
    ],
)
def test_where_a_trial_stands(live: str | None, is_complete: bool, is_last: bool, is_done: bool, status: str) -> None:
    assert watch._status(live, None, is_complete, is_last, is_done) == status
