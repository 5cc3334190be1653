"""How a WebSocket ends where a request would be answered by an error."""

from contextlib import suppress

from fastapi import status
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logging import request_id


def close_websockets(app: ASGIApp) -> ASGIApp:
    """Close an accepted WebSocket where a request would be answered by an error.

    Before that, the answer to the handshake is that of a request, if the server can send it.
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
                # Scripts in browsers see no headers; the log is found by this reason.
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
    """Return what a WebSocket is closed by where a request would be answered by `code`."""
    if code == status.HTTP_503_SERVICE_UNAVAILABLE:
        return status.WS_1013_TRY_AGAIN_LATER
    return status.WS_1011_INTERNAL_ERROR if code >= 500 else status.WS_1008_POLICY_VIOLATION
