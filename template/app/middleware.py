"""Middleware, in pure ASGI: `BaseHTTPMiddleware` costs more than a route."""

import asyncio
import logging
import time
from urllib.parse import quote

from fastapi import HTTPException, Request, status
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from app.database.errors import OUTCOME_UNKNOWN
from app.error_handlers import http_error
from app.headers import complete
from app.health import is_probe
from app.logging import request_id, request_id_of
from app.problems import SAFE, problem, unavailable
from app.routing import find_route

access_logger = logging.getLogger("app.access")
error_logger = logging.getLogger("app.errors")

# OpenTelemetry's names, as in the metrics
METHOD = "http.request.method"
STATUS = "http.response.status_code"

REFUSED = "the rest of the request is not valid"  # why `app.server` cancels a handler
STARTS = {"http.response.start", "websocket.http.response.start", "websocket.accept"}


def trace_requests(app: ASGIApp) -> ASGIApp:
    """Give each request its id, log one line, and answer 500 to an unhandled error.

    Probes are not logged: an orchestrator sends them all the time. A WebSocket is logged when it
    ends.
    """

    async def traced(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await app(scope, receive, send)

        start = time.perf_counter()
        # The path as it was sent: still encoded, so that it can't break the line. No query: people
        # put secrets there.
        path = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1")
        line = {METHOD: scope.get("method", "WEBSOCKET"), "url.path": path, STATUS: 0}
        current = request_id_of(scope["headers"])
        request_id.set(current)

        async def send_with_id(message: Message) -> None:
            if message["type"] in STARTS:
                line[STATUS] = message.get("status", status.HTTP_101_SWITCHING_PROTOCOLS)
                headers = complete(message.get("headers", ()), scope)
                message["headers"] = [*headers, (b"x-request-id", current.encode())]
            elif message["type"] == "websocket.close" and not line[STATUS]:
                # the server sends 403 for a rejected handshake
                line[STATUS] = status.HTTP_403_FORBIDDEN
            try:
                await send(message)
            except (OSError, RuntimeError):
                if scope["type"] != "websocket":
                    raise
                # The client has gone, or answers no pings, so that the server has closed it.
                raise WebSocketDisconnect(1006) from None

        try:
            await app(scope, receive, send_with_id)
        except (ClientDisconnect, WebSocketDisconnect):
            pass  # how a client ends it
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, HTTPException) and not line[STATUS]:
                # raised by a feature's middleware, outside Starlette's handlers
                response = await http_error(HTTPConnection(scope), error)
                return await response(scope, receive, send_with_id)
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                # uvicorn gives up on a request that outlasts the graceful timeout, and then exits.
                if line[STATUS] or scope["type"] != "http" or error.args == (REFUSED,):
                    raise
                reason = "shutting down" if scope["method"] in SAFE else OUTCOME_UNKNOWN
                response = unavailable(Request(scope), reason, "cut short")
                return await response(scope, receive, send_with_id)
            # Starlette would answer outside all middleware, and the server would log it again.
            error_logger.exception("unhandled error")
            if line[STATUS] and scope["type"] == "http":
                raise  # too late for a response: the server closes the connection
            await problem(status.HTTP_500_INTERNAL_SERVER_ERROR)(scope, receive, send_with_id)
        finally:
            if access_logger.isEnabledFor(logging.INFO) and not is_probe(scope):
                seconds = time.perf_counter() - start
                client = (scope.get("client") or ("-",))[0]
                # The address may be the client's own text, if a proxy passes its header on.
                text = (*line.values(), round(seconds * 1000, 1), quote(client, ":%"))
                line["http.server.request.duration"] = round(seconds, 6)
                if route := find_route(scope):
                    line["http.route"] = route.path_format
                if scope.get("client"):
                    line["client.address"] = client
                access_logger.info("%s %s %s %s ms %s", *text, extra=line)

    return traced


def is_cancelled() -> bool:
    """Return whether this task was cancelled, and not one that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def answer_head(app: ASGIApp) -> ASGIApp:
    """Answer HEAD wherever GET is served: the same headers, no body (RFC 9110, 9.3.2)."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await app(scope, receive, send)

        refused = False

        async def send_head(message: Message) -> None:
            nonlocal refused
            if message["type"] != "http.response.start":
                return await asyncio.sleep(0)  # a stream without a pause would block the loop
            refused = not refused and message["status"] == status.HTTP_405_METHOD_NOT_ALLOWED
            if not refused:
                await send(message)
                # Now, since a stream may never end. The server then reports a disconnect, which
                # ends the stream.
                await send({"type": "http.response.body"})

        inner = {**scope}
        try:
            await app(inner, receive, send_head)  # a route may serve HEAD itself
            if refused:
                inner = {**scope, "method": "GET"}
                await app(inner, receive, send_head)
        finally:
            scope.update(app=inner["app"], endpoint=inner.get("endpoint"))  # for the log

    return answered
