"""Joins the Ray cluster that the commands work on."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import services
from ray._private.state import state

from mura_ray.ports import free_port

API_SERVER = "RAY_API_SERVER_ADDRESS"
REACH_TIMEOUT_S = 10.0


@contextmanager
def ray_session(*, worker_logs: bool = True, trains: bool = True) -> Iterator[None]:
    """Connects to the cluster, for the life of the block.

    That is RAY_ADDRESS where it is set (`local` starts a cluster of this machine alone), else the cluster running on
    this machine, else a new local one that ends with the block, and with this process however it ends.

    Args:
        worker_logs: whether what the cluster's other processes print appears here too; Ray's log files have it anyway.
        trains: whether Ray Train is to run there, which needs the API server; a new cluster starts faster without it.

    Raises:
        ValueError: there is no cluster at RAY_ADDRESS, or it refuses this user.
    """
    if ray.is_initialized():
        yield
        return
    address = _given_address()
    if address is not None:
        _connect(address, worker_logs)
    elif os.environ.get("RAY_ADDRESS") == "local" or not _join(worker_logs):
        _start(worker_logs, trains)
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.pop(API_SERVER, None)


@contextmanager
def running_cluster() -> Iterator[bool]:
    """Connects, for the life of the block, to the cluster that `ray_session` would join; starts none.

    Gives whether there is one. What the cluster's other processes print stays in Ray's log files.

    Raises:
        ValueError: it is there, or RAY_ADDRESS says so, but it cannot be joined.
    """
    address = _given_address()
    if address is None and os.environ.get("RAY_ADDRESS") != "local":
        address = _address_here()
    if address is None:
        yield False
        return
    _connect(address, worker_logs=False)
    try:
        yield True
    finally:
        ray.shutdown()


def cluster_capacity() -> dict[str, float]:
    """Resources by name that the cluster has, or that its autoscaler may bring it to.

    A cluster that has been idle has given its nodes back: what it has at the moment says nothing of what it can do.
    """
    most = state.get_max_resources_from_cluster_config() or {}  # Ray has no public way to ask
    now = ray.cluster_resources()
    return {name: max(float(most.get(name, 0)), float(now.get(name, 0))) for name in {*most, *now}}


def _given_address() -> str | None:
    """RAY_ADDRESS, where it names a cluster that runs."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def _address_here() -> str | None:
    """Address of the cluster running on this machine; None where there is none.

    Ray also looks into a file that a head which was killed leaves behind.
    """
    try:
        address = services.get_ray_address_from_environment("auto", None)  # Ray has no public way to ask
    except ConnectionError:
        return None
    return address if address and _refusal(address) is None else None


def _refusal(address: str) -> OSError | None:
    """Why nothing answers at `host:port`; None where something does. Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # "auto"
        return None
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S):
            return None
    except OSError as error:
        return error


def _connect(address: str, worker_logs: bool) -> None:
    """Connects to the cluster at an address.

    Raises:
        ValueError: there is none, it refuses this user, or it is of another version.
    """
    try:
        if refused := _refusal(address):
            raise ConnectionError(f"nothing answers there ({refused})")
        ray.init(address=address, **_settings(worker_logs))
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: another version of Ray or Python
        raise ValueError(
            f"cannot join the Ray cluster at {address} (RAY_ADDRESS, or found on this machine): {error}; check that it "
            "runs (`ray status`), set RAY_AUTH_MODE=token and put its token into ~/.ray/auth_token, or set "
            "RAY_ADDRESS=local"
        ) from error


def _join(worker_logs: bool) -> bool:
    """Connects to the cluster running on this machine; False where there is none that lets this user in."""
    address = _address_here()
    if address is None:
        return False
    try:
        _connect(address, worker_logs)
    except ValueError as error:
        print(f"note: {error}; starting one of this machine alone", file=sys.stderr)
        return False
    return True


def _start(worker_logs: bool, trains: bool) -> None:
    """Starts a cluster of this machine, where it is to train with its API server on a free port of loopback.

    When a scheduler stops a trial, Ray Train asks that server whether the trial's controller is gone, and only then
    gives the trial's CPUs and GPUs back. Ray's processes inherit the server's address from this one's environment: by
    themselves they would look for it among all clusters of the machine, and give up where there are several.
    """
    if not trains:
        ray.init(address="local", include_dashboard=False, **_settings(worker_logs))
        return
    port = free_port()
    os.environ[API_SERVER] = f"http://127.0.0.1:{port}"
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    ray.init(address="local", **dashboard, **_settings(worker_logs))


def _settings(worker_logs: bool) -> dict[str, Any]:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the behaviour Ray is moving to; else it warns
    return {"logging_level": logging.WARNING, "log_to_driver": worker_logs}
