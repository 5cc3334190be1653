"""What a page of docs/how-to adds to a service works as written, on both databases."""

import http.server
import json
import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.support import watcher
from tests.support.databases import (
    Database,
    PostgreSQLDatabase,
    SQLiteDatabase,
    open_database,
    transaction,
)
from tests.support.pages import Typist, blocks, follow, page_text
from tests.support.processes import wait_for
from tests.support.services import Server, Service
from tests.support.watcher import left_in


def check_feature(server: Server) -> None:
    created = server.client.post("/orders", json={"name": "Spanner"})
    assert created.headers["Location"] == "/orders/1"
    assert server.client.get("/items").json()["items"] == []


def check_relationships(server: Server) -> None:
    http = server.client
    for name, titles in (("Anna", ["One", "Two"]), ("Bert", [])):
        assert http.post("/authors", json={"name": name, "titles": titles}).status_code == 201
    anna, bert = http.get("/authors").json()["items"]
    assert [book["title"] for book in anna["books"]] == ["One", "Two"]
    assert bert["books"] == []

    genres = [http.post("/genres", json={"name": name}).json()["id"] for name in ("Noir", "Crime")]
    one, two = (f"/books/{book['id']}" for book in anna["books"])
    for path, ids in ((one, genres), (two, genres), (two, [])):
        assert http.put(f"{path}/genres", json=ids).status_code == 204
    for path, status in ((one, 409), ("/books/99", 404)):
        assert http.put(f"{path}/genres", json=[99]).status_code == status
    author = {"id": anna["id"], "name": "Anna"}
    assert http.get(one).json() == {
        **anna["books"][0],
        "author": author,
        "genres": ["Crime", "Noir"],
    }
    assert http.get(two).json()["genres"] == []

    for path in ("/authors", one):
        statements = server.log().count("SELECT ")
        http.get(path).raise_for_status()
        assert server.log().count("SELECT ") - statements == 2
    assert http.delete(f"/authors/{anna['id']}").status_code == 204
    assert http.delete(f"/authors/{anna['id']}").status_code == 404
    assert [author["name"] for author in http.get("/authors").json()["items"]] == ["Bert"]
    assert http.get(one).status_code == 404


def check_read_modify_write(server: Server) -> None:
    http = server.client
    with ThreadPoolExecutor(8) as pool:
        for kind, statuses in (("computed", {200}), ("locked", {200}), ("versioned", {200, 409})):
            assert http.put(f"/counters/{kind}").status_code == 201

            def add(_: int, kind: str = kind) -> int:
                return http.post(f"/counters/{kind}/{kind}").status_code

            answers = list(pool.map(add, range(40)))
            assert set(answers) <= statuses
            value = http.post(f"/counters/{kind}/computed").json()
            assert value == answers.count(200) + 1


def check_after_the_commit(server: Server) -> None:
    http = server.client
    created = http.post("/orders", json={"article": "Spanner"})
    assert created.status_code == 201
    path = f"/orders/{created.json()['id']}"
    wait_for(lambda: http.get(path).json() == {"article": "Spanner", "confirmed": True})


def check_streaming(server: Server) -> None:
    http = server.client
    for number in range(501):
        http.post("/items", json={"name": f"item {number}"}).raise_for_status()
    with http.stream("GET", "/export/items.csv") as response:
        lines = list(response.iter_lines())
    assert [line.split(",")[1] for line in lines if line] == [f"item {n}" for n in range(501)]


def check_second_resource(server: Server) -> None:
    assert server.client.get("/weather").json() == {"weather": "sunny"}
    server.stop(signal.SIGTERM)
    assert 0 < server.log().index("client closed") < server.log().index("disposed of")


PAGES: dict[str, Callable[[Server], None]] = {
    "feature": check_feature,
    "relationships": check_relationships,
    "read-modify-write": check_read_modify_write,
    "after-the-commit": check_after_the_commit,
    "streaming": check_streaming,
    "second-resource": check_second_resource,
}


