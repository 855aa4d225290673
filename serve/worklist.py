"""Triage: many studies in one request, each answered when it is predicted, and at the end their order.

The order is by falling probability of abnormality: what is probably abnormal is read first (paper, discussion).
"""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic, perf_counter
from typing import Annotated, NamedTuple

import anyio
import anyio.to_thread
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from fastapi import APIRouter, File, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette._utils import create_collapsing_task_group  # as in StreamingResponse: the client's leaving stays itself
from starlette.types import Send

from serve.decoding import Damaged, Upload
from serve.exchange import exchange_of
from serve.limits import Limits
from serve.metrics import Metrics
from serve.problems import Problem, ProblemError, problem_responses
from serve.recording import RecordedAnswers
from serve.schemas import CamForm, Probability, StudyAnswer
from serve.uploads import DAMAGED, read_upload

WORKLIST_PATH = "/v1/worklist"
MEDIA_TYPE = "application/x-ndjson"
AT_ONCE = 2
"""Studies of one worklist in work at a time: one is decoded while another is predicted."""

Answer = Callable[[Sequence[Upload]], Awaitable[StudyAnswer | Problem]]
Late = Callable[[], Awaitable[Problem]]


class AnsweredStudy(BaseModel):
    """A line: a study that was predicted."""

    study: str = Field(description="its name: the folder in its views' file names")
    answer: StudyAnswer


class FailedStudy(BaseModel):
    """A line: a study that was not."""

    study: str
    problem: Problem


class WorklistEntry(BaseModel):
    """A study in the order."""

    study: str
    probability: Probability
    calibrated_probability: Probability | None
    abnormal: bool


class Worklist(BaseModel):
    """The last line."""

    worklist: list[WorklistEntry] = Field(description="the answered studies, the most probably abnormal first")
    failed: list[str] = Field(description="the studies that have a problem in the place of an answer")


def worklist_router(answers: RecordedAnswers, limits: Limits, metrics: Metrics) -> APIRouter:
    """The route.

    Args:
        answers: what predicts a study.
        limits: what a request may cost.
        metrics: where each study is counted.
    """
    router = APIRouter(tags=["prediction"])
    max_files = limits.views * limits.worklist_studies

    @router.post(
        WORKLIST_PATH,
        response_class=StreamingResponse,
        form_limits={"max_files": max_files},
        responses={
            200: {
                "description": "lines of JSON: one a study when it is ready, at the end the worklist",
                "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
            },
            **problem_responses({
                400: "the multipart body is malformed, or has more files than a worklist may have",
                401: "the server asks for a token, and the request has none that is valid",
                408: "the upload took longer than a request may, or came in too slowly",
                413: "the request, a view or the worklist is larger than the server takes",
                415: "the body is not multipart/form-data",
                422: "a view belongs to no study, or a field is missing or unknown",
                429: "too many requests wait; Retry-After says when to send it again",
            }),
        },
    )  # fmt: skip
    async def worklist(
        request: Request,
        views: Annotated[
            list[UploadFile],
            File(
                description="radiographs, one part each, with the file name STUDY/VIEW",
                max_length=max_files,
            ),
        ],
        cam: Annotated[CamForm, Query(description="class activation map of each view")] = "none",
        damaged: Annotated[Damaged, DAMAGED] = "refuse",
    ) -> StreamingResponse:
        """Many studies, the most probably abnormal first. A study that cannot be read fails no other.

        Studies that are not answered in time have a problem of the type `urn:mura-ray:problem:time`.
        """
        studies = group_studies([await read_upload(upload, limits) for upload in views], limits)

        async def answer(uploads: Sequence[Upload]) -> StudyAnswer | Problem:
            begun = perf_counter()
            found = await answers.answer_or_problem(request, uploads, cam, damaged)
            if isinstance(found, Problem):
                metrics.problem(found.type, found.status)
            else:
                metrics.stage("total", perf_counter() - begun)
            return found

        async def late() -> Problem:
            problem = await answers.refuse(request, _too_late(limits))
            metrics.problem(problem.type, problem.status)
            return problem

        return WorklistResponse(studies, answer, late, exchange_of(request.scope).started + limits.worklist_work_s)

    return router


def _too_late(limits: Limits) -> ProblemError:
    detail = f"not answered {limits.worklist_work_s:g} s after the worklist was sent; send the study in another one"
    return ProblemError(503, "time", "the worklist's time is up", detail)


