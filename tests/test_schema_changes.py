"""The page on schema changes is followed while clients read and write, on both databases."""

import random
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.databases import OTHER, Database, PostgreSQLDatabase, SQLiteDatabase, transaction
from tests.support.pages import BLOCK, LABELS, TITLE, blocks, edit, page_text
from tests.support.processes import environment, open_client, wait_for
from tests.support.repository import replace
from tests.support.services import Server, Service
from tests.support.watcher import Log

PAGE = page_text("how-to/schema-changes.md")
STEP = re.compile(rf"(?:{BLOCK.pattern})|^\*\*(Release)\.\*\*", re.DOTALL | re.MULTILINE)
REVISION = re.compile(r'^revision = "(.*)"', re.MULTILINE)
DOWN_REVISION = re.compile(r'^down_revision = ".*"', re.MULTILINE)
RUNNING = re.compile(r"^(\S+ \S+) INFO .*: Running (\w+ \w* -> \w*)", re.MULTILINE)
FILL = re.compile(r"^FILL = sa\.text\(\n.*?^\)\n", re.DOTALL | re.MULTILINE)

ROWS = 20_000
CLIENTS = 4
PAUSE = 0.05  # seconds between two requests of a client
ALIVE = 10.0  # seconds, within which each request is answered, however busy the machine


def steps(database: str) -> Iterator[tuple[str, str, str]]:
    """Yield what the page says to do with this database: the kind of the step, a file, a text."""
    other = LABELS[OTHER[database]]
    for step in STEP.finditer(PAGE):
        language, attributes, text, release = step.groups()
        if release:
            yield release, "", ""
        elif (titles := TITLE.findall(attributes)) and not titles[0].startswith(other):
            title = titles[0].removeprefix("PostgreSQL: ").removeprefix("SQLite: ")
            yield ("diff" if language == "diff" else Path(title).parent.name), title, text


def count(database: Database, rows: str) -> int:
    query = f"SELECT count(*) FROM {rows}"
    if isinstance(database, PostgreSQLDatabase):
        return int(database.query(query).split()[-1])
    assert isinstance(database, SQLiteDatabase)
    with closing(sqlite3.connect(database.path)) as connection:
        return int(connection.execute(query).fetchone()[0])


def store_rows(database: Database) -> None:
    """Store rows that are older than any change of their table."""
    insert = "INSERT INTO items (name, description, created_at, updated_at, version)"
    now = "'2026-01-01 00:00:00.000000'"
    select = f"SELECT 'old ' || n, 'as it was', {now}, {now}, 1 FROM"
    if isinstance(database, PostgreSQLDatabase):
        select = select.replace(now, f"timestamptz {now}")
        database.query(f"{insert} {select} generate_series(1, {ROWS}) AS n")
        return
    assert isinstance(database, SQLiteDatabase)
    numbers = f"(VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < {ROWS})"
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute(f"WITH RECURSIVE numbers (n) AS {numbers} {insert} {select} numbers")


def stamp(moment: str) -> float:
    return datetime.fromisoformat(moment.replace(",", ".")).timestamp()


