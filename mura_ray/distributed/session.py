"""Joins the Ray cluster that the commands work on."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import state

API_SERVER = "RAY_API_SERVER_ADDRESS"


@contextmanager
def ray_session(*, worker_logs: bool = True) -> Iterator[None]:
    """Connects to the cluster, for the life of the block.

    That is RAY_ADDRESS where it is set (`local` starts a cluster of this machine alone), else the cluster running on
    this machine, else a new local one that ends with the block, and with this process however it ends.

    Args:
        worker_logs: whether what the cluster's other processes print appears here too; Ray's log files have it anyway.

    Raises:
        ValueError: there is no cluster at RAY_ADDRESS, or it refuses this user.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the behaviour Ray is moving to; else it warns
    settings = {"logging_level": logging.WARNING, "log_to_driver": worker_logs}
    address = os.environ.get("RAY_ADDRESS")
    if address not in (None, "local"):
        try:
            ray.init(address=address, **settings)
        except ConnectionError as error:
            raise ValueError(
                f"cannot join the Ray cluster at RAY_ADDRESS={address}: {error}; check that it runs (`ray status`), "
                "set RAY_AUTH_MODE=token and put its token into ~/.ray/auth_token, or unset RAY_ADDRESS"
            ) from error
    elif address == "local" or not _join(settings):
        _start(settings)
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.pop(API_SERVER, None)


def cluster_capacity() -> dict[str, float]:
    """Resources by name that the cluster has, or that its autoscaler may bring it to.

    A cluster that has been idle has given its nodes back: what it has at the moment says nothing of what it can do.
    """
    most = state.get_max_resources_from_cluster_config() or {}  # Ray has no public way to ask
    now = ray.cluster_resources()
    return {name: max(float(most.get(name, 0)), float(now.get(name, 0))) for name in {*most, *now}}


def _join(settings: dict[str, Any]) -> bool:
    """Connects to the cluster running on this machine; False where there is none that lets this user in."""
    try:
        ray.init(address="auto", **settings)
    except ConnectionError as error:
        if "Could not find any running Ray instance" not in str(error):
            print(
                f"note: a Ray cluster seems to run on this machine, but cannot be joined ({error}); starting one of "
                "this machine alone. Set RAY_AUTH_MODE=token if that cluster asks for one",
                file=sys.stderr,
            )
        return False
    return True


def _start(settings: dict[str, Any]) -> None:
    """Starts a cluster of this machine, with its API server on a free port of loopback.

    When a scheduler stops a trial, Ray Train asks that server whether the trial's controller is gone, and only then
    gives the trial's CPUs and GPUs back. Ray's processes inherit the server's address from this one's environment: by
    themselves they would look for it among all clusters of the machine, and give up where there are several.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ[API_SERVER] = f"http://127.0.0.1:{port}"
    ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=port, **settings)
