"""Limits of the requests in flight, each of them and all together."""

from fastapi import HTTPException, Request, status
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.health import is_probe
from app.problems import report, unavailable

MAX_REQUESTS = 1_000  # in flight; a handler runs on when its client has gone
# Bytes of all their bodies. Each counts for LARGE at most: a feature that takes longer ones writes
# them to a file. A body of at most SMALL is always read.
MAX_BODIES, LARGE, SMALL = 2**25, 2**18, 2**14


def limit_requests(app: ASGIApp) -> ASGIApp:
    """Answer 503 to all but probes while `MAX_REQUESTS` are in flight."""
    in_flight = 0

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal in_flight
        if scope["type"] != "http" or is_probe(scope):
            return await app(scope, receive, send)
        if in_flight >= MAX_REQUESTS:
            response = unavailable(Request(scope), "load", f"{in_flight} requests are in flight")
            return await response(scope, receive, send)
        in_flight += 1
        try:
            await app(scope, receive, send)
        finally:
            in_flight -= 1

    return limited


def limit_bodies(app: ASGIApp, max_body_size: int) -> ASGIApp:
    """Answer 413 to a body of more than `max_body_size` bytes.

    Answer 503 to a body of more than `SMALL` while all of them together exceed `MAX_BODIES`.
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
            if int(announced) > max_body_size:  # before the client is asked to send it
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)
            message = await receive()
            size += len(message.get("body", b""))
            if size > max_body_size:
                raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)
            of_all += min(size, LARGE) - held
            held = min(size, LARGE)
            if of_all > MAX_BODIES and size > SMALL:
                report("load", f"bodies of {of_all} bytes are in flight")
                raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE)
            return message

        try:
            await app(scope, receive_counting, send)
        finally:
            of_all -= held

    return limited
