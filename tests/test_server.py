"""The server against bytes that no client should send, and against stalled clients."""

import http.client
import json
import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import product
from pathlib import Path

import psutil
import pytest

from tests.support.databases import SQLiteDatabase
from tests.support.processes import wait_for
from tests.support.repository import substitute, value_in
from tests.support.services import Server, Service

ROUTES = """
import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

router = APIRouter(include_in_schema=False)
ran: list[str] = []


@router.api_route("/hidden", methods=["GET", "POST", "DELETE"])
async def hidden(request: Request) -> None:
    ran.append(request.method)


@router.delete("/hidden/slowly")
async def hide_slowly() -> None:
    ran.append("begun")
    try:
        await asyncio.sleep(60)
        ran.append("DELETE")
    except asyncio.CancelledError:
        ran.append("cancelled")
        raise


@router.get("/ran")
async def get_ran() -> list[str]:
    return ran


@router.api_route("/echo", methods=["GET", "POST", "DELETE"])
async def echo(request: Request, body: Annotated[bytes, Body()] = b"") -> dict[str, object]:
    return {"size": len(body), "headers": dict(request.headers)}


@router.get("/block")
async def block() -> None:
    time.sleep(0.01)  # of the loop


@router.get("/long")
async def wait() -> str:
    await asyncio.sleep(2)
    return "done"


class Line(BaseModel):
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int


@router.post("/lines")
async def take_lines(lines: list[Line]) -> int:
    return len(lines)


@router.get("/longer")
@router.post("/kept")
async def keep(body: Annotated[bytes, Body()] = b"") -> int:
    await asyncio.sleep(6)  # for as long as a busy machine takes to send a thousand
    return len(body)


@router.get("/large")
async def large() -> Response:
    return Response(b"x" * 1_000_000)


@router.get("/some")
async def some() -> Response:
    return Response(b"x" * 60_000)


@router.get("/huge")
async def huge() -> Response:
    return Response(b"x" * 8_000_000)  # more than the kernel takes


async def lines() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 10_000
        await asyncio.sleep(0)


@router.get("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(lines())


@router.websocket("/open")
async def listen(socket: WebSocket) -> None:
    await socket.accept()
    async for _ in socket.iter_text():
        pass


@router.websocket("/refused")
async def refuse(socket: WebSocket) -> None:
    await socket.close()
"""
# Seconds, in place of a minute and more; with a fifth of the bytes that are due in that time.
SHORTER = (
    ("eviction.py", "CLIENT_TIMEOUT", "1.0"),
    ("eviction.py", "LEAST", "100"),
    ("eviction.py", "WARN_AFTER", "0.0"),
    ("run.py", "KEEP_ALIVE_TIMEOUT", "1"),
)
WITH_WEBSOCKETS = ("uv", "run", "--no-sync", "--with", "websockets", "python", "-m", "app.server")

HIDDEN = b"POST /hidden HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
SIZE = len(HIDDEN)
SIZE_OF_BODY = int(value_in("app/settings.py", r"max_body_size: PositiveInt = (\w+)"))


def head(*lines: str, start: str = "POST /echo HTTP/1.1") -> bytes:
    """Return a request's head, whose lines may be as wrong as the test wants them."""
    return "\r\n".join([start, "Host: a", *lines, "", ""]).encode("latin-1")


def chunked(*lines: str, body: bytes, start: str = "POST /echo HTTP/1.1") -> bytes:
    return head(*lines, start=start) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


LENGTH = f"Content-Length: {SIZE}"
CHUNKED = "Transfer-Encoding: chunked"
WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)

