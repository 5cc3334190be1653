"""How much the requests under way may take, each of them and all together."""

import asyncio

from fastapi import HTTPException, Request, status
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.health import is_probe
from app.problems import report, unavailable

REFUSED = "the rest of the request is not valid"  # why a handler is cancelled
MAX_REQUESTS = 1_000  # whose clients may have gone: their handlers go on
# Bytes of all their bodies. Each counts for no more than LARGE: a body that may be longer is of a
# feature that writes it to a file. One that is no longer than SMALL is always read.
MAX_BODIES, LARGE, SMALL = 2**25, 2**18, 2**14
MAX_UNREAD = 2**22  # bytes that wait for the client of one WebSocket


def watch(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
    """Close a WebSocket whose client sends pings, say, and takes no answers."""
    if transport.get_write_buffer_size() > MAX_UNREAD:
        transport.abort()
    if not transport.is_closing():
        loop.call_later(0.2, watch, transport, loop)


def limit_requests(app: ASGIApp) -> ASGIApp:
    """Answer 503 to more requests than `MAX_REQUESTS` at a time, but for probes."""
    under_way = 0

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal under_way
        if scope["type"] != "http" or is_probe(scope):
            return await app(scope, receive, send)
        if under_way >= MAX_REQUESTS:
            response = unavailable(Request(scope), "load", f"{under_way} requests are under way")
            return await response(scope, receive, send)
        under_way += 1
        try:
            await app(scope, receive, send)
        finally:
            under_way -= 1

    return limited


def limit_bodies(app: ASGIApp, max_body_size: int) -> ASGIApp:
    """Answer 413 when a request's body turns out to have more than `max_body_size` bytes.

    Answer 503 when it is large and all of them together have more than `MAX_BODIES`.
    """
    of_all = 0

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)

        nonlocal of_all
        size = held = 0

        async def receive_counting() -> Message:
            nonlocal size, held, of_all
            announced = dict(scope["headers"]).get(b"content-length", b"0")
            if int(announced) > max_body_size:  # before the client is asked for it
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)
            message = await receive()
            size += len(message.get("body", b""))
            if size > max_body_size:
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)
            of_all += min(size, LARGE) - held
            held = min(size, LARGE)
            if of_all > MAX_BODIES and size > SMALL:
                report("load", f"bodies of {of_all} bytes are under way")
                raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE)
            return message

        try:
            await app(scope, receive_counting, send)
        finally:
            of_all -= held

    return limited
