"""The Ray Serve application: `serve run serve/config.yaml`. Beyond loopback it answers only who has a token.

One deployment holds all members of the ensemble, so that a replica serves the whole ensemble or does not start.
"""

import ipaddress
import os

import ray.serve
import torch
from fastapi import FastAPI
from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS
from ray.serve.context import _get_global_client

from mura_ray import store
from mura_ray.config import Locations
from mura_ray.model.ensemble import Ensemble, newest_ensemble
from serve.access import TokenFile
from serve.api import build_api
from serve.record import AuditRecord, location

_ASK = "ask for tokens: `python -m serve.tokens add NAME --file tokens.json`, and MURA_TOKENS set to that file"


@ray.serve.deployment(max_ongoing_requests=16, max_constructor_retry_count=1)
@ray.serve.ingress()
class EnsembleServer:
    """One replica: the ensemble behind its HTTP interface.

    `max_ongoing_requests` exceeds `Limits.predictions` and `Limits.pictures` together: health checks and pages do not
    wait behind studies, and a study too many is answered with a problem.
    """

    def __init__(self, uri: str) -> None:
        """Loads the ensemble; whatever fails here, Ray reports and the replica never takes a request.

        Raises:
            ValueError: Serve listens beyond loopback without tokens; the token file, the audit record or the ensemble
                cannot be used.
        """
        file = os.environ.get("MURA_TOKENS")
        self._tokens = TokenFile(file) if file else None
        client = _get_global_client()  # Ray has no public way to ask where its proxies listen
        assert client is not None
        refuse_open_address(
            client.http_config.host,
            direct_ingress=RAY_SERVE_ENABLE_DIRECT_INGRESS,
            asks_for_tokens=self._tokens is not None,
        )
        self._record = AuditRecord(location())
        self._ensemble = Ensemble.load(uri, "cuda" if torch.cuda.is_available() else "cpu")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray calls this once the constructor has ended well."""
        return build_api(self._ensemble, tokens=self._tokens, record=self._record, named_in_front=True)


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
    if host is None or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(
            f"http_options.host is {host!r}, where others than this machine could send studies and read answers; "
            f"set it to 127.0.0.1, or {_ASK}"
        )
