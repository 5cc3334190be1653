"""The OpenAPI document says what is sent: each operation's errors, headers and entity tags.

No route says any of it; one that has a further error names its status: `responses={403: {}}`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from app.fields import MAX_ID
from app.operations import check_names
from app.problems import KINDS, MEDIA_TYPE, PHRASES, SAFE, UNKNOWN, Problem, make_problem

SCHEMAS = "#/components/schemas/"
HEADERS = {
    "X-Request-ID": "The request's id, which the log has too.",
    "ETag": "The entity tag of this version.",
    "Location": "Where it is.",
    "Retry-After": "Seconds. Absent where a second try could store a second row.",
}
EXAMPLES: dict[int, dict[str, Any]] = {
    409: {"name": "name", "code": "unique", "detail": "This is taken already."},
    422: {
        "in": "body",
        "pointer": "/name",
        "code": "string_too_short",
        "detail": "String should have at least 1 character",
    },
}


def add_openapi(app: FastAPI) -> None:
    """Let the document say what is sent; call this when all routes are there."""
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]
    check_names(app)
    app.openapi()  # now, and not at the first request that is compared with it


def openapi(app: FastAPI) -> dict[str, Any]:
    document = FastAPI.openapi(app)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    if "headers" in components:
        return document  # made before

    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, never sent
        schemas.pop(name, None)
    definitions = models_json_schema(
        [(Problem, "serialization")], ref_template=SCHEMAS + "{model}"
    )[1]["$defs"]
    schemas |= definitions
    names = {}
    for name, title in [(name, schema.get("title", "")) for name, schema in schemas.items()]:
        if name.endswith("_") and title.isidentifier():  # such as Page_ItemRead_
            schemas[title] = schemas.pop(name)
            names[SCHEMAS + name] = SCHEMAS + title
    repair(document, names)
    components["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()
    }
    errors: set[int] = set()
    for path in document["paths"].values():
        for method, operation in path.items():
            errors |= describe(operation, method.upper(), schemas)
    components["responses"] = {f"Problem{code}": describe_error(code) for code in sorted(errors)}
    return document


def describe(operation: dict[str, Any], method: str, schemas: dict[str, Any]) -> set[int]:
    """Add to an operation what every one of its kind answers, and return its errors."""
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
            names = ["X-Request-ID"] + ["Location"] * (code == "201")
            if is_versioned(response, schemas):
                names.append("ETag")
                if method == "GET":
                    responses["304"] = {"description": PHRASES[304], "headers": refer(*names)}
            response["headers"] = refer(*names) | response.get("headers", {})
        responses[code] = response
    return errors


def errors_of(operation: dict[str, Any], method: str) -> Iterator[int]:
    yield from (400, 422, 500, 503)  # each may have a parameter that is not known
    parameters = operation.get("parameters", ())
    if any(parameter["in"] == "path" for parameter in parameters):
        yield 404
    if method not in SAFE:
        yield 409
    if "requestBody" in operation:
        yield from (413, 415)
    for parameter in parameters:
        if parameter["name"].lower() == "if-match":
            yield 412
            if parameter["required"]:
                yield 428


def is_versioned(response: dict[str, Any], schemas: dict[str, Any]) -> bool:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    return bool(schemas.get(name, {}).get("properties", {}).get("etag", {}).get("readOnly"))


def describe_error(code: int) -> dict[str, Any]:
    errors = [EXAMPLES[code]] if code in EXAMPLES else None
    problems = [make_problem(code, kind, errors=errors) for kind in kinds_of(code)]
    examples = {}
    for problem in problems:
        problem.request_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        name = problem.type.rpartition("/")[2].replace("about:blank", "problem")
        examples[name] = {"value": problem.model_dump(by_alias=True, exclude_none=True)}
    schema = {"$ref": SCHEMAS + "Problem"}
    headers = ["X-Request-ID"] + ["Retry-After"] * (code == 503)
    return {
        "description": PHRASES.get(code, "Error"),
        "headers": refer(*headers),
        "content": {MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }


def kinds_of(code: int) -> list[Any]:
    return [KINDS[503], UNKNOWN] if code == 503 else [KINDS.get(code)]


def refer(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def repair(part: Any, names: dict[str, str]) -> None:
    """Give generic models their names, and limits of 64 bits, which have become floats, digits."""
    if isinstance(part, dict):
        if part.get("$ref") in names:
            part["$ref"] = names[part["$ref"]]
        if part.get("format") == "int64" and part.get("maximum") == float(MAX_ID):
            part["maximum"] = MAX_ID
        for child in part.values():
            repair(child, names)
    elif isinstance(part, list):
        for child in part:
            repair(child, names)
