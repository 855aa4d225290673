"""Errors of the HTTP interface as `application/problem+json` (RFC 9457), those of the framework included."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

MEDIA_TYPE = "application/problem+json"

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
    view: str | None = Field(default=None, description="file name of the view that the problem is about")
    limit: int | None = Field(default=None, description="the limit that was passed, in the unit that detail names")


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
            type=f"urn:mura-ray:problem:{kind}", title=title, status=status, detail=detail, view=view, limit=limit
        )


def problem_response(error: ProblemError) -> Response:
    """The answer that says what the error says."""
    return _response(error.problem, error.headers)


def install_problems(app: FastAPI) -> None:
    """Makes every error that leaves `app` a problem."""
    app.add_exception_handler(StarletteHTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(Exception, _on_fault)


def _response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    content = problem.model_dump(exclude_none=True)
    return JSONResponse(content, problem.status, headers, media_type=MEDIA_TYPE)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    if isinstance(error, ProblemError):
        return problem_response(error)
    title = HTTPStatus(error.status_code).phrase
    detail = {
        404: f"nothing lies at {request.url.path}; /docs lists what does",
        405: f"{request.method} is not allowed at {request.url.path}; /docs lists what is",
    }.get(error.status_code, error.detail)
    return _response(Problem(title=title, status=error.status_code, detail=detail), error.headers)


async def _on_invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(_describe(fault) for fault in error.errors())
    kind, title = "urn:mura-ray:problem:invalid-request", "the request is not as the interface says"
    return _response(Problem(type=kind, title=title, status=422, detail=detail))


def _describe(fault: dict[str, Any]) -> str:
    """One fault that FastAPI found, without the input that it quotes: that may be a radiograph."""
    where, *path = fault["loc"]
    name = ".".join(str(part) for part in path)
    if path[:1] == ["views"] and fault["type"] != "too_long":
        return (
            "views: send each DICOM, PNG or JPEG file of the study as one multipart part named views, with a file name"
        )
    return f"{name or where}: {fault['msg'].removeprefix('Value error, ')}"


async def _on_fault(_: Request, error: Exception) -> Response:
    _logger.error("a request failed through a fault of the server", exc_info=error)
    detail = "the server failed on this request and goes on serving; its log says why"
    return _response(Problem(title="Internal Server Error", status=500, detail=detail))
