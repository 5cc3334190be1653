"""The event loop: uvloop's, which accepts several connections in a turn."""

import os
import socket
from collections.abc import Callable
from typing import Any

import uvloop

# uvloop accepts one connection for each listener in a turn of the loop. When many are served, a
# turn takes some 15 ms: clients that come together, and probes, would wait for seconds.
# More listeners would let more clients fill memory at the same time.
LISTENERS = 4


class Loop(uvloop.Loop):
    """uvloop's loop, with `LISTENERS` for each socket that a server listens on."""

    async def create_server(self, *args: Any, **options: Any) -> Any:
        return await share(super().create_server, *args, **options)

    async def create_unix_server(self, *args: Any, **options: Any) -> Any:
        return await share(super().create_unix_server, *args, **options)


async def share(listen: Callable[..., Any], *args: Any, **options: Any) -> Any:
    servers = [await listen(*args, **options)]
    own = {name: options[name] for name in ("ssl", "backlog") if name in options}
    for listening in servers[0].sockets:
        for _ in range(LISTENERS - 1):
            more = socket.socket(fileno=os.dup(listening.fileno()))
            servers.append(await listen(args[0], sock=more, **own))
    return Servers(servers)


class Servers:
    """What uvicorn asks of a server, for all that share its sockets."""

    def __init__(self, servers: list[Any]) -> None:
        self.servers = servers
        self.sockets = servers[0].sockets

    def close(self) -> None:
        for server in self.servers:
            server.close()

    async def wait_closed(self) -> None:
        for server in self.servers:
            await server.wait_closed()