@dataclass
class Load:
    """Clients that create, change, read and delete items, and find what they have stored.

    With two releases at the same time, each request goes to either of them.
    """

    urls: list[str]
    rounds: list[int] = field(default_factory=lambda: [0] * CLIENTS)
    stored: dict[int, tuple[str, str]] = field(default_factory=dict)  # name and description
    answers: list[tuple[float, float]] = field(default_factory=list)  # when, and how long it took
    ended: bool = False
    _clients: list[Future[None]] = field(default_factory=list)

    @contextmanager
    def run(self) -> Iterator[None]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            self._clients = [pool.submit(self._use, client) for client in range(CLIENTS)]
            try:
                self.wait()
                yield
            finally:
                self.ended = True

    def stop(self) -> None:
        self.wait()
        self.ended = True
        for client in self._clients:
            client.result()

    def wait(self, rounds: int = 1) -> None:
        """Wait until each client has begun and ended so many rounds."""
        seen = [*self.rounds]

        def happened() -> bool:
            for client in self._clients:
                if client.done():
                    client.result()
            return all(now > then + rounds for now, then in zip(self.rounds, seen, strict=True))

        wait_for(happened, 60)

    def slowest(self, start: float, end: float) -> tuple[float, int]:
        """Return the longest wait for an answer in a time, and the number of answers."""
        waits = [wait for at, wait in [*self.answers] if at + wait > start and at < end]
        return max(waits, default=0), len(waits)

    def _use(self, client: int) -> None:
        with open_client("", ALIVE) as http:

            def ask(status: int, method: str, path: str, **options: Any) -> httpx2.Response:
                at, start = time.time(), time.monotonic()
                answer = http.request(method, random.choice(self.urls) + path, **options)
                self.answers.append((at, time.monotonic() - start))
                assert answer.status_code == status, f"{method} {path}: {answer.text}"
                time.sleep(PAUSE)
                return answer

            while not self.ended:
                self._go_round(client, ask)
                self.rounds[client] += 1

    def _go_round(self, client: int, ask: Callable[..., httpx2.Response]) -> None:
        number = self.rounds[client]
        name = f"new {client} {number}"
        created = ask(201, "POST", "/items", json={"name": name, "description": "at first"})
        key, path = created.json()["id"], created.headers["Location"]
        assert ask(200, "GET", path).json()["description"] == "at first"
        ask(409, "POST", "/items", json={"name": name})
        old = random.randrange(ROWS // CLIENTS) * CLIENTS + client + 1  # no other client's
        for changed in (key, old):
            text = f"changed {number}"
            ask(200, "PATCH", f"/items/{changed}", json={"description": text})
            found = ask(200, "GET", f"/items/{changed}").json()
            assert found["description"] == text
            self.stored[changed] = found["name"], text
        assert len(ask(200, "GET", "/items?limit=5").json()["items"]) == 5
        ask(412, "DELETE", path, headers={"If-Match": '"1"'})
        ask(404, "GET", f"/items/{2**60}")
        if number % 3 == 0:
            del self.stored[key]
            ask(204, "DELETE", path)


class Follower:
    """Somebody who does what the page says, to a service that may be used meanwhile."""

    def __init__(self, service: Service, database: Database) -> None:
        self.service = service
        self.database = database
        self.revision = "ff1af746d745"
        self.load = Load([])
        self._is_behind = False
        self._running = ExitStack()
        self._steps = steps(service.database)

    @contextmanager
    def serve(self) -> Iterator[None]:
        self.load.urls = [self._start()]
        try:
            yield
        finally:
            self._running.close()

    def follow(self, last: str = "") -> None:
        """Follow the page to its end, or until the migration `last` is written."""
        for kind, title, text in self._steps:
            if kind == "diff":
                edit(self.service.folder / title, text)
            elif kind == "versions":
                self._write(title, text)
            elif title == "FILL":
                file = "migrations/versions/fill_details.py"
                page = (self.service.folder / file).read_text().replace("fill_details", "fill_more")
                self._write(file.replace("details", "more"), FILL.sub(text, page))
            elif kind == "Release" and self.load.urls:
                self.upgrade()
                self._release()
            if self.revision == last:
                return

    def upgrade(self) -> None:
        if self._is_behind:
            self.alembic("upgrade", "head")
        self._is_behind = False

    def alembic(self, *words: str) -> None:
        """Run a command of Alembic; print how long clients waited during each migration."""
        command = (".venv/bin/alembic", *words)
        said = self.service.run(*command, variables=self.database.variables).stdout
        lines = [(stamp(at), step) for at, step in RUNNING.findall(said)]
        ends = [at for at, _ in lines[1:]] + [time.time()] * bool(lines)
        for (start, step), end in zip(lines, ends, strict=True):
            slowest, answers = self.load.slowest(start, end)
            print(
                f"{self.service.database}: {step}: {end - start:.2f} s,"
                f" {answers} answers, the slowest after {slowest:.3f} s"
            )
            assert slowest < ALIVE

    def _write(self, title: str, text: str) -> None:
        """Write a migration that follows the last one, as Alembic would."""
        text = DOWN_REVISION.sub(f'down_revision = "{self.revision}"', text)
        (self.service.folder / title).write_text(text)
        [self.revision] = REVISION.findall(text)
        self._is_behind = True

    def _release(self) -> None:
        """Start the code as it is now, and end the release before after a time with both."""
        older = self._running
        newest = self._start()
        self.load.urls = [*self.load.urls, newest]
        self.load.wait()
        self.load.urls = [newest]
        self.load.wait(0)  # until nobody waits for an answer of the old one
        older.close()

    def _start(self) -> str:
        self._running = ExitStack()
        server = self._running.enter_context(self._serve())
        return str(server.client.base_url).rstrip("/")

    @contextmanager
    def _serve(self) -> Iterator[Server]:
        command = (".venv/bin/python", "-m", "app.server")
        with self.service.serve(*command, **self.database.variables) as server:
            yield server
            server.stop(signal.SIGTERM)
        log = Log(server.log_file)
        log.follow()
        assert log.violations == []


@pytest.fixture
def follower(service: Service, migrated: Database, tmp_path: Path) -> Follower:
    """A reader of the page, whose service has rows from before."""
    store_rows(migrated)
    return Follower(service.copy(tmp_path / "service"), migrated)


@pytest.mark.long
def test_the_schema_changes_while_items_are_read_and_written(follower: Follower) -> None:
    with follower.serve(), follower.load.run():
        for last in ("fill_more", "drop_categories"):
            follower.follow(last)
            follower.upgrade()
            follower.alembic("check")
        follower.alembic("downgrade", "fill_more")  # nothing names any more what was dropped
        follower.load.stop()
        check_rows(follower.load, follower.database)
    check_labels(follower)

    follower.service.run(".venv/bin/pytest", "tests/test_migrations.py", "-k", "rows_in_the_tables")
    follower.service.run(".venv/bin/ruff", "format", "--check")
    follower.service.run(".venv/bin/ruff", "check")
    follower.service.run(".venv/bin/mypy", "app", "migrations")


def check_rows(load: Load, database: Database) -> None:
    """What clients have stored is there under all of its names, and the rest is what it was."""
    with open_client(load.urls[0]) as http:
        for key, (name, text) in load.stored.items():
            found = http.get(f"/items/{key}").json()
            assert (found["name"], found["description"]) == (name, text)
    changed = sum(key <= ROWS for key in load.stored)
    rows = ROWS + len(load.stored) - changed
    assert count(database, "items") == rows
    assert count(database, "items WHERE slug = name AND state = 'new'") == rows
    assert count(database, "items WHERE details = 'as it was'") == ROWS - changed
    assert count(database, f"item_details WHERE item_id <= {ROWS}") == ROWS


STATES = """
import asyncio

from sqlalchemy import Enum, select, text, type_coerce
from sqlalchemy.ext.asyncio import create_async_engine

from app.features.items.models import Item, STATES
from app.settings import ServiceSettings, load_settings


async def read() -> None:
    async with create_async_engine(load_settings(ServiceSettings).driver_url).begin() as connection:
        await connection.execute(text("UPDATE items SET state = 'lost' WHERE id = 1"))
        connection = await connection.execution_options(compiled_cache=None)
        for labels in STATES, STATES[:-1]:
            state = type_coerce(Item.state, Enum(*labels))
            try:
                print(await connection.scalar(select(state).where(Item.id == 1)))
            except LookupError:
                print("not known")


asyncio.run(read())
"""


def check_labels(follower: Follower) -> None:
    """A new label is read by the release that knows it, and not by the one before."""
    variables = follower.database.variables
    said = follower.service.run(".venv/bin/python", "-c", STATES, variables=variables).stdout
    assert said.split("\n")[:2] == ["lost", "not known"]


@pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
def test_an_index_waits_for_open_transactions_and_blocks_nobody(follower: Follower) -> None:
    database = follower.database
    assert isinstance(database, PostgreSQLDatabase)
    waiting = (  # for longer than a migration waits for a table
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%'"
        " AND state = 'active' AND now() - query_start > interval '2 s'"
    )
    database.query("CREATE INDEX ix_items_quantity ON items (name)")  # as if interrupted
    follower.follow("index_quantity")

    with follower.serve(), follower.load.run(), ThreadPoolExecutor(1) as pool:
        with transaction(database, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1"):
            upgrade = pool.submit(follower.alembic, "upgrade", "head")
            wait_for(lambda: database.query(waiting).split()[-1] == "1", 60)
            follower.load.wait()
            assert not upgrade.done()
        upgrade.result()
        follower.load.stop()
    follower.alembic("check")


def test_a_killed_fill_keeps_what_it_has_filled_and_is_restarted(
    follower: Follower,
) -> None:
    service, database = follower.service, follower.database
    follower.follow("fill_slug")
    file = service.folder / "migrations/versions/fill_slug.py"
    page = file.read_text()
    file.write_text(page.replace("5000", "500"))  # so that it takes its time

    def filled() -> int:
        return count(database, "items WHERE slug IS NOT NULL")

    follower.alembic("upgrade", "add_slug")
    with subprocess.Popen(
        [".venv/bin/alembic", "upgrade", "head"],
        cwd=service.folder,
        env=environment(**database.variables),
    ) as process:
        wait_for(lambda: filled() > 0, 60)
        process.kill()

    assert 0 < filled() < ROWS
    file.write_text(page)
    follower.alembic("upgrade", "head")
    assert count(database, "items WHERE slug = name") == ROWS


def test_an_attribute_is_renamed_and_its_column_is_not(service: Service, tmp_path: Path) -> None:
    copy = service.copy(tmp_path / "service")
    model = copy.folder / "app/features/items/models.py"
    [new] = [block.text for block in blocks(PAGE) if "attribute" in block.title]
    [old] = re.findall(r"^    description: .*\n", model.read_text(), re.MULTILINE)
    program = (
        "from app.features.items.models import Item;"
        "print([(c.name, str(c.type), c.nullable) for c in Item.__table__.c])"
    )

    before = copy.run(".venv/bin/python", "-c", program).stdout
    replace(model, old, new)
    replace(copy.folder / "app/features/items/queries.py", "Item.description", "Item.details")

    assert copy.run(".venv/bin/python", "-c", program).stdout == before
    assert copy.run(".venv/bin/python", "-c", f"{program}; Item.details")
