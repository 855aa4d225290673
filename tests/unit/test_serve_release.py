"""One ensemble after another, and a candidate in the shadow."""

import asyncio

import httpx
import numpy as np
import pytest
from test_serve_api import DESCRIPTION, LEFT, Blocked, Broken, MeanGray, problem_of

from serve.api import PREDICT_PATH, build_api
from serve.limits import Limits
from serve.metrics import SHADOW_DIFFERENCE, Metrics
from serve.rollout import config_with_release

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
