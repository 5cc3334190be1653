"""Eviction of connections: too many of them, too much memory, stalled clients.

Only this file and `protocol.py` depend on uvicorn's internals (0.54).
"""

from types import SimpleNamespace
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.limits import LARGE, SMALL
from app.server.framing import Connection
from app.server.pacing import PacedTransport

CLIENT_TIMEOUT = 20.0  # seconds in which a client whose turn it is must send or read …
LEAST = 10_000  # … so many bytes, or is disconnected
WARN_AFTER = 10.0  # seconds between two warnings of evicted connections
MAX_UNFINISHED = 2**25  # bytes of all incomplete requests
MAX_UNREAD = 2**24  # bytes of all responses that their clients do not read
UNFINISHED = (h11.IDLE, h11.SEND_BODY)  # states of a client that may send more of its request


class EvictableProtocol(H11Protocol):
    """uvicorn's protocol, with limits on connections, on their memory, and on the client's time."""

    conn: Connection
    # Assigning to attributes of the class would clear Python's caches of it each time.
    shared = SimpleNamespace(held=0, leaving=0, warned=-WARN_AFTER)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit, self.limit_concurrency = self.limit_concurrency, None  # for connections only
        self.since = self.loop.time()  # when it began to wait for its client
        self.late: object = None  # the last request, if it continues after its response
        self.owed, self.moved, self.unsent, self.held, self.leaving = False, 0, 0, 0, 0

    def connection_made(self, transport: Any) -> None:
        paced: Any = PacedTransport(transport, self)
        super().connection_made(paced)
        close = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, close)
        self.timer = self.loop.call_later(CLIENT_TIMEOUT, self.check_progress)
        if self.limit and len(self.connections) >= self.limit:
            evict_one(self.others_waiting() or [self], f"limit of {self.limit} connections")

    def others_waiting(self) -> list["EvictableProtocol"]:
        others = [other for other in self.connections if isinstance(other, EvictableProtocol)]
        return [other for other in others if other is not self and other.is_waiting()]

    def evict(self, reason: str) -> None:
        self.connections.discard(self)
        self.leave(self.transport.get_write_buffer_size())
        self.transport.abort()
        self.hold(0)
        if self.loop.time() >= self.shared.warned + WARN_AFTER:
            self.shared.warned = self.loop.time()
            self.logger.warning("%s: the least recently active are closed", reason)

    def hold(self, size: int) -> None:
        """Count the bytes of a request until it is complete."""
        self.shared.held += size - self.held
        self.held = size
        if size > SMALL and self.shared.held > MAX_UNFINISHED:
            large = [other for other in self.others_waiting() if other.held > SMALL]
            evict_one(large or [self], f"limit of {MAX_UNFINISHED} bytes of unfinished requests")

    def leave(self, size: int) -> None:
        """Count the bytes of an evicted response until the event loop has freed them."""
        self.shared.leaving += size - self.leaving
        self.leaving = size

    def is_waiting(self) -> bool:
        """Return whether it is the client's turn: to send a request, or to read a response."""
        sends = self.conn.their_state in UNFINISHED and not self.flow.read_paused
        return sends or self.transport.get_write_buffer_size() > 0

    def check_progress(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        moved = self.moved + self.unsent - unsent
        owed = unsent > 0 or (self.is_waiting() and self.timeout_keep_alive_task is None)
        answered = self.cycle is not None and self.cycle.response_complete
        late = self.cycle if answered and self.conn.their_state is h11.SEND_BODY else None
        if (owed and self.owed and moved < LEAST) or (late and late is self.late):
            return self.transport.abort()
        self.owed, self.late, self.moved, self.unsent = owed, late, 0, unsent
        self.timer = self.loop.call_later(CLIENT_TIMEOUT, self.check_progress)

    def data_received(self, data: bytes) -> None:
        self.moved += len(data)
        self.since = self.loop.time()
        self.hold(min(self.held + len(data), LARGE))
        super().data_received(data)
        if self.conn.their_state not in UNFINISHED:
            self.hold(0)

    def pause_writing(self) -> None:
        super().pause_writing()
        others = [other for other in self.others_waiting() if other.flow.write_paused]
        unread = sum(other.transport.get_write_buffer_size() for other in [*others, self])
        for oldest in sorted(others, key=lambda other: other.since):
            if unread <= MAX_UNREAD:
                break
            unread -= oldest.transport.get_write_buffer_size()
            oldest.evict(f"limit of {MAX_UNREAD} bytes of unread answers")

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
        self.leave(0)
        self.timer.cancel()


def evict_one(protocols: list[EvictableProtocol], reason: str) -> None:
    """Close the connection that is the least recently active."""
    if protocols:
        min(protocols, key=lambda protocol: protocol.since).evict(reason)
