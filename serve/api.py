"""The HTTP interface around one ensemble, as an ASGI application. Knows no Ray."""

from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import FastAPI, File, Form, Query, Response, UploadFile
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.decoding import Upload, is_zip
from serve.dicom_answer import answer_dicom
from serve.limits import Limits, PredictionLimits
from serve.prediction import Predictor, answer_study
from serve.problems import MEDIA_TYPE, Problem, ProblemError, install_problems
from serve.schemas import (
    CamForm,
    EnsembleAnswer,
    Health,
    MemberDescription,
    Readiness,
    StudyAnswer,
    StudyType,
)

NOTICE = "Research use only. Not a medical device: not for diagnosis, triage or treatment."
PREDICT_PATH = "/v1/studies/predict"
PREDICT_DICOM_PATH = "/v1/studies/predict.dcm"
_VIEWER = Path(__file__).parent / "viewer"

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def build_api(predictor: Predictor, limits: Limits | None = None) -> FastAPI:
    """The application.

    Args:
        predictor: the loaded ensemble; one study at a time is computed, in a thread.
        limits: what a request may cost.
    """
    limits = limits or Limits()
    MultiPartParser.spool_max_size = limits.request_bytes  # never to disk: a radiograph leaves nothing behind there
    app = FastAPI(
        title="Musculoskeletal abnormality detection",
        version="1",
        description=NOTICE,
        docs_url=None,  # FastAPI's own page loads its scripts from the internet; viewer/docs.html does not
        redoc_url=None,
    )
    install_problems(app)
    _add_prediction(app, predictor, limits)
    _add_description(app, predictor)
    _add_pages(app)
    app.add_middleware(PredictionLimits, paths=(PREDICT_PATH, PREDICT_DICOM_PATH), limits=limits)
    app.add_middleware(SecurityHeaders)
    return app


def _problems(reasons: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """The problems of an operation, status to reason, for its OpenAPI description."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status: {"description": reason, "content": content} for status, reason in reasons.items()}


def _add_prediction(app: FastAPI, predictor: Predictor, limits: Limits) -> None:
    one_at_a_time = CapacityLimiter(1)  # a forward pass uses all cores of the replica
    views_of_study = File(
        description="the study's radiographs, DICOM, PNG or JPEG, one part each, or zips of them",
        max_length=limits.views,
    )
    type_of_study = Form(description="what the study shows; without it, what its DICOM views say")
    reasons = {
        400: "the multipart body is malformed",
        413: "the request, a view or the study is larger than the server takes",
        415: "the body is not multipart/form-data",
        422: "a view cannot be read, the views are of several studies, or a field is missing or unknown",
        429: "too many studies wait; Retry-After says when to send it again",
        500: "a fault of the server",
    }

    @app.post(PREDICT_PATH, response_model=StudyAnswer, tags=["prediction"], responses=_problems(reasons))
    async def predict(
        views: Annotated[list[UploadFile], views_of_study],
        study_type: Annotated[StudyType | None, type_of_study] = None,
        cam: Annotated[
            CamForm, Query(description="class activation map of each view: none, its numbers, or laid over the view")
        ] = "none",
    ) -> Response:
        """Probability that the study shows an abnormality, and where each view suggests it."""
        uploads = [await _read(upload, limits) for upload in views]

        def answer() -> bytes:
            return answer_study(predictor, uploads, study_type, cam, limits).model_dump_json().encode()

        content = await anyio.to_thread.run_sync(answer, limiter=one_at_a_time)
        return Response(content, media_type="application/json")

    @app.post(
        PREDICT_DICOM_PATH,
        response_class=Response,
        tags=["prediction"],
        responses={200: {"description": "the objects, in a zip", "content": {"application/zip": {}}}}
        | _problems(reasons | {422: f"{reasons[422]}, or a view is not DICOM"}),
    )
    async def predict_dicom(
        views: Annotated[list[UploadFile], views_of_study],
        study_type: Annotated[StudyType | None, type_of_study] = None,
    ) -> Response:
        """The same of a DICOM study as objects for its archive: a Secondary Capture of each overlay, and a report."""
        uploads = [await _read(upload, limits) for upload in views]

        def answer() -> bytes:
            return answer_dicom(predictor, uploads, study_type, limits, NOTICE)

        content = await anyio.to_thread.run_sync(answer, limiter=one_at_a_time)
        return Response(content, media_type="application/zip")


async def _read(upload: UploadFile, limits: Limits) -> Upload:
    """The content of a part, which a zip may have more of than a view."""
    name, content = upload.filename or "unnamed", await upload.read()
    if len(content) > limits.view_bytes and not is_zip(content):
        detail = f"{name} has {len(content):,} bytes, the limit is {limits.view_bytes:,}; send it compressed"
        raise ProblemError(413, "view-too-large", "a view is too large", detail, view=name, limit=limits.view_bytes)
    return Upload(name, content)


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
