"""The interface over ASGI, with a predictor of a few lines: answers, problems, pictures, pages."""

import base64
import io
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mura_ray.domain import STUDY_TYPES
from mura_ray.render.overlay import overlay
from serve.api import PREDICT_DICOM_PATH, PREDICT_PATH, build_api
from serve.inference_protocol import INFER_PATH, MODEL_PATH
from serve.limits import Limits
from serve.pictures import PICTURE_PATH
from serve.worklist import WORKLIST_PATH
from tests.unit.api_client import (
    LEFT,
    RIGHT,
    Broken,
    Client,
    MeanGray,
    client_of,
    encoded,
    gradient,
    png_header,
    post,
    problem_of,
)

VIEWER = Path(__file__).parents[2] / "serve" / "viewer"


@pytest.fixture(scope="module")
def client():
    return client_of()


class TestAnswer:
    def test_is_what_the_contract_says(self, client):
        response = post(client, ("left.png", LEFT), ("right.png", RIGHT), study_type="wrist")
        left, right = gradient(80, 120).mean() / 255, gradient(90, 70, low=100).mean() / 255
        probability, neither = (left + right) / 2, {"pixel_spacing_mm": None, "cam": None}
        assert response.status_code == 200
        assert response.json() == {
            "study_type": "wrist",
            "probability": pytest.approx(probability),
            "calibrated_probability": None,
            "abnormal": True,
            "threshold": 0.5,
            "views": [
                {"name": "left.png", "width": 120, "height": 80, "probability": pytest.approx(left), **neither},
                {"name": "right.png", "width": 70, "height": 90, "probability": pytest.approx(right), **neither},
            ],
            "members": [
                {"trial": "trial-0", "probability": pytest.approx(probability - 0.1)},
                {"trial": "trial-1", "probability": pytest.approx(probability + 0.1)},
            ],
            "member_range": pytest.approx([probability - 0.1, probability + 0.1]),
            "ensemble": {"id": "0123456789abcdef", "created": "2026-01-02T03:04:05.000006+00:00"},
            "warnings": [],
        }

    def test_study_type_may_be_left_out(self, client):
        assert post(client, ("a.png", LEFT)).json()["study_type"] is None

    def test_reads_jpeg(self, client):
        answer = post(client, ("a.jpg", encoded(gradient(40, 60), "JPEG"))).json()
        assert answer["probability"] == pytest.approx(0.5, abs=0.01)

    def test_raw_cam_is_little_endian_float32_row_by_row(self, client):
        cam = post(client, ("a.png", LEFT), query="?cam=raw").json()["views"][0]["cam"]
        assert cam.keys() == {"range", "shape", "float32_base64"}
        assert (cam["range"], cam["shape"]) == ([-1.5, 2.25], [2, 3])
        assert struct.unpack("<6f", base64.b64decode(cam["float32_base64"])) == (-1.5, 0.0, 2.25, 0.5, 1.0, -0.25)

    def test_overlay_has_the_pixels_of_its_own_view(self, client):
        response = post(client, ("a.png", LEFT), ("b.png", RIGHT), query="?cam=overlay")
        cams = [view["cam"] for view in response.json()["views"]]
        images = [Image.open(io.BytesIO(base64.b64decode(cam["png_base64"]))) for cam in cams]
        assert [(image.format, image.size) for image in images] == [("PNG", (120, 80)), ("PNG", (70, 90))]
        assert [cam["range"] for cam in cams] == [[-1.5, 2.25], [-1.5, 2.25]]

    def test_warns_of_views_without_content_and_of_repeated_ones(self, client):
        black = encoded(np.zeros((8, 8), np.uint8))
        answer = post(client, ("a.png", LEFT), ("black.png", black), ("b.png", LEFT), study_type="hand").json()
        assert answer["warnings"] == [
            "black.png: every pixel is 0; this is no radiograph",
            "b.png: the same file as a.png; it counts twice in the mean",
        ]

    def test_warns_once_of_a_study_type_that_is_not_known(self, client):
        answer = post(client, ("a.png", LEFT), ("b.png", RIGHT)).json()
        types = ", ".join(STUDY_TYPES)
        assert answer["warnings"] == [f"the study type is not known: the ensemble was trained on {types} alone"]

    @pytest.mark.parametrize(("height", "width", "is_small"), [(63, 200, True), (200, 63, True), (64, 64, False)])
    def test_warns_of_small_views(self, client, height, width, is_small):
        answer = post(client, ("a.png", encoded(gradient(height, width))), study_type="hand").json()
        assert answer["warnings"] == (
            [f"a.png: {width} x {height} pixels; of fewer than 64 a side little is seen"] if is_small else []
        )

    def test_warns_of_colour(self, client):
        gray = gradient(80, 80)
        colour = encoded(np.stack([gray, gray // 2, gray], axis=-1))
        (warning,) = post(client, ("a.png", colour), study_type="hand").json()["warnings"]
        assert warning.startswith("a.png: the picture is in colour, and radiographs are gray")
        assert post(client, ("a.png", encoded(np.stack([gray] * 3, -1))), study_type="hand").json()["warnings"] == []


HOSTILE = {
    "a PNG and a zip in one": (LEFT + b"PK\x03\x04", "a zip file follows the image in the same file"),
    "an empty file": (b"", "not a PNG or JPEG image"),
    "a text": (b"patient: unknown", "not a PNG or JPEG image"),
    "a GIF": (encoded(gradient(8, 8), "GIF"), "not a PNG or JPEG image"),
    "a truncated JPEG": (encoded(gradient(80, 80), "JPEG")[:-400], "runcated"),
    "a truncated PNG": (LEFT[:-40], "unreadable image"),
    "a header of too many pixels": (png_header(9000, 9000), "9000 x 9000 pixels; the limit is 80,000,000"),
    "a header of four billion pixels": (png_header(65535, 65535), "limit"),
}


class TestProblems:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_a_view_that_cannot_be_read_is_named_with_the_reason(self, client, case):
        content, reason = HOSTILE[case]
        problem = problem_of(post(client, ("good.png", LEFT), ("bad.png", content)))
        assert problem["status"] == 422
        assert problem["type"] == "urn:mura-ray:problem:damaged-view"
        assert problem["view"] == "bad.png"
        assert reason in problem["detail"]
        assert post(client, ("good.png", LEFT)).status_code == 200

    def test_an_unknown_study_type_lists_those_that_are_known(self, client):
        problem = problem_of(post(client, ("a.png", LEFT), study_type="knee"))
        assert problem["status"] == 422
        assert problem["detail"] == f"study_type: 'knee' is no study type; one of {', '.join(STUDY_TYPES)}"

    def test_an_unknown_cam_lists_those_that_are_known(self, client):
        problem = problem_of(post(client, ("a.png", LEFT), query="?cam=heat"))
        assert problem["status"] == 422
        assert all(word in problem["detail"] for word in ("cam", "none", "raw", "overlay"))

    @pytest.mark.parametrize(
        "request_of", [{"files": {"view": LEFT}}, {"files": {"a": b""}, "data": {"views": "text"}}]
    )
    def test_missing_views_are_asked_for(self, client, request_of):
        problem = problem_of(client.post(PREDICT_PATH, **request_of))
        assert problem["status"] == 422
        assert "one multipart part named views" in problem["detail"]

    @pytest.mark.parametrize("headers", [{"content-type": "application/json"}, {"content-type": "image/png"}, {}])
    def test_another_media_type_is_refused(self, client, headers):
        problem = problem_of(client.post(PREDICT_PATH, content=LEFT, headers=headers))
        assert problem["status"] == 415
        assert "multipart/form-data" in problem["detail"]

    @pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=other"])
    def test_a_malformed_body_is_a_bad_request(self, client, content_type):
        response = client.post(PREDICT_PATH, content=b"--x\r\nnonsense", headers={"content-type": content_type})
        assert problem_of(response)["status"] == 400

    def test_a_path_that_is_not_there(self, client):
        assert problem_of(client.get("/v1/studies"))["status"] == 404

    def test_a_file_outside_the_viewer(self, client):
        assert problem_of(client.get("/viewer/..%2fconfig.yaml"))["status"] == 404

    def test_a_method_that_is_not_allowed(self, client):
        response = client.get(PREDICT_PATH)
        assert problem_of(response)["status"] == 405
        assert response.headers["allow"] == "POST"

    def test_a_fault_of_the_server_tells_the_client_nothing_of_it(self):
        client = client_of(Broken())
        problem = problem_of(post(client, ("a.png", LEFT)))
        assert problem["status"] == 500
        assert "out of memory" not in json.dumps(problem)
        assert client.get("/healthz").status_code == 200

    def test_names_of_files_do_not_reach_the_log(self, caplog):
        caplog.set_level(0)
        for predictor in (MeanGray(), Broken()):
            for content in (LEFT, b"text"):
                post(client_of(predictor), ("MILLER_ANNA.png", content))
        assert "RuntimeError" in caplog.text
        assert "MILLER" not in caplog.text

    def test_a_fault_is_logged_by_type_and_place_but_not_by_message(self, caplog):
        class Quoting(MeanGray):
            def predict_study(self, views):
                try:
                    views[0].reshape(7, 7)
                except ValueError as error:
                    raise RuntimeError(f"quotes: {error}") from error
                return super().predict_study(views)

        post(client_of(Quoting()), ("a.png", LEFT))
        assert "ValueError" in caplog.text
        assert "RuntimeError" in caplog.text
        assert "predict_study" in caplog.text
        assert "cannot reshape" not in caplog.text


class TestNames:
    @pytest.mark.parametrize("given", [None, "MILLER ANNA", "x" * 32, "short", "a" * 65])
    def test_a_request_gets_one_where_it_brings_none_that_is_fit(self, client, given):
        response = client.request("GET", "/nowhere", headers={"X-Request-ID": given} if given else None)
        (name,) = response.headers.get_list("x-request-id")
        assert re.fullmatch(r"[0-9a-f-]{36}", name)
        assert problem_of(response)["instance"] == f"urn:mura-ray:request:{name}"

    def test_it_keeps_its_own(self, client):
        name = "0d9a34f2-30a5-4c0e-93b6-0dc4b3a0f3d1"
        response = client.request("GET", "/healthz", headers={"X-Request-ID": name})
        assert response.headers.get_list("x-request-id") == [name]

    def test_it_is_not_named_twice_where_a_proxy_names_it(self):
        client = Client(build_api(MeanGray(), named_in_front=True))
        name = "0d9a34f2-30a5-4c0e-93b6-0dc4b3a0f3d1"
        assert "x-request-id" not in client.request("GET", "/healthz", headers={"X-Request-ID": name}).headers
        assert "x-request-id" in client.get("/healthz").headers

    def test_a_fault_has_one_too_and_is_guarded_as_all_answers(self):
        response = post(client_of(Broken()), ("a.png", LEFT))
        assert problem_of(response)["instance"].endswith(response.headers["x-request-id"])
        assert response.headers["x-content-type-options"] == "nosniff"


def post_picture(client, name="a.png", content=LEFT, field="view"):
    return client.post(PICTURE_PATH, files=[(field, (name, content))])


class TestPictures:
    def test_a_view_comes_back_as_the_gray_levels_that_the_network_gets(self, client):
        deep = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
        response = post_picture(client, content=encoded(deep))
        image = Image.open(io.BytesIO(response.content))
        assert response.headers["content-type"] == "image/png"
        assert (image.format, image.mode, image.size) == ("PNG", "L", (60, 40))
        np.testing.assert_array_equal(np.asarray(image), deep >> 8)

    @pytest.mark.parametrize("case", HOSTILE)
    def test_a_view_that_cannot_be_read_is_named_with_the_reason(self, client, case):
        content, reason = HOSTILE[case]
        problem = problem_of(post_picture(client, "bad.png", content))
        assert (problem["status"], problem["view"]) == (422, "bad.png")
        assert reason in problem["detail"]

    def test_a_missing_view_is_asked_for(self, client):
        problem = problem_of(post_picture(client, field="views"))
        assert problem["status"] == 422
        assert "a multipart part named view," in problem["detail"]

    def test_limits_of_bytes_hold(self):
        client = client_of(view_bytes=len(LEFT) - 1, request_bytes=10 * len(LEFT))
        assert problem_of(post_picture(client))["view"] == "a.png"
        assert problem_of(post_picture(client, content=bytes(20 * len(LEFT))))["status"] == 413

    def test_pictures_too_many_are_sent_away_while_studies_are_not(self):
        client = client_of(pictures=0)
        assert problem_of(post_picture(client))["status"] == 429
        assert post(client, ("a.png", LEFT)).status_code == 200

    def test_the_viewer_is_told_how_maps_are_painted(self, client):
        scale = client.get("/viewer/overlay.json").json()
        painted = overlay(np.full((1, 2), 100, np.uint8), np.array([[0, scale["full_logit"]]], np.float32))
        expected = 100 + scale["full_opacity"] * (np.array(scale["colors"][255]) - 100)
        np.testing.assert_array_equal(painted[0, 1], np.rint(expected))
        assert len(scale["colors"]) == 256


class TestDescription:
    def test_ensemble_says_what_it_is_and_what_not(self, client):
        answer = client.get("/v1/ensemble").json()
        assert answer["id"] == "0123456789abcdef"
        assert answer["data_id"] == "feedfeedfeedfeed"
        assert (answer["image_size"], answer["threshold"]) == (64, 0.5)
        assert answer["members"][1] == {"trial": "trial-1", "epoch": 1, "val_loss": 0.1, "settings": {}}
        assert "Not a medical device" in answer["notice"]

    def test_health(self, client):
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready", "ensemble": "0123456789abcdef"}

    def test_openapi_describes_the_request_and_every_problem(self, client):
        spec = client.get("/openapi.json").json()
        assert set(spec["paths"]) == {
            PREDICT_PATH, PREDICT_DICOM_PATH, WORKLIST_PATH, PICTURE_PATH, "/v1/ensemble", "/v1/shadow",
            "/healthz", "/readyz", "/v2", "/v2/health/live", "/v2/health/ready", MODEL_PATH, f"{MODEL_PATH}/ready",
            INFER_PATH,
        }  # fmt: skip
        operation = spec["paths"][PREDICT_PATH]["post"]
        body = operation["requestBody"]["content"]
        fields = spec["components"]["schemas"][body["multipart/form-data"]["schema"]["$ref"].split("/")[-1]]
        assert fields["required"] == ["views"]
        assert fields["properties"]["views"]["maxItems"] == Limits().views
        assert list(STUDY_TYPES) in [choice.get("enum") for choice in fields["properties"]["study_type"]["anyOf"]]
        assert operation["responses"].keys() == {
            *("200", "400", "401", "408", "413", "415", "422", "429", "500", "503")
        }
        for status, response in operation["responses"].items():
            assert list(response["content"]) == ["application/json" if status == "200" else "application/problem+json"]


class TestPages:
    @pytest.mark.parametrize("path", ["/", "/docs"])
    def test_say_what_it_is_not_and_are_guarded(self, client, path):
        response = client.get(path)
        assert response.status_code == 200
        assert "not a medical device" in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in response.headers["permissions-policy"]
        assert "access-control-allow-origin" not in response.headers

    @pytest.mark.parametrize("path", sorted(VIEWER.iterdir()), ids=lambda path: path.name)
    def test_load_nothing_from_elsewhere_and_nothing_inline(self, client, path):
        assert client.get(f"/viewer/{path.name}").text == path.read_text()
        text = path.read_text()
        assert not re.search(r"https?:|//[a-z]+\.[a-z]|innerHTML|\son\w+=|style=|<style|<script>", text)

    def test_every_field_has_a_label_and_the_select_all_study_types(self):
        text = (VIEWER / "index.html").read_text()
        fields = re.findall(r'<(?:input|select) id="([\w-]+)"(?! hidden)', text)
        assert fields == ["study-type", "opacity", "level", "width", "token-value"]
        assert all(f'<label for="{field}"' in text for field in fields)
        assert re.findall(r"<option>(\w+)</option>", text) == list(STUDY_TYPES)
