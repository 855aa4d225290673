"""A folder for each process's files in passing, which goes though the process is killed."""

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "mura-scratch-"


@functools.cache
def scratch_folder() -> Path:
    """This process's own, on the disk of the system's temporary files; the first call makes it.

    It goes when the process ends. What a killed process left goes when another one on this machine makes its own;
    Ray kills its workers when it has done with them.
    """
    _remove_left_over(Path(tempfile.gettempdir()))
    folder = _locked_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _locked_folder() -> Path:
    """A folder whose lock lasts as long as this process."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):  # another process took it for left over before it was locked
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder
            os.close(lock)


def _remove_left_over(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use, gone meanwhile, or another user's
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
