"""A marked value is sent down every path, and looked for in all output of a process."""

import hashlib
import json
import re
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.support.databases import Database
from tests.support.processes import once
from tests.support.services import FIRST, Server, Service

HERE = Path(__file__).parent / "support/roads"
MOST = {"LOG_LEVEL": "DEBUG", "DATABASE_ECHO": "true", "PYTHONASYNCIODEBUG": "1"}
TABLE = [
    'op.create_table("roads", sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"),',
    "    sa.Identity(always=True), primary_key=True),",
    '    sa.Column("name", sa.String(60), nullable=False, unique=True),',
    '    sa.Column("number", sa.Integer(), nullable=False))',
]
RAISE = """
op.execute('''CREATE FUNCTION raise_value(value text) RETURNS integer LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION 'bad %', value USING ERRCODE = '23505'; END$$''')
"""
FAIL = [
    "value = os.environ.get('VALUE', '')",
    "roads = sa.table('roads', sa.column('name', sa.String()), sa.column('number', sa.Integer()))",
    "if os.environ.get('ROAD') == 'rows that clash':",
    "    op.bulk_insert(roads, [{'name': value, 'number': 1}] * 2)",
    "if os.environ.get('ROAD') == 'a value that is none':",
    "    op.bulk_insert(roads, [{'name': value, 'number': value}])",
    "if os.environ.get('ROAD') == 'an error of its own':",
    "    int(value)",
]
UNCAUGHT = "import os, app.main; int(os.environ['VALUE'])"
COMMANDS = {
    "start": ("python", "-m", "app.server", "--port", "0"),
    "rows that clash": ("alembic", "upgrade", "head"),
    "a value that is none": ("alembic", "upgrade", "head"),
    "an error of its own": ("alembic", "upgrade", "head"),
    "uncaught": ("python", "-c", UNCAUGHT),
}
TALK = """
import sys
from websockets.sync.client import connect

address, value = sys.argv[1:]
with connect(f"{address}?token={value}", additional_headers={"Cookie": f"session={value}"}) as socket:
    socket.send(value)
    try:
        socket.recv()
    except Exception as error:
        print(type(error).__name__)
"""


@dataclass
class Marks:
    """Values that are found again in a text, each with the road that it took."""

    roads: dict[str, str] = field(default_factory=dict)

    def new(self, road: str) -> str:
        value = "mark" + hashlib.sha256(road.encode()).hexdigest()[:16]
        self.roads[value] = road
        return value

    def found(self, text: str) -> list[str]:
        return sorted({self.roads[value] for value in re.findall(r"mark[0-9a-f]{16}", text)})


REQUESTS: dict[str, Callable[[str], dict[str, object]]] = {
    "query": lambda value: {"url": f"/items?token={value}"},
    "header": lambda value: {"headers": {"Authorization": f"Bearer {value}", "X-Key": value}},
    "agent": lambda value: {"headers": {"User-Agent": value, "Referer": f"http://{value}/"}},
    "cookie": lambda value: {"headers": {"Cookie": f"session={value}"}},
    "host": lambda value: {"headers": {"Host": f"{value}.example"}},
    "request id": lambda value: {"headers": {"X-Request-ID": f"{value} {value}"}},
    "entity tag": lambda value: {"headers": {"If-None-Match": f'"{value}"', "Range": value}},
    "body": lambda value: {"method": "POST", "json": {"name": value, value: value}},
    "not json": lambda value: {"method": "POST", "content": f'{{"name": {value}}}'},
    "form": lambda value: {"method": "POST", "data": {"name": value}},
    "file": lambda value: {"method": "POST", "files": {value: (value, value)}},
    "cursor": lambda value: {"url": f"/items?cursor={value}"},
}
BYTES: dict[str, Callable[[str], str]] = {
    "version": lambda value: f"GET / HTTP/{value}\r\n\r\n",
    "malformed header": lambda value: f"GET / HTTP/1.1\r\nHost: a\r\n{value}\r\n\r\n",
    "length": lambda value: f"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: {value}\r\n\r\n",
    "upgrade": lambda value: (
        f"GET /?{value} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {value}\r\n\r\n"
    ),
    "handshake": lambda value: (
        f"GET /roads/socket?{value} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n"
        f"Upgrade: websocket\r\nSec-WebSocket-Key: {value}\r\nCookie: a={value}\r\n\r\n"
    ),
}


