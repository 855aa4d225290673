"""Every test has its own cache, its own Ray cluster where it needs one, and one thread for each torch operation."""

import os
import shutil
import signal
import tempfile

import pytest

pytest.register_assert_rewrite("tests")  # the helpers too: else their assertions fail without the values
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
os.environ["RAY_ADDRESS"] = "local"
os.environ["OMP_NUM_THREADS"] = "1"  # small tensors on a busy machine: more threads are many times slower
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # a trial of two threads would spin on the processors that others need
FOLDER = tempfile.mkdtemp(prefix="mura-test-")
os.environ["MURA_CACHE"] = f"{FOLDER}/cache"
os.environ["MURA_AUDIT"] = f"sqlite:///{FOLDER}/audit.sqlite3"
for name in ("MURA_SOURCE", "MURA_DATA", "MURA_RUNS", "MURA_ENSEMBLE", "MURA_TRACK", "MURA_TOKENS"):
    os.environ.pop(name, None)


def pytest_unconfigure() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
