"""URLs that are refused: of another host, or with a path that a proxy may read otherwise."""

import re
from collections.abc import Collection
from fnmatch import fnmatchcase

from fastapi import status
from starlette.datastructures import URL
from starlette.types import ASGIApp, Receive, Scope, Send

from app.health import is_probe
from app.problems import problem

HOST = re.compile(r"[a-z0-9._:-]+")  # a name or an address, in lower case


def check_hosts(app: ASGIApp, allowed_hosts: Collection[str]) -> ASGIApp:
    """Answer 400 to a host name that matches no pattern, except to probes, which use addresses."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not is_probe(scope):
            host = URL(scope=scope).hostname or ""
            served = any(fnmatchcase(host, allowed) for allowed in allowed_hosts)
            if not (served and HOST.fullmatch(host)):
                detail = "This host name is not served here."
                response = problem(status.HTTP_400_BAD_REQUEST, detail=detail)
                return await response(scope, receive, send)
        await app(scope, receive, send)

    return checked


def refuse_encoded_slashes(app: ASGIApp) -> ASGIApp:
    """Answer 404: the slash is decoded before routing, and a proxy may see another path."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if b"%2f" in (scope.get("raw_path") or b"").lower():
            detail = "A path must not contain an encoded slash."
            response = problem(status.HTTP_404_NOT_FOUND, detail=detail)
            return await response(scope, receive, send)
        await app(scope, receive, send)

    return checked
