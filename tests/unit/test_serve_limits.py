"""What a request may cost: bytes, views, pixels, places and time."""

import asyncio
import tempfile
import time

import httpx
import numpy as np
import pytest

from serve.api import PREDICT_PATH, build_api
from serve.limits import Limits
from serve.worklist import WORKLIST_PATH
from tests.unit.api_client import LEFT, RIGHT, Blocked, MeanGray, client_of, encoded, post, problem_of


class Chunks(httpx.AsyncByteStream):
    def __init__(self, chunks):
        self._chunks = chunks

    async def __aiter__(self):
        for chunk in self._chunks:
            yield chunk


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
        client = client_of(study_pixels=80 * 120 + 90 * 70 - 1)
        assert post(client, ("a.png", LEFT)).status_code == 200
        problem = problem_of(post(client, ("a.png", LEFT), ("b.png", RIGHT)))
        assert (problem["status"], problem["limit"]) == (413, 15_899)

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

    def test_a_body_must_keep_a_pace_and_its_place_is_free_when_it_does_not(self):
        ended = []

        async def stalls():
            yield b'--x\r\nContent-Disposition: form-data; name="views"; filename="a.png"\r\n\r\n'
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async def scenario():
            limits = Limits(predictions=1, request_s=5, upload_grace_s=0.1, upload_bytes_per_s=1000)
            transport = httpx.ASGITransport(build_api(MeanGray(), limits))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                headers = {"content-type": "multipart/form-data; boundary=x"}
                slow = await client.post(PREDICT_PATH, content=stalls(), headers=headers)
                return slow, await client.post(PREDICT_PATH, files={"views": LEFT})

        slow, later = asyncio.run(scenario())
        problem = problem_of(slow)
        assert (problem["status"], problem["type"]) == (408, "urn:mura-ray:problem:slow-upload")
        assert "less than 1,000 bytes/s" in problem["detail"]
        assert slow.headers["connection"] == "close"
        assert ended == [True]
        assert later.status_code == 200

    def test_only_the_time_that_the_sender_takes_counts(self):
        predictor = Blocked()

        async def scenario():
            limits = Limits(upload_grace_s=0.2, upload_bytes_per_s=2**30)
            transport = httpx.ASGITransport(build_api(predictor, limits))
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                files = {"views": ("a/1.png", LEFT)}
                answer = asyncio.create_task(client.post(WORKLIST_PATH, files=files, timeout=60))
                while predictor.num_running == 0:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.4)
                predictor.go.set()
                return await answer

        assert "probability" in asyncio.run(scenario()).text

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
