"""HTTP clients that cost little: their own CPU must not be what limits a measurement."""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


def request(method: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: benchmark", f"Content-Length: {len(content)}"]
    if content:
        lines.append("Content-Type: application/json")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


@dataclass
class Client:
    """One keep-alive connection; one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, message: bytes) -> bytes:
        """Return the body of a response; any status but a 2xx ends the benchmark."""
        self.writer.write(message)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            (
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ),
            0,
        )
        body = await self.reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"{message.decode()}\n\nwas answered\n\n{(head + body).decode()}")
        return body


async def connect(port: int) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", port))


async def send_all(
    clients: Iterable[Client], message: bytes | Callable[[], bytes], count: int
) -> None:
    """Send `count` requests from all clients at the same time: the same one, or one made by each call."""
    left = iter(range(count))

    async def work(client: Client) -> None:
        for _ in left:
            await client.send(message if isinstance(message, bytes) else message())

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(work(client))
