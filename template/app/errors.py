"""Failures become problem details (RFC 9457): one body for every error, with no secret in it."""

import logging
from functools import partial
from http import HTTPStatus
from http.client import responses as phrases
from typing import Any

from fastapi import FastAPI, Request, status
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.utils import is_body_allowed_for_status_code
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.database import status_of
from app.observability import request_id

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
UNREADABLE = "There was an error parsing the body"  # FastAPI's, with 400, whoever failed
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


def problem(code: int, detail: str | None = None, /, **members: Any) -> JSONResponse:
    """Make the response for a failure; `detail` and further members are shown to the client."""
    body = dict[str, Any](type="about:blank", title=phrases.get(code, "Error"), status=code)
    if detail := detail or DETAILS.get(code):
        body["detail"] = detail
    body["request_id"] = request_id.get()
    headers = {"Retry-After": "1"} if code == status.HTTP_503_SERVICE_UNAVAILABLE else None
    # In this order, and without a member that would take the place of one of these.
    return JSONResponse(body | members | body, code, headers, MEDIA_TYPE)


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Say in a route's `responses` which failures it may answer with."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {code: {"description": HTTPStatus(code).phrase, "content": content} for code in codes}


def add_error_handlers(app: FastAPI) -> None:
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, http_error)
    for invalid in (RequestValidationError, WebSocketRequestValidationError):
        app.add_exception_handler(invalid, validation_error)
    # The last is the driver's, or that of whatever else took too long.
    for kind in (StatementError, StaleDataError, PoolTimeoutError, TimeoutError):
        app.add_exception_handler(kind, database_error)


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with what `problems` refers to."""
    document = FastAPI.openapi(app)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    return document


async def http_error(request: Request, error: Any) -> Response:
    if error.detail == UNREADABLE and is_the_servers(error.__cause__):
        if not isinstance(error.__cause__, OSError | MemoryError):
            raise error.__cause__
        reason = "temporary files" if isinstance(error.__cause__, OSError) else "memory"
        extra = {"reason": reason}
        logger.warning("unavailable: %s: %s", reason, error.__cause__, extra=extra)
        return problem(status.HTTP_503_SERVICE_UNAVAILABLE)
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=error.headers)
    if isinstance(error.detail, dict):
        response = problem(error.status_code, error.detail.get("detail"), **error.detail)
    else:
        said = error.detail != phrases.get(error.status_code)  # more than the title
        response = problem(error.status_code, str(error.detail) if said else None)
    response.headers.update(error.headers or {})
    if error.status_code == status.HTTP_405_METHOD_NOT_ALLOWED:
        # A route names its own methods, and not those of others at the same path.
        response.headers["Allow"] = ", ".join(
            method for method in METHODS if is_served(request, method)
        )
    return response


def is_the_servers(cause: BaseException | None) -> bool:
    """Tell whether a body could not be read by a fault of the server's: a full disk, no thread."""
    if isinstance(cause, ConnectionError | TimeoutError | RecursionError):
        return False  # the client left, is slow, or nests without end
    return isinstance(cause, OSError | MemoryError | RuntimeError)


def is_served(request: Request, method: str) -> bool:
    scope = {**request.scope, "method": method}
    if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
        return True
    return method == "HEAD" and is_served(request, "GET")


async def validation_error(request: Request, error: Any) -> JSONResponse:
    """Name the fields and never repeat a value: it may be a password, sent by mistake."""
    errors = []
    for found in error.errors()[:20]:
        place, *path = found["loc"]
        # An unknown field's name is the client's own text, and could be anything.
        name = ".".join(map(str, path))[:100].encode("utf-8", "replace").decode()
        detail = found["msg"]
        if found["type"] == "union_tag_invalid":
            detail = f"Input tag should be one of {found['ctx']['expected_tags']}"
        errors.append({"in": str(place), "name": name, "detail": detail})
    return problem(status.HTTP_422_UNPROCESSABLE_CONTENT, errors=errors)


async def database_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, StaleDataError):
        return problem(status.HTTP_409_CONFLICT)
    if isinstance(error, DBAPIError):
        code = status_of(error)
    elif isinstance(error, StatementError):  # a value that the column's type refuses
        code = 422 if isinstance(error.orig, ValueError | OverflowError) else 500
    else:
        code = status.HTTP_503_SERVICE_UNAVAILABLE
    if code == status.HTTP_500_INTERNAL_SERVER_ERROR:
        raise error
    if code == status.HTTP_503_SERVICE_UNAVAILABLE:
        if isinstance(error, TimeoutError):
            logger.warning("timed out, waiting for the database or for something else")
        else:
            logger.warning("the database is not available: %s", getattr(error, "orig", error))
    return problem(code)
