"""What the OpenAPI document says of the operation that a request matches."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from fastapi.openapi.utils import get_openapi
from fastapi.routing import RouteContext  # undocumented: see app/routing.py
from starlette.types import Scope

from app.routing import find_route


class Operation(NamedTuple):
    """What an operation accepts, as the OpenAPI document has it, or would if it were not hidden."""

    query: dict[str, bool]  # its parameters, and whether they may be repeated
    media_types: frozenset[str]
    # Of a body that is made of parameters: its fields, and whether they must be sent.
    fields: dict[str, bool] | None


def find_operation(scope: Scope) -> Operation | None:
    """Return the operation that a request matches, if it is one of FastAPI's."""
    if scope["type"] != "http" or (route := find_route(scope)) is None:
        return None
    known: dict[tuple[str | None, str], Operation | None] = scope["app"].state._operations
    key = route.path_format, scope["method"]
    if key not in known:
        known[key] = read_operation(route, scope["method"])
    return known[key]


def read_operation(route: RouteContext, method: str) -> Operation | None:
    shown = replace(route)
    vars(shown)["include_in_schema"] = True  # a hidden operation is checked like any other
    document = get_openapi(title="", version="", routes=[shown])
    for operation in (path.get(method.lower()) for path in document["paths"].values()):
        if operation is not None:
            components = document.get("components", {})
            query = query_parameters(operation, components.get("securitySchemes", {}))
            content = operation.get("requestBody", {}).get("content", ())
            body = made_body(operation, components.get("schemas", {}))
            required = body.get("required", ())
            fields = {name: name in required for name in body["properties"]} if body else None
            return Operation(dict(query), frozenset(content), fields)
    return None


def query_parameters(
    operation: dict[str, Any], schemes: dict[str, Any]
) -> Iterator[tuple[str, bool]]:
    for parameter in operation.get("parameters", ()):
        if parameter.get("in") == "query":
            yield parameter["name"], is_list(parameter.get("schema", {}))
    for name in {name for scheme in operation.get("security", ()) for name in scheme}:
        if schemes[name].get("in") == "query":
            yield schemes[name]["name"], False


def made_body(operation: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema, if any, that FastAPI makes of a handler's parameters, or of an embedded one.

    It leaves open what becomes of other fields, and FastAPI ignores them.
    """
    for media_type in operation.get("requestBody", {}).get("content", {}).values():
        name = media_type.get("schema", {}).get("$ref", "").rpartition("/")[2]
        schema: dict[str, Any] = schemas.get(name, {})
        is_open = "properties" in schema and "additionalProperties" not in schema
        if name.startswith("Body_") and is_open:
            return schema
    return {}


def is_list(schema: dict[str, Any]) -> bool:
    return any(part.get("type") == "array" for part in (schema, *schema.get("anyOf", ())))