# In each of these a proxy could see other requests than the server, which refuses them all.
REFUSED = {
    "a length and chunks": head(LENGTH, CHUNKED) + b"0\r\n\r\n" + HIDDEN,
    "chunks and a length": head(CHUNKED, "Content-Length: 0") + HIDDEN,
    "chunks in HTTP/1.0": head(CHUNKED, start="POST /echo HTTP/1.0") + b"0\r\n\r\n" + HIDDEN,
    "chunks twice": head(CHUNKED, CHUNKED) + b"0\r\n\r\n" + HIDDEN,
    "bare LF": head(LENGTH).replace(b"\r\n", b"\n") + HIDDEN,
    "one bare LF": head(f"X-A: b\n{LENGTH}") + HIDDEN,
    "LF at the end of the head": head()[:-2] + b"\n" + HIDDEN,
    "bare CR": head(f"X-A: b\r{LENGTH}") + HIDDEN,
    "NUL": head("X-A: \0", LENGTH) + HIDDEN,
    "a folded line": head("X-A: b", " c: d", LENGTH) + HIDDEN,
    "a folded coding": head("Transfer-Encoding:", " chunked") + b"0\r\n\r\n" + HIDDEN,
    "a line before the first": b"\r\n" + head(LENGTH) + HIDDEN,
    "a blank before the colon": head(f"Content-Length : {SIZE}") + HIDDEN,
    "a blank in a name": head(f"Content Length: {SIZE}") + HIDDEN,
    "a head without a host": b"POST /echo HTTP/1.1\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "two hosts": head("Host: b", LENGTH) + HIDDEN,
    "HTTP/2.0": head(LENGTH, start="POST /echo HTTP/2.0x") + HIDDEN,
    "HTTP/0.9": b"GET /echo\r\n\r\n" + HIDDEN,
    "CONNECT": head(start="CONNECT a:443 HTTP/1.1") + HIDDEN,
    "an absolute target": head(start="POST http://a:marked@b/echo HTTP/1.1") + HIDDEN,
    "a blank in the target": head(LENGTH, start="POST /echo /echo HTTP/1.1") + HIDDEN,
    "HTTP/2's beginning": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "TLS": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
    "101 headers": head(*["X-A: b"] * 101) + HIDDEN,
    "a head of 40 kB": head("X-A: " + "b" * 40_000) + HIDDEN,
    "a target of 40 kB": head(start=f"POST /echo?{'a' * 40_000} HTTP/1.1") + HIDDEN,
    **{
        f"Content-Length: {value!r}": head(f"Content-Length: {value}") + HIDDEN
        for value in ("+0", "-1", "0x0", "1e1", "0 0", "0, 1", "", "²", "9" * 30, "0;a", "1_0")
    },
    "different lengths": head("Content-Length: 0", LENGTH) + HIDDEN,
    **{
        f"Transfer-Encoding: {value!r}": head(f"Transfer-Encoding: {value}") + b"0\r\n\r\n" + HIDDEN
        for value in (
            *("chunked, identity", "identity", "gzip, chunked", "chunked, chunked", ", chunked"),
            *("xchunked", "\x0bchunked", "chunked\x0b", '"chunked"', "chunked;a=b", "", "chunked,"),
        )
    },
    **{
        f"a chunk of size {size!r}": head(CHUNKED) + b"%s\r\n%s\r\n0\r\n\r\n" % (size, HIDDEN)
        for size in (b"-1", b"+5", b"0x5", b"5\n", b"zz", b"", b"f" * 30, b"5 5", b"5;a\nb", b"0_5")
    },
    "a chunk that is longer than its size": head(CHUNKED) + b"1\r\n" + HIDDEN + b"0\r\n\r\n",
    "a trailer that is none": head(CHUNKED) + b"0\r\n" + b"no trailer\r\n\r\n" + HIDDEN,
    **{
        f"{part!r} {where}": head(CHUNKED) + b"1" + start + part + end + HIDDEN
        for where, (start, end) in {
            "in an extension": (b";a", b"b\r\na\r\n0\r\n\r\n"),
            "in a trailer": (b"\r\na\r\n0\r\nX-A: b", b"c: d\r\n\r\n"),
            "at the end of a trailer": (b"\r\na\r\n0\r\nX-A: b", b"\r\n"),
        }.items()
        for part in (b"\n", b"\r", b"\0", b"\v", b"\f", b"\r\n ", b"\r\n\t", b"\n\r", b"\r\r\n")
    },
    "a trailer that ends in LF": head(CHUNKED) + b"1\r\na\r\n0\r\n\n" + HIDDEN,
    "very many small chunks": head(CHUNKED) + b"1\r\na\r\n" * 2_000 + b"0\r\n\r\n" + HIDDEN,
}
# In each of these the hidden request is the body of the other.
BODIES = {
    **{
        f"Upgrade: {protocol}": head("Connection: Upgrade", f"Upgrade: {protocol}", LENGTH) + HIDDEN
        for protocol in ("foo", "h2c", "TLS/1.0", "websockets", "HTTP/2.0, h2c", "")
    },
    "Upgrade in chunks": chunked("Connection: upgrade", "Upgrade: foo", CHUNKED, body=HIDDEN),
    "Upgrade without Connection": head("Upgrade: websocket", LENGTH) + HIDDEN,
    "GET": head(LENGTH, start="GET /echo HTTP/1.1") + HIDDEN,
    "DELETE": head(LENGTH, start="DELETE /echo HTTP/1.1") + HIDDEN,
    "GET in chunks": chunked(CHUNKED, body=HIDDEN, start="GET /echo HTTP/1.1"),
    "Chunked": chunked("Transfer-Encoding: Chunked", body=HIDDEN),
    "a tab before chunked": chunked("Transfer-Encoding:\tchunked\t", body=HIDDEN),
    "equal lengths": head(LENGTH, LENGTH) + HIDDEN,
    "Expect": head("Expect: 100-continue", LENGTH) + HIDDEN,
}
# These are answered, and what follows them is not.
ALONE = {
    "a pipeline": (head("Content-Length: 0"), 200),
    "Upgrade without a body": (head("Connection: upgrade", "Upgrade: foo"), 200),
    "a method in lower case": (head(start="post /echo HTTP/1.1"), 405),
    "HEAD": (head(start="HEAD /echo HTTP/1.1"), 200),
    "HTTP/1.0": (head(start="POST /echo HTTP/1.0"), 200),
    "trailers": (head(CHUNKED) + b"0\r\nIf-Match: b\r\n\r\n", 200),
    "a body that is too large": (head("Content-Length: 9000000"), 413),
    "a WebSocket that is refused": (head(*WEBSOCKET, start="GET /refused HTTP/1.1"), 403),
    "a WebSocket by POST": (head(*WEBSOCKET, LENGTH, start="POST /refused HTTP/1.1"), 400),
    "a WebSocket without a key": (head(*WEBSOCKET[:2], start="GET /refused HTTP/1.1"), 400),
}


@pytest.fixture(scope="module")
def extended(
    service_of: Callable[[str], Service], tmp_path_factory: pytest.TempPathFactory
) -> Service:
    """A service whose server does not wait long; what a server is told here is told no database."""
    copy = service_of("sqlite").copy(tmp_path_factory.mktemp("server") / "service")
    copy.extend(routes=ROUTES)
    for file, name, shorter in SHORTER:
        constant = copy.folder / "app/server" / file
        substitute(constant, rf"^{name} = [\d_.]+", f"{name} = {shorter}")
    return copy


