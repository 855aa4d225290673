"""Errors of the HTTP interface as `application/problem+json` (RFC 9457), those of the framework included."""

import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette._utils import get_route_path  # the router's own, as in serve/access.py
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.exchange import exchange_of

MEDIA_TYPE = "application/problem+json"
PROTOCOL_PREFIX = "/v2/"
"""Of the paths of the Open Inference Protocol."""

_logger = logging.getLogger(__name__)


class Problem(BaseModel):
    """Why a request was not answered (RFC 9457)."""

    type: str = Field(
        default="about:blank",
        description="kind of the problem, as a URI",
        examples=["urn:mura-ray:problem:damaged-view"],
    )
    title: str = Field(description="the kind in words", examples=["a view cannot be read"])
    status: int = Field(description="the HTTP status", examples=[422])
    detail: str = Field(description="what was wrong with this request, and the remedy")
    instance: str | None = Field(
        default=None,
        description="the request, as a URI; the end of it is the X-Request-ID of the answer",
        examples=["urn:mura-ray:request:0d9a34f2-30a5-4c0e-93b6-0dc4b3a0f3d1"],
    )
    view: str | None = Field(default=None, description="file name of the view that the problem is about")
    limit: int | None = Field(default=None, description="the limit that was passed, in the unit that detail names")


class ProtocolProblem(Problem):
    """The same to a reader of the Open Inference Protocol."""

    error: str = Field(description="detail again, under the name that the protocol has for it")


def problem_type(kind: str) -> str:
    """The type of a kind of problem, as a URI."""
    return f"urn:mura-ray:problem:{kind}"


class ProblemError(HTTPException):
    """Ends a request with a problem."""

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        *,
        view: str | None = None,
        limit: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Takes the members of `Problem`; `kind` is the last part of its type."""
        super().__init__(status, detail, dict(headers or {}))
        self.problem = Problem(
            type=problem_type(kind), title=title, status=status, detail=detail, view=view, limit=limit
        )


def problem_response(error: ProblemError) -> Response:
    """The answer that says what the error says."""
    return ProblemResponse(error.problem, error.headers)


class ProblemResponse(Response):
    """A problem as an answer; which request's it is shows when it is sent."""

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code=problem.status, headers=headers)
        self._problem = problem
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the problem, and tells the layers around which it is."""
        exchange = exchange_of(scope)
        exchange.problem = self._problem.type
        content = self._problem.model_dump(exclude_none=True)
        content["instance"] = f"urn:mura-ray:request:{exchange.request_id}"
        if f"{get_route_path(scope)}/".startswith(PROTOCOL_PREFIX):
            content["error"] = self._problem.detail
        response = JSONResponse(content, self.status_code, self._headers, media_type=MEDIA_TYPE)
        await response(scope, receive, send)


class Faults:
    """ASGI middleware: a fault of the server becomes a problem.

    Starlette's own place for this is outside of all middleware, whose headers and whose record its answer would lack.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and answers if that fails."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await _fault_response(error)(scope, receive, send)


def problem_responses(reasons: dict[int, str], model: type[Problem] = Problem) -> dict[int | str, dict[str, Any]]:
    """The problems of an operation, status to reason, for its OpenAPI description."""
    content = {MEDIA_TYPE: {"schema": model.model_json_schema()}}
    return {status: {"description": reason, "content": content} for status, reason in reasons.items()}


def problem_of(error: Exception) -> Problem:
    """What an error says to the caller; a fault of the server goes to the log and says nothing of itself."""
    return error.problem if isinstance(error, ProblemError) else _fault(error)


def install_problems(app: FastAPI) -> None:
    """Makes every error that leaves `app` a problem."""
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(Exception, _on_fault)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    if isinstance(error, ProblemError):
        return problem_response(error)
    title = HTTPStatus(error.status_code).phrase
    detail = {
        404: f"nothing lies at {request.url.path}; /docs lists what does",
        405: f"{request.method} is not allowed at {request.url.path}; /docs lists what is",
    }.get(error.status_code, error.detail)
    return ProblemResponse(Problem(title=title, status=error.status_code, detail=detail), error.headers)


async def _on_invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(_describe(fault) for fault in error.errors())
    kind, title = problem_type("invalid-request"), "the request is not as the interface says"
    return ProblemResponse(Problem(type=kind, title=title, status=422, detail=detail))


def _describe(fault: dict[str, Any]) -> str:
    """One fault that FastAPI found, without the input that it quotes: that may be a radiograph."""
    where, *path = fault["loc"]
    name = ".".join(str(part) for part in path)
    if path == ["view"]:
        return "view: send one PNG or JPEG file as a multipart part named view, with a file name"
    if path[:1] == ["views"] and fault["type"] != "too_long":
        return (
            "views: send each DICOM, PNG or JPEG file of the study as one multipart part named views, with a file name"
        )
    return f"{name or where}: {fault['msg'].removeprefix('Value error, ')}"


async def _on_fault(_: Request, error: Exception) -> Response:
    return _fault_response(error)


def _fault_response(error: Exception) -> Response:
    return ProblemResponse(_fault(error))


def _fault(error: Exception) -> Problem:
    _logger.error("a request failed through a fault of the server: %s", without_messages(error))
    detail = "the server failed on this request and goes on serving; its log says why"
    return Problem(title="Internal Server Error", status=500, detail=detail)


def without_messages(error: BaseException) -> str:
    """The types and frames of an error and of those it came from: a message may quote a radiograph's header."""
    said = "".join([type(error).__qualname__, "\n", *traceback.format_tb(error.__traceback__)])
    causes = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "from ".join([said, *map(without_messages, (*causes, cause) if cause else causes)])
