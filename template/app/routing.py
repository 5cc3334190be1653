"""Routes: which one a request matches, and the names of their operations."""

import re
from typing import Any

from fastapi import APIRouter, FastAPI

# Undocumented, but it is what FastAPI builds the OpenAPI document from: a request's
# `scope["route"]` lacks the prefix with which its router is included.
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import Match
from starlette.types import Scope

from app.redaction import PlainError


class Router(APIRouter):
    """FastAPI's router, whose routes are tried only for a path that contains their prefix.

    FastAPI tries every route of every router, at some 2 µs each: twenty features would cost every
    request 180 µs. If FastAPI no longer calls `matches`, only that is lost.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The longest part without parameters, found anywhere in the path: what includes the router,
        # or mounts the application, may put a prefix of its own before it.
        self._literal = max(re.split(r"{.*?}", self.prefix), key=len)
        self._known = 0

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if len(self.routes) != self._known:
            paths = [route.path or "" for route in iter_route_contexts(self.routes)]
            if not all(self._literal in path for path in paths):
                self._literal = ""  # a mount has no prefix
            self._known = len(self.routes)
        if self._literal not in scope["path"]:
            return Match.NONE, {}
        return super().matches(scope)


class NameClashError(PlainError, ValueError):
    """Two operations or two models have one name in the document."""


class ReadWithBodyError(PlainError, ValueError):
    """A GET takes a body, which many clients and proxies do not send (RFC 9110, 9.3.1)."""


def check_operations(app: FastAPI) -> None:
    """Raise an error if two operations share an id, or if one that reads takes a body.

    Clients name their functions after the id. FastAPI reads a list from the body unless the whole
    parameter, not one part of a union, is annotated with `Query()`.
    """
    taken: dict[str | None, str] = {}
    for route in iter_route_contexts(app.routes):
        for method in route.methods or () if getattr(route, "include_in_schema", False) else ():
            name = getattr(route, "operation_id", None) or getattr(route, "unique_id", None)
            operation = f"{method} {route.path}"
            if method == "GET" and (body := getattr(route, "body_field", None)):
                remedy = "Annotated[list[str] | None, Query()] takes a list from the query"
                raise ReadWithBodyError(f"{operation} takes {body.name} from a body: {remedy}")
            if name and taken.setdefault(name, operation) != operation:
                remedy = "rename a function, or give one an operation_id"
                raise NameClashError(f"{taken[name]} and {operation} are both {name}: {remedy}")


def find_route(scope: Scope) -> RouteContext | None:
    """Return the route that a request matches, with its full path."""
    if scope.get("endpoint") is None:
        return None
    app: FastAPI = scope["app"]
    endpoint = id(scope["endpoint"])  # a router is one too, and is not hashable
    known: dict[int, list[RouteContext]] = getattr(app.state, "_routes", {})
    if endpoint not in known:  # the first request, or a route was added since
        foreign = [other for other, routes in known.items() if not routes]  # of what is mounted
        known = {other: [] for other in (*foreign, endpoint)}
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
