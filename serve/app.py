"""The Ray Serve application: `serve run serve/config.yaml`. Beyond loopback it answers only who has a token.

One deployment holds all members of the ensemble, so that a replica serves the whole ensemble or does not start.
"""

import os
from collections.abc import Callable
from typing import Any, get_args

import ray.serve
import ray.serve.metrics
import torch
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS
from ray.serve.context import _get_global_client

from mura_ray import store
from mura_ray.config import Locations
from mura_ray.model.ensemble import Ensemble, newest_ensemble
from mura_ray.model.inference import Precision
from serve.access import TokenFile
from serve.addresses import is_loopback
from serve.api import build_api
from serve.autoscaling import VIEWS_IN_FLIGHT, check_policy
from serve.health import Passes
from serve.metrics import INSTRUMENTS, Metrics, Record
from serve.model_card import read_evaluations
from serve.record import AuditRecord, location
from serve.release import Release, Releases

_ASK = "ask for tokens: `python -m serve.tokens add NAME --file tokens.json`, and MURA_TOKENS set to that file"


@ray.serve.deployment(max_ongoing_requests=16, max_constructor_retry_count=1, user_config={})
@ray.serve.ingress()
class EnsembleServer:
    """One replica: the ensemble behind its HTTP interface.

    `max_ongoing_requests` exceeds `Limits.predictions`: health checks and pages do not wait behind studies, and a study
    too many is answered with a problem.
    """

    def __init__(self, uri: str) -> None:
        """Loads the ensemble that was rolled out last; what fails here, Ray reports, and no request is taken.

        Args:
            uri: of the ensemble that the application was built with; it may be gone once another is rolled out.

        Raises:
            ValueError: Serve listens beyond loopback without tokens; the token file, the audit record or the ensemble
                cannot be used.
        """
        file = os.environ.get("MURA_TOKENS")
        tokens = TokenFile(file) if file else None
        client = _get_global_client()  # Ray has no public way to ask where its proxies listen
        assert client is not None
        refuse_open_address(
            client.http_config.host,
            direct_ingress=RAY_SERVE_ENABLE_DIRECT_INGRESS,
            asks_for_tokens=tokens is not None,
        )
        autoscaling = ray.serve.get_replica_context()._deployment_config.autoscaling_config
        if autoscaling is not None:
            check_policy(autoscaling.policy)
        answering = _first_release().ensemble or uri
        self._passes = Passes()
        ensemble = self._passes.watched(_load(answering))
        self._api = build_api(
            ensemble,
            evaluations=read_evaluations(answering, ensemble.description.id),
            metrics=Metrics(ray_record()),
            tokens=tokens,
            record=AuditRecord(location()),
            named_in_front=True,
        )
        self._releases = Releases(self._api.state.answers, _load, uri, answering, self._passes)
        self._is_serving = False

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray calls this once the constructor has ended well."""
        return self._api

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Ray calls this before the first request, and whenever `user_config` changes.

        A new replica is not ready before it has the ensemble that the others have. One that answers goes on answering
        while the next ensemble is loaded beside it, and if that cannot be loaded.
        """
        release = Release.model_validate(config)
        if self._is_serving:
            self._releases.change_meanwhile(release)
        else:
            await self._releases.change(release)
            self._is_serving = True

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray calls this every few seconds, for the policy of `autoscaling_config`."""
        return {VIEWS_IN_FLIGHT: self._api.state.answers.views_in_flight}

    def check_health(self) -> None:
        """Ray calls this every few seconds, and replaces the replica when it has failed some times in a row.

        Raises:
            RuntimeError: no forward pass succeeds any more.
        """
        self._passes.check()


def _first_release() -> Release:
    """The release that a new replica begins with. `reconfigure` is told it too late: the application is built by then.

    Raises:
        ValueError: `user_config` is no release.
    """
    config = ray.serve.get_replica_context()._deployment_config  # Ray has no public way to ask for it
    return Release.model_validate(config.user_config or {})


def _load(uri: str) -> Ensemble:
    ensemble = Ensemble.load(uri, "cuda" if torch.cuda.is_available() else "cpu", precision())
    ensemble.warm_up()
    return ensemble


def build(_: dict[str, str]) -> ray.serve.Application:
    """The application that `config.yaml` names. Ray calls it in a task, with the environment of the cluster."""
    return EnsembleServer.bind(ensemble_uri())


def ensemble_uri() -> str:
    """The ensemble to serve: MURA_ENSEMBLE, else the newest under MURA_RUNS.

    Raises:
        ValueError: neither is set, or there is no ensemble.
    """
    if uri := os.environ.get("MURA_ENSEMBLE"):
        return store.absolute(uri)
    if runs := Locations.from_environment().runs:
        return newest_ensemble(store.absolute(runs))
    raise ValueError(
        "no ensemble to serve: set MURA_ENSEMBLE to the folder of an ensemble.json, or MURA_RUNS to the folder that "
        "`python -m mura_ray.tune` writes its runs to"
    )


def precision() -> Precision:
    """How exactly to compute: MURA_INFERENCE, else as fast as the machine can.

    Raises:
        ValueError: it is none of `Precision`.
    """
    try:
        return TypeAdapter[Precision](Precision).validate_python(os.environ.get("MURA_INFERENCE") or "auto")
    except ValidationError as error:
        known = ", ".join(get_args(Precision))
        raise ValueError(f"MURA_INFERENCE is {os.environ['MURA_INFERENCE']!r}; one of {known}") from error


def ray_record() -> Record:
    """Hands the server's measurements to Ray, which exports them to Prometheus; to be called inside a replica."""
    records: dict[str, Callable[[float, dict[str, str]], None]] = {}
    for one in INSTRUMENTS:
        tags: Any = one.tags  # Ray's annotation says one tag, its text any number
        if one.is_gauge:
            records[one.name] = ray.serve.metrics.Gauge(one.name, one.description, tags).set
        elif one.boundaries is None:
            records[one.name] = ray.serve.metrics.Counter(one.name, one.description, tags).inc
        else:
            histogram = ray.serve.metrics.Histogram(one.name, one.description, list(one.boundaries), tags)
            records[one.name] = histogram.observe
    return lambda name, value, tags: records[name](value, tags)


def refuse_open_address(host: str | None, *, direct_ingress: bool, asks_for_tokens: bool) -> None:
    """Without tokens allows loopback only: nothing would ask who sends a study or who reads its answer.

    Args:
        host: where Serve's HTTP proxies listen; None where they do not.
        direct_ingress: replicas listen themselves, as under HAProxy, and on every interface.
        asks_for_tokens: each caller needs a token.

    Raises:
        ValueError: others than this machine could connect, and ask without a token.
    """
    if asks_for_tokens:
        return
    if direct_ingress:
        raise ValueError(
            "RAY_SERVE_ENABLE_HA_PROXY, RAY_SERVE_ENABLE_DIRECT_INGRESS or RAY_SERVE_THROUGHPUT_OPTIMIZED is set: "
            f"replicas would listen on every interface, where anyone could read the answers; unset it, or {_ASK}"
        )
    if host is not None and not is_loopback(host):
        raise ValueError(
            f"http_options.host is {host!r}, where others than this machine could send studies and read answers; "
            f"set it to 127.0.0.1, or {_ASK}"
        )