@contextmanager
def answering(body: object) -> Iterator[tuple[str, list[str]]]:
    """Serve what a page's service asks for; yield the address, and the paths that were asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}", asked
        other.shutdown()


@contextmanager
def writing(http: httpx2.Client) -> Iterator[list[int]]:
    """Create items meanwhile, one after the other; yield the statuses."""
    statuses: list[int] = []
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set():
            item = {"name": str(time.monotonic_ns())}
            statuses.append(http.post("/items", json=item).status_code)
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(write)
        try:
            wait_for(lambda: len(statuses) > 0)
            yield statuses
            seen = len(statuses)
            wait_for(lambda: len(statuses) > seen + 1)
        finally:
            enough.set()
        thread.result()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.long if page == "feature" else []) for page in PAGES],
)
def test_a_page_works_as_it_stands(
    page: str, service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    variables = {**migrated.variables, "DATABASE_ECHO": "true"}
    follow(page, copy, variables)

    with (
        answering("sunny") as (url, _),
        watcher.serve_watched(copy, left_in(migrated), WEATHER_URL=url, **variables) as watched,
    ):
        PAGES[page](watched.server)


def test_the_api_changes_while_older_clients_go_on(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    schemas = copy.folder / "app/features/items/schemas.py"
    [renamed] = [
        block.text
        for block in blocks(page_text("how-to/change-the-api.md"))
        if block.language == "python" and not block.title
    ]
    imported, *classes = renamed.strip().split("\n\n\n")
    text = re.sub(r"^from pydantic import .*$", imported, schemas.read_text(), flags=re.MULTILINE)
    changed = {text.splitlines()[0]: text for text in classes}
    parts = [changed.pop(part.splitlines()[0], part) for part in text.rstrip().split("\n\n\n")]
    assert changed == {}
    schemas.write_text("\n\n\n".join(parts) + "\n")
    follow("change-the-api", copy, migrated.variables)

    with copy.serve(**migrated.variables) as server:
        http = server.client
        old = http.post("/items", json={"name": "a", "description": "of old"})
        either = http.post("/items", json={"name": "b", "details": "of new"})
        both = http.post("/items", json={"name": "c", "description": "", "details": ""})
        missing = http.get("/items/99")
        new = http.post("/v2/items", json={"name": "d", "details": "of newest"})
        read = [http.get(path).json()["items"] for path in ("/items", "/v2/items")]
        document = http.get("/openapi.json").json()
        single = http.get("/v2/items/1")
        assert http.get("/items/1", headers={"If-None-Match": single.headers["ETag"]}).is_success
        change = {"If-Match": single.headers["ETag"]}
        assert http.patch("/items/1", json={"name": "e"}, headers=change).status_code == 200

    texts = ["of old", "of new", "of newest"]
    assert (
        [item["description"] for item in read[0]] == [item["details"] for item in read[0]] == texts
    )
    assert [item["details"] for item in read[1]] == texts
    assert not any("description" in item for item in read[1])
    for answer in (old, either):
        assert answer.headers["Deprecation"] == "@1796083200"
        assert answer.headers["Sunset"] == "Tue, 01 Jun 2027 00:00:00 GMT"
        assert answer.headers["Link"].endswith('; rel="deprecation"')
    assert (both.status_code, missing.status_code) == (422, 404)
    assert not any("Deprecation" in answer.headers for answer in (new, missing))
    assert new.headers["Location"] == "/v2/items/3"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation.get("deprecated", False) == (not path.startswith("/v2")), path
    fields = document["components"]["schemas"]["ItemCreate"]["properties"]
    assert fields.keys() == {"name", "details"}


TALK = """
import json, signal, sys, os
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

address, process, *messages = sys.argv[1:]
with connect(address) as socket:
    print(socket.recv())
    for message in messages:
        socket.send(message)
        try:
            print(socket.recv())
        except ConnectionClosed as closed:
            print(closed.rcvd.code)
            raise SystemExit from None
    if process != "0":
        os.kill(int(process), signal.SIGTERM)
        try:
            socket.recv()
        except ConnectionClosed as closed:
            print(closed.rcvd.code)
"""


STRANGER = """
import sys
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

address = sys.argv[1]
for origin in ("https://evil.example", "null", "https://shop.example.evil.example", ""):
    try:
        connect(address, origin=origin)
    except InvalidStatus as refused:
        print(refused.response.status_code)
with connect(address, origin="https://shop.example") as socket:
    print(socket.recv())
    for message in (b'{"name": "of bytes"}', b"\\xff", b"", "", "x" * 70_000):
        socket.send(message)
        try:
            print(socket.recv())
        except ConnectionClosed as closed:
            print(closed.rcvd.code)
