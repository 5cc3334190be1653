"""A TCP proxy on loopback, between a service and its PostgreSQL: it counts, delays and breaks."""

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

# https://www.postgresql.org/docs/current/protocol-message-formats.html
PROTOCOL = b"\x00\x03\x00\x00"  # in the message that begins a session
CANCEL = b"\x04\xd2\x16\x2e"  # in the only message of a connection that cancels a statement
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
TERMINATE = b"X\x00\x00\x00\x04"


def fatal(sqlstate: str) -> bytes:
    """Return the server's message that a session ends."""
    fields = "".join(f"{field}\0" for field in ("SFATAL", "VFATAL", f"C{sqlstate}", "Mthe end"))
    text = fields.encode() + b"\0"
    return b"E" + (len(text) + 4).to_bytes(4) + text


Action = Literal["cut", "lose", "hold"]  # lose: from then on nothing gets through


@dataclass
class Trap:
    """What happens once, at one message of a session: it comes after `messages` others."""

    to_server: bool
    messages: int
    action: Action
    seconds: float = 0.0  # for which the message is held
    passed: int = 0  # messages since the trap was set
    sprung: bool = False


class Messages:
    """Splits what one side of a session says into messages."""

    def __init__(self, *, to_server: bool) -> None:
        self.untyped = to_server  # a session's first message begins with its length
        self._rest = b""

    def split(self, data: bytes) -> list[bytes]:
        """Return the messages that are whole by now."""
        self._rest += data
        found = []
        while length := self._length():
            message, self._rest = self._rest[:length], self._rest[length:]
            self.untyped = self.untyped and message == SSL_REQUEST
            found.append(message)
        return found

    def _length(self) -> int:
        start = 0 if self.untyped else 1
        if self._rest[:1] == b"N" and not self.untyped and self._rest[1:2] != b"\x00":
            return 1  # no TLS
        if len(self._rest) < start + 4:
            return 0
        length = start + int.from_bytes(self._rest[start : start + 4])
        return length if len(self._rest) >= length else 0


class Proxy:
    """What passes between its clients and the PostgreSQL on the Unix socket `upstream`.

    With `tls` it lets in none but those who ask for TLS first, and speaks it for the server.
    """

    def __init__(self, upstream: str, host: str, tls: ssl.SSLContext | None) -> None:
        self.sessions = 0  # connections of clients, without those that only cancel a statement
        self.round_trips = 0
        self.graceful_closes = 0  # sessions that the client ended as the protocol asks for
        self.delay = 0.0  # seconds, on the way to the server
        self.silent = False  # sockets stay open, and nothing gets through
        self.trap: Trap | None = None  # for the message that comes next
        self.port = 0
        self.upstream = upstream  # where new connections lead to
        self._host = host
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._states: list[dict[str, bool]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def accept(self) -> None:
        """Listen, on the same port as before."""
        self._run(self._accept())

    def refuse(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._run(self._refuse())

    def settle(self) -> None:
        """Pass on what has arrived, the ends of connections too."""
        self._run(self._settle())

    def forget(self) -> None:
        """Drop everything on the present connections, as a firewall that has lost their state does."""
        for state in self._states:
            state["lost"] = True

    def say(self, message: bytes) -> None:
        """Tell every client what the server would, and leave the connections open."""
        self._run(self._say(message))

    def cut(self) -> None:
        self._run(self._cut())

    def close(self) -> None:
        self.refuse()
        self._run(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(10)

    async def _accept(self) -> None:
        self._listener = await asyncio.start_server(self._connect, self._host, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await self._cut()

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _say(self, message: bytes) -> None:
        for writer in self._clients:
            writer.write(message)
            await writer.drain()

    async def _settle(self) -> None:
        for _ in range(10):  # the loop looks for what has arrived each time
            await asyncio.sleep(0)

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        self._writers |= writers
        self._clients.add(writer)
        # Bytes that were swallowed don't come back: such a connection stays silent, as behind a
        # firewall that has forgotten it.
        state = {"lost": False, "asked": False, "cancels": False}
        self._states.append(state)
        with suppress(OSError, asyncio.IncompleteReadError):
            if self._tls is not None and await reader.readexactly(8) == SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(self._tls)
            elif self._tls is not None:
                raise ConnectionRefusedError
            server_reader, server_writer = await asyncio.open_unix_connection(self.upstream)
            writers.add(server_writer)
            self._writers |= writers
            ways = [
                asyncio.create_task(self._pass(reader, server_writer, state, to_server=True)),
                asyncio.create_task(self._pass(server_reader, writer, state, to_server=False)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        for opened in writers:
            opened.close()
        self._writers -= writers
        self._clients.discard(writer)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        state: dict[str, bool],
        *,
        to_server: bool,
    ) -> None:
        messages = Messages(to_server=to_server)
        with suppress(OSError):
            while data := await reader.read(65536):
                if to_server:
                    self.sessions += data[4:8] == PROTOCOL
                    self.graceful_closes += data.endswith(TERMINATE)
                    self.round_trips += not state["asked"]
                    state["cancels"] = data[4:8] == CANCEL
                    await asyncio.sleep(self.delay)
                state["asked"] = to_server
                state["lost"] |= self.silent
                for message in messages.split(data):
                    if not state["cancels"] and message not in (SSL_REQUEST, b"N"):
                        await self._spring(writer, state, to_server=to_server)
                    if not state["lost"]:
                        writer.write(message)

    async def _spring(
        self, writer: asyncio.StreamWriter, state: dict[str, bool], *, to_server: bool
    ) -> None:
        """Do at a message what the trap says, if it is the one that it waits for."""
        trap = self.trap
        if trap is None or trap.sprung or trap.to_server != to_server:
            return
        trap.passed += 1
        if trap.passed <= trap.messages:
            return
        trap.sprung = True
        if trap.action == "cut":
            await writer.drain()
            raise ConnectionAbortedError
        state["lost"] |= trap.action == "lose"
        await asyncio.sleep(trap.seconds)


@contextmanager
def open_proxy(
    upstream: str, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[Proxy]:
    proxy = Proxy(upstream, host, tls)
    proxy.accept()
    try:
        yield proxy
    finally:
        proxy.close()
