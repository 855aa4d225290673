"""One ensemble after another, and a candidate in the shadow."""

import asyncio

import httpx
import numpy as np
import pytest

from mura_ray.model.ensemble import read_description
from mura_ray.ports import free_port
from serve import rollout
from serve.api import PREDICT_PATH, build_api
from serve.health import Passes
from serve.limits import Limits
from serve.metrics import SHADOW_DIFFERENCE, Metrics
from serve.release import Release, Releases
from serve.rollout import config_with_release, server_url
from tests.unit.api_client import DESCRIPTION, LEFT, Blocked, Broken, MeanGray, problem_of
from tests.unit.tiny_ensemble import write_tiny_ensemble

STUDY = {"files": {"views": ("a.png", LEFT)}, "timeout": 60}


class Brighter(MeanGray):
    """Another ensemble, which sees everything brighter by a tenth."""

    description = DESCRIPTION.model_copy(update={"id": "fedcba9876543210"})

    def predict_study(self, views):
        return super().predict_study([np.minimum(view + 25.5, 255) for view in views])


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://server")


async def compared(client, count):
    while True:
        answer = (await client.get("/v1/shadow")).json()
        if answer["num_studies"] + answer["num_failed"] >= count:
            return answer
        await asyncio.sleep(0.01)


def test_a_study_in_work_is_answered_by_the_ensemble_that_it_began_with():
    async def scenario():
        first = Blocked()
        app = build_api(first, Limits())
        async with client_of(app) as client:
            begun = asyncio.create_task(client.post(PREDICT_PATH, **STUDY))
            while first.num_running == 0:
                await asyncio.sleep(0.01)
            app.state.answers.release(Brighter())
            after = await client.post(PREDICT_PATH, **STUDY)
            first.go.set()
            return (await begun).json(), after.json(), (await client.get("/readyz")).json()

    begun, after, ready = asyncio.run(scenario())
    assert (begun["ensemble"]["id"], after["ensemble"]["id"]) == (DESCRIPTION.id, Brighter.description.id)
    assert after["probability"] > begun["probability"] + 0.05
    assert ready["ensemble"] == Brighter.description.id


def test_a_candidate_is_compared_and_nobody_gets_its_answer():
    records = []

    async def scenario():
        app = build_api(MeanGray(), metrics=Metrics(lambda *record: records.append(record)))
        app.state.answers.show_to(Brighter())
        async with client_of(app) as client:
            answer = (await client.post(PREDICT_PATH, **STUDY)).json()
            return answer, await compared(client, 1)

    answer, shadow = asyncio.run(scenario())
    assert answer["ensemble"]["id"] == DESCRIPTION.id
    assert shadow["ensemble"] == Brighter.description.id
    assert (shadow["num_studies"], shadow["num_skipped"], shadow["num_failed"]) == (1, 0, 0)
    assert 0.05 < shadow["mean_difference"] < 0.11
    assert shadow["largest_absolute_difference"] == shadow["mean_absolute_difference"] == shadow["mean_difference"]
    assert shadow["num_decisions_changed"] == 1  # the gradient's mean is just below the threshold
    assert [record[2] for record in records if record[0] == SHADOW_DIFFERENCE.name] == [{"decision": "changed"}]


def test_a_candidate_that_fails_fails_no_answer():
    async def scenario():
        app = build_api(MeanGray())
        app.state.answers.show_to(Broken())
        async with client_of(app) as client:
            return await client.post(PREDICT_PATH, **STUDY), await compared(client, 1)

    response, shadow = asyncio.run(scenario())
    assert response.status_code == 200
    assert (shadow["num_failed"], shadow["mean_difference"]) == (1, None)


def test_a_slow_candidate_skips_studies_instead_of_keeping_them():
    async def scenario():
        candidate = Blocked()
        app = build_api(MeanGray())
        app.state.answers.show_to(candidate)
        async with client_of(app) as client:
            for _ in range(3):
                assert (await client.post(PREDICT_PATH, **STUDY)).status_code == 200
            candidate.go.set()
            return await compared(client, 1)

    shadow = asyncio.run(scenario())
    assert (shadow["num_studies"], shadow["num_skipped"]) == (1, 2)


def test_without_a_candidate_there_is_nothing_to_see():
    async def scenario():
        async with client_of(build_api(MeanGray())) as client:
            return await client.get("/v1/shadow")

    assert problem_of(asyncio.run(scenario()))["status"] == 404


ENSEMBLES = {"/runs/a": MeanGray, "/runs/b": Brighter}


def load(uri):
    if uri not in ENSEMBLES:
        raise ValueError(f"no ensemble: {uri}")
    return ENSEMBLES[uri]()


def releases_of(answers, passes=None):
    return Releases(answers, load, "/runs/a", "/runs/a", passes or Passes())


def after(*releases):
    """The ids of what answers and of what is in the shadow, after these changes on a server that answers."""

    async def scenario():
        answers = build_api(MeanGray()).state.answers
        changes = releases_of(answers)
        for release in releases:
            changes.change_meanwhile(Release(**release))
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)
        return answers.description.id, answers.shadow and answers.shadow.answer().ensemble

    return asyncio.run(scenario())


A, B = DESCRIPTION.id, Brighter.description.id


@pytest.mark.parametrize(
    ("releases", "expected"),
    [
        ([{}], (A, None)),
        ([{"ensemble": "/runs/b"}], (B, None)),
        ([{"ensemble": "/runs/b"}, {"ensemble": "/runs/a"}], (A, None)),
        ([{"ensemble": "/runs/b"}, {}], (A, None)),
        ([{"shadow": "/runs/b"}], (A, B)),
        ([{"shadow": "/runs/b"}, {"ensemble": "/runs/b"}], (B, None)),
    ],
)
def test_releases_follow_one_another(releases, expected):
    assert after(*releases) == expected


