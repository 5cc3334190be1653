"""Which operation a request has come to, and what the OpenAPI document says of it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

# Undocumented, but it is what FastAPI builds the OpenAPI document from: a request's
# `scope["route"]` lacks the prefix with which its router is included.
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.types import Scope

from app.redaction import PlainError


class Operation(NamedTuple):
    """What an operation takes, as the OpenAPI document says it, or would if it hid nothing."""

    query: dict[str, bool]  # its parameters, and whether they may be repeated
    media_types: frozenset[str]


class NameClashError(PlainError, ValueError):
    """Two operations have one id."""


def check_names(app: FastAPI) -> None:
    """Raise an error if two operations have one id: clients call their functions by it."""
    taken: dict[str | None, str] = {}
    for route in iter_route_contexts(app.routes):
        for method in route.methods or () if getattr(route, "include_in_schema", False) else ():
            name = getattr(route, "operation_id", None) or getattr(route, "unique_id", None)
            operation = f"{method} {route.path}"
            if name and taken.setdefault(name, operation) != operation:
                remedy = "rename a function, or give one an operation_id"
                raise NameClashError(f"{taken[name]} and {operation} are both {name}: {remedy}")


def find_route(scope: Scope) -> RouteContext | None:
    """Return the route that a request has come to, with its whole path."""
    if scope.get("endpoint") is None:
        return None
    app: FastAPI = scope["app"]
    endpoint = id(scope["endpoint"])  # a router is one too, and has no hash
    known: dict[int, list[RouteContext]] = getattr(app.state, "_routes", {})
    if endpoint not in known:  # the first request, or a route that was added since
        known = {endpoint: []}
        for route in iter_route_contexts(app.routes):
            known.setdefault(id(route.endpoint), []).append(route)
        app.state._routes, app.state._operations = known, {}
    routes = known[endpoint]
    if len(routes) > 1:  # a handler of several routes, or a router that is included twice
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        routes = [route for route in routes if route.path_regex.match(path)]
    return next((route for route in routes if serves(route, scope.get("method"))), None)


def serves(route: RouteContext, method: str | None) -> bool:
    if (methods := route.methods) is None:
        return True  # a WebSocket
    return method in methods or (method == "HEAD" and "GET" in methods)


def find_operation(scope: Scope) -> Operation | None:
    """Return what a request's operation takes, if it is one of FastAPI's."""
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
            schemes = document.get("components", {}).get("securitySchemes", {})
            content = operation.get("requestBody", {}).get("content", ())
            return Operation(dict(query_parameters(operation, schemes)), frozenset(content))
    return None


def query_parameters(
    operation: dict[str, Any], schemes: dict[str, Any]
) -> Iterator[tuple[str, bool]]:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "query":
            yield parameter["name"], is_list(parameter["schema"])
    for name in {name for scheme in operation.get("security", ()) for name in scheme}:
        if schemes[name].get("in") == "query":
            yield schemes[name]["name"], False


def is_list(schema: dict[str, Any]) -> bool:
    return any(part.get("type") == "array" for part in (schema, *schema.get("anyOf", ())))
