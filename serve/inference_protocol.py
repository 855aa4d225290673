"""The Open Inference Protocol (version 2) for platforms that speak it: `/v2/health/*` and `/v2/models/mura`.

A study is one BYTES tensor of base64 files; the answer is the study's and the views' probabilities. Maps, warnings and
the ensemble's members are in `/v1/studies/predict` alone.
"""

import base64
import binascii
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from serve.decoding import Upload
from serve.limits import Limits
from serve.problems import ProblemError, ProtocolProblem, problem_responses
from serve.recording import RecordedAnswers

MODEL = "mura"
MODEL_PATH = f"/v2/models/{MODEL}"
INFER_PATH = f"{MODEL_PATH}/infer"


class Tensor(BaseModel):
    """A named tensor's type and shape; -1 for any number."""

    name: str
    datatype: Literal["BYTES", "FP64"]
    shape: list[int]


class InputTensor(BaseModel):
    """The study's views."""

    name: Literal["views"]
    datatype: Literal["BYTES"]
    shape: Annotated[list[int], Field(min_length=1, max_length=1, examples=[[2]])]
    data: Annotated[list[str], Field(min_length=1, description="PNG, JPEG or DICOM files, base64")]
    parameters: dict[str, Any] = {}


class OutputTensor(Tensor):
    """Numbers of the answer."""

    data: list[float]


class InferRequest(BaseModel):
    """A study."""

    id: str | None = Field(default=None, max_length=128)
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    parameters: dict[str, Any] = {}
    outputs: list[dict[str, Any]] = []


class InferAnswer(BaseModel):
    """What the ensemble says of it; `model_version` is the ensemble's id."""

    model_name: Literal["mura"] = MODEL
    model_version: str
    id: str | None = Field(description="as the request's; left out where it had none")
    outputs: list[OutputTensor]


class ModelMetadata(BaseModel):
    """The model's tensors."""

    name: str = MODEL
    versions: list[str]
    platform: str = "pytorch"
    inputs: list[Tensor] = [Tensor(name="views", datatype="BYTES", shape=[-1])]
    outputs: list[Tensor] = [
        Tensor(name="probability", datatype="FP64", shape=[1]),
        Tensor(name="view_probabilities", datatype="FP64", shape=[-1]),
    ]


class ServerMetadata(BaseModel):
    """The server."""

    name: str = "mura_ray"
    version: str = "1"
    extensions: list[str] = []


class Live(BaseModel):
    """The process lives."""

    live: bool = True


class Ready(BaseModel):
    """Studies are answered."""

    ready: bool = True


class _Parsed(Request):
    """A request whose JSON is parsed in a thread: some hundred megabytes would hold up the event loop."""

    async def json(self) -> Any:
        return await anyio.to_thread.run_sync(json.loads, await self.body())


class _ParsedRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def parsed(request: Request) -> Response:
            return await handle(_Parsed(request.scope, request.receive))

        return parsed


def protocol_router(answers: RecordedAnswers, limits: Limits) -> APIRouter:
    """The protocol's paths.

    Args:
        answers: what predicts a study.
        limits: what a request may cost.
    """
    routes = APIRouter(tags=["Open Inference Protocol"], route_class=_ParsedRoute)

    @routes.get("/v2")
    async def server() -> ServerMetadata:
        """What serves."""
        return ServerMetadata()

    @routes.get("/v2/health/live")
    async def live() -> Live:
        """The process lives."""
        return Live()

    @routes.get("/v2/health/ready")
    @routes.get(f"{MODEL_PATH}/ready")
    async def ready() -> Ready:
        """All members are loaded."""
        return Ready()

    @routes.get(MODEL_PATH)
    async def model() -> ModelMetadata:
        """The model's inputs and outputs."""
        return ModelMetadata(versions=[answers.description.id])

    @routes.post(
        INFER_PATH,
        response_model_exclude_none=True,
        responses=problem_responses(model=ProtocolProblem, reasons={
            400: "the body is no JSON",
            401: "the server asks for a token, and the request has none that is valid",
            408: "the upload took longer than a request may, or came in too slowly",
            413: "the request, a view or the study is larger than the server takes",
            415: "the body is not application/json",
            422: "a view cannot be read, or the request is not as the protocol says",
            429: "too many requests wait; Retry-After says when to send it again",
            500: "a fault of the server",
            503: "no answer within the time of a request, or none that could be recorded",
        }),
    )  # fmt: skip
    async def infer(infer: InferRequest, request: Request) -> InferAnswer:
        """Probability that a study shows an abnormality."""
        study = await answers.answer(request, await anyio.to_thread.run_sync(_uploads, infer.inputs[0], limits))
        views = [view.probability for view in study.views]
        return InferAnswer(
            model_version=study.ensemble.id,
            id=infer.id,
            outputs=[
                OutputTensor(name="probability", datatype="FP64", shape=[1], data=[study.probability]),
                OutputTensor(name="view_probabilities", datatype="FP64", shape=[len(views)], data=views),
            ],
        )

    return routes


def _uploads(views: InputTensor, limits: Limits) -> list[Upload]:
    if views.shape != [len(views.data)]:
        detail = f"views has the shape {views.shape} and {len(views.data)} elements; send one element a view"
        raise ProblemError(422, "invalid-request", "the request is not as the interface says", detail)
    if len(views.data) > limits.views:
        detail = f"{len(views.data)} views, the limit is {limits.views}; send fewer"
        raise ProblemError(413, "too-many-views", "the study is too large", detail, limit=limits.views)
    return [Upload(f"view-{place}", _decoded(content, place, limits)) for place, content in enumerate(views.data)]


def _decoded(content: str, place: int, limits: Limits) -> bytes:
    try:
        decoded = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        detail = f"view-{place} is not base64: {error}"
        raise ProblemError(422, "invalid-request", "the request is not as the interface says", detail) from error
    if len(decoded) > limits.view_bytes:
        detail = f"view-{place} has {len(decoded):,} bytes, the limit is {limits.view_bytes:,}; send it compressed"
        raise ProblemError(413, "view-too-large", "a view is too large", detail, limit=limits.view_bytes)
    return decoded
