"""Which operation a request has come to, and what the OpenAPI document says of it."""

from typing import Any

from fastapi import FastAPI

# Not documented, and what FastAPI makes the document from: a request's `scope["route"]` lacks the
# prefix with which its router is included.
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.types import Scope


def check_names(app: FastAPI) -> None:
    """Raise ValueError if two operations have one id: clients call their functions by it."""
    taken: dict[str | None, str] = {}
    for route in iter_route_contexts(app.routes):
        for method in route.methods or () if getattr(route, "include_in_schema", False) else ():
            name = getattr(route, "operation_id", None) or getattr(route, "unique_id", None)
            operation = f"{method} {route.path}"
            if name and taken.setdefault(name, operation) != operation:
                remedy = "rename a function, or give one an operation_id"
                raise ValueError(f"{taken[name]} and {operation} are both {name}: {remedy}")


def find_route(scope: Scope) -> RouteContext | None:
    """Return the route that a request has come to, with its whole path."""
    if scope.get("endpoint") is None:
        return None
    app: FastAPI = scope["app"]
    endpoint = id(scope["endpoint"])  # a router is one too, and has no hash
    known: dict[int, list[RouteContext]] = getattr(app.state, "routes", {})
    if endpoint not in known:  # the first request, or a route that was added since
        known = {endpoint: []}
        for route in iter_route_contexts(app.routes):
            known.setdefault(id(route.endpoint), []).append(route)
        app.state.routes = known
    routes = known[endpoint]
    if len(routes) > 1:  # a handler of several routes, or a router that is included twice
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        routes = [route for route in routes if route.path_regex.match(path)]
    return next((route for route in routes if serves(route, scope.get("method"))), None)


def serves(route: RouteContext, method: str | None) -> bool:
    if (methods := route.methods) is None:
        return True  # a WebSocket
    return method in methods or (method == "HEAD" and "GET" in methods)


def find_operation(scope: Scope) -> dict[str, Any] | None:
    """Return what the document says of a request's operation, if it is in there."""
    if (route := find_route(scope)) is None:
        return None
    operations: dict[str, Any] = scope["app"].openapi()["paths"].get(route.path_format, {})
    operation: dict[str, Any] | None = operations.get(scope["method"].lower())
    return operation