@pytest.mark.parametrize("release", [{"ensemble": "/runs/lost"}, {"ensemble": "/runs/a", "shadow": "/runs/lost"}])
def test_a_release_that_cannot_be_loaded_changes_nothing(release, caplog):
    assert after({"ensemble": "/runs/b", "shadow": "/runs/a"}, release) == (B, A)
    assert "no ensemble: /runs/lost" in caplog.text


def test_a_new_replica_does_not_start_without_its_release():
    answers = build_api(MeanGray()).state.answers
    with pytest.raises(ValueError, match="no ensemble: /runs/lost"):
        asyncio.run(releases_of(answers).change(Release(ensemble="/runs/lost")))


def test_passes_of_an_ensemble_that_is_rolled_out_are_watched(monkeypatch):
    monkeypatch.setitem(ENSEMBLES, "/runs/broken", Broken)
    passes = Passes()

    async def scenario():
        app = build_api(MeanGray())
        await releases_of(app.state.answers, passes).change(Release(ensemble="/runs/broken"))
        async with client_of(app) as client:
            return [(await client.post(PREDICT_PATH, **STUDY)).status_code for _ in range(3)]

    assert asyncio.run(scenario()) == [500] * 3
    with pytest.raises(RuntimeError, match="the last 3 forward passes failed"):
        passes.check()


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["0123456789abcdef"], "MURA_RUNS is not set"),
            (["/no/such/ensemble"], "/no/such/ensemble/ensemble.json does not exist"),
        ],
    )
    def test_says_what_is_wrong(self, arguments, named, monkeypatch, capsys):
        monkeypatch.delenv("MURA_RUNS", raising=False)
        assert rollout.main(arguments) == 1
        assert named in capsys.readouterr().err

    def test_an_unknown_id_lists_the_known_ones(self, tmp_path, monkeypatch, capsys):
        known = read_description(write_tiny_ensemble(tmp_path / "runs" / "spring"))
        monkeypatch.setenv("MURA_RUNS", str(tmp_path / "runs"))
        assert rollout.main(["fedcba9876543210"]) == 1
        assert f"'fedcba9876543210'; there are {known.id}" in capsys.readouterr().err

    def test_a_server_that_is_not_there_is_named(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else the command sets it, for the tests after this one too
        ensemble = write_tiny_ensemble(tmp_path)
        address = f"http://127.0.0.1:{free_port()}"
        assert rollout.main([ensemble, "--address", address]) == 1
        assert f"cannot talk to Ray at {address}" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("dashboard", "host", "expected"),
        [
            ("http://127.0.0.1:8265", "127.0.0.1", "http://127.0.0.1:80"),
            ("http://localhost:8265", "127.0.0.1", "http://127.0.0.1:80"),
            ("http://[::1]:8265", "::1", "http://[::1]:80"),
            ("http://other:8265", "127.0.0.1", None),
            ("http://10.0.0.4:8265/", "localhost", None),
            ("http://other:8265", "10.0.0.4", "http://10.0.0.4:80"),
            ("http://other:8265", "0.0.0.0", "http://other:80"),
            ("http://127.0.0.1:8265", "::", "http://127.0.0.1:80"),
        ],
    )
    def test_the_server_is_asked_where_it_is_and_not_on_this_machine_for_another(self, dashboard, host, expected):
        assert server_url(dashboard, {"host": host, "port": 80}) == expected

    def test_a_server_that_cannot_be_asked_is_rolled_out_by_what_ray_says(self, tmp_path, monkeypatch, capsys):
        class Ray:
            def __init__(self, _):
                self.deployed = []

            def get_serve_details(self):
                application = {"deployed_app_config": {"name": "mura", "import_path": "x:y"}, "status": "RUNNING"}
                return {"http_options": {"host": "127.0.0.1", "port": 1}, "applications": {"mura": application}}

            def deploy_applications(self, config):
                self.deployed.append(config)

        def ask(*_):
            raise AssertionError("asked")

        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        monkeypatch.setattr(rollout, "ServeSubmissionClient", Ray)
        monkeypatch.setattr(rollout, "_wait", ask)
        assert rollout.main([write_tiny_ensemble(tmp_path), "--address", "http://other:8265"]) == 0
        assert "Ray has told every replica (RUNNING)" in capsys.readouterr().out


RELEASE = {"ensemble": "/runs/b/ensemble", "shadow": None}


class TestConfig:
    def test_only_the_release_changes(self):
        deployment = {"name": "EnsembleServer", "num_replicas": 2, "user_config": {"ensemble": "/runs/a/ensemble"}}
        mura = {"name": "mura", "import_path": "serve.app:build", "deployments": [deployment]}
        other = {"name": "other", "import_path": "x:y"}
        details = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": 8000},
            "applications": {"mura": {"deployed_app_config": mura}, "other": {"deployed_app_config": other}},
        }
        config = config_with_release(details, RELEASE)
        assert config["http_options"] == details["http_options"]
        found, unchanged = config["applications"]
        assert unchanged == other
        assert found == mura | {"deployments": [deployment | {"user_config": RELEASE}]}

    @pytest.mark.parametrize("applications", [{}, {"mura": {"deployed_app_config": None}}])
    def test_a_server_without_the_application_is_told(self, applications):
        with pytest.raises(ValueError, match=r"has no application 'mura' \(it has: none\)"):
            config_with_release({"applications": applications}, RELEASE)
