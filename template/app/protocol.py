"""uvicorn's HTTP protocol on h11, with limits that uvicorn 0.54 has no options for.

Nothing else in the service depends on uvicorn's internals.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.framing import Connection
from app.limits import LARGE, REFUSED, SMALL, watch

MAX_HEAD_SIZE = 16_384  # bytes; h11 refuses a head that is longer
CLIENT_TIMEOUT = 20.0  # seconds in which a client whose turn it is must send or read …
LEAST = 10_000  # … so many bytes, or is disconnected
WARN_AFTER = 10.0  # seconds between two warnings of evicted connections
MAX_UNFINISHED = 2**25  # bytes of all incomplete requests
MAX_UNREAD = 2**24  # bytes of all responses that their clients do not read


class Protocol(H11Protocol):
    """uvicorn's, with limits on connections and on the client's time, and without pipelining.

    A request that arrives before the last one is answered is not served: no client needs that, and
    a smuggled request arrives like this.
    """

    conn: Connection
    warned = -WARN_AFTER
    held_by_all = 0
    task: asyncio.Task[Any] | None = None
    refused = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Connection(h11.SERVER, self.config.h11_max_incomplete_event_size or 0)
        self.limit, self.limit_concurrency = self.limit_concurrency, None  # of connections alone
        self.served, self.app = self.app, self.serve
        self.since = self.loop.time()  # when it began to wait for its client
        self.owed, self.moved, self.unsent, self.held = False, 0, 0, 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        close = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, close)
        self.timer = self.loop.call_later(CLIENT_TIMEOUT, self.check_progress)
        if self.limit and len(self.connections) >= self.limit:
            evict_one(self.others_waiting() or [self], f"limit of {self.limit} connections")

    async def serve(self, *arguments: Any) -> None:
        """Run the app until it returns or the rest of its request is refused."""
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

    def others_waiting(self) -> list["Protocol"]:
        known: set[Any] = self.connections - {self}  # WebSockets among them
        return [other for other in known if isinstance(other, Protocol) and other.is_waiting()]

    def evict(self, reason: str) -> None:
        self.connections.discard(self)
        self.transport.abort()
        self.hold(0)
        if self.loop.time() >= Protocol.warned + WARN_AFTER:
            Protocol.warned = self.loop.time()
            self.logger.warning("%s: the least recently active are closed", reason)

    def hold(self, size: int) -> None:
        """Count the bytes of a request until it is complete."""
        Protocol.held_by_all += size - self.held
        self.held = size
        if size > SMALL and Protocol.held_by_all > MAX_UNFINISHED:
            large = [other for other in self.others_waiting() if other.held > SMALL]
            evict_one(large or [self], f"limit of {MAX_UNFINISHED} bytes of unfinished requests")

    def pause_writing(self) -> None:
        super().pause_writing()
        unread = [other for other in self.others_waiting() if other.flow.write_paused]
        if sum(other.transport.get_write_buffer_size() for other in [*unread, self]) > MAX_UNREAD:
            evict_one(unread, f"limit of {MAX_UNREAD} bytes of unread answers")

    def is_waiting(self) -> bool:
        """Return whether it is the client's turn: to send a request, or to read a response."""
        sends = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.flow.read_paused
        return sends or self.transport.get_write_buffer_size() > 0

    def check_progress(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        moved = self.moved + self.unsent - unsent
        owed = unsent > 0 or (self.is_waiting() and self.timeout_keep_alive_task is None)
        if owed and self.owed and moved < LEAST:
            return self.transport.abort()
        self.owed, self.moved, self.unsent = owed, 0, unsent
        self.timer = self.loop.call_later(CLIENT_TIMEOUT, self.check_progress)

    def data_received(self, data: bytes) -> None:
        self.moved += len(data)
        self.since = self.loop.time()
        self.hold(min(self.held + len(data), LARGE))
        for start in range(0, len(data), MAX_HEAD_SIZE):
            if not (self.conn.paused or self.transport.is_closing()):
                super().data_received(data[start : start + MAX_HEAD_SIZE])
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.hold(0)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.paused and self.cycle is not None:
            self.cycle.keep_alive = False

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if event.method != b"GET":  # the WebSocket protocol would not answer
            return self.send_400_response("a WebSocket begins with GET")
        self.timer.cancel()
        self.hold(0)
        self.conn.paused = True
        super().handle_websocket_upgrade(event)
        watch(self.transport, self.loop)

    def send_400_response(self, msg: str) -> None:
        self.refused = True
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.task is not None:
            self.task.cancel(REFUSED)
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # a response has begun
            return self.transport.close()
        super().send_400_response(msg)

    def resume_writing(self) -> None:
        self.owed = False
        super().resume_writing()

    def on_response_complete(self) -> None:
        self.owed, self.since = False, self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.hold(0)
        self.timer.cancel()


def evict_one(protocols: list[Protocol], reason: str) -> None:
    """Close the connection that is the least recently active."""
    if protocols:
        min(protocols, key=lambda protocol: protocol.since).evict(reason)
