"""Failures become problem details (RFC 9457): one body for every error, with no secret in it."""

import logging
from collections.abc import Mapping
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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.database import status_of
from app.observability import request_id

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}  # seconds
MAX_ERRORS = 20
MAX_NAME_LENGTH = 100


class Problem(BaseModel):
    """The body of every error."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    request_id: str | None = None
    errors: list[dict[str, str]] | None = None


def problem(
    code: int,
    detail: str | None = None,
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Make the response for a failure; `detail` and `errors` are shown to the client."""
    body = Problem(
        title=HTTPStatus(code).phrase,
        status=code,
        detail=detail,
        request_id=request_id.get(),
        errors=errors,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True), code, headers=headers, media_type=MEDIA_TYPE
    )


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Say in a route's `responses` which failures it may answer with."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {code: {"description": HTTPStatus(code).phrase, "content": content} for code in codes}


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(DBAPIError, database_error)
    app.add_exception_handler(StaleDataError, stale_data)
    app.add_exception_handler(PoolTimeoutError, unavailable)
    app.add_exception_handler(TimeoutError, unavailable)  # asyncpg's, and any other unhandled one


async def http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = None if error.detail == HTTPStatus(error.status_code).phrase else error.detail
    return problem(error.status_code, detail, headers=error.headers)


async def validation_error(request: Request, error: Exception) -> JSONResponse:
    """Name the fields and never echo a value: it may be a password, sent by mistake."""
    assert isinstance(error, RequestValidationError)
    errors = [
        {"in": str(place), "name": printable(path), "detail": found["msg"]}
        for found in error.errors()[:MAX_ERRORS]
        for place, *path in [found["loc"]]
    ]
    return problem(status.HTTP_422_UNPROCESSABLE_CONTENT, "The request is not valid.", errors)


def printable(path: list[str | int]) -> str:
    """Join the path to a field. Unknown names are the client's own text, and could be anything."""
    name = ".".join(map(str, path))[:MAX_NAME_LENGTH]
    return name.encode("utf-8", "replace").decode()


async def database_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DBAPIError)
    match status_of(error):
        case status.HTTP_503_SERVICE_UNAVAILABLE:
            return await unavailable(request, error)
        case status.HTTP_409_CONFLICT:
            return problem(status.HTTP_409_CONFLICT, "This conflicts with what is already stored.")
        case status.HTTP_422_UNPROCESSABLE_CONTENT:
            return problem(status.HTTP_422_UNPROCESSABLE_CONTENT, "The database refuses a value.")
        case _:
            raise error


async def stale_data(request: Request, error: Exception) -> JSONResponse:
    return problem(status.HTTP_409_CONFLICT, "Another request changed this at the same time.")


async def unavailable(request: Request, error: Exception) -> JSONResponse:
    cause = error.orig if isinstance(error, DBAPIError) else error
    logger.warning("the database is not available: %s", cause or "timed out")
    return problem(
        status.HTTP_503_SERVICE_UNAVAILABLE, "Please try again in a moment.", headers=RETRY_AFTER
    )


class ErrorMiddleware:
    """Answers 500 to what no handler knows, and logs it once.

    Starlette's own handler for `Exception` runs outside every other middleware: without the
    request id, without CORS headers, and the server logs the error a second time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        except Exception:
            if started:
                raise  # too late for an answer: the server closes the connection
            logger.exception("unhandled error")
            response = problem(status.HTTP_500_INTERNAL_SERVER_ERROR)
            await response(scope, receive, send)


class BodyLimitMiddleware:
    """Answers 413 to a body of more than `max_body_size` bytes, announced or sent in chunks."""

    def __init__(self, app: ASGIApp, max_body_size: int) -> None:
        self.app = app
        self.max_body_size = max_body_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if int(announced) > self.max_body_size:
            response = problem(status.HTTP_413_CONTENT_TOO_LARGE)
            await response(scope, receive, send)
            return

        size = 0

        async def receive_counting() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body_size:
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)
            return message

        await self.app(scope, receive_counting, send)