"""


def test_a_websocket_has_a_session_for_each_message(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    variables = migrated.variables | {"DATABASE_POOL_SIZE": "1", "DATABASE_MAX_OVERFLOW": "0"}
    follow("websockets", copy, variables)

    def talk(server: Server, process: int, *messages: str) -> list[str]:
        address = str(server.client.base_url).replace("http", "ws") + "/live/items"
        command = (".venv/bin/python", "-c", TALK, address, str(process), *messages)
        return copy.run(*command).stdout.splitlines()

    with copy.serve(".venv/bin/python", "-m", "app.server", **variables) as server:
        said = talk(server, 0, '{"name": "a"}', '{"name": "a"}', '{"name": 1}', '{"name": "b"}')
        assert [re.sub(r"\d+", "1", line) for line in said] == [
            '{"items":1}',
            '{"id":1}',
            '{"error":"This conflicts with what is stored."}',
            '{"error":"The message is not valid."}',
            '{"id":1}',
        ]
        assert len(server.client.get("/items").json()["items"]) == 2

        assert talk(server, server.process.pid, '{"name": "c"}')[2:] == ["1012"]
        server.process.wait(10)
    log = server.log()
    assert "Traceback" not in log
    assert log.count("WEBSOCKET /live/items 101 ") == 2
    assert "engine disposed of" in log

    variables |= {"DATABASE_COMMAND_TIMEOUT": "1", "CORS_ORIGINS": "https://shop.example"}
    variables |= {"UVICORN_WS_MAX_SIZE": "65536"}
    with copy.serve(".venv/bin/python", "-m", "app.server", **variables) as server:
        with migrated.block_writes(3):  # for longer than a statement may wait
            assert talk(server, 0, '{"name": "d"}')[1:] == ["1013"]
        assert "WEBSOCKET /live/items 503 " in server.log()

        address = str(server.client.base_url).replace("http", "ws") + "/live/items"
        said = copy.run(".venv/bin/python", "-c", STRANGER, address).stdout.splitlines()
        invalid = '{"error":"The message is not valid."}'
        created = re.sub(r"\d+", "1", said[5])
        assert (said[:4], created, said[6:]) == (["403"] * 4, '{"id":1}', [invalid] * 3 + ["1009"])
        assert "Traceback" not in server.log()


CLIENT = """
from fastapi import APIRouter, Request

router = APIRouter()


@router.get("/client")
async def read_client(request: Request) -> list[str]:
    return [request.client.host if request.client else "", str(request.url)]
"""


def test_only_the_proxy_is_trusted(service: Service, migrated: Database, tmp_path: Path) -> None:
    copy = service.copy(tmp_path / "service")
    follow("proxy", copy, migrated.variables)
    copy.extend(routes=CLIENT)
    override = yaml.safe_load((copy.folder / "compose.override.yaml").read_text())
    variables = migrated.variables | override["services"]["app"]["environment"]
    sent = {
        "Host": "shop.example.com",
        "X-Forwarded-For": "198.51.100.1, 203.0.113.9",
        "X-Forwarded-Proto": "https",
    }
    evil = {"Host": "evil.example.com", "X-Forwarded-Host": "shop.example.com"}

    for proxy, scheme, client in (
        (variables["FORWARDED_ALLOW_IPS"], "http", "127.0.0.1"),
        ("127.0.0.1", "https", "203.0.113.9"),
    ):
        with copy.serve(**variables | {"FORWARDED_ALLOW_IPS": proxy}) as server:
            http = server.client
            url = f"{scheme}://shop.example.com/shop/client"
            assert http.get("/client", headers=sent).json() == [client, url]
            created = http.post("/items", headers=sent, json={"name": scheme})
            assert created.headers["Location"].startswith("/shop/items/")
            assert "'/shop/openapi.json'" in http.get("/docs", headers=sent).text
            assert http.get("/items", headers=sent | evil).status_code == 400
            assert http.get("/health/live", headers=sent | evil).status_code == 200
            assert "/health" not in server.log()


OBJECT = """
from fastapi import APIRouter
from sqlalchemy import update

from app.dependencies import SessionDep
from app.features.items.models import Item

router = APIRouter()


@router.post("/rename")
async def rename(session: SessionDep) -> None:
    item = await session.get_one(Item, 1)
    await session.execute(update(Item.__table__).values(version=Item.version + 1))
    item.name = "Wrench"
