import asyncio
import base64
import io
import json
import re
import struct
import tempfile
import threading
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from mura_ray.config import TrialConfig
from mura_ray.domain import STUDY_TYPES, MemberPrediction, StudyPrediction, ViewPrediction
from mura_ray.model.ensemble import EnsembleDescription, MemberDescription
from mura_ray.render.overlay import overlay
from serve.api import PREDICT_DICOM_PATH, PREDICT_PATH, build_api
from serve.inference_protocol import INFER_PATH, MODEL_PATH
from serve.limits import Limits
from serve.pictures import PICTURE_PATH
from serve.worklist import WORKLIST_PATH

VIEWER = Path(__file__).parents[2] / "serve" / "viewer"
CAM = np.array([[-1.5, 0.0, 2.25], [0.5, 1.0, -0.25]], dtype=np.float32)
DESCRIPTION = EnsembleDescription(
    id="0123456789abcdef",
    image_size=64,
    threshold=0.5,
    members=tuple(
        MemberDescription(trial=f"trial-{place}", epoch=place, val_loss=0.1 * place, config=TrialConfig(), sha256="0")
        for place in range(2)
    ),
    data_id="feedfeedfeedfeed",
    data_manifest_sha256="0",
    git_revision="unknown",
    created="2026-01-02T03:04:05.000006+00:00",
)


class MeanGray:
    """A view's probability is its mean gray over 255; the members say 0.1 less and 0.1 more."""

    description = DESCRIPTION
    max_views = 2

    def predict_studies(self, studies):
        return [self.predict_study(views) for views in studies]

    def predict_study(self, views):
        means = [float(view.mean()) / 255 for view in views]
        probability = sum(means) / len(means)
        return StudyPrediction(
            probability=probability,
            abnormal=probability > 0.5,
            threshold=0.5,
            views=tuple(
                ViewPrediction(view.shape[1], view.shape[0], mean, CAM) for view, mean in zip(views, means, strict=True)
            ),
            members=(MemberPrediction("trial-0", probability - 0.1), MemberPrediction("trial-1", probability + 0.1)),
        )


class Broken(MeanGray):
    def predict_study(self, views):
        raise RuntimeError("out of memory")


class Blocked(MeanGray):
    """Predicts once it is let go; knows how many predictions ran at a time."""

    def __init__(self):
        self.go, self.num_running, self.most_running = threading.Event(), 0, 0

    def predict_study(self, views):
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        self.go.wait(60)
        self.num_running -= 1
        return super().predict_study(views)


def encoded(gray, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(gray).save(file, format=kind)
    return file.getvalue()


def gradient(height, width, low=0):
    return np.linspace(low, 255, height * width).reshape(height, width).astype(np.uint8)


def png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT"


LEFT, RIGHT = encoded(gradient(40, 60)), encoded(gradient(30, 20, low=100))


class Client:
    """Sends one request at a time, and gives the answer of the application where it failed too."""

    def __init__(self, app):
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def request(self, *args, **kwargs):
        async def send():
            async with httpx.AsyncClient(transport=self._transport, base_url="http://server") as client:
                return await client.request(*args, **kwargs)

        return asyncio.run(send())

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, **kwargs):
        return self.request("POST", path, **kwargs)


class Chunks(httpx.AsyncByteStream):
    def __init__(self, chunks):
        self._chunks = chunks

    async def __aiter__(self):
        for chunk in self._chunks:
            yield chunk


def client_of(predictor=None, **limits):
    return Client(build_api(predictor or MeanGray(), Limits(**limits)))


@pytest.fixture(scope="module")
def client():
    return client_of()


def post(client, *views, query="", **data):
    return client.post(PREDICT_PATH + query, files=[("views", view) for view in views], data=data)


def problem_of(response):
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["title"]
    assert problem["detail"]
    return problem


