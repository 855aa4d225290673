import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mura_ray import scratch

HOLD = """
from mura_ray.scratch import scratch_folder
folder = scratch_folder()
assert folder == scratch_folder()
(folder / "file").write_text("half")
print(folder, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scratch.tempfile, "tempdir", None)


class Process:
    """Another process with a scratch folder."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.folder = Path(self._process.stdout.readline().strip())
        assert (self.folder / "file").exists()

    def end(self) -> None:
        self._process.communicate("\n")

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def test_it_goes_when_its_process_ends() -> None:
    process = Process()
    process.end()
    assert not process.folder.exists()


def test_what_a_killed_process_left_goes_with_the_next_and_what_is_in_use_stays(tmp_path: Path) -> None:
    killed, living = Process(), Process()
    killed.kill()
    assert (killed.folder / "file").exists()
    (tmp_path / "mura-scratch-elsewhere").symlink_to(living.folder)
    another = Process()
    assert not killed.folder.exists()
    assert (living.folder / "file").exists()
    for process in (living, another):
        process.end()
    assert [path.name for path in tmp_path.iterdir()] == ["mura-scratch-elsewhere"]


@pytest.mark.parametrize("before", [(scratch.os, "open"), (scratch.fcntl, "flock")], ids=["opened", "locked"])
def test_a_folder_taken_for_left_over_before_it_was_locked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: tuple[Any, str]
) -> None:
    do, removed = getattr(*before), []

    def too_late(*arguments: Any) -> Any:
        if not removed:
            removed.extend(tmp_path.glob(f"{scratch.PREFIX}*"))
            for folder in removed:
                folder.rmdir()
        return do(*arguments)

    monkeypatch.setattr(*before, too_late)
    folder = scratch._locked_folder()
    assert folder.exists()
    assert removed
    assert folder not in removed