@pytest.fixture(scope="module")
def variables(
    files_of_migrated: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("served")
    return SQLiteDatabase(folder, files_of_migrated("sqlite")).variables


@pytest.fixture(scope="module")
def server(extended: Service, variables: dict[str, str]) -> Iterator[Server]:
    with extended.serve(*WITH_WEBSOCKETS, **variables) as server:
        yield server


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.client.base_url.port or 0), timeout=30)


def exchange(server: Server, sent: bytes) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Send bytes on a connection of their own, and return the first answer."""
    with connect(server) as client:
        with suppress(ConnectionError):  # it answers before it has everything
            client.sendall(sent)
        answer = http.client.HTTPResponse(client, method=sent[: sent.find(b" ")].decode("latin-1"))
        answer.begin()
        return answer.status, answer.read(), answer.headers


def send(client: socket.socket, sent: bytes) -> bool:
    """Return whether the server still accepts bytes."""
    with suppress(TimeoutError, ConnectionError):
        client.sendall(sent)
        return True
    return False


def is_closed(client: socket.socket) -> bool:
    """Read what there is, and return whether the server has closed the connection."""
    client.settimeout(0)
    try:
        while client.recv(1_000_000):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_what_is_ambiguous_is_refused(server: Server) -> None:
    for name, sent in REFUSED.items():
        status, body, _ = exchange(server, sent)
        assert (name, status) == (name, 400), body
    assert server.client.get("/ran").json() == []
    assert "Traceback" not in server.log()


def test_a_request_whose_rest_is_refused_is_not_executed(server: Server) -> None:
    for name, sent in REFUSED.items():
        if CHUNKED.encode() in sent:
            status, _, _ = exchange(server, sent.replace(b"POST /echo", b"DELETE /hidden", 1))
            assert (name, status) == (name, 400)
    assert server.client.get("/ran").json() == []
    assert "Traceback" not in server.log()
    assert "marked" not in server.log()  # the password in a target


def test_a_handler_ends_when_the_rest_of_its_request_is_refused(
    extended: Service, variables: dict[str, str]
) -> None:
    with extended.serve(*(".venv/bin/python", "-m", "app.server"), **variables) as server:
        with connect(server) as client:
            client.sendall(head(CHUNKED, start="DELETE /hidden/slowly HTTP/1.1"))
            wait_for(lambda: server.client.get("/ran").json() == ["begun"])
            client.sendall(b"zz\r\n")
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert answer.status == 400
        wait_for(lambda: server.client.get("/ran").json() == ["begun", "cancelled"])
    assert "Traceback" not in server.log()
    assert "unavailable: " not in server.log()


def test_an_address_that_is_in_use_is_named(server: Server, extended: Service) -> None:
    port = str(server.client.base_url.port)
    second = extended.run(".venv/bin/python", "-m", "app.server", "--port", port, check=False)
    assert second.returncode != 0
    assert f"('127.0.0.1', {port})" in second.stdout


def test_a_request_in_the_body_of_another_is_its_body(server: Server) -> None:
    for name, sent in BODIES.items():
        status, body, _ = exchange(server, sent)
        assert (name, status) == (name, 200), body
        assert (name, json.loads(body)["size"]) == (name, SIZE)
    assert server.client.get("/ran").json() == []


def test_a_request_that_comes_before_the_last_one_is_answered_is_not_served(
    server: Server,
) -> None:
    for name, (sent, expected) in ALONE.items():
        status, body, _ = exchange(server, sent + HIDDEN)
        assert (name, status) == (name, expected), body
    assert server.client.get("/ran").json() == []
    assert "Traceback" not in server.log()


def test_a_client_that_waits_for_each_answer_keeps_its_connection(server: Server) -> None:
    with connect(server) as client:
        for sent in (head(LENGTH) + HIDDEN, chunked(CHUNKED, body=HIDDEN)) * 3:
            for piece in (sent[:20], sent[20:60], sent[60:]):  # also a head in pieces
                client.sendall(piece)
                time.sleep(0.01)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert json.loads(answer.read())["size"] == SIZE


def test_a_body_means_the_same_in_packets_of_any_size(server: Server) -> None:
    with connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for sent in (head("Content-Length: 1500"), head(CHUNKED) + b"5dc\r\n"):
            client.sendall(sent)
            for _ in range(1_500):
                client.sendall(b"a")
                time.sleep(0.001)  # or they would come together
            client.sendall(b"\r\n0\r\n\r\n" if CHUNKED.encode() in sent else b"")
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert json.loads(answer.read())["size"] == 1_500


def test_trailers_are_no_headers(server: Server) -> None:
    trailers = ("If-Match: b", "X-Forwarded-For: b", "Authorization: b", "Content-Length: 9")
    with_trailers = chunked(CHUNKED, body=b"a")[:-2] + "\r\n".join([*trailers, "", ""]).encode()

    status, body, _ = exchange(server, with_trailers)

    assert (status, json.loads(body)["size"]) == (200, 1)
    assert json.loads(body)["headers"].keys() == {"host", "transfer-encoding"}


def test_a_stalled_client_is_disconnected_and_one_that_goes_on_is_served(server: Server) -> None:
    def drip(client: socket.socket) -> bool:
        send(client, b"a")
        return is_closed(client)

    begun = {
        "silence": b"",
        "idle": head("Content-Length: 0"),
        "half a head": head()[:-10],
        "a dripping head": head()[:-2] + b"X-A: ",
        "half a body": head("Content-Length: 9") + b"a",
        "a dripping body": head("Content-Length: 9999") + b"a",
        "dripping chunks": head(CHUNKED) + b"ffff\r\n",
        "a body after its answer": head("Content-Length: 9999999", start="POST /items HTTP/1.1"),
    }
    with ExitStack() as stack:
        clients = {name: stack.enter_context(connect(server)) for name in begun}
        unread = {path: stack.enter_context(connect(server)) for path in ("/large", "/stream")}
        slow, honest = (stack.enter_context(connect(server)) for _ in range(2))
        for name, sent in begun.items():
            clients[name].sendall(sent)
        for path, client in unread.items():
            client.sendall(head(start=f"GET {path} HTTP/1.1"))
        slow.sendall(head(start="GET /long HTTP/1.1"))
        honest.sendall(head("Content-Length: 100000"))
        left = set(clients)
        for _ in range(100):
            honest.sendall(b"a" * 1_000)
            time.sleep(0.03)
            left -= {n for n in left if (drip if "drip" in n else is_closed)(clients[n])}
        wait_for(lambda: all(is_closed(clients[name]) for name in left))
        for client, expected in ((slow, b'"done"'), (honest, b'"size":100000')):
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert expected in answer.read()
        # A client that does not read is disconnected; what the kernel buffered can still be read.
        wait_for(lambda: len(connections(server)) <= 3)


def connections(server: Server) -> list[object]:
    return [found for found in serving(server).net_connections("tcp") if found.raddr]


def serving(server: Server) -> psutil.Process:
    """Return the process that serves: the last of those that started each other."""
    process = psutil.Process(server.process.pid)
    return [process, *process.children(recursive=True)][-1]


LEAST_ACTIVE = "bytes of {}: the least recently active are closed"


def is_idle(process: psutil.Process) -> bool:
    before = process.cpu_times()
    time.sleep(0.1)
    return process.cpu_times() == before


def most_memory(process: psutil.Process) -> int:
    """Return the most bytes of memory that a process has until it has done what there is to do."""
    most = process.memory_info().rss
    while not is_idle(process):
        most = max(most, process.memory_info().rss)
    return max(most, process.memory_info().rss)


def endless(client: socket.socket) -> None:
    send(client, head()[:-2])
    while send(client, b"X-A: b\r\n" * 2_000):
        pass


def pipeline(client: socket.socket) -> None:
    client.settimeout(0.1)
    for _ in range(10):
        send(client, head(start="GET /large HTTP/1.1") * 2_000)


def unread(client: socket.socket) -> None:
    send(client, head(start="GET /large HTTP/1.1"))


def unread_stream(client: socket.socket) -> None:
    send(client, head(start="GET /stream HTTP/1.1"))


def unread_huge(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    send(client, head(start="GET /huge HTTP/1.1"))


def unfinished(client: socket.socket) -> None:
    json_type = "Content-Type: application/json"
    length = f"Content-Length: {SIZE_OF_BODY}"
    begun = head(length, json_type, start="POST /items HTTP/1.1")
    send(client, begun + b" " * (SIZE_OF_BODY - 1))


def attacked(server: Server, count: int, attack: Callable[[socket.socket], None]) -> int:
    """Return the most bytes of memory that the server has while so many clients attack it."""
    process, most = serving(server), 0
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(connect(server))
            attack(client)
            most = max(most, process.memory_info().rss)
        most = max(most, most_memory(process))
        assert exchange(server, head(start="GET /health/live HTTP/1.1"))[0] == 200
    return most


def test_hostile_connections_take_little_memory(
    extended: Service, variables: dict[str, str]
) -> None:
    attacks = (endless, pipeline, unread_stream, unfinished)
    with extended.serve(*(".venv/bin/python", "-m", "app.server"), **variables) as server:
        process = serving(server)
        for _ in range(20):
            server.client.get("/large")
        before = process.memory_info().rss

        def take(count: int, *attacks: Callable[[socket.socket], None]) -> float:
            """Return how many MiB more than before the worst of them takes."""
            return (max(attacked(server, count, attack) for attack in attacks) - before) / 2**20

        assert take(1, *attacks) < 16
        taken = [take(150, *attacks) for _ in range(2)]
        assert max(taken) < 64
        assert take(150, *attacks) < max(taken) + 8  # given back, to the process at the least
        assert take(450, unfinished) < 96  # 32 MiB in small pieces, and what 450 connections take
        assert LEAST_ACTIVE.format("unfinished requests") in server.log()
        assert server.client.post("/items", json={"name": "honest"}).status_code == 201


def test_huge_answers_that_nobody_reads_take_little_memory(
    extended: Service, variables: dict[str, str]
) -> None:
    """Of a process of their own: what the others have left is no free room of their size."""
    with extended.serve(*(".venv/bin/python", "-m", "app.server"), **variables) as server:
        before = serving(server).memory_info().rss

        # 150 of 8 MB each, which its maker has as well
        assert attacked(server, 150, unread_huge) - before < 2**27

        assert LEAST_ACTIVE.format("unread answers") in server.log()


@pytest.mark.parametrize("place", ["on other connections", "on the same connections"])
def test_large_answers_behind_many_small_ones_take_little_memory(
    extended: Service, variables: dict[str, str], place: str
) -> None:
    """None is read: first 60 KB, again and again on 150 connections, and then 8 MB."""
    with (
        extended.serve(*(".venv/bin/python", "-m", "app.server"), **variables) as server,
        ExitStack() as stack,
    ):
        process = serving(server)
        most = before = process.memory_info().rss

        def open_connections() -> list[socket.socket]:
            clients = [stack.enter_context(socket.socket()) for _ in range(150)]
            for client in clients:  # of which the kernel keeps little
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
                client.settimeout(30)
                client.connect(("127.0.0.1", server.client.base_url.port))
            return clients

        clients = open_connections()
        for _ in range(3):
            for client in clients:
                send(client, head(start="GET /some HTTP/1.1"))
            wait_for(lambda: is_idle(process))
        for client in open_connections() if place == "on other connections" else clients:
            unread_huge(client)
            most = max(most, process.memory_info().rss)
        most = max(most, most_memory(process))

        assert exchange(server, head(start="GET /health/live HTTP/1.1"))[0] == 200
        assert most - before < 2**27  # of 1.2 GB


def test_requests_that_come_at_once_take_little_memory(
    extended: Service, variables: dict[str, str]
) -> None:
    with (
        extended.serve(*(".venv/bin/python", "-m", "app.server"), **variables) as server,
        ExitStack() as stack,
    ):
        process = serving(server)
        before = process.memory_info().rss
        clients = [stack.enter_context(connect(server)) for _ in range(150)]
        process.suspend()  # so that all of them are there in one turn of its loop
        for client in clients:
            unread_huge(client)
        process.resume()
        most = most_memory(process)

        assert exchange(server, head(start="GET /health/live HTTP/1.1"))[0] == 200
        assert most - before < 2**27  # of 1.2 GB


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_what_is_refused_is_refused_whatever_its_method(server: Server, method: str) -> None:
    for name, sent in REFUSED.items():
        if sent.startswith(b"POST "):
            status, body, _ = exchange(server, sent.replace(b"POST", method.encode(), 1))
            assert (name, status, body) == (name, 400, b"")
    assert "Traceback" not in server.log()
    assert "Fatal error" not in server.log()


# What old clients, or no clients at all, send behind a request while it is under way.
BEHIND = (
    b"\r\n",
    b"\n",
    b"GET /ran HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\0",
    b"\x16\x03\x01",
    b"a" * 9_000,
)


def test_a_request_that_is_complete_is_answered_whatever_follows_it(server: Server) -> None:
    body = b'{"name": "complete %d"}'
    ends = {"HTTP/1.1": "X-A: b", "HTTP/1.0": "X-A: b", "HTTP/1.1 ": "Connection: close"}
    for number, (behind, (version, line), pause) in enumerate(
        product(BEHIND, ends.items(), (0.0, 0.001, 0.002, 0.004, 0.008))
    ):
        lines = ("Content-Type: application/json", f"Content-Length: {len(body % number)}", line)
        with connect(server) as client:
            client.sendall(head(*lines, start=f"POST /items {version.strip()}") + body % number)
            time.sleep(pause)
            send(client, behind)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert (behind, line, answer.status) == (behind, line, 201), answer.read()
    assert server.client.get("/ran").json() == []
    assert "Traceback" not in server.log()


# Of these the library that takes the handshakes refuses what h11 has let pass.
HANDSHAKES = {
    "a long line": ("X-A: " + "b" * 9_000,),
    "a control character": ("X-A: \x7f",),
    "a long extension": ("Sec-WebSocket-Extensions: " + "b" * 9_000,),
    "a body": ("Content-Length: 5",),
    "chunks": (CHUNKED,),
}


def test_a_handshake_that_is_no_good_is_answered_and_closed(server: Server) -> None:
    for path in ("/open", "/nowhere", f"/open?{'a' * 9_000}"):
        for name, lines in HANDSHAKES.items():
            sent = head(*WEBSOCKET, *lines, start=f"GET {path} HTTP/1.1")
            status, _, _ = exchange(server, sent)
            assert (path[:9], name, status) == (path[:9], name, 400)
    status, _, headers = exchange(
        server,
        head(
            *WEBSOCKET, "Sec-WebSocket-Extensions: permessage-deflate", start="GET /open HTTP/1.1"
        ),
    )
    assert (status, headers["Sec-WebSocket-Extensions"]) == (101, None)
    assert "Traceback" not in server.log()


def test_a_handshake_that_is_refused_is_no_error_of_the_log(server: Server) -> None:
    for path, status in (("/refused", 403), ("/%2fopen", 404)):
        before = len(server.log())
        assert exchange(server, head(*WEBSOCKET, start=f"GET {path} HTTP/1.1"))[0] == status
        wait_for(lambda before=before: "app.access: WEBSOCKET" in server.log()[before:])  # type: ignore[misc]
        assert " ERROR " not in server.log()[before:]


@pytest.mark.parametrize("start", ["GET /health/live", "POST /nowhere"])
def test_a_body_that_never_ends_after_its_answer_is_left(server: Server, start: str) -> None:
    with connect(server) as client:
        client.sendall(head(CHUNKED, start=f"{start} HTTP/1.1"))
        assert client.recv(4096).startswith(b"HTTP/1.1 ")
        end = time.monotonic() + 30
        while send(client, b"400\r\n" + b"a" * 1_024 + b"\r\n"):
            assert time.monotonic() < end
            time.sleep(0.01)  # fast enough for any limit on slow clients


MASKED = bytes(4)
FRAMES = {
    "empty pongs": b"\x8a\x80" + MASKED,
    "pings": b"\x89\x88" + MASKED + b"a" * 8,
    "texts of a byte": b"\x81\x81" + MASKED + b"a",
    "empty fragments": b"\0\x80" + MASKED,
    "fragments of a byte": b"\0\x81" + MASKED + b"a",
}
# What a client may send without an end, after what begins it.
FLOODS = {
    **{
        f"chunks of {size} bytes after the answer of {path}": (
            head(CHUNKED, start=f"{path} HTTP/1.1"),
            b"%x\r\n%s\r\n" % (size, b"a" * size),
        )
        for size in (128, 1_000)
        for path in ("GET /health/live", "POST /nowhere")
    },
    **{
        name: (head(*WEBSOCKET, start="GET /open HTTP/1.1"), frame)
        for name, frame in FRAMES.items()
    },
}


def test_a_flood_leaves_the_loop_to_others(server: Server) -> None:
    """What the server computes until it answers a probe is the most that others wait for."""
    process = serving(server)

    def cpu() -> float:
        return sum(process.cpu_times()[:2])

    def flood(sent: bytes, over: threading.Event) -> None:
        with connect(server) as client:
            client.sendall(begun)
            client.recv(100)
            if sent[:1] == b"\0":
                client.sendall(b"\x01\x80" + MASKED)  # the first fragment
            client.settimeout(5)
            while not over.is_set() and send(client, sent * (200_000 // len(sent))):
                pass

    for name, (begun, sent) in FLOODS.items():
        over = threading.Event()
        clients = [threading.Thread(target=flood, args=(sent, over)) for _ in range(4)]
        for client in clients:
            client.start()
        longest = 0.0
        for _ in range(20):
            before = cpu()
            assert exchange(server, head(start="GET /health/live HTTP/1.1"))[0] == 200
            longest = max(longest, cpu() - before)
        over.set()
        for client in clients:
            client.join()
        assert (name, longest < 0.1) == (name, True), longest


def test_new_clients_are_answered_while_the_loop_is_busy(server: Server) -> None:
    """A loop that accepts one connection a turn would make each wait for all before it."""
    blocked = 0
    over = threading.Event()

    def keep_busy() -> None:
        nonlocal blocked
        with closing(
            http.client.HTTPConnection("127.0.0.1", server.client.base_url.port)
        ) as client:
            while not over.is_set():
                client.request("GET", "/block")
                client.getresponse().read()
                blocked += 1

    with ExitStack() as stack:
        thread = threading.Thread(target=keep_busy)
        thread.start()
        stack.callback(thread.join)
        stack.callback(over.set)
        wait_for(lambda: blocked > 0)
        before = blocked
        clients = [stack.enter_context(connect(server)) for _ in range(200)]
        for client in clients:
            client.sendall(head(start="GET /health/live HTTP/1.1"))
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert blocked - before < len(clients) / 2  # turns; one by one, as many as clients


TURNS = """
import asyncio
import socket
import sys

