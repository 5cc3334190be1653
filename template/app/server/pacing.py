"""Pacing: how much client input is handled in one turn of the event loop."""

import asyncio
import time
from collections import deque
from typing import Any

SLICE = 8_192  # bytes read at once; the rest waits in the kernel: backpressure for the sender
AT_ONCE = 1_024  # bytes handled at once, as most requests are; more wait for their turn
TURN = 0.005  # seconds that all slices together may take of one turn of the loop

buffer = memoryview(bytearray(SLICE))
ready: "deque[PacedTransport]" = deque()


class PacedTransport(asyncio.BufferedProtocol):
    """A transport that hands its protocol a slice at a time, each when its turn comes.

    uvloop would read megabytes from one connection, and hand them all over in one turn: small
    chunks, or the frames of a WebSocket, would block the loop for a second.
    """

    def __init__(self, transport: Any, protocol: Any) -> None:
        self.transport = transport
        self.protocol = protocol
        self.write = transport.write
        self._slice = b""
        self._paused = False  # by the protocol
        transport.set_protocol(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self._paused = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if not (self._slice or self.transport.is_closing()):
            self.transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        return buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(buffer[:nbytes])
        if nbytes <= AT_ONCE:
            return self.protocol.data_received(data)  # type: ignore[no-any-return]
        self.transport.pause_reading()
        self._slice = data
        ready.append(self)
        if len(ready) == 1:
            asyncio.get_running_loop().call_soon(hand_over)

    def hand_over(self) -> None:
        data, self._slice = self._slice, b""
        if self.transport.is_closing():
            return
        try:
            self.protocol.data_received(data)
        except BaseException:
            self.transport.abort()
            raise
        if not (self._paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def eof_received(self) -> Any:
        return self.protocol.eof_received()

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.protocol.connection_lost(exc)


def hand_over() -> None:
    """Hand over what is ready, in the order of arrival, until the turn is over."""
    end = time.perf_counter() + TURN
    try:
        while ready and time.perf_counter() < end:
            ready.popleft().hand_over()
    finally:
        if ready:
            asyncio.get_running_loop().call_soon(hand_over)
