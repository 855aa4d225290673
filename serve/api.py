"""The HTTP interface around one ensemble, as an ASGI application. Knows no Ray."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.access import RequireToken, TokenFile
from serve.exchange import Exchanges, exchange_of
from serve.limits import Limits, PredictionLimits, TimeLimit
from serve.pictures import PICTURE_PATH, pictures_router
from serve.prediction import Predictor, answer_study
from serve.problems import Faults, install_problems, problem_responses
from serve.record import AuditRecord, Row, answer_row
from serve.recording import RecordedRefusals, keep_answer
from serve.schemas import (
    CamForm,
    EnsembleAnswer,
    Health,
    MemberDescription,
    Readiness,
    StudyAnswer,
    StudyType,
)
from serve.uploads import read_upload

NOTICE = "Research use only. Not a medical device: not for diagnosis, triage or treatment."
PREDICT_PATH = "/v1/studies/predict"
_VIEWER = Path(__file__).parent / "viewer"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def build_api(
    predictor: Predictor,
    limits: Limits | None = None,
    *,
    tokens: TokenFile | None = None,
    record: AuditRecord | None = None,
    named_in_front: bool = False,
) -> FastAPI:
    """The application.

    Args:
        predictor: the loaded ensemble; one study at a time is computed, in a thread.
        limits: what a request may cost.
        tokens: those that let a caller in; None: everybody may ask.
        record: where each answer is recorded before it is given; None: nowhere.
        named_in_front: a proxy in front gives each request an X-Request-ID and returns it, as Ray's does.
    """
    limits = limits or Limits()
    MultiPartParser.spool_max_size = limits.request_bytes  # never to disk: a radiograph leaves nothing behind there
    app = FastAPI(
        title="Musculoskeletal abnormality detection",
        version="1",
        description=NOTICE,
        docs_url=None,  # FastAPI's own page loads its scripts from the internet; viewer/docs.html does not
        redoc_url=None,
        # only describes the token in /openapi.json: `RequireToken` asks for it before anything else is done
        dependencies=[Depends(HTTPBearer(auto_error=False))] if tokens is not None else None,
    )
    install_problems(app)
    _add_prediction(app, predictor, limits, record)
    _add_description(app, predictor)
    app.include_router(pictures_router(limits))
    _add_pages(app)
    _add_middleware(app, limits, tokens, record, named_in_front=named_in_front)
    return app


def _add_middleware(
    app: FastAPI, limits: Limits, tokens: TokenFile | None, record: AuditRecord | None, *, named_in_front: bool
) -> None:
    """From the inside out: a stranger takes no study's place, and whatever answers is recorded, named and guarded."""
    app.add_middleware(PredictionLimits, path=PREDICT_PATH, limits=limits)
    app.add_middleware(PredictionLimits, path=PICTURE_PATH, limits=replace(limits, predictions=limits.pictures))
    app.add_middleware(Faults)
    app.add_middleware(TimeLimit, limits=limits)
    if tokens is not None:
        app.add_middleware(RequireToken, tokens=tokens)
    if record is not None:
        app.add_middleware(RecordedRefusals, record=record)
    app.add_middleware(Exchanges, named_in_front=named_in_front)
    app.add_middleware(SecurityHeaders)


def _add_prediction(app: FastAPI, predictor: Predictor, limits: Limits, record: AuditRecord | None) -> None:
    one_at_a_time = CapacityLimiter(1)  # a forward pass uses all cores of the replica

    @app.post(
        PREDICT_PATH,
        response_model=StudyAnswer,
        tags=["prediction"],
        responses=problem_responses(
            {
                400: "the multipart body is malformed",
                401: "the server asks for a token, and the request has none that is valid",
                408: "the upload took longer than a request may",
                413: "the request, a view or the study is larger than the server takes",
                415: "the body is not multipart/form-data",
                422: "a view cannot be read, or a field is missing or unknown",
                429: "too many studies wait; Retry-After says when to send it again",
                500: "a fault of the server",
                503: "no answer within the time of a request, or none that could be recorded",
            }
        ),
    )
    async def predict(
        request: Request,
        views: Annotated[
            list[UploadFile],
            File(description="the study's radiographs, PNG or JPEG, one part each", max_length=limits.views),
        ],
        study_type: Annotated[StudyType | None, Form(description="what the study shows")] = None,
        cam: Annotated[
            CamForm, Query(description="class activation map of each view: none, its numbers, or laid over the view")
        ] = "none",
    ) -> Response:
        """Probability that the study shows an abnormality, and where each view suggests it."""
        uploads = [await read_upload(upload, limits) for upload in views]

        def answer() -> tuple[bytes, Row]:
            study = answer_study(predictor, uploads, study_type, cam, limits)
            row = answer_row(exchange_of(request.scope), [upload.content for upload in uploads], study)
            return study.model_dump_json().encode(), row

        content, row = await anyio.to_thread.run_sync(answer, limiter=one_at_a_time)
        if record is not None:
            await keep_answer(record, row)
        return Response(content, media_type="application/json")


def _add_description(app: FastAPI, predictor: Predictor) -> None:
    description = predictor.description

    @app.get("/v1/ensemble", tags=["ensemble"])
    async def ensemble() -> EnsembleAnswer:
        """The ensemble that answers: its members, what it was trained on, and what it must not be used for."""
        return EnsembleAnswer(
            id=description.id,
            created=description.created,
            image_size=description.image_size,
            threshold=description.threshold,
            data_id=description.data_id,
            members=[
                MemberDescription(trial=member.trial, epoch=member.epoch, val_loss=member.val_loss)
                for member in description.members
            ],
            notice=NOTICE,
        )

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Health:
        """The process lives."""
        return Health()

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> Readiness:
        """All members are loaded and verified: before that, this application does not exist."""
        return Readiness(ensemble=description.id)


def _add_pages(app: FastAPI) -> None:
    def page(path: str, file: str) -> None:
        @app.get(path, include_in_schema=False)
        async def send() -> FileResponse:
            return FileResponse(_VIEWER / file)

    page("/", "index.html")
    page("/docs", "docs.html")
    app.mount("/viewer", StaticFiles(directory=_VIEWER))


class SecurityHeaders:
    """ASGI middleware: pages load nothing from elsewhere, and nothing of an answer is stored."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and completes the answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)
