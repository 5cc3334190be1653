"""Which error becomes which problem; none contains a secret."""

from http.client import responses
from typing import Any

from fastapi import FastAPI, Request, status
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.requests import HTTPConnection
from fastapi.responses import Response
from fastapi.utils import is_body_allowed_for_status_code
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.database.errors import constraint, explain
from app.database.violations import servers_fault, violated_columns
from app.problems import FieldError, problem, unavailable
from app.redaction import reason_of
from app.validation import refuse

UNREADABLE = "There was an error parsing the body"  # FastAPI's, with 400, whoever is to blame
VIOLATED = {
    "unique": "This is already taken.",
    "foreign_key": "This refers to something that does not exist.",
    "not_null": "This may not be null.",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(HTTPException, http_error)
    for invalid in (RequestValidationError, WebSocketRequestValidationError):
        app.add_exception_handler(invalid, validation_error)
    # The last is raised by the driver, or by whatever else took too long.
    for kind in (StatementError, StaleDataError, PoolTimeoutError, TimeoutError):
        app.add_exception_handler(kind, database_error)


async def http_error(request: HTTPConnection, error: Any) -> Response:
    if error.detail == UNREADABLE and is_the_servers(error.__cause__):
        if not isinstance(error.__cause__, OSError | MemoryError):
            raise error.__cause__
        reason = "temporary files" if isinstance(error.__cause__, OSError) else "memory"
        return unavailable(request, reason, reason_of(error.__cause__))
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=error.headers)
    if isinstance(error.detail, dict):
        members = {str(name): member for name, member in error.detail.items()}
    else:
        said = error.detail != responses.get(error.status_code)  # more than the title
        members = {"detail": str(error.detail)} if said else {}
    response = problem(error.status_code, **members)
    response.headers.update(error.headers or {})
    if error.status_code == status.HTTP_405_METHOD_NOT_ALLOWED:
        # A route lists its own methods, without those of other routes at the same path.
        response.headers["Allow"] = ", ".join(
            method for method in METHODS if is_served(request, method)
        )
    return response


def is_the_servers(cause: BaseException | None) -> bool:
    """Return whether the server could not read a body by its own fault: a full disk, no thread."""
    if isinstance(cause, ConnectionError | TimeoutError | RecursionError):
        return False  # the client left, is slow, or nests too deeply
    return isinstance(cause, OSError | MemoryError | RuntimeError)


def is_served(request: HTTPConnection, method: str) -> bool:
    scope = {**request.scope, "method": method}
    if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
        return True
    return method == "HEAD" and is_served(request, "GET")


async def validation_error(request: Request, error: Any) -> Response:
    return refuse(request, error)


async def database_error(request: Request, error: Exception) -> Response:
    code, reason = diagnose(error)
    if code == status.HTTP_500_INTERNAL_SERVER_ERROR:
        raise error
    if code == status.HTTP_503_SERVICE_UNAVAILABLE:
        return unavailable(request, reason, reason_of(error))
    if isinstance(error, IntegrityError) and (columns := violated_columns(error)):
        if reason := servers_fault(columns, error):
            return unavailable(request, reason, reason_of(error))
        kind = constraint(error)
        detail = VIOLATED.get(kind, "This is refused by a constraint.")
        errors = [FieldError(name=name, code=kind, detail=detail) for name in columns]
        return problem(code, errors=errors)
    return problem(code)


def diagnose(error: Exception) -> tuple[int, str]:
    """Return the status of the response, and the reason for a 503: one of a fixed set."""
    if isinstance(error, StaleDataError):
        return 409, ""
    if isinstance(error, DBAPIError):
        return explain(error)
    if isinstance(error, StatementError):  # a value that the column's type refuses
        return (422 if isinstance(error.orig, ValueError | OverflowError) else 500), ""
    return 503, "pool full" if isinstance(error, PoolTimeoutError) else "timed out"