"""


def test_an_object_that_has_changed_since_it_was_read_is_a_conflict(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    copy.extend(routes=OBJECT)
    with copy.serve(**migrated.variables) as server:
        created = server.client.post("/items", json={"name": "Spanner"})
        assert server.client.post("/rename").status_code == 409
        assert server.client.get("/items/1").json() == created.json()


FILTERED = """
from collections.abc import Sequence

from fastapi import APIRouter
from sqlalchemy import String, bindparam, or_
from sqlalchemy.ext.asyncio import AsyncSession

from app.database.reader import Reader
from app.dependencies import ReaderDep
from app.features.items.models import Item
from app.features.items.queries import PAGE, ItemRow
from app.features.items.schemas import Description

X = bindparam("x")
TYPED = bindparam("x", None, String)
UNTYPED_PAGE = PAGE.where(or_(X.is_(None), Item.description == X))
TYPED_PAGE = PAGE.where(or_(TYPED.is_(None), Item.description == TYPED))

router = APIRouter()


@router.get("/filtered")
async def list_filtered(db: ReaderDep, description: Description | None = None) -> list[str]:
    rows = await list_items(db, after=0, limit=9, description=description)
    return [row.name for row in rows]


@router.get("/untyped")
async def list_untyped(db: ReaderDep, description: Description | None = None) -> list[str]:
    parameters = {"after": 0, "limit": 9, "x": description}
    return [row.name for row in await db.execute(UNTYPED_PAGE, parameters)]


@router.get("/typed")
async def list_typed(db: ReaderDep, description: Description | None = None) -> list[str]:
    parameters = {"after": 0, "limit": 9, "x": description}
    return [row.name for row in await db.execute(TYPED_PAGE, parameters)]


