"""How a WebSocket is closed where a request would get an error."""

from contextlib import suppress

from fastapi import status
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logging import request_id


def close_websockets(app: ASGIApp) -> ASGIApp:
    """Close an accepted WebSocket where a request would get an error response.

    Before it is accepted, the handshake gets that response, if the server can send one.
    """

    async def closing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return await app(scope, receive, send)

        accepted = "websocket.http.response" not in (scope.get("extensions") or {})
        closed = False

        async def send_or_close(message: Message) -> None:
            nonlocal accepted, closed
            kind = message["type"]
            if accepted and kind == "websocket.http.response.start" and not closed:
                closed = True
                # Scripts in browsers see no headers: this id leads to the log.
                reason = request_id.get()[:123]
                with suppress(OSError):  # the client has gone
                    code = close_code(message["status"])
                    await send({"type": "websocket.close", "code": code, "reason": reason})
            elif not (accepted and kind.startswith("websocket.http.response")):
                accepted = accepted or kind == "websocket.accept"
                closed = closed or kind == "websocket.close"
                await send(message)

        await app(scope, receive, send_or_close)

    return closing


def close_code(code: int) -> int:
    """Return the close code for the HTTP status `code` (RFC 6455, 7.4.1)."""
    if code == status.HTTP_503_SERVICE_UNAVAILABLE:
        return status.WS_1013_TRY_AGAIN_LATER
    return status.WS_1011_INTERNAL_ERROR if code >= 500 else status.WS_1008_POLICY_VIOLATION
