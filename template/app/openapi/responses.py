"""The errors and headers of every operation, for the OpenAPI document."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from app.problems import KINDS, PHRASES, SAFE, UNKNOWN, dump_error, make_problem, media_type

SCHEMAS = "#/components/schemas/"
HEADERS = {
    "X-Request-ID": "The request's id, also found in the log.",
    "Cache-Control": "`private, no-cache` with an entity tag, else `no-store`, unless changed.",
    "ETag": "The entity tag of this version.",
    "Location": "URL of the created resource, if it has one.",
    "Retry-After": "Seconds. Absent if the outcome is unknown and a retry could duplicate the write.",
    "WWW-Authenticate": "The scheme to authenticate by.",
    "Accept-Post": "The media types that this POST takes.",
    "Accept-Patch": "The media types that this PATCH takes.",
    "Accept": "The media types that an operation of another method takes.",
}
NUMBERS = ("Retry-After",)
ALWAYS = ("X-Request-ID", "Cache-Control")
OF_ERRORS = {
    401: ("WWW-Authenticate",),
    415: ("Accept-Post", "Accept-Patch", "Accept"),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "Entity tags that the client has: if one is current, the answer is 304.",
    "schema": {"type": "string", "examples": ['"1-3f786850"']},
}
EXAMPLES: dict[int, dict[str, Any]] = {
    409: {"name": "name", "code": "unique", "detail": "This is already taken."},
    422: {
        "in": "body",
        "pointer": "/name",
        "code": "string_too_short",
        "detail": "String should have at least 1 character",
    },
}


def describe_operation(operation: dict[str, Any], method: str, schemas: dict[str, Any]) -> set[int]:
    """Add the headers and errors that every such operation has; return its errors."""
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for code in errors_of(operation, method):
        responses.setdefault(str(code), {})
    errors = set()
    for code in sorted(responses):
        response = responses.pop(code)
        if code[0] in "45" and code.isdigit() and "content" not in response:
            errors.add(int(code))
            response = {"$ref": f"#/components/responses/Problem{code}"}
        else:
            names = [*ALWAYS, *["Location"] * (code == "201")]
            if is_versioned(response, schemas):
                names.append("ETag")
                if method == "GET" and code == "200":
                    add_parameter(operation, IF_NONE_MATCH)
                    responses["304"] = {"description": PHRASES[304], "headers": refer(*names)}
            response["headers"] = refer(*names) | response.get("headers", {})
        responses[code] = response
    return errors


def errors_of(operation: dict[str, Any], method: str) -> Iterator[int]:
    yield from (400, 422, 500, 503)  # an unknown parameter may be sent to any
    parameters = operation.get("parameters", ())
    if any(parameter.get("in") == "path" for parameter in parameters):
        yield 404
    if operation.get("security"):
        yield 401
    if method not in SAFE:
        yield 409
    if "requestBody" in operation:
        yield from (413, 415)
    for parameter in parameters:
        if parameter.get("name", "").lower() == "if-match":
            yield 412
            if parameter.get("required"):
                yield 428


def add_parameter(operation: dict[str, Any], parameter: dict[str, Any]) -> None:
    parameters = operation.setdefault("parameters", [])
    if not any(other.get("name", "").lower() == parameter["name"].lower() for other in parameters):
        parameters.append(parameter)


def is_versioned(response: dict[str, Any], schemas: dict[str, Any]) -> bool:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    parts = schema.get("anyOf") or schema.get("oneOf") or [schema]
    names = [part.get("$ref", "").rpartition("/")[2] for part in parts]
    found = (schemas.get(name, {}).get("properties", {}).get("etag", {}) for name in names)
    return any(etag.get("readOnly") for etag in found)


def describe_error(code: int, model: type[BaseModel]) -> dict[str, Any]:
    errors = [EXAMPLES[code]] if code in EXAMPLES else None
    problems = [make_problem(code, kind, errors=errors) for kind in kinds_of(code)]
    examples = {}
    for problem in problems:
        problem.request_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        name = problem.type.rpartition("/")[2].replace("about:blank", "problem")
        examples[name] = {"value": json.loads(dump_error(problem, model))}
    schema = {"$ref": SCHEMAS + model.__name__}
    return {
        "description": PHRASES.get(code, "Error"),
        "headers": refer(*ALWAYS, *OF_ERRORS.get(code, ())),
        "content": {media_type(model): {"schema": schema, "examples": examples}},
    }


def kinds_of(code: int) -> list[Any]:
    return [KINDS[503], UNKNOWN] if code == 503 else [KINDS.get(code)]


def refer(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
