"""Requests that the OpenAPI document does not allow, and what a client is told of them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.requests import HTTPConnection
from starlette.datastructures import FormData

from app.operations import find_operation
from app.problems import FieldError, problem

FORMS = {"application/x-www-form-urlencoded", "multipart/form-data"}
ACCEPT = {"POST": "Accept-Post", "PATCH": "Accept-Patch"}  # of a 415; RFC 9110, 15.5.16: Accept


async def check_query(connection: HTTPConnection) -> None:
    """Refuse a parameter that the operation does not have: a misspelt filter returns everything."""
    scope = connection.scope
    if not scope["query_string"] or scope["type"] != "http":
        return
    if (operation := find_operation(scope)) is None:
        return
    lists = {name: is_list(schema) for name, schema in query_parameters(operation, scope["app"])}
    errors: list[dict[str, Any]] = []
    for name, count in Counter(key for key, _ in connection.query_params.multi_items()).items():
        if name not in lists:
            code, text = "unknown_parameter", "This parameter is not known"
        elif count > 1 and not lists[name]:
            code, text = "repeated_parameter", "This parameter is given more than once"
        else:
            continue
        errors.append({"type": code, "loc": ("query", name), "msg": text})
    if errors:
        raise RequestValidationError(errors)


def query_parameters(operation: dict[str, Any], app: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "query":
            yield parameter["name"], parameter["schema"]
    schemes = app.openapi()["components"].get("securitySchemes", {})
    for name in {name for scheme in operation.get("security", ()) for name in scheme}:
        if schemes[name].get("in") == "query":
            yield schemes[name]["name"], {}


def is_list(schema: dict[str, Any]) -> bool:
    return any(part.get("type") == "array" for part in (schema, *schema.get("anyOf", ())))


def refuse(connection: HTTPConnection, error: Any) -> Response:
    """Answer 415, 428 or 422, and never repeat a value: it may be a password, sent by mistake."""
    errors = error.errors()
    body = getattr(error, "body", None)
    if is_sent(connection, body) and any(found["loc"][0] == "body" for found in errors):
        operation = find_operation(connection.scope) or {}
        accepted = set(operation.get("requestBody", {}).get("content", ()))
        if accepted and not accepted & media_types(connection):
            response = problem(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE)
            name = ACCEPT.get(connection.scope["method"], "Accept")
            response.headers[name] = ", ".join(sorted(accepted))
            return response
    if all(found["type"] == "missing" and found["loc"][1:] == ("If-Match",) for found in errors):
        return problem(status.HTTP_428_PRECONDITION_REQUIRED)
    found = [field_error(found, body) for found in errors[:20]]
    return problem(status.HTTP_422_UNPROCESSABLE_CONTENT, errors=found)


def is_sent(connection: HTTPConnection, body: Any) -> bool:
    # Where a form is expected, anything else is read as an empty one.
    return bool(body) or (isinstance(body, FormData) and "content-type" in connection.headers)


def media_types(connection: HTTPConnection) -> set[str]:
    """Return the body's media type, and others that are read in the same way."""
    sent = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent.startswith("application/") and sent.endswith("+json"):
        return {sent, "application/json"}
    return FORMS if sent in FORMS else {sent}


def field_error(found: Any, body: Any) -> FieldError:
    place, *path = found["loc"]
    detail = found["msg"]
    if found["type"] == "union_tag_invalid":  # whose message has the tag that was sent
        detail = f"Input tag should be one of {found['ctx']['expected_tags']}"
    elif found["type"] == "json_invalid":
        detail = f"{detail} at character {path.pop()}"
    elif found["type"] == "value_error":
        detail = detail.removeprefix("Value error, ")  # pydantic's, before a validator's own words
    known = {"place": place, "code": found["type"], "detail": detail}
    if place == "body":
        return FieldError(**known, pointer=point(path, body, found["type"] == "missing"))
    return FieldError(**known, name=clean(".".join(map(str, path))))


def point(path: list[Any], body: Any, missing: bool) -> str:
    """Return the JSON pointer of a field, without what is pydantic's own: the names of a union."""
    pointer = ""
    for number, part in enumerate(path, 1):
        parts = range(len(body)) if isinstance(body, list) else body
        if isinstance(body, Mapping | list) and part in parts:
            body = body[part]
        elif not (missing and number == len(path)):
            continue
        pointer += "/" + str(part).replace("~", "~0").replace("/", "~1")
    return clean(pointer)


def clean(name: str) -> str:
    """Cut the name of an unknown field, which is the client's own text and could be anything."""
    return name[:100].encode("utf-8", "replace").decode()
