"""Triage: many studies in one request, each answered when it is predicted, and at the end their order.

The order is by falling probability of abnormality: what is probably abnormal is read first (paper, discussion).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, File, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from serve.decoding import Damaged, Upload
from serve.limits import Limits
from serve.problems import Problem, ProblemError, problem_responses
from serve.recording import RecordedAnswers
from serve.schemas import CamForm, Probability, StudyAnswer
from serve.uploads import DAMAGED, read_upload

WORKLIST_PATH = "/v1/worklist"
MEDIA_TYPE = "application/x-ndjson"
AT_ONCE = 2
"""Studies of one worklist in work at a time: one is decoded while another is predicted."""


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


def worklist_router(answers: RecordedAnswers, limits: Limits) -> APIRouter:
    """The route.

    Args:
        answers: what predicts a study.
        limits: what a request may cost.
    """
    router = APIRouter(tags=["prediction"])

    @router.post(
        WORKLIST_PATH,
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "lines of JSON: one a study when it is ready, at the end the worklist",
                "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
            },
            **problem_responses({
                400: "the multipart body is malformed",
                401: "the server asks for a token, and the request has none that is valid",
                408: "the upload took longer than a request may",
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
                max_length=limits.views * limits.worklist_studies,
            ),
        ],
        cam: Annotated[CamForm, Query(description="class activation map of each view")] = "none",
        damaged: Annotated[Damaged, DAMAGED] = "refuse",
    ) -> StreamingResponse:
        """Many studies, the most probably abnormal first. A study that cannot be read fails no other."""
        studies = group_studies([await read_upload(upload, limits) for upload in views], limits)

        def answer(uploads: Sequence[Upload]) -> Awaitable[StudyAnswer | Problem]:
            return answers.answer_or_problem(request, uploads, cam, damaged)

        return StreamingResponse(worklist_lines(studies, answer), media_type=MEDIA_TYPE)

    return router


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


async def worklist_lines(
    studies: Mapping[str, Sequence[Upload]], answer: Callable[[Sequence[Upload]], Awaitable[StudyAnswer | Problem]]
) -> AsyncIterator[bytes]:
    """Lines of JSON: one a study, in the order in which they are ready, then the order by probability.

    A study that cannot be answered has a problem in its line, and the others go on.
    """
    free = asyncio.Semaphore(AT_ONCE)

    async def line_of(study: str) -> AnsweredStudy | FailedStudy:
        async with free:
            found = await answer(studies[study])
        if isinstance(found, Problem):
            return FailedStudy(study=study, problem=found)
        return AnsweredStudy(study=study, answer=found)

    tasks = [asyncio.create_task(line_of(study)) for study in studies]
    lines: list[AnsweredStudy | FailedStudy] = []
    try:
        for done in asyncio.as_completed(tasks):
            lines.append(await done)
            yield lines[-1].model_dump_json().encode() + b"\n"
    finally:
        for task in tasks:
            task.cancel()
    yield _order(lines).model_dump_json().encode() + b"\n"


def _order(lines: Sequence[AnsweredStudy | FailedStudy]) -> Worklist:
    entries = [
        WorklistEntry(
            study=line.study,
            probability=line.answer.probability,
            calibrated_probability=line.answer.calibrated_probability,
            abnormal=line.answer.abnormal,
        )
        for line in lines
        if isinstance(line, AnsweredStudy)
    ]
    return Worklist(
        worklist=sorted(entries, key=lambda entry: -entry.probability),
        failed=[line.study for line in lines if isinstance(line, FailedStudy)],
    )
