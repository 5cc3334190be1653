"""Failures become problem details (RFC 9457): one body for every error, with no secret in it."""

import logging
from functools import partial
from http import HTTPStatus
from http.client import responses as phrases
from typing import Any

from fastapi import FastAPI, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.utils import is_body_allowed_for_status_code
from opentelemetry import metrics
from pydantic import BaseModel
from sqlalchemy import Index
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.schema import ColumnCollectionConstraint
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import NAME
from app.failures import OUTCOME_UNKNOWN, explain, violated
from app.models import Base
from app.observability import request_id

logger = logging.getLogger(__name__)
unavailable_answers = metrics.get_meter(NAME).create_counter(
    "app.unavailable", "{response}", "Answers with 503, by reason"
)

MEDIA_TYPE = "application/problem+json"
ABOUT_BLANK = "about:blank"  # the status says it all
OUTCOME_UNKNOWN_TYPE = "/problems/outcome-unknown"
SAFE = ("GET", "HEAD", "OPTIONS")  # RFC 9110, 9.2.1
IDEMPOTENT = (*SAFE, "PUT", "DELETE")  # 9.2.2
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
DETAILS = {
    status.HTTP_409_CONFLICT: "This conflicts with what is stored.",
    status.HTTP_422_UNPROCESSABLE_CONTENT: "The request is not valid.",
    status.HTTP_503_SERVICE_UNAVAILABLE: "Please try again in a moment.",
}


class Problem(BaseModel):
    """The body of every error."""

    type: str = ABOUT_BLANK
    title: str
    status: int
    detail: str | None = None
    request_id: str
    errors: list[dict[str, str]] | None = None


def problem(
    code: int, detail: str | None = None, kind: str = ABOUT_BLANK, /, **members: Any
) -> JSONResponse:
    """Make the response for a failure; `detail` and further members are shown to the client."""
    body = dict[str, Any](type=kind, title=phrases.get(code, "Error"), status=code)
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
    app.add_exception_handler(RequestValidationError, validation_error)
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
        detail = found["msg"]
        if found["type"] == "union_tag_invalid":
            detail = f"Input tag should be one of {found['ctx']['expected_tags']}"
        errors.append({"in": str(place), "name": name, "detail": detail})
    return problem(status.HTTP_422_UNPROCESSABLE_CONTENT, errors=errors)


async def database_error(request: Request, error: Exception) -> JSONResponse:
    code, reason = diagnose(error)
    if code == status.HTTP_500_INTERNAL_SERVER_ERROR:
        raise error
    if code == status.HTTP_503_SERVICE_UNAVAILABLE:
        cause = str(getattr(error, "orig", None) or error).partition("\n")[0]
        return unavailable(request, reason, cause)
    if isinstance(error, IntegrityError) and (columns := violated_columns(error)):
        errors = [{"in": "body", "name": name, "detail": DETAILS[code]} for name in columns]
        return problem(code, errors=errors)
    return problem(code)


def diagnose(error: Exception) -> tuple[int, str]:
    """Return the status of the answer, and the reason of a 503 in a few fixed words."""
    if isinstance(error, StaleDataError):
        return 409, ""
    if isinstance(error, DBAPIError):
        return explain(error)
    if isinstance(error, StatementError):  # a value that the column's type refuses
        return (422 if isinstance(error.orig, ValueError | OverflowError) else 500), ""
    return 503, "pool full" if isinstance(error, PoolTimeoutError) else "timed out"


def unavailable(request: Request, reason: str, cause: str) -> JSONResponse:
    """Answer 503, and say why to those who operate the service: in the log and in a metric."""
    logger.warning("unavailable: %s: %s", reason, cause, extra={"reason": reason})
    unavailable_answers.add(1, {"reason": reason})
    if reason != OUTCOME_UNKNOWN or request.method in SAFE:
        return problem(status.HTTP_503_SERVICE_UNAVAILABLE)
    detail = "Whether this was stored is not known. Look before you send it again."
    response = problem(status.HTTP_503_SERVICE_UNAVAILABLE, detail, OUTCOME_UNKNOWN_TYPE)
    if request.method not in IDEMPOTENT:
        del response.headers["Retry-After"]
    return response


def violated_columns(error: IntegrityError) -> tuple[str, ...]:
    """Return the names of the columns whose constraint a statement has violated.

    There are none where the database does not say: SQLite names no foreign key.
    """
    columns, name = violated(error)
    if columns or name is None:
        return columns
    for table in Base.metadata.tables.values():
        for found in (*table.constraints, *table.indexes):
            if isinstance(found, ColumnCollectionConstraint | Index) and found.name == name:
                return tuple(column.name for column in found.columns)
    return ()
