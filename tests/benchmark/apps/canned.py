"""Answers whatever comes with the same bytes: what the clients of the benchmark can send at most."""

import asyncio
import sys

import uvloop

BODY = b'{"id":1}' * 20
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
    BODY
)


class Canned(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(HEAD + BODY)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Canned, "127.0.0.1", int(sys.argv[-1]))
    await server.serve_forever()


uvloop.run(main())