"""


def test_a_filter_may_be_left_out(service: Service, migrated: Database, tmp_path: Path) -> None:
    copy = service.copy(tmp_path / "service")
    page = page_text("how-to/feature.md")
    [function] = [block.text for block in blocks(page) if "statement.where" in block.text]
    copy.extend(routes=FILTERED + function.replace("order", "item").replace("Order", "Item"))

    with copy.serve(**migrated.variables) as server:
        for name, description in (("Spanner", "13 mm"), ("Saw", None), ("Wrench", "13 mm")):
            item = {"name": name, "description": description}
            server.client.post("/items", json=item).raise_for_status()
        for path in ("/filtered", "/typed"):
            assert server.client.get(path).json() == ["Spanner", "Saw", "Wrench"]
            given = server.client.get(path, params={"description": "13 mm"})
            assert given.json() == ["Spanner", "Wrench"]
            assert server.client.get(path, params={"description": "'"}).json() == []
        refused = {"sqlite": 200, "postgresql": 500}[service.database]
        assert server.client.get("/untyped").status_code == refused

    if isinstance(migrated, SQLiteDatabase):  # `name` has an index, as it is unique
        with closing(sqlite3.connect(migrated.path)) as connection:

            def plan(condition: str) -> str:
                explain = f"EXPLAIN QUERY PLAN SELECT * FROM items WHERE {condition}"
                return str(connection.execute(explain, ("Saw",)).fetchall())

            assert "SEARCH items" in plan("name = ?1")
            assert "SCAN items" in plan("?1 IS NULL OR name = ?1")


def test_a_walk_from_the_start_finds_what_was_committed_late(
    service: Service, migrated: Database
) -> None:
    now = "'2026-11-28 00:00:00.000000'"
    late = (
        "INSERT INTO items (name, created_at, updated_at, version)"
        f" VALUES ('late', {now}, {now}, 1)"
    )
    with service.serve(**migrated.variables) as server, ThreadPoolExecutor(1) as pool:

        def create(name: str) -> None:
            server.client.post("/items", json={"name": name}).raise_for_status()

        def walk(**query: str | int) -> tuple[list[str], str | None]:
            page = server.client.get("/items", params=query).json()
            return [item["name"] for item in page["items"]], page["next_cursor"]

        create("first")
        with transaction(migrated, late):
            sent = [pool.submit(create, name) for name in ("second", "third")]
            if isinstance(migrated, PostgreSQLDatabase):
                for request in sent:
                    request.result()
                passed, cursor = walk(limit=2)
                assert passed == ["first", "second"]
        for request in sent:
            request.result()

        if isinstance(migrated, PostgreSQLDatabase):
            assert cursor is not None
            assert walk(cursor=cursor) == (["third"], None)
        assert walk() == (["first", "late", "second", "third"], None)


def test_in_development_the_doctor_says_what_is_there_and_a_backup_is_made_as_typed(
    service: Service, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    typist = Typist(copy.folder, instead={r"\buv run\b": "uv run --no-sync"})
    (copy.folder / ".env").write_text("LOG_LEVEL=DEBUG\nLOG_LEVELS=x\n")
    made = {"sqlite": "app.db", "postgresql": ".postgres"}[service.database]

    before = typist.type("uv run poe doctor")
    assert re.search(
        rf"^look  database  .*{made}.* is not there: uv run poe dev makes", before, re.MULTILINE
    )
    assert not (copy.folder / made).exists()
    (copy.folder / ".env").write_text("LOG_LEVEL=nonsense\n")
    assert typist.try_typing("uv run poe doctor").returncode == 1
    (copy.folder / ".env").unlink()

    with copy.serve("uv", "run", "--no-sync", "poe", "dev") as server:
        http = server.client
        wait_for(lambda: http.get("/health/ready").status_code == 200, 60)
        after = typist.type("uv run poe doctor")
        assert "ok    schema    up to date" in after
        assert re.search(rf"^ok    database  .*{made}", after, re.MULTILINE)
        assert not re.search("^(WRONG|look )", after, re.MULTILINE)

        kept = http.post("/items", json={"name": "kept"}).headers["Location"]
        for block in blocks(page_text("how-to/backups.md"), service.database):
            if block.title == "restore":
                assert http.delete(kept).status_code == 204
            if block.language == "python":
                typist.write(block.title, block.text)
            elif block.title in ("in development", "back up", "restore", "after a restore"):
                typist.type(block.text)
        assert http.get(kept).json()["name"] == "kept"


def test_a_backup_is_restored_while_items_are_written(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = service.copy(tmp_path / "service")
    with open_database(service.database, tmp_path) as database:
        assert isinstance(database, PostgreSQLDatabase | SQLiteDatabase)
        if isinstance(database, PostgreSQLDatabase):
            home = copy.folder / "~"
            variables = database.variables | {"HOME": str(home)}
            tools = f"{database.server.bin_path}{os.pathsep}{os.environ['PATH']}"
            monkeypatch.setenv("PATH", tools)
        else:
            variables = {"DATABASE_URL": "sqlite+aiosqlite:///./app.db"}
            database.path = copy.folder / "app.db"
        copy.run(".venv/bin/alembic", "upgrade", "head", variables=variables)

        with (
            watcher.serve_watched(copy, left_in(database), **variables) as watched,
            ExitStack() as meanwhile,
        ):
            http = watched.server.client
            kept = http.post("/items", json={"name": "kept"}).headers["Location"]
            statuses = []

            def change(title: str) -> None:
                nonlocal statuses
                if title == "let nobody else read it":
                    folder = database.variables["DATABASE_URL"].rpartition("=")[2]
                    place = f"[shop]\nhost={folder}\nuser=postgres\ndbname=postgres\n"
                    (home / ".pg_service.conf").write_text(place)
                elif title == "back up":
                    statuses = meanwhile.enter_context(writing(http))
                elif title == "restore":
                    assert http.post("/items", json={"name": "lost"}).status_code == 201
                    assert http.delete(kept).status_code == 204
                elif title == "after a restore":
                    meanwhile.close()

            follow("backups", copy, variables, before=change)

            assert set(statuses) <= {201, 503}
            assert http.get(kept).json()["name"] == "kept"
            assert http.post("/items", json={"name": "lost"}).status_code == 201
            assert http.post("/items", json={"name": "kept"}).status_code == 409

        if isinstance(database, PostgreSQLDatabase):  # all of it or nothing
            database.query("CREATE TABLE newer (item_id bigint REFERENCES items)")
            page = page_text("how-to/backups.md")
            [restore] = re.findall(r"^pg_restore(?s:.*?)dump$", page, re.MULTILINE)
            refused = copy.run("sh", "-c", restore, variables=variables, check=False)
            assert "other objects depend on it" in refused.stdout
            assert "lost" in database.query("SELECT name FROM items")
        copy.run(".venv/bin/python", "-m", "app.doctor", variables=variables)
