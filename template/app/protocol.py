"""uvicorn's HTTP protocol on h11, with limits that uvicorn 0.54 has no options for.

Nothing else in the service knows uvicorn's or h11's inside.
"""

from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_SIZE = 16_384  # bytes; h11 refuses a head that is still incomplete by then
MAX_HEADERS = 100
# A chunk costs some 10 µs, however small: of a request's, so many may be smaller than that.
SMALL_CHUNKS, SMALL_CHUNK_SIZE = 1_000, 128
CLIENT_TIMEOUT = 20.0  # seconds in which a client whose turn it is sends or takes …
LEAST = 10_000  # … so many bytes, or is left
WARN_AFTER = 10.0  # seconds from one line about too many connections to the next


class Connection(h11.Connection):
    """h11's, without the leniency by which a proxy could see other requests in the same bytes."""

    paused = False
    spare = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE:
            head = self.trailing_data[0].partition(b"\r\n\r\n")[0]
            if head.count(b"\n") != head.count(b"\r\n") or b"\n " in head or b"\n\t" in head:
                raise h11.RemoteProtocolError("a bare LF, or a folded line")
        event = super().next_event()
        if event is h11.PAUSED:
            self.paused = True
        elif isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            is_1_1 = event.http_version == b"1.1"
            if b"transfer-encoding" in names and (b"content-length" in names or not is_1_1):
                raise h11.RemoteProtocolError("two lengths")
            if len(event.headers) > MAX_HEADERS or event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("too many headers, or another version")
            self.spare = SMALL_CHUNKS * SMALL_CHUNK_SIZE
        elif isinstance(event, h11.Data):
            self.spare += len(event.data) - SMALL_CHUNK_SIZE
            if self.spare < 0:
                raise h11.RemoteProtocolError("too many small chunks")
        return event


class Protocol(H11Protocol):
    """uvicorn's, with limits to connections and to the client's time, and without pipelines.

    A request that comes before the last one is answered is not served: no client needs that, while
    a request that hides in another arrives like this.
    """

    conn: Connection
    warned = -WARN_AFTER

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Connection(h11.SERVER, self.config.h11_max_incomplete_event_size or 0)
        self.since = self.loop.time()  # it waits for its client since then
        self.owed, self.moved, self.unsent = False, 0, 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        close = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, close)
        self.timer = self.loop.call_later(CLIENT_TIMEOUT, self.look)
        if self.limit_concurrency and len(self.connections) >= self.limit_concurrency:
            self.make_room()

    def make_room(self) -> None:
        """Close the connection that has waited for its client the longest."""
        known: set[Any] = self.connections - {self}  # WebSockets among them
        waiting = (other for other in known if isinstance(other, Protocol) and other.is_waiting())
        closed = min(waiting, key=lambda other: other.since, default=self)
        self.connections.discard(closed)
        closed.transport.abort()
        if self.loop.time() >= Protocol.warned + WARN_AFTER:
            Protocol.warned = self.loop.time()
            limit = self.limit_concurrency
            self.logger.warning("limit of %s connections: idle ones are closed", limit)

    def is_waiting(self) -> bool:
        """Tell whether it is the client's turn: to send the rest of a request, to take an answer."""
        sends = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.flow.read_paused
        return sends or self.transport.get_write_buffer_size() > 0

    def look(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        moved = self.moved + self.unsent - unsent
        owed = unsent > 0 or (self.is_waiting() and self.timeout_keep_alive_task is None)
        if owed and self.owed and moved < LEAST:
            return self.transport.abort()
        self.owed, self.moved, self.unsent = owed, 0, unsent
        self.timer = self.loop.call_later(CLIENT_TIMEOUT, self.look)

    def data_received(self, data: bytes) -> None:
        self.moved += len(data)
        for start in range(0, len(data), MAX_HEAD_SIZE):
            if not (self.conn.paused or self.transport.is_closing()):
                super().data_received(data[start : start + MAX_HEAD_SIZE])

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.paused and self.cycle is not None:
            self.cycle.keep_alive = False

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if event.method != b"GET":  # the WebSocket's protocol would not answer
            return self.send_400_response("a WebSocket begins with GET")
        self.timer.cancel()
        self.conn.paused = True
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun
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
        self.timer.cancel()