@pytest.fixture(scope="module")
def roads(service: Service, whole_run: Path) -> Service:
    """The service with every road, and with the packages that some lead through.

    The first worker makes it, for all: it has an environment of its own.
    """
    folder = whole_run / f"roads-{service.database}"

    def make() -> str:
        copy = service.copy(folder)
        copy.leave_shared_environment()
        copy.run("uv", "add", "--quiet", "websockets", "python-multipart")
        copy.extend(**{name: (HERE / f"{name}.py").read_text() for name in ("models", "routes")})
        more = RAISE.splitlines() if service.database == "postgresql" else []
        copy.add_revision("roads", FIRST, [*TABLE, *more])
        copy.add_revision("fails", "roads", FAIL)
        return ""

    once(folder.with_suffix(".made"), make)
    return Service(folder, service.database)


def send_all(server: Server, service: Service, marks: Marks) -> None:
    """Send a value down each path, and check that the service has survived it."""
    http = server.client
    http.headers["Connection"] = "close"  # what fails after its answer ends the connection
    known = http.get("/roads").json()
    taken = [f"simple/{name}" for name in known["simple"]]
    taken += [
        f"{way}/{name}" for way in ("statement", "later", "logged") for name in known["statements"]
    ]
    for road in [*taken, "answer", "call"]:
        http.post(f"/roads/{road}", json=marks.new(road))
    with pytest.raises(httpx2.RemoteProtocolError):  # the answer is cut
        http.post("/roads/stream", json=marks.new("stream"))
    for road, make in REQUESTS.items():
        http.request(**{"method": "GET", "url": "/items", **make(marks.new(road))})  # type: ignore[arg-type]
    for road, make_bytes in BYTES.items():
        with socket.create_connection(("127.0.0.1", http.base_url.port or 0), 5) as raw:
            raw.sendall(make_bytes(marks.new(road)).encode())
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65536):
                pass
    address = str(http.base_url).replace("http", "ws") + "/roads/socket"
    said = service.run(".venv/bin/python", "-c", TALK, address, marks.new("socket")).stdout
    assert said == "ConnectionClosedError\n"
    assert http.get("/health/ready").json() == {"status": "ready"}


@pytest.mark.long
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_value_gets_into_the_log_by_any_path(
    roads: Service, migrated: Database, log_format: str
) -> None:
    marks = Marks()
    variables = migrated.variables | MOST | {"LOG_FORMAT": log_format}
    roads.migrate(migrated)

    stop = {"ROAD": "stop", "VALUE": marks.new("stop")}
    command = (".venv/bin/python", "-m", "app.server", "--log-level", "trace")
    with roads.serve(*command, **variables, **stop) as server:
        send_all(server, roads, marks)
        server.stop(signal.SIGTERM)

    log = server.log()
    assert marks.found(log) == []
    assert max(map(len, log.splitlines())) < 16_384
    if log_format == "json":
        assert [json.loads(line) for line in log.splitlines()]
    for kind in ("ValueError", "IntegrityError", "unhandled error", "the lifespan failed"):
        assert kind in log


def test_no_command_that_fails_prints_a_value(roads: Service, migrated: Database) -> None:
    marks = Marks()
    said = ""
    for road, (program, *words) in COMMANDS.items():
        own = {"ROAD": road, "VALUE": marks.new(road)}
        variables = migrated.variables | MOST | own
        done = roads.run(f".venv/bin/{program}", *words, variables=variables, check=False)
        assert done.returncode != 0
        said += done.stdout

    assert marks.found(said) == []
    for kind in ("ValueError", "IntegrityError", "the lifespan failed", "uncaught error"):
        assert kind in said
