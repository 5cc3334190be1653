"""Validation: requests that the OpenAPI document does not allow, and their errors."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.requests import HTTPConnection

from app.health import is_probe
from app.openapi.requests import Operation, find_operation
from app.problems import FieldError, problem

URLENCODED = "application/x-www-form-urlencoded"
FORMS = {URLENCODED, "multipart/form-data"}
PLACES = ("body", "query", "path", "header", "cookie")
MAX_VALUES = 4_000  # of a JSON body: each may cause some errors, at 3 µs each
MISSING = {"type": "missing", "msg": "Field required"}  # as pydantic says it
EXTRA = {"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}
OF_VALIDATORS = ("value_error", "assertion_error")
ACCEPT = {"POST": "Accept-Post", "PATCH": "Accept-Patch"}  # of a 415; RFC 9110, 15.5.16: Accept


async def check_request(connection: HTTPConnection) -> None:
    """Refuse what FastAPI would ignore: unknown parameters and fields, and no form where one is due.

    Refuse JSON of so many values, too, that an error for each would block the loop. A probe is
    answered whatever an orchestrator sends with it.
    """
    scope = connection.scope
    if not (scope["query_string"] or is_sent(connection)) or is_probe(scope):
        return
    if (operation := find_operation(scope)) is None:
        return
    forms = operation.media_types & FORMS
    if forms and is_sent(connection) and not accepts(operation, connection):
        headers = accepted(operation, connection)
        raise HTTPException(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, headers=headers)
    check_query(operation, connection)
    # Only what FastAPI has parsed: `json()` would consume the handler's body.
    if has_too_many(getattr(connection, "_json", None)):
        text = f"A body may have at most {MAX_VALUES} values"
        raise RequestValidationError([{"type": "too_many_values", "loc": ("body",), "msg": text}])
    check_fields(operation, connection)


def has_too_many(value: object) -> bool:
    parts = [value]
    for part in parts:  # grows while it is iterated
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if len(parts) > MAX_VALUES:
            return True
    return False


def check_query(operation: Operation, connection: HTTPConnection) -> None:
    """Refuse an unknown parameter: a misspelt filter would silently return everything."""
    errors: list[dict[str, Any]] = []
    for name, count in Counter(key for key, _ in connection.query_params.multi_items()).items():
        if name not in operation.query:
            code, text = "unknown_parameter", "This parameter is not known"
        elif count > 1 and not operation.query[name]:
            code, text = "repeated_parameter", "This parameter is given more than once"
        else:
            continue
        errors.append({"type": code, "loc": ("query", name), "msg": text})
    if errors:
        raise RequestValidationError(errors)


def check_fields(operation: Operation, connection: HTTPConnection) -> None:
    """Refuse an unknown field of a body that is made of parameters; a model refuses its own.

    Name what is missing as well: whoever forgot the member that a body is embedded in has sent its
    fields without it.
    """
    sent = getattr(connection, "_json", None) or getattr(connection, "_form", None)
    if operation.fields is None or not isinstance(sent, Mapping):
        return
    if unknown := [name for name in sent if name not in operation.fields]:
        missing = [name for name, due in operation.fields.items() if due and name not in sent]
        errors = [MISSING | {"loc": ("body", name)} for name in missing]
        errors += [EXTRA | {"loc": ("body", name)} for name in unknown]
        raise RequestValidationError(errors, body=sent)


def refuse(connection: HTTPConnection, error: Any) -> Response:
    """Answer 415, 428 or 422, and never repeat a value: it may be a password, sent by mistake."""
    errors = error.errors()
    body = getattr(error, "body", None)
    if body and any(found["loc"][:1] == ("body",) for found in errors):
        operation = find_operation(connection.scope)
        if operation and operation.media_types and not accepts(operation, connection):
            response = problem(status.HTTP_415_UNSUPPORTED_MEDIA_TYPE)
            response.headers.update(accepted(operation, connection))
            return response
    if {(found["type"], *found["loc"][1:]) for found in errors} == {("missing", "If-Match")}:
        return problem(status.HTTP_428_PRECONDITION_REQUIRED)
    found = [field_error(found, body) for found in errors[:20]]
    return problem(status.HTTP_422_UNPROCESSABLE_CONTENT, errors=found)


def is_sent(connection: HTTPConnection) -> bool:
    headers = connection.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def accepts(operation: Operation, connection: HTTPConnection) -> bool:
    sent = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = sent.startswith("application/") and sent.endswith("+json")
    return bool({sent, "application/json" if is_json else sent} & takes(operation))


def accepted(operation: Operation, connection: HTTPConnection) -> dict[str, str]:
    """Return the header of a 415 that names the right media types."""
    name = ACCEPT.get(connection.scope["method"], "Accept")
    return {name: ", ".join(sorted(takes(operation)))}


def takes(operation: Operation) -> frozenset[str]:
    # A form without files may be sent either way; one with files, as multipart only.
    return operation.media_types | (FORMS if URLENCODED in operation.media_types else set())


def field_error(found: Any, body: Any) -> FieldError:
    place, path = None, [*found["loc"]]
    if path and path[0] in PLACES:  # else of a model that a handler validates itself
        place = path.pop(0)
    detail = found["msg"]
    if found["type"] == "union_tag_invalid":  # whose message has the tag that was sent
        detail = f"Input tag should be one of {found['ctx']['expected_tags']}"
    elif found["type"] == "json_invalid" and path and isinstance(body, str):  # FastAPI's
        detail = f"{detail} at character {path.pop()}"
    elif found["type"] in OF_VALIDATORS:
        detail = detail.partition(", ")[2]  # pydantic's words, before the validator's own
        if isinstance(found.get("input"), str) and repr(found["input"]) in detail:
            detail = "This is not valid"  # Python's own, as of `int()`, repeats the text
    known = {"place": place, "code": found["type"], "detail": detail}
    if place == "body":
        return FieldError(**known, pointer=point(path, body, found["type"] == "missing"))
    return FieldError(**known, name=clean(".".join(map(str, path))) or None)


def point(path: list[Any], body: Any, missing: bool) -> str:
    """Return the JSON pointer of a field, without pydantic's own parts: the names of a union."""
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
    """Truncate the name of an unknown field, which is the client's own text."""
    return name[:100].encode("utf-8", "replace").decode()
