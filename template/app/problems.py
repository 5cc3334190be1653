"""What clients see of a failure: problem details (RFC 9457), one body for every error."""

import logging
from collections.abc import Mapping
from http.client import responses
from typing import Any, Literal, NamedTuple

from fastapi import FastAPI, Response, status
from fastapi.requests import HTTPConnection
from opentelemetry import metrics
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.types import Receive, Scope, Send

from app import NAME
from app.database.errors import OUTCOME_UNKNOWN
from app.logging import request_id

logger = logging.getLogger(__name__)
unavailable_answers = metrics.get_meter(NAME).create_counter(
    "app.unavailable", "{response}", "Answers with 503, by reason"
)

MEDIA_TYPE = "application/problem+json"
SAFE = ("GET", "HEAD", "OPTIONS")  # RFC 9110, 9.2.1
IDEMPOTENT = (*SAFE, "PUT", "DELETE")  # 9.2.2
PHRASES = responses | {  # RFC 9110's, where Python 3.11 and 3.13 differ
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


class Kind(NamedTuple):
    """A type of problem, for clients to branch on."""

    type: str
    title: str
    detail: str | None = None


KINDS = {
    409: Kind("/problems/conflict", "Conflict", "This conflicts with what is stored."),
    412: Kind(
        "/problems/changed", "Changed Meanwhile", "If-Match does not match the current version."
    ),
    422: Kind("/problems/invalid-request", "Invalid Request", "The request is not valid."),
    428: Kind("/problems/precondition-required", "Precondition Required", "Send If-Match."),
    503: Kind("/problems/unavailable", "Unavailable", "Please try again in a moment."),
}
UNKNOWN = Kind(
    "/problems/outcome-unknown",
    "Outcome Unknown",
    "It is unknown whether this was stored. Check before retrying.",
)


def drop_defaults(schema: dict[str, Any]) -> None:
    for member in schema["properties"].values():
        member.pop("default", None)  # null, which is omitted and never sent


class FieldError(BaseModel):
    """What is wrong with a field of the body, a parameter, or a column."""

    model_config = ConfigDict(json_schema_extra=drop_defaults)

    place: Literal["body", "query", "path", "header", "cookie"] | SkipJsonSchema[None] = Field(
        default=None, validation_alias=AliasChoices("in", "place"), serialization_alias="in"
    )
    pointer: str | SkipJsonSchema[None] = Field(
        default=None, description="JSON Pointer to the field in the body."
    )
    name: str | SkipJsonSchema[None] = Field(
        default=None, description="Name of the parameter or column."
    )
    code: str = Field(description="Stable, machine-readable code.")
    detail: str = Field(description="For people; may change.")


class Problem(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(
        extra="allow", hide_input_in_errors=True, json_schema_extra=drop_defaults
    )

    type: str = Field(description="A URI reference; `about:blank`: the status says it all.")
    title: str
    status: int
    detail: str | SkipJsonSchema[None] = None
    request_id: str
    errors: list[FieldError] | SkipJsonSchema[None] = None


def make_problem(code: int, kind: Kind | None = None, /, **members: Any) -> Problem:
    blank = Kind("about:blank", PHRASES.get(code, "Error"))
    if "type" in members:
        kind = blank  # a custom problem: the detail of another would be wrong
    kind = kind or KINDS.get(code) or blank
    given = {name: member for name, member in members.items() if member is not None}
    own = {"status": code, "request_id": request_id.get()}
    return Problem(**kind._asdict() | given | own)


def problem(code: int, kind: Kind | None = None, /, **members: Any) -> Response:
    """Make the response for a failure; `members` are shown to the client."""
    headers = {"Retry-After": "1"} if code == status.HTTP_503_SERVICE_UNAVAILABLE else {}
    return ProblemResponse(make_problem(code, kind, **members), headers)


class ProblemResponse(Response):
    """A problem, sent in the application's error format."""

    def __init__(self, problem: Problem, headers: Mapping[str, str]) -> None:
        super().__init__(None, problem.status, headers)
        self.problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        model = error_model(scope["app"])
        self.body = dump_error(self.problem, model).encode()
        self.headers.update(
            {"Content-Length": str(len(self.body)), "Content-Type": media_type(model)}
        )
        await super().__call__(scope, receive, send)


def error_model(app: FastAPI) -> type[BaseModel]:
    """Return the model of an error's body: a feature's own, or that of problem details."""
    return getattr(app.state, "error_model", Problem)


def media_type(model: type[BaseModel]) -> str:
    return MEDIA_TYPE if model is Problem else "application/json"


def dump_error(problem: Problem, model: type[BaseModel]) -> str:
    body = model.model_validate(problem, from_attributes=True)
    return body.model_dump_json(by_alias=True, exclude_none=True)


def report(reason: str, cause: str) -> None:
    """Tell operators the reason for a 503, in the log and in a metric."""
    logger.warning("unavailable: %s: %s", reason, cause, extra={"reason": reason})
    unavailable_answers.add(1, {"reason": reason})


def unavailable(request: HTTPConnection, reason: str, cause: str) -> Response:
    """Answer 503, and report why."""
    report(reason, cause)
    method = request.scope.get("method")  # a WebSocket has none
    if reason != OUTCOME_UNKNOWN or method in SAFE:
        return problem(status.HTTP_503_SERVICE_UNAVAILABLE)
    response = problem(status.HTTP_503_SERVICE_UNAVAILABLE, UNKNOWN)
    if method not in IDEMPOTENT:
        del response.headers["Retry-After"]
    return response
