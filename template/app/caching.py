"""Caching: `Cache-Control`, and 304 for a client that has the current representation."""

import asyncio

from fastapi import status
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Headers of the body that a 304 does not send; the others stay (RFC 9110, 15.4.5).
OF_THE_BODY = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "last-modified",
)


def answer_not_modified(app: ASGIApp) -> ASGIApp:
    """Answer 304 where `If-None-Match` names the current entity tag (RFC 9110, 13.1.2).

    What has a tag may be stored but is revalidated, unless the handler says otherwise.
    """

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)

        unmodified = False

        async def send_checked(message: Message) -> None:
            nonlocal unmodified
            if message["type"] != "http.response.start":
                # A stream without a pause would block the loop.
                return await (asyncio.sleep(0) if unmodified else send(message))
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            tag = headers.get("etag")
            if tag is not None:
                headers.setdefault("cache-control", "private, no-cache")
            unmodified = (
                tag is not None
                and scope["method"] in ("GET", "HEAD")
                and message["status"] == status.HTTP_200_OK
                and weakly_matches(tag, Headers(scope=scope).getlist("if-none-match"))
            )
            if not unmodified:
                return await send({**message, "headers": headers.raw})
            for name in OF_THE_BODY:
                del headers[name]
            start = {"status": status.HTTP_304_NOT_MODIFIED, "headers": headers.raw}
            await send({**message, **start})
            await send({"type": "http.response.body"})

        await app(scope, receive, send_checked)

    return answered


def weakly_matches(tag: str, if_none_match: list[str]) -> bool:
    """Compare weakly: the same representation, if not the same bytes."""
    named = {part.strip().removeprefix("W/") for part in ",".join(if_none_match).split(",")}
    return "*" in named or tag.removeprefix("W/") in named
