"""What clients see of a failure: problem details (RFC 9457), one body for every error."""

import logging
from http import HTTPStatus
from http.client import responses as phrases
from typing import Any

from fastapi import FastAPI, status
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse
from opentelemetry import metrics
from pydantic import BaseModel
from sqlalchemy import Index
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import ColumnCollectionConstraint

from app import NAME
from app.database import Base
from app.database.errors import OUTCOME_UNKNOWN, violated
from app.logging import request_id

logger = logging.getLogger(__name__)
unavailable_answers = metrics.get_meter(NAME).create_counter(
    "app.unavailable", "{response}", "Answers with 503, by reason"
)

MEDIA_TYPE = "application/problem+json"
ABOUT_BLANK = "about:blank"  # the status says it all
OUTCOME_UNKNOWN_TYPE = "/problems/outcome-unknown"
SAFE = ("GET", "HEAD", "OPTIONS")  # RFC 9110, 9.2.1
IDEMPOTENT = (*SAFE, "PUT", "DELETE")  # 9.2.2
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


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with what `problems` refers to."""
    document = FastAPI.openapi(app)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    return document


def unavailable(request: HTTPConnection, reason: str, cause: str) -> JSONResponse:
    """Answer 503, and say why to those who operate the service: in the log and in a metric."""
    logger.warning("unavailable: %s: %s", reason, cause, extra={"reason": reason})
    unavailable_answers.add(1, {"reason": reason})
    method = request.scope.get("method")  # a WebSocket has none
    if reason != OUTCOME_UNKNOWN or method in SAFE:
        return problem(status.HTTP_503_SERVICE_UNAVAILABLE)
    detail = "Whether this was stored is not known. Look before you send it again."
    response = problem(status.HTTP_503_SERVICE_UNAVAILABLE, detail, OUTCOME_UNKNOWN_TYPE)
    if method not in IDEMPOTENT:
        del response.headers["Retry-After"]
    return response


def violated_columns(error: IntegrityError) -> tuple[str, ...]:
    """Return the names of the columns whose constraint a statement has violated.

    There are none where the database does not say which constraint it was.
    """
    columns, name = violated(error)
    if columns or name is None:
        return columns
    for table in Base.metadata.tables.values():
        for found in (*table.constraints, *table.indexes):
            if isinstance(found, ColumnCollectionConstraint | Index) and is_named(found, name):
                return tuple(column.name for column in found.columns)
    return ()


def is_named(found: ColumnCollectionConstraint | Index, name: str) -> bool:
    # SQLAlchemy cuts a longer name off, and adds a hash: 55 characters, `_` and 4 more.
    return found.name == name or (len(name) == 60 and str(found.name)[:55] == name[:55])
