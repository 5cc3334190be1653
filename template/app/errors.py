"""Failures become problem details (RFC 9457): one body for every error, with no secret in it."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.database import status_of
from app.observability import request_id

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
DETAILS = {
    status.HTTP_409_CONFLICT: "This conflicts with what is stored.",
    status.HTTP_422_UNPROCESSABLE_CONTENT: "The request is not valid.",
    status.HTTP_503_SERVICE_UNAVAILABLE: "Please try again in a moment.",
}


class Problem(BaseModel):
    """The body of every error."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    request_id: str
    errors: list[dict[str, str]] | None = None


def problem(code: int, detail: str | None = None, **members: Any) -> JSONResponse:
    """Make the response for a failure; `detail` and further members are shown to the client."""
    body = Problem(
        title=HTTPStatus(code).phrase,
        status=code,
        detail=detail or DETAILS.get(code),
        request_id=request_id.get(),
        **members,
    )
    headers = {"Retry-After": "1"} if code == status.HTTP_503_SERVICE_UNAVAILABLE else None
    return JSONResponse(body.model_dump(exclude_none=True), code, headers, MEDIA_TYPE)


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Say in a route's `responses` which failures it may answer with."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {code: {"description": HTTPStatus(code).phrase, "content": content} for code in codes}


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    # The last is the driver's, or that of whatever else took too long.
    for kind in (DBAPIError, StaleDataError, PoolTimeoutError, TimeoutError):
        app.add_exception_handler(kind, database_error)


async def http_error(request: Request, error: Any) -> JSONResponse:
    default = HTTPStatus(error.status_code).phrase
    response = problem(error.status_code, None if error.detail == default else error.detail)
    response.headers.update(error.headers or {})
    if error.status_code == status.HTTP_405_METHOD_NOT_ALLOWED:
        # A route names its own methods, and not those of others at the same path.
        response.headers["Allow"] = ", ".join(
            method for method in METHODS if is_served(request, method)
        )
    return response


def is_served(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


async def validation_error(request: Request, error: Any) -> JSONResponse:
    """Name the fields and never repeat a value: it may be a password, sent by mistake."""
    errors = []
    for found in error.errors()[:20]:
        place, *path = found["loc"]
        # An unknown field's name is the client's own text, and could be anything.
        name = ".".join(map(str, path))[:100].encode("utf-8", "replace").decode()
        errors.append({"in": str(place), "name": name, "detail": found["msg"]})
    return problem(status.HTTP_422_UNPROCESSABLE_CONTENT, errors=errors)


async def database_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StaleDataError):
        return problem(status.HTTP_409_CONFLICT)
    code, cause = status.HTTP_503_SERVICE_UNAVAILABLE, error
    if isinstance(error, DBAPIError):
        code, cause = status_of(error), error.orig or error
    if code == status.HTTP_500_INTERNAL_SERVER_ERROR:
        raise error
    if code == status.HTTP_503_SERVICE_UNAVAILABLE:
        logger.warning("the database is not available: %s", str(cause) or "timed out")
    return problem(code)