def group_studies(uploads: Sequence[Upload], limits: Limits) -> dict[str, list[Upload]]:
    """The views of each study, by the folder in their file names: `study-7/front.png` is a view of `study-7`.

    Raises:
        ProblemError: a view without a folder, more studies than a worklist may have, or more views than a study may.
    """
    studies: dict[str, list[Upload]] = {}
    for upload in uploads:
        study, _, _ = upload.name.rpartition("/")
        if not study:
            detail = f"{upload.name} names no study: send each view with the file name STUDY/VIEW"
            raise ProblemError(422, "no-study", "a view belongs to no study", detail, view=upload.name)
        studies.setdefault(study, []).append(upload)
    if len(studies) > (limit := limits.worklist_studies):
        detail = f"{len(studies)} studies, the limit is {limit}; send them in several worklists"
        raise ProblemError(413, "too-many-studies", "the worklist is too long", detail, limit=limit)
    for study, views in studies.items():
        if len(views) > limits.views:
            detail = f"{study} has {len(views)} views, the limit is {limits.views}; send fewer"
            raise ProblemError(413, "too-many-views", "a study is too large", detail, limit=limits.views)
    return studies


class _Line(NamedTuple):
    """A study's line, and its entry in the order, which a study that failed has not."""

    study: str
    content: bytes
    entry: WorklistEntry | None


class WorklistResponse(StreamingResponse):
    """Lines of JSON: one a study, in the order in which they are ready, then the order by probability.

    A study that cannot be answered has a problem in its line, and the others go on. While the client does not read, no
    further study is begun. The response has ended only when none is in work any more.
    """

    def __init__(self, studies: Mapping[str, Sequence[Upload]], answer: Answer, late: Late, ends_s: float) -> None:
        """Takes the studies and who answers them.

        Args:
            studies: views by name.
            answer: makes a study's answer, or the problem that is in its place.
            late: makes the problem of a study that is not answered in time.
            ends_s: when the time is up, by the clock `time.monotonic`.
        """
        super().__init__((), media_type=MEDIA_TYPE)  # the content is what `stream_response` sends
        self._studies = studies
        self._answer = answer
        self._late = late
        self._ends_s = ends_s

    async def stream_response(self, send: Send) -> None:
        """Sends all lines, the last of them before what is still in work has ended: a thread cannot be stopped."""

        async def write(content: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        waiting = deque(self._studies)
        entries: dict[str, WorklistEntry | None] = {}
        sending, ready = anyio.create_memory_object_stream[_Line](0)
        with sending, ready:
            async with create_collapsing_task_group() as work:
                for _ in range(AT_ONCE):
                    work.start_soon(self._answer_waiting, waiting, sending)
                while len(entries) < len(self._studies) and (line := await _received(ready, self._ends_s)):
                    entries[line.study] = line.entry
                    await write(line.content)
                waiting.clear()
                for study in [name for name in self._studies if name not in entries]:
                    entries[study] = None
                    await write(_line(study, await self._late()).content)
                await write(_json_line(_order(entries)), more=False)
                work.cancel_scope.cancel()

    async def _answer_waiting(self, waiting: deque[str], sending: ObjectSendStream[_Line]) -> None:
        while waiting:
            study = waiting.popleft()
            await sending.send(await anyio.to_thread.run_sync(_line, study, await self._answer(self._studies[study])))


async def _received(ready: ObjectReceiveStream[_Line], ends_s: float) -> _Line | None:
    with anyio.move_on_after(ends_s - monotonic()):
        return await ready.receive()
    return None


def _line(study: str, found: StudyAnswer | Problem) -> _Line:
    if isinstance(found, Problem):
        return _Line(study, _json_line(FailedStudy(study=study, problem=found)), None)
    entry = WorklistEntry(
        study=study,
        probability=found.probability,
        calibrated_probability=found.calibrated_probability,
        abnormal=found.abnormal,
    )
    return _Line(study, _json_line(AnsweredStudy(study=study, answer=found)), entry)


def _json_line(content: BaseModel) -> bytes:
    return content.model_dump_json().encode() + b"\n"


def _order(entries: Mapping[str, WorklistEntry | None]) -> Worklist:
    answered = [entry for entry in entries.values() if entry]
    return Worklist(
        worklist=sorted(answered, key=lambda entry: -entry.probability),
        failed=[study for study, entry in entries.items() if not entry],
    )
