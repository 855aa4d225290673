"""What is recorded when: each answer before it is given, each study refused, and strangers by number."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from time import monotonic

import anyio.to_thread
from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mura_ray.model.ensemble import EnsembleDescription
from serve.decoding import Damaged, Upload
from serve.dicom_answer import dicom_answer
from serve.exchange import STRANGER, exchange_of
from serve.prediction import Answers, study_answer
from serve.problems import Problem, ProblemError, problem_of, problem_type
from serve.record import AuditRecord, RecordError, Row, answer_row, refusal_row
from serve.schemas import CamForm, StudyAnswer

NOT_RECORDED = "not-recorded"


class RecordedAnswers:
    """Answers studies, and gives no answer that is not recorded."""

    def __init__(self, answers: Answers, record: AuditRecord | None) -> None:
        """Takes the record, or None for none."""
        self._answers = answers
        self._record = record

    @property
    def description(self) -> EnsembleDescription:
        """Of the ensemble that answers now."""
        return self._answers.description

    async def answer(
        self,
        request: Request,
        uploads: Sequence[Upload],
        study_type: str | None = None,
        cam: CamForm = "none",
        damaged: Damaged = "refuse",
    ) -> StudyAnswer:
        """Predicts one study of a request.

        Raises:
            ProblemError: see `decode_study`; or its answer cannot be recorded.
        """
        predicted = await self._answers.predict(uploads, study_type, damaged)
        answer = await self._answers.encode(lambda: study_answer(predicted, cam))
        await self._keep(request, uploads, answer)
        return answer

    async def answer_or_problem(
        self, request: Request, uploads: Sequence[Upload], cam: CamForm, damaged: Damaged
    ) -> StudyAnswer | Problem:
        """The same for one of several studies of a request, whose failure fails no other; it is recorded too."""
        try:
            return await self.answer(request, uploads, cam=cam, damaged=damaged)
        except Exception as error:
            return await self.refuse(request, error)

    async def refuse(self, request: Request, error: Exception) -> Problem:
        """What a study of several is told that got no answer through this error; it is recorded."""
        problem = problem_of(error)
        if self._record is not None and problem.type != problem_type(NOT_RECORDED):
            exchange = replace(exchange_of(request.scope), problem=problem.type)
            with suppress(RecordError):
                await anyio.to_thread.run_sync(self._record.append, refusal_row(exchange, problem.status))
        return problem

    async def answer_dicom(
        self, request: Request, uploads: Sequence[Upload], study_type: str | None, damaged: Damaged, notice: str
    ) -> bytes:
        """The same, as DICOM objects in a zip.

        Raises:
            ProblemError: as `answer`; or see `dicom_answer`.
        """
        predicted = await self._answers.predict(uploads, study_type, damaged)
        content = await self._answers.encode(lambda: dicom_answer(predicted, notice))
        await self._keep(request, uploads, study_answer(predicted, "none"))
        return content

    async def _keep(self, request: Request, uploads: Sequence[Upload], answer: StudyAnswer) -> None:
        if self._record is not None:
            contents = [upload.content for upload in uploads]
            row = await anyio.to_thread.run_sync(answer_row, exchange_of(request.scope), contents, answer)
            await keep_answer(self._record, row)


async def keep_answer(record: AuditRecord, row: Row) -> None:
    """Records an answer that is about to be given.

    Raises:
        ProblemError: it cannot be recorded, so it must not be given.
    """
    try:
        await anyio.to_thread.run_sync(record.append, row)
    except RecordError:
        detail = "the server gives no answer that it cannot record; its log says why it cannot"
        raise ProblemError(503, NOT_RECORDED, "the answer cannot be recorded", detail) from None


class RecordedRefusals:
    """ASGI middleware: records each study that is refused, and strangers' requests, these by number.

    A stranger must not fill the disk: such requests get a row a second, with the number of them since the last.
    """

    STRANGERS_EVERY_S = 1.0

    def __init__(self, app: ASGIApp, record: AuditRecord) -> None:
        self._app = app
        self._record = record
        self._strangers: Row | None = None
        self._next_strangers_s = 0.0
        self._later: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and records the answer before it is sent if it is a refusal."""

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                await self._keep(scope, message["status"])
            await send(message)

        async def until_shutdown() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._keep_strangers()
            return message

        if scope["type"] == "lifespan":
            await self._app(scope, until_shutdown, send)
        else:
            await self._app(scope, receive, recorded if scope["type"] == "http" else send)

    async def _keep(self, scope: Scope, status: int) -> None:
        exchange = exchange_of(scope)
        if (scope["method"] != "POST" and status != 401) or exchange.problem == problem_type(NOT_RECORDED):
            return
        if exchange.caller != STRANGER:
            await self._append(refusal_row(exchange, status))
            return
        num_before = self._strangers["num_requests"] if self._strangers else 0
        self._strangers = refusal_row(exchange, status, num_before + 1)
        wait_s = self._next_strangers_s - monotonic()
        if wait_s <= 0:
            await self._keep_strangers()
        elif self._later is None or self._later.done():
            self._later = asyncio.create_task(self._keep_strangers(wait_s))

    async def _keep_strangers(self, wait_s: float = 0) -> None:
        """A row for the strangers since the last one, if there were any."""
        await asyncio.sleep(wait_s)
        if self._strangers:
            self._next_strangers_s = monotonic() + self.STRANGERS_EVERY_S
            row, self._strangers = self._strangers, None
            await self._append(row)

    async def _append(self, row: Row) -> None:
        with suppress(RecordError):  # it is logged; a refusal tells nothing of a study, so it is given all the same
            await anyio.to_thread.run_sync(self._record.append, row)
