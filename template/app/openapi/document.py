"""The OpenAPI document: each operation with the errors, headers and entity tags that are sent.

No route declares them; one with a further error names its status: `responses={403: {}}`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.fields import MAX_ID
from app.openapi.requests import made_body
from app.openapi.responses import HEADERS, NUMBERS, SCHEMAS, describe_error, describe_operation
from app.problems import error_model
from app.routing import NameClashError, check_operations

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
LIMITS = {float(MAX_ID): MAX_ID, -float(2**63): -(2**63)}


def add_openapi(app: FastAPI) -> None:
    """Complete the app's document; call this when all routes are registered."""
    app.openapi = partial(openapi, app.openapi, error_model(app))  # type: ignore[method-assign]
    check_operations(app)


def openapi(make: Callable[[], dict[str, Any]], error: type[BaseModel]) -> dict[str, Any]:
    """Complete the document that `make` returns: FastAPI's, or a feature's own."""
    document = make()
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    if HEADERS.keys() <= components.get("headers", {}).keys():
        return document  # complete already

    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, never sent
        schemas.pop(name, None)
    _, made = models_json_schema([(error, "serialization")], ref_template=SCHEMAS + "{model}")
    for name, schema in made["$defs"].items():
        add_schema(schemas, name, schema)
    names = {}
    for name, title in [(name, schema.get("title", "")) for name, schema in schemas.items()]:
        if name.endswith("_") and title.isidentifier():  # such as Page_ItemRead_
            add_schema(schemas, title, schemas.pop(name))
            names[SCHEMAS + name] = SCHEMAS + title
    repair(document, names)
    components["headers"] = components.get("headers", {}) | {
        name: {"description": text, "schema": {"type": "integer" if name in NUMBERS else "string"}}
        for name, text in HEADERS.items()
    }
    errors: set[int] = set()
    for path in document["paths"].values():
        for method, operation in path.items():
            if method not in METHODS:  # what all operations of a path have in common
                continue
            if body := made_body(operation, schemas):
                body["additionalProperties"] = False  # as app/validation.py has it
            errors |= describe_operation(operation, method.upper(), schemas)
    components["responses"] = components.get("responses", {}) | {
        f"Problem{code}": describe_error(code, error) for code in sorted(errors)
    }
    return document


def add_schema(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    """Add a schema, or raise an error if a feature has another model of its name."""
    if schemas.setdefault(name, schema) != schema:
        raise NameClashError(f"two models are called {name} in the document: rename the feature's")


def repair(part: Any, names: dict[str, str]) -> None:
    """Name generic models, and restore 64-bit limits, which have become floats."""
    if isinstance(part, dict):
        for key, value in part.items():
            if isinstance(value, str) and value in names:  # a `$ref`, or of a discriminator
                part[key] = names[value]
            elif isinstance(value, float) and part.get("format") == "int64":
                part[key] = LIMITS.get(value, value)
        for child in part.values():
            repair(child, names)
    elif isinstance(part, list):
        for child in part:
            repair(child, names)