from app.server.loop import LISTENERS, Loop

accepted = []


class Client(asyncio.Protocol):
    def connection_made(self, transport):
        accepted.append(transport)


async def main(path):
    loop = asyncio.get_running_loop()
    listen = loop.create_unix_server(Client, path) if path else loop.create_server(Client, "127.0.0.1", 0)
    server = await listen
    listening = server.sockets[0]
    clients = [socket.socket(listening.family) for _ in range(41)]
    for client in clients[1:]:
        client.connect(listening.getsockname())
    turns = 0
    while len(accepted) < 40:
        await asyncio.sleep(0)
        turns += 1
    assert turns < 2 + 40 / LISTENERS, turns
    address = listening.getsockname()
    server.close()
    await server.wait_closed()
    try:
        clients[0].connect(address)
    except ConnectionRefusedError:
        print("closed")


loop = Loop()
loop.run_until_complete(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("path", ["", "accepting.sock"])
def test_several_clients_are_accepted_in_a_turn_however_the_server_listens(
    extended: Service, path: str
) -> None:
    assert extended.run(".venv/bin/python", "-c", TURNS, path).stdout == "closed\n"


def test_a_client_whose_text_is_no_text_is_closed_without_a_traceback(server: Server) -> None:
    with connect(server) as client:
        client.sendall(head(*WEBSOCKET, start="GET /open HTTP/1.1"))
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        client.sendall(b"\x81\x81" + bytes(4) + b"\xff")
        assert client.recv(4096)[:4] == b"\x88\x02" + (1007).to_bytes(2)
    assert "INFO    uvicorn.error: Invalid UTF-8" in server.log()
    assert "Traceback" not in server.log()


# What a proxy may let pass to another path than the one that it has checked.
ADDRESSES = [
    f"/{before}items{between}{number}{after}"
    for before in ("", "/", "./", ".%2f", "a/../", "a/%2e%2e/", "%2e/")
    for between in ("/", "//", "%2f", "%2F", "\\", "%5c", "/./", "/%2e/", "/a/../", ";/", "%00/")
    for number in ("1", "01", "+1", "1.0", "%201", "1%20", "%2b1", "٢", "1_0")
    for after in ("", "/", "%2f", ";a", "%00", ".", "%3f", "%23")
    if number == "1" or not after
]


def test_an_item_has_one_address(server: Server) -> None:
    assert server.client.post("/items", json={"name": "addressed"}).status_code == 201
    item = server.client.get("/items?limit=1").json()["items"][0]["id"]
    found = set()
    for address in ADDRESSES:
        path = address.replace("1", str(item)).encode().decode("latin-1")
        status, body, _ = exchange(server, head("Connection: close", start=f"GET {path} HTTP/1.1"))
        assert (path, status < 500) == (path, True), body
        if status == 200:
            found.add(path)
    assert found == {f"/items/{item}"}
    # Nor has what is mounted, or a WebSocket: no route of the service's own is asked for these.
    for path, status in (("/static-offline-docs%2fswagger-ui.css", 404), ("/%2Fopen", 404)):
        assert exchange(server, head(start=f"GET {path} HTTP/1.1"))[0] == status
        assert exchange(server, head(*WEBSOCKET, start=f"GET {path} HTTP/1.1"))[0] == status
    assert (
        exchange(server, head(start="GET /static-offline-docs/swagger-ui.css HTTP/1.1"))[0] == 200
    )


def test_a_client_that_sends_pings_and_never_reads_is_disconnected(server: Server) -> None:
    ping = b"\x89\xfd" + bytes(4) + b"a" * 125
    process = serving(server)
    with connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(head(*WEBSOCKET, start="GET /open HTTP/1.1"))
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        before, sent = process.memory_info().rss, 0
        while send(client, ping * 1_000):
            sent += len(ping) * 1_000
            assert sent < 2**28
        assert process.memory_info().rss - before < 2**24
    assert server.client.get("/health/live").status_code == 200


def test_a_message_in_endless_fragments_is_left(server: Server) -> None:
    process = serving(server)
    with connect(server) as client:
        client.sendall(head(*WEBSOCKET, start="GET /open HTTP/1.1"))
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
        client.sendall(b"\x01\x80" + MASKED)
        before, sent = process.memory_info().rss, 0
        while send(client, FRAMES["empty fragments"] * 10_000):
            sent += 60_000
            assert sent < 2**26
        assert process.memory_info().rss - before < 2**24
    assert "Traceback" not in server.log()


def test_requests_that_wait_are_bounded_and_probes_and_small_ones_are_served(
    extended: Service, variables: dict[str, str]
) -> None:
    length = f"Content-Length: {SIZE_OF_BODY}"
    full = head(length, start="POST /kept HTTP/1.1") + b"a" * SIZE_OF_BODY
    with extended.serve(*(".venv/bin/python", "-m", "app.server"), **variables) as server:
        process = serving(server)

        def ask(path: str) -> tuple[int, bool]:
            answer = server.client.get(path)
            return answer.status_code, "retry-after" in answer.headers

        with ExitStack() as stack:
            clients = [stack.enter_context(connect(server)) for _ in range(160)]
            for number, client in enumerate(clients, 1):
                client.sendall(full)
                if number % 40 == 0:  # before they are too many unfinished requests
                    wait_for(lambda: is_idle(process))
            wait_for(lambda: server.log().count("load: bodies of") == 32)  # the others wait
            assert server.client.post("/items", json={"name": "small"}).status_code == 201
            assert ask("/health/live") == (200, False)
            statuses = []
            for client in clients:
                answer = http.client.HTTPResponse(client)
                answer.begin()
                answer.read()
                statuses.append((answer.status, "retry-after" in answer.headers))
        assert set(statuses) == {(200, False), (503, True)}
        assert 100 <= statuses.count((200, False)) <= 128

        for _ in range(1_100):  # they leave, and their handlers continue
            with connect(server) as client:
                client.sendall(head(start="GET /longer HTTP/1.1"))
        wait_for(lambda: ask("/ran") == (503, True))
        assert ask("/health/live") == (200, False)
        wait_for(lambda: ask("/ran") == (200, False))
        assert "Traceback" not in server.log()


def fill(start: str, part: str, end: str = "") -> bytes:
    """Return a body of the largest accepted size, `part` repeated."""
    room = SIZE_OF_BODY - len((start + end).encode())
    return (start + part * (room // len(part.encode())) + end).encode()


def decomposes_to_a_mark(char: str) -> bool:
    return unicodedata.combining(unicodedata.normalize("NFD", char)[0]) != 0


LARGE_BODIES = {
    "unknown keys": b"{%s}" % b",".join(b'"%x":0' % n for n in range(28_000)),
    "one key again and again": fill("{", '"a":0,', '"a":0}'),
    "numbers": fill("[", "0,", "0]"),
    "fractions": fill("[", "1.7976931348623157e308,", "0]"),
    "texts": fill("[", '"",', '""]'),
    "objects": fill("[", "{},", "{}]"),
    "fields that are refused": fill('{"name":[', "null,", "null]}"),
    "lines that lack each field": fill("[", "{},", "{}]"),
    "as many lines as are allowed": b"[%s]" % b",".join([b"{}"] * 3_999),
    "lists in lists": fill("", "["),
    "objects in objects": fill("", '{"a":'),
    "an integer": fill("", "9"),
    "a fraction": fill("0.", "9"),
    "an exponent": fill("1e", "9"),
    "a long name": fill('{"name":"', "a", '"}'),
    "escapes": fill('{"name":"', "\\u0301", '"}'),
    "surrogates": fill('{"name":"', "\\ud800", '"}'),
    "marks": fill('{"name":"a', "\u0316\u0301", '"}'),
    **{
        f"marks that are two: U+{ord(mark):04X}": fill('{"name":"a', mark, '"}')
        for mark in filter(decomposes_to_a_mark, map(chr, range(0x110000)))
        if not unicodedata.combining(mark)
    },
    "ligatures": fill('{"name":"', "\ufdfa", '"}'),
    "blanks": fill('{"name":"a"}', " "),
    "NUL": fill("", "\0"),
}
# What is repeated in a line, and what follows: h11 parses the line by patterns.
LINES = {
    f"{where}, {part!r} and then {end!r}": before + part * (15_800 // len(part)) + end + after
    for where, (before, after) in {
        "target": (b"GET /", b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        "method": (b"G", b" / HTTP/1.1\r\nHost: a\r\n\r\n"),
        "name": (head()[:-2] + b"X-", b": b\r\n\r\n"),
        "value": (head()[:-2] + b"X-A: ", b"\r\n\r\n"),
        "length": (head()[:-2] + b"Content-Length: 1", b"\r\n\r\n1"),
        "host": (b"GET / HTTP/1.1\r\nHost: a", b"\r\n\r\n"),
        "size": (head(CHUNKED) + b"1", b"\r\na\r\n0\r\n\r\n"),
        "extension": (head(CHUNKED) + b"1;", b"\r\na\r\n0\r\n\r\n"),
        "trailer": (head(CHUNKED) + b"1\r\na\r\n0\r\nX-A: ", b"\r\n\r\n"),
    }.items()
    for part in (b" ", b"\t", b"a ", b",", b"\x01", b"a", b"a:\r\n")
    for end in (b"", b"\0", b"\n", b"\v", b"\r", b"a", b" ")
}
# Of the size of a head, which is sixteen times smaller.
LARGE_HEADS = {
    "tags": head("If-Match: " + '"1-00000000",' * 1_000, start="PATCH /items/1 HTTP/1.1"),
    "tags that are compared": head(
        "If-None-Match: " + ' W/"a",' * 2_000, start="GET /items HTTP/1.1"
    ),
    "parameters": head(start=f"GET /items?{'a=1&' * 3_500} HTTP/1.1"),
    "names of parameters": head(
        start=f"GET /items?{'&'.join(f'{n:x}' for n in range(3_000))} HTTP/1.1"
    ),
    "a limit": head(start=f"GET /items?limit={'9' * 15_000} HTTP/1.1"),
    "a cursor": head(start=f"GET /items?cursor={'A' * 15_000} HTTP/1.1"),
    "an id": head(start=f"GET /items/{'9' * 15_000} HTTP/1.1"),
    "a path": head(start=f"GET {'/a' * 7_500} HTTP/1.1"),
    "escapes of a path": head(start=f"GET /{'%2f' * 5_000} HTTP/1.1"),
    "cookies": head("Cookie: " + "a=b;" * 3_500, start="GET /items HTTP/1.1"),
    "media types": head("Accept: " + "a/b," * 3_500, start="GET /items HTTP/1.1"),
    "a media type": head("Content-Type: application/json" + ";a=b" * 3_500, LENGTH) + b"1" * SIZE,
    "an id of a request": head("X-Request-ID: " + "a" * 15_000, start="GET /items HTTP/1.1"),
    "a trace": head("traceparent: 00-" + "0" * 15_000, start="GET /items HTTP/1.1"),
    "99 headers": head(*["X-A: " + "b" * 150] * 98, start="GET /items HTTP/1.1"),
}


def test_no_request_blocks_the_loop(extended: Service, variables: dict[str, str]) -> None:
    """The CPU of a request bounds how long it can block the loop; the least of some, under load."""
    typed = "Content-Type: application/json"
    sent = {
        name: head(typed, f"Content-Length: {len(body)}", start=f"POST {path} HTTP/1.1") + body
        for name, body in LARGE_BODIES.items()
        for path in ["/lines" if "lines" in name else "/items"]
    }
    with extended.serve(*(".venv/bin/python", "-m", "app.server"), **variables) as server:
        process = serving(server)
        assert exchange(server, sent["blanks"])[0] == 201
        for name, request in (sent | LARGE_HEADS | LINES).items():
            for _ in range(3):
                before = sum(process.cpu_times()[:2])
                status, body, _ = exchange(server, request)
                assert (name, status < 500) == (name, True), body
                if (cpu := sum(process.cpu_times()[:2]) - before) < 0.1:
                    break
            else:
                pytest.fail(f"{name}: {cpu:.2f} s")


def test_when_connections_run_out_the_least_recently_active_are_closed_and_logged(
    extended: Service, variables: dict[str, str]
) -> None:
    command = ("sh", "-c", 'ulimit -n 128 && exec .venv/bin/python -m app.server "$@"', "sh")
    with extended.serve(*command, **variables) as server, ExitStack() as stack:
        busy = stack.enter_context(connect(server))
        busy.sendall(head(start="GET /long HTTP/1.1"))
        silent = [stack.enter_context(connect(server)) for _ in range(200)]

        # On a connection of its own: the client's last one may be the least recently active.
        assert exchange(server, head(start="GET /health/live HTTP/1.1"))[0] == 200
        wait_for(lambda: len(connections(server)) <= 64)
        assert is_closed(silent[0])
        answer = http.client.HTTPResponse(busy)
        answer.begin()
        assert answer.read() == b'"done"'
    assert "limit of 64 connections: the least recently active are closed" in server.log()


@pytest.mark.parametrize("started", ["the image", "poe dev"])
def test_however_it_is_started_it_is_the_same_server(
    extended: Service, variables: dict[str, str], started: str
) -> None:
    image = (extended.folder / "Dockerfile").read_text().rpartition("\nCMD ")[2]
    command = json.loads(image) if started == "the image" else ["python", "-m", "scripts.dev"]
    command[0] = f".venv/bin/{command[0]}"
    with extended.serve(*command, **variables) as server:
        status, _, headers = exchange(server, head(LENGTH) + HIDDEN + HIDDEN)
        assert (status, server.client.get("/ran").json()) == (200, [])
        assert headers["server"] is None
        assert exchange(server, REFUSED["bare LF"])[0] == 400
