"""What surrounds every request: pure ASGI, since `BaseHTTPMiddleware` costs more than a route."""

import asyncio
import logging
import time
from collections.abc import Collection
from fnmatch import fnmatchcase

from fastapi import HTTPException, Request, status
from starlette.datastructures import URL
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.database_errors import OUTCOME_UNKNOWN
from app.observability import identify, is_below, request_id
from app.problems import problem, unavailable

access_logger = logging.getLogger("app.access")
error_logger = logging.getLogger("app.errors")


def trace_requests(app: ASGIApp, silent: str) -> ASGIApp:
    """Give each request its id, log one line, and answer 500 to an error that nobody handled.

    Paths below `silent` are not logged: an orchestrator asks for them all the time.
    """

    async def traced(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)

        start = time.perf_counter()
        # The path as it was sent: still encoded, so that it can't break the line. No query: people
        # put secrets there.
        line = {"method": scope["method"], "path": scope["raw_path"].decode("latin-1"), "status": 0}
        current = identify(scope["headers"])
        request_id.set(current)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
                header = (b"x-request-id", current.encode())
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # uvicorn gives up on a request that outlasts the graceful timeout, and then exits.
            if line["status"]:
                raise
            response = unavailable(Request(scope), OUTCOME_UNKNOWN, "cut short by the shutdown")
            await response(scope, receive, send_with_id)
        except Exception:
            # Starlette would answer outside of every middleware, and the server log it once more.
            error_logger.exception("unhandled error")
            if line["status"]:
                raise  # too late for an answer: the server cuts the connection
            await problem(status.HTTP_500_INTERNAL_SERVER_ERROR)(scope, receive, send_with_id)
        finally:
            if not is_below(silent, scope):
                line["milliseconds"] = round((time.perf_counter() - start) * 1000, 1)
                access_logger.info("%s %s %s %s ms", *line.values(), extra=line)

    return traced


def limit_bodies(app: ASGIApp, max_body_size: int) -> ASGIApp:
    """Answer 413 when a request's body turns out to have more than `max_body_size` bytes."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)

        size = 0

        async def receive_counting() -> Message:
            nonlocal size
            announced = dict(scope["headers"]).get(b"content-length", b"0")
            if int(announced) > max_body_size:  # before the client is asked for it
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)
            message = await receive()
            size += len(message.get("body", b""))
            if size > max_body_size:
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)
            return message

        await app(scope, receive_counting, send)

    return limited


def check_hosts(app: ASGIApp, allowed_hosts: Collection[str], exempt: str) -> ASGIApp:
    """Answer 400 to a host name that matches no pattern; probes, below `exempt`, use addresses."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not is_below(exempt, scope):
            host = URL(scope=scope).hostname or ""
            if not any(fnmatchcase(host, allowed) for allowed in allowed_hosts):
                response = problem(
                    status.HTTP_400_BAD_REQUEST, "This host name is not served here."
                )
                return await response(scope, receive, send)
        await app(scope, receive, send)

    return checked
