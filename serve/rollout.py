"""`python -m serve.rollout`: has another ensemble answer, or predict in the shadow, on a server that goes on."""

import argparse
import os
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.exceptions import AuthenticationError

from mura_ray import cli, store
from mura_ray.config import Locations
from mura_ray.model.ensemble import Ensemble, find_ensemble
from serve.addresses import is_everywhere, is_loopback

APPLICATION, DEPLOYMENT = "mura", "EnsembleServer"
EPILOG = """example:
  python -m serve.rollout s3://hospital/runs/spring/ensemble          it answers, once every replica has loaded it
  python -m serve.rollout 0123456789abcdef                            back to an ensemble under MURA_RUNS, by its id
  python -m serve.rollout 0123456789abcdef --shadow fedcba9876543210  a candidate predicts too; see /v1/shadow

The ensemble is loaded and verified here before any replica hears of it. Requests in work are answered by the ensemble
that they began with, and each answer names its own. What is rolled out holds until the application is deployed again:
then MURA_ENSEMBLE counts, else the newest ensemble under MURA_RUNS, unless serve/config.yaml has a user_config."""

TIMEOUT_S = 600
TRIES = 3
ALIKE = 20
"""Answers in a row that must name the new ensemble: with several replicas any of them may answer."""


def main(argv: list[str] | None = None) -> int:
    """Parses, rolls out, waits."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.rollout",
        description="Has another ensemble answer on a running server, without losing a request.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("ensemble", help="URI of an ensemble's folder, or the id of one under MURA_RUNS")
    parser.add_argument("--shadow", metavar="ENSEMBLE", help="a candidate to compare with it (default: none)")
    parser.add_argument(
        "--address", default="http://127.0.0.1:8265", help="Ray's dashboard on the head (default: %(default)s)"
    )
    return cli.run(lambda: _rollout(parser.parse_args(argv)))


def _rollout(arguments: argparse.Namespace) -> None:
    ensemble = _resolve(arguments.ensemble)
    shadow = arguments.shadow and _resolve(arguments.shadow)
    ids = [Ensemble.load(uri).description.id for uri in (ensemble, shadow) if uri]
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray start` does; its clients do not
    try:
        client = ServeSubmissionClient(arguments.address)
        details = client.get_serve_details()
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise ValueError(
            f"cannot talk to Ray at {arguments.address}: {error}; --address is where `serve run` says the dashboard is"
        ) from error
    config = config_with_release(details, {"ensemble": ensemble, "shadow": shadow})
    url = server_url(arguments.address, details["http_options"])
    print(f"rolling out {ids[0]} from {ensemble}" + (f", {ids[1]} in its shadow" if shadow else ""))
    _deploy(client, config)
    if url is None:
        print(
            f"Ray has told every replica (RUNNING), and each answers with {ids[0]} once it has loaded it. This is not "
            "waited for, as the server listens on its own machine only: /readyz names there what answers"
        )
        return
    _wait(url, ids[0])
    print(f"{url} answers with {ids[0]}")


def server_url(dashboard: str, options: dict[str, Any]) -> str | None:
    """Where this machine can ask the server, or None if it cannot.

    Args:
        dashboard: URL of the dashboard, which runs on the head as the server's proxy does.
        options: the server's `http_options`.
    """
    host, head = options["host"], urlsplit(dashboard).hostname or ""
    if is_everywhere(host):
        host = head
    if is_loopback(host) and not is_loopback(head):
        return None
    return f"http://{f'[{host}]' if ':' in host else host}:{options['port']}"


def _resolve(name: str) -> str:
    if os.sep in name:
        return store.absolute(name)
    runs = Locations.from_environment().runs
    if runs is None:
        raise ValueError(
            f"{name!r} is an id, and MURA_RUNS is not set: set it, or pass the URI of the ensemble's folder"
        )
    return find_ensemble(store.absolute(runs), name)


def config_with_release(details: dict[str, Any], release: dict[str, str | None]) -> dict[str, Any]:
    """The configuration that is deployed, with another release in it.

    Args:
        details: what Serve says of itself.
        release: the deployment's new `user_config`.

    Raises:
        ValueError: the application is not deployed there, or not by `serve deploy` or `serve run` with a file.
    """
    applications = {name: one.get("deployed_app_config") for name, one in details["applications"].items()}
    config = applications.get(APPLICATION)
    if config is None:
        known = ", ".join(name for name, deployed in applications.items() if deployed) or "none"
        raise ValueError(f"the server has no application {APPLICATION!r} (it has: {known}): deploy serve/config.yaml")
    deployments = [one for one in config.get("deployments", []) if one["name"] != DEPLOYMENT]
    changed = next((one for one in config.get("deployments", []) if one["name"] == DEPLOYMENT), {"name": DEPLOYMENT})
    applications[APPLICATION] = config | {"deployments": [*deployments, changed | {"user_config": release}]}
    kept = {key: details[key] for key in ("proxy_location", "http_options") if details.get(key)}
    return kept | {"applications": [one for one in applications.values() if one]}


def _deploy(client: ServeSubmissionClient, config: dict[str, Any]) -> None:
    """Has Ray tell every replica. It gives a rollout up when a replica dies during it, so it is asked again.

    Raises:
        ValueError: it gave up `TRIES` times, or takes longer than `TIMEOUT_S`.
    """
    deadline, status = time.monotonic() + TIMEOUT_S, ""
    for _ in range(TRIES):
        client.deploy_applications(config)
        time.sleep(1)  # until then the status may be the one before
        while (status := client.get_serve_details()["applications"][APPLICATION]["status"]) != "DEPLOY_FAILED":
            if status == "RUNNING":
                return
            if time.monotonic() > deadline:
                raise ValueError(f"Ray has not rolled it out after {TIMEOUT_S} s ({status}); its log says why")
            time.sleep(0.5)
        print("Ray gave the rollout up, for a replica was lost meanwhile; once more")
        time.sleep(5)
    raise ValueError(f"Ray gave the rollout up {TRIES} times ({status}): `serve status` and its log say why")


def _wait(url: str, ensemble: str) -> None:
    """Returns when the ensemble answers.

    Raises:
        ValueError: it does not within `TIMEOUT_S`.
    """
    deadline, alike = time.monotonic() + TIMEOUT_S, 0
    while alike < ALIKE:
        if time.monotonic() > deadline:
            raise ValueError(f"{url} does not answer with {ensemble} after {TIMEOUT_S} s: the replicas' log says why")
        try:
            answer = httpx.get(f"{url}/readyz", timeout=30)
            alike = alike + 1 if answer.status_code == 200 and answer.json()["ensemble"] == ensemble else 0
        except httpx.TransportError:
            alike = 0
        time.sleep(0.1)


if __name__ == "__main__":
    raise SystemExit(main())
