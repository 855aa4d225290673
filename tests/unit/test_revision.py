"""What the program says of itself: its commit, and a hash of its sources."""

import subprocess
from pathlib import Path

import pytest

from mura_ray import revision


@pytest.mark.parametrize("tracked", [True, False])
def test_revision_is_that_of_the_programs_own_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracked: bool
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "revision.py").write_text("")
    (tmp_path / "other.py").write_text("")
    git("init")
    git("add", "revision.py" if tracked else "other.py")  # untracked: installed into somebody else's repository
    git("commit", "-m", "first")
    monkeypatch.setattr(revision, "__file__", str(tmp_path / "revision.py"))
    assert revision.git_revision() == (git("rev-parse", "HEAD") if tracked else "unknown")
    if tracked:
        (tmp_path / "revision.py").write_text("changed")
        assert revision.git_revision() == git("rev-parse", "HEAD") + "-dirty"


def test_revision_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert revision.git_revision() == "unknown"


def test_sources_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(revision, "__file__", str(tmp_path / "revision.py"))
    before = revision.source_hash()
    (tmp_path / "notes.txt").write_text("not of the program")
    assert revision.source_hash() == before
    (tmp_path / "room" / "a.py").rename(tmp_path / "room" / "b.py")
    assert revision.source_hash() != before
