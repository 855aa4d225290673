"""The HTTP interface around one ensemble, as an ASGI application. Knows no Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, FastAPI, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mura_ray.domain import NOTICE
from serve.access import RequireToken, TokenFile
from serve.decoding import Damaged
from serve.exchange import Exchanges
from serve.inference_protocol import INFER_PATH, protocol_router
from serve.limits import Admission, Entrance, Limits, TimeLimit
from serve.metrics import MeasuredAnswers, Metrics
from serve.model_card import EnsembleAnswer, Evaluation, model_card
from serve.pictures import PICTURE_PATH, pictures_router
from serve.prediction import Answers, Predictor
from serve.problems import Faults, ProblemError, install_problems, problem_responses
from serve.record import AuditRecord
from serve.recording import RecordedAnswers, RecordedRefusals
from serve.schemas import (
    CamForm,
    Health,
    Readiness,
    StudyAnswer,
    StudyType,
)
from serve.shadow import ShadowAnswer
from serve.uploads import DAMAGED, read_upload
from serve.worklist import WORKLIST_PATH, worklist_router

PREDICT_PATH = "/v1/studies/predict"
PREDICT_DICOM_PATH = "/v1/studies/predict.dcm"
_VIEWER = Path(__file__).parent / "viewer"

_FILE = {"type": "string", "format": "binary"}

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
    evaluations: Sequence[Evaluation] = (),
    metrics: Metrics | None = None,
    tokens: TokenFile | None = None,
    record: AuditRecord | None = None,
    named_in_front: bool = False,
) -> FastAPI:
    """The application.

    Args:
        predictor: the loaded ensemble; one batch of studies at a time is computed, in a thread.
        limits: what a request may cost.
        evaluations: of the ensemble, for its model card.
        metrics: where it counts what it does; None for nowhere.
        tokens: those that let a caller in; None: everybody may ask.
        record: where each answer is recorded before it is given; None: nowhere.
        named_in_front: a proxy in front gives each request an X-Request-ID and returns it, as Ray's does.

    Returns:
        The application; its `state.answers` takes another ensemble in the place of the predictor.
    """
    limits, metrics = limits or Limits(), metrics or Metrics()
    # Never to disk: a radiograph leaves nothing behind there.
    MultiPartParser.spool_max_size = max(limits.request_bytes, limits.worklist_bytes)
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
    app.state.answers = answers = Answers(predictor, limits, metrics, evaluations)
    recorded = RecordedAnswers(answers, record)
    _add_prediction(app, recorded, limits)
    app.include_router(worklist_router(recorded, limits, metrics))
    app.include_router(protocol_router(recorded, limits))
    _add_description(app, answers)
    app.include_router(pictures_router(limits))
    _add_pages(app)
    _add_middleware(app, limits, tokens, record, named_in_front=named_in_front)
    studies = (PREDICT_PATH, PREDICT_DICOM_PATH, INFER_PATH)
    app.add_middleware(MeasuredAnswers, predict_paths=studies, metrics=metrics)  # the last is the outermost
    return app


def _add_middleware(
    app: FastAPI, limits: Limits, tokens: TokenFile | None, record: AuditRecord | None, *, named_in_front: bool
) -> None:
    """From the inside out: a stranger takes no study's place, and whatever answers is recorded, named and guarded."""
    entrances = {
        PREDICT_PATH: Entrance("predictions", "multipart/form-data", limits.request_bytes),
        PREDICT_DICOM_PATH: Entrance("predictions", "multipart/form-data", limits.request_bytes),
        WORKLIST_PATH: Entrance("predictions", "multipart/form-data", limits.worklist_bytes),
        INFER_PATH: Entrance("predictions", "application/json", limits.request_bytes * 4 // 3),
        PICTURE_PATH: Entrance("pictures", "multipart/form-data", limits.request_bytes),
    }
    app.add_middleware(Admission, entrances=entrances, limits=limits)
    app.add_middleware(Faults)
    app.add_middleware(TimeLimit, limits=limits, longer={WORKLIST_PATH: limits.worklist_s})
    if tokens is not None:
        app.add_middleware(RequireToken, tokens=tokens)
    if record is not None:
        app.add_middleware(RecordedRefusals, record=record)
    app.add_middleware(Exchanges, named_in_front=named_in_front)
    app.add_middleware(SecurityHeaders)


def _add_prediction(app: FastAPI, answers: RecordedAnswers, limits: Limits) -> None:
    views_of_study = File(
        description="the study's radiographs, DICOM, PNG or JPEG, one part each, or zips of them",
        max_length=limits.views,
    )
    type_of_study = Form(description="what the study shows; without it, what its DICOM views say")
    reasons = {
        400: "the multipart body is malformed",
        401: "the server asks for a token, and the request has none that is valid",
        408: "the upload took longer than a request may, or came in too slowly",
        413: "the request, a view or the study is larger than the server takes",
        415: "the body is not multipart/form-data",
        422: "a view cannot be read, the views are of several studies, or a field is missing or unknown",
        429: "too many studies wait; Retry-After says when to send it again",
        500: "a fault of the server",
        503: "no answer within the time of a request, or none that could be recorded",
    }

    @app.post(PREDICT_PATH, response_model=StudyAnswer, tags=["prediction"], responses=problem_responses(reasons))
    async def predict(
        request: Request,
        views: Annotated[list[UploadFile], views_of_study],
        study_type: Annotated[StudyType | None, type_of_study] = None,
        cam: Annotated[
            CamForm, Query(description="class activation map of each view: none, its numbers, or laid over the view")
        ] = "none",
        damaged: Annotated[Damaged, DAMAGED] = "refuse",
    ) -> Response:
        """Probability that the study shows an abnormality, and where each view suggests it."""
        uploads = [await read_upload(upload, limits) for upload in views]
        answer = await answers.answer(request, uploads, study_type, cam, damaged)
        return Response(await anyio.to_thread.run_sync(answer.model_dump_json), media_type="application/json")

    @app.post(
        PREDICT_DICOM_PATH,
        response_class=Response,
        tags=["prediction"],
        responses={200: {"description": "the objects, in a zip", "content": {"application/zip": {"schema": _FILE}}}}
        | problem_responses(reasons | {422: f"{reasons[422]}, or a view is not DICOM"}),
    )
    async def predict_dicom(
        request: Request,
        views: Annotated[list[UploadFile], views_of_study],
        study_type: Annotated[StudyType | None, type_of_study] = None,
        damaged: Annotated[Damaged, DAMAGED] = "refuse",
    ) -> Response:
        """The same of a DICOM study as objects for its archive: a Secondary Capture of each overlay, and a report."""
        uploads = [await read_upload(upload, limits) for upload in views]
        content = await answers.answer_dicom(request, uploads, study_type, damaged, NOTICE)
        return Response(content, media_type="application/zip")


def _add_description(app: FastAPI, answers: Answers) -> None:
    @app.get("/v1/ensemble", tags=["ensemble"])
    async def ensemble() -> EnsembleAnswer:
        """The ensemble that answers, as a model card: what it is made of, how good it was found, what it is not for."""
        return model_card(answers.description, answers.evaluations)

    @app.get("/v1/shadow", tags=["ensemble"], responses=problem_responses({404: "no candidate is in the shadow"}))
    async def shadow() -> ShadowAnswer:
        """How a candidate compares with the ensemble that answers, in this replica."""
        if answers.shadow is None:
            detail = "no candidate predicts here; `python -m serve.rollout --shadow ENSEMBLE` starts one"
            raise ProblemError(404, "no-candidate", "no candidate", detail)
        return answers.shadow.answer()

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Health:
        """The process lives."""
        return Health()

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> Readiness:
        """All members are loaded and verified: before that, this application does not exist."""
        return Readiness(ensemble=answers.description.id)


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