class TestAnswer:
    def test_is_what_the_contract_says(self, client):
        response = post(client, ("left.png", LEFT), ("right.png", RIGHT), study_type="wrist")
        left, right = gradient(40, 60).mean() / 255, gradient(30, 20, low=100).mean() / 255
        probability = (left + right) / 2
        assert response.status_code == 200
        assert response.json() == {
            "study_type": "wrist",
            "probability": pytest.approx(probability),
            "abnormal": True,
            "threshold": 0.5,
            "views": [
                {"name": "left.png", "width": 60, "height": 40, "probability": pytest.approx(left), "cam": None},
                {"name": "right.png", "width": 20, "height": 30, "probability": pytest.approx(right), "cam": None},
            ],
            "members": [
                {"trial": "trial-0", "probability": pytest.approx(probability - 0.1)},
                {"trial": "trial-1", "probability": pytest.approx(probability + 0.1)},
            ],
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
        assert [(image.format, image.size) for image in images] == [("PNG", (60, 40)), ("PNG", (20, 30))]
        assert [cam["range"] for cam in cams] == [[-1.5, 2.25], [-1.5, 2.25]]

    def test_warns_of_views_without_content_and_of_repeated_ones(self, client):
        black = encoded(np.zeros((8, 8), np.uint8))
        answer = post(client, ("a.png", LEFT), ("black.png", black), ("b.png", LEFT)).json()
        assert answer["warnings"] == [
            "black.png: every pixel is 0; this is no radiograph",
            "b.png: the same file as a.png; it counts twice in the mean",
        ]


HOSTILE = {
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
        assert "out of memory" in caplog.text
        assert "MILLER" not in caplog.text


class TestLimits:
    def test_a_request_is_refused_by_its_length_before_it_is_read(self):
        def body():
            raise AssertionError("read")
            yield b""

        headers = {"content-type": "multipart/form-data; boundary=x", "content-length": "1001"}
        response = client_of(request_bytes=1000).post(PREDICT_PATH, content=Chunks(body()), headers=headers)
        problem = problem_of(response)
        assert (problem["status"], problem["limit"]) == (413, 1000)
        assert "1,000 bytes" in problem["detail"]

    @pytest.mark.parametrize("length", [{}, {"content-length": "10"}, {"content-length": "x"}])
    def test_a_request_is_cut_while_it_is_read(self, length):
        num_sent = 0

        def body():
            nonlocal num_sent
            yield b'--x\r\nContent-Disposition: form-data; name="views"; filename="a.png"\r\n\r\n'
            for _ in range(100):
                num_sent += 1
                yield bytes(1000)
            yield b"\r\n--x--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=x", **length}
        response = client_of(request_bytes=5000).post(PREDICT_PATH, content=Chunks(body()), headers=headers)
        problem = problem_of(response)
        assert (problem["status"], problem["limit"]) == (413, 5000)
        assert num_sent == 5

    def test_a_view_over_its_limit_is_named(self):
        problem = problem_of(post(client_of(view_bytes=len(LEFT) - 1), ("a.png", RIGHT[:10]), ("large.png", LEFT)))
        assert (problem["status"], problem["limit"], problem["view"]) == (413, len(LEFT) - 1, "large.png")

    def test_views_may_number_as_many_as_the_limit(self):
        client = client_of(views=2)
        assert post(client, *[("a.png", LEFT)] * 2).status_code == 200
        problem = problem_of(post(client, *[("a.png", LEFT)] * 3))
        assert problem["status"] == 422
        assert "at most 2" in problem["detail"]

    def test_pixels_of_a_study_are_bounded(self):
        client = client_of(study_pixels=40 * 60 + 20 * 30 - 1)
        assert post(client, ("a.png", LEFT)).status_code == 200
        problem = problem_of(post(client, ("a.png", LEFT), ("b.png", RIGHT)))
        assert (problem["status"], problem["limit"]) == (413, 2999)

    def test_uploads_are_never_written_to_disk(self, monkeypatch):
        def rollover(_):
            raise AssertionError("written to disk")

        monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
        large = encoded(np.random.default_rng(0).integers(0, 256, (1500, 1500), dtype=np.uint8))
        assert len(large) > 2**21
        assert post(client_of(), ("a.png", large)).status_code == 200

    def test_studies_too_many_are_sent_away_and_health_does_not_wait(self):
        predictor = Blocked()

        async def scenario():
            transport = httpx.ASGITransport(build_api(predictor, Limits(predictions=3, retry_after_s=7)))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                study = {"files": {"views": ("a.png", LEFT)}, "timeout": 60}
                waiting = [asyncio.create_task(client.post(PREDICT_PATH, **study)) for _ in range(3)]
                while predictor.num_running == 0:
                    await asyncio.sleep(0.01)
                refused = await client.post(PREDICT_PATH, **study)
                health = await client.get("/healthz")
                predictor.go.set()
                answered = await asyncio.gather(*waiting)
                return refused, health, answered, await client.post(PREDICT_PATH, **study)

        refused, health, answered, later = asyncio.run(scenario())
        assert problem_of(refused)["status"] == 429
        assert (refused.json()["limit"], refused.headers["retry-after"]) == (3, "7")
        assert health.status_code == 200
        assert [response.status_code for response in (*answered, later)] == [200] * 4
        assert predictor.most_running == 1


class TestTime:
    def test_an_upload_that_trickles_in_is_ended_and_its_place_is_free(self):
        async def trickle():
            yield b'--x\r\nContent-Disposition: form-data; name="views"; filename="a.png"\r\n\r\n'
            while True:
                await asyncio.sleep(0.02)
                yield b"a"

        async def scenario():
            transport = httpx.ASGITransport(build_api(MeanGray(), Limits(predictions=1, request_s=0.5)))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                headers = {"content-type": "multipart/form-data; boundary=x"}
                begin = time.monotonic()
                slow = await client.post(PREDICT_PATH, content=trickle(), headers=headers)
                return slow, time.monotonic() - begin, await client.post(PREDICT_PATH, files={"views": LEFT})

        slow, took_s, later = asyncio.run(scenario())
        problem = problem_of(slow)
        assert (problem["status"], problem["type"]) == (408, "urn:mura-ray:problem:slow-upload")
        assert slow.headers["connection"] == "close"
        assert 0.5 <= took_s < 5
        assert later.status_code == 200

    def test_an_answer_that_comes_too_late_is_not_awaited_but_keeps_its_place_until_its_thread_ends(self):
        predictor = Blocked()

        async def scenario():
            transport = httpx.ASGITransport(build_api(predictor, Limits(predictions=2, request_s=1.5)))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                study = {"files": {"views": ("a.png", LEFT)}, "timeout": 60}
                begin = time.monotonic()
                first = asyncio.create_task(client.post(PREDICT_PATH, **study))
                while predictor.num_running == 0:
                    await asyncio.sleep(0.01)
                late = await asyncio.gather(first, client.post(PREDICT_PATH, **study))
                took_s = time.monotonic() - begin
                waits = await client.post(PREDICT_PATH, **study)  # in the place of the one that had not begun
                both = asyncio.create_task(client.post(PREDICT_PATH, **study))
                await asyncio.sleep(0.1)
                refused = await client.post(PREDICT_PATH, **study)
                health = await client.get("/healthz")
                predictor.go.set()
                return late, took_s, waits, await both, refused, health, await client.post(PREDICT_PATH, **study)

        late, took_s, waits, both, refused, health, later = asyncio.run(scenario())
        assert 1.5 <= took_s < 10
        for response in (*late, waits):
            assert problem_of(response)["status"] == 503
            assert response.json()["type"] == "urn:mura-ray:problem:timeout"
            assert response.headers["retry-after"] == "2"
        assert [both.status_code, refused.status_code, health.status_code, later.status_code] == [200, 429, 200, 200]
        assert predictor.most_running == 1

    def test_a_client_that_is_gone_keeps_its_place_until_its_thread_ends(self):
        predictor = Blocked()

        async def scenario():
            transport = httpx.ASGITransport(build_api(predictor, Limits(predictions=1)))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                study = {"files": {"views": ("a.png", LEFT)}, "timeout": 60}
                gone = asyncio.create_task(client.post(PREDICT_PATH, **study))
                while predictor.num_running == 0:
                    await asyncio.sleep(0.01)
                gone.cancel()
                await asyncio.wait({gone})
                refused = await client.post(PREDICT_PATH, **study)
                predictor.go.set()
                while (later := await client.post(PREDICT_PATH, **study)).status_code == 429:
                    await asyncio.sleep(0.01)
                return gone, refused, later

        gone, refused, later = asyncio.run(scenario())
        assert gone.cancelled()
        assert [refused.status_code, later.status_code] == [429, 200]
        assert predictor.most_running == 1


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
        assert answer["members"][1] == {"trial": "trial-1", "epoch": 1, "val_loss": 0.1}
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
