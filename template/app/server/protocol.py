"""uvicorn's HTTP protocol on h11, without what is ambiguous."""

import asyncio
from typing import Any

import h11

from app.middleware import REFUSED
from app.server.eviction import MAX_UNREAD, UNFINISHED, EvictableProtocol
from app.server.framing import Connection

# Of a WebSocket: bytes that its client does not read, and parts of one message.
WEBSOCKET_UNREAD, WEBSOCKET_FRAGMENTS = 2**22, 2**14
# Without a body: a response to HEAD has none.
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Protocol(EvictableProtocol):
    """The protocol, without pipelining, and with one response to every invalid request.

    A request that arrives before the last one is answered is not served: no client needs that, and
    a smuggled request arrives like this.
    """

    transport: Any  # a PacedTransport
    task: asyncio.Task[Any] | None = None
    refused = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Connection(h11.SERVER, self.config.h11_max_incomplete_event_size or 0)
        self.served, self.app = self.app, self.serve

    async def serve(self, *arguments: Any) -> None:
        """Run the app until it returns or the rest of its request is refused."""
        # Requests that come at once would all be answered before any memory is freed.
        while self.shared.leaving > MAX_UNREAD:
            await asyncio.sleep(0)
        if self.flow.write_paused:  # the last response is unread: the next would wait behind it
            await self.flow.drain()
        if self.refused:
            return
        self.task = asyncio.current_task()
        try:
            await self.served(*arguments)
        except asyncio.CancelledError:
            if not self.refused:
                raise
        finally:
            self.task = None

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state not in UNFINISHED:  # what follows a complete request: no fault
            self.end_after_response()
        elif not (self.conn.paused or self.transport.is_closing()):
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.paused:
            self.end_after_response()

    def end_after_response(self) -> None:
        self.conn.paused = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if event.method != b"GET":  # the WebSocket protocol would not answer
            return self.send_400_response("a WebSocket begins with GET")
        self.timer.cancel()
        self.hold(0)
        self.conn.paused = True
        super().handle_websocket_upgrade(event)
        if not getattr(self.transport.protocol, "handshake_initiated", True):
            return self.send_400_response("no handshake")  # it would not answer this either
        watch(self.transport, self.loop)

    def send_400_response(self, msg: str) -> None:
        self.refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.task is not None:
            self.task.cancel(REFUSED)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no response has begun
            self.transport.write(BAD_REQUEST)
        self.transport.close()


def watch(transport: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close a WebSocket whose client sends (pings, say) but does not read, or never ends a message."""
    fragments = len(getattr(transport.protocol, "frames", ()))
    if transport.get_write_buffer_size() > WEBSOCKET_UNREAD or fragments > WEBSOCKET_FRAGMENTS:
        transport.abort()
    if not transport.is_closing():
        loop.call_later(0.2, watch, transport, loop)
