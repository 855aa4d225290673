import base64
import threading

import pytest

from serve import inference_protocol
from serve.inference_protocol import INFER_PATH, MODEL_PATH
from tests.unit.api_client import DESCRIPTION, LEFT, RIGHT, client_of, post, problem_of


def infer(client, *views, **changes):
    data = [base64.b64encode(view).decode() for view in views]
    tensor = {"name": "views", "datatype": "BYTES", "shape": [len(data)], "data": data}
    return client.post(INFER_PATH, json={"id": "7", "inputs": [tensor | changes]})


def test_it_says_what_it_serves_and_that_it_is_ready():
    client = client_of()
    assert client.get("/v2").json()["name"] == "mura_ray"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == client.get(f"{MODEL_PATH}/ready").json() == {"ready": True}
    model = client.get(MODEL_PATH).json()
    assert (model["name"], model["versions"]) == ("mura", [DESCRIPTION.id])
    assert [tensor["name"] for tensor in model["outputs"]] == ["probability", "view_probabilities"]


def test_a_study_gets_the_numbers_of_the_other_interface():
    client = client_of()
    expected = post(client, ("a.png", LEFT), ("b.png", RIGHT)).json()
    answer = infer(client, LEFT, RIGHT).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("mura", DESCRIPTION.id, "7")
    probability, views = answer["outputs"]
    assert (probability["shape"], probability["data"]) == ([1], [expected["probability"]])
    assert (views["shape"], views["data"]) == ([2], [view["probability"] for view in expected["views"]])


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"data": ["%%"]}, 422, "not base64"),
        ({"shape": [2]}, 422, "shape [2] and 1 elements"),
        ({"name": "image"}, 422, "views"),
        ({"datatype": "FP32"}, 422, "BYTES"),
        ({"data": []}, 422, "data"),
        ({"data": ["aGFsbG8="]}, 422, "view-0: not a PNG or JPEG"),
    ],
)
def test_what_is_no_study_is_a_problem(changes, status, reason):
    problem = problem_of(infer(client_of(), LEFT, **changes))
    assert problem["status"] == status
    assert reason in problem["detail"]


@pytest.mark.parametrize("limits", [{"views": 1}, {"view_bytes": len(RIGHT) - 1}, {"request_bytes": 200}])
def test_limits_hold_here_too(limits):
    assert problem_of(infer(client_of(**limits), RIGHT, RIGHT))["status"] == 413


def test_another_media_type_is_refused():
    problem = problem_of(client_of().post(INFER_PATH, content=b"{}", headers={"content-type": "text/plain"}))
    assert problem["status"] == 415
    assert "application/json" in problem["detail"]


def test_an_id_is_given_back_only_where_there_was_one():
    client = client_of()
    tensor = {"name": "views", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(LEFT).decode()]}
    for request in ({}, {"id": None}):
        answer = client.post(INFER_PATH, json={"inputs": [tensor], **request}).json()
        assert answer.keys() == {"model_name", "model_version", "outputs"}
    assert infer(client, LEFT).json()["id"] == "7"


def test_errors_are_as_both_its_readers_and_those_of_problems_expect_them():
    client = client_of()
    for response in (infer(client, b"text"), client.get("/v2/models/other"), client.post("/v2")):
        problem = problem_of(response)
        assert problem["error"] == problem["detail"]
    assert "error" not in problem_of(client.get("/v1/nothing"))
    responses = client.get("/openapi.json").json()["paths"][INFER_PATH]["post"]["responses"]
    assert "error" in responses["422"]["content"]["application/problem+json"]["schema"]["required"]


def test_what_is_large_is_parsed_in_threads(monkeypatch):
    threads = []

    def watched(function):
        def called(*arguments):
            threads.append(threading.current_thread())
            return function(*arguments)

        return called

    monkeypatch.setattr(inference_protocol, "_uploads", watched(inference_protocol._uploads))
    monkeypatch.setattr(inference_protocol.json, "loads", watched(inference_protocol.json.loads))
    response = infer(client_of(), LEFT)
    assert response.status_code == 200
    assert len(threads) == 2
    assert threading.main_thread() not in threads
