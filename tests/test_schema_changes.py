"""The page on schema changes is followed while clients read and write, on both databases."""

import random
import re
import signal
import sqlite3
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

from tests.services import (
    Database,
    PostgreSQLDatabase,
    Server,
    Service,
    SQLiteDatabase,
    replace,
    wait_for,
)
from tests.test_docs import BLOCK, DOCS
from tests.watcher import Log, left_in

STEP = re.compile(rf"(?:{BLOCK.pattern})|^\*\*(Release)\.\*\*", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')
REVISION = re.compile(r'^revision = "(.*)"', re.MULTILINE)
DOWN_REVISION = re.compile(r'^down_revision = ".*"', re.MULTILINE)
RUNNING = re.compile(r"^(\S+ \S+) INFO .*: Running (\w+ \w* -> \w*)", re.MULTILINE)

ROWS = 20_000
CLIENTS = 4
ALIVE = 10.0  # seconds, within which each request is answered, however busy the machine


def steps(database: str) -> Iterator[tuple[str, str, str]]:
    """Yield what the page says to do with this database: the kind of the step, a file, a text."""
    other = {"sqlite": "PostgreSQL", "postgresql": "SQLite"}[database]
    for step in STEP.finditer((DOCS / "how-to/schema-changes.md").read_text()):
        language, attributes, text, release = step.groups()
        if release:
            yield "release", "", ""
        elif titles := TITLE.findall(attributes):
            title = titles[0].removeprefix("PostgreSQL: ").removeprefix("SQLite: ")
            if not titles[0].startswith(other):
                yield ("edit" if language == "diff" else "migration"), title, text


def edit(file: Path, diff: str) -> None:
    for hunk in diff.split("@@\n"):
        lines = [(line[:1], line[1:] + "\n") for line in hunk.splitlines()]
        old = "".join(line for sign, line in lines if sign != "+")
        new = "".join(line for sign, line in lines if sign != "-")
        replace(file, old, new)


def count(database: Database, condition: str) -> int:
    query = f"SELECT count(*) FROM items WHERE {condition}"
    if isinstance(database, PostgreSQLDatabase):
        return int(database.query(query).split()[-1])
    assert isinstance(database, SQLiteDatabase)
    with closing(sqlite3.connect(database.path)) as connection:
        return int(connection.execute(query).fetchone()[0])


def fill(database: Database) -> None:
    """Store rows that were there before anybody thought of changing their table."""
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
        connection.execute(
            f"WITH RECURSIVE numbers (n) AS {numbers} {insert} {select} numbers"
        )


@dataclass
class Load:
    """Clients that create, change, read and delete items, and find what they have stored.

    With two releases at the same time, each request goes to either of them.
    """

    urls: list[str]
    rounds: list[int] = field(default_factory=lambda: [0] * CLIENTS)
    stored: dict[int, tuple[str, str]] = field(default_factory=dict)  # name and description
    deleted: set[int] = field(default_factory=set)
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
                self.wait()
            finally:
                self.ended = True
        for client in self._clients:
            client.result()

    def wait(self, rounds: int = 2) -> None:
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
        with httpx2.Client(timeout=ALIVE) as http:

            def ask(status: int, method: str, path: str, **options: Any) -> httpx2.Response:
                at, start = time.time(), time.monotonic()
                answer = http.request(method, random.choice(self.urls) + path, **options)
                self.answers.append((at, time.monotonic() - start))
                assert answer.status_code == status, f"{method} {path}: {answer.text}"
                time.sleep(0.005)
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
        if number % 3 == 0:
            ask(204, "DELETE", path)
            ask(404, "GET", path)
            del self.stored[key]
            self.deleted.add(key)


class Follower:
    """Somebody who does what the page says, to a service that is used meanwhile."""

    def __init__(self, service: Service, database: Database) -> None:
        self.service = service
        self.database = database
        self.revision = "ff1af746d745"
        self.running = ExitStack()
        self.load = Load([self._start()])

    def _start(self) -> str:
        self.running = ExitStack()
        server = self.running.enter_context(self._serve())
        return str(server.client.base_url).rstrip("/")

    @contextmanager
    def _serve(self) -> Iterator[Server]:
        command = (".venv/bin/uvicorn", "app.main:app")
        with self.service.serve(*command, **self.database.variables) as server:
            yield server
            server.stop(signal.SIGTERM)
        log = Log(server.log_file)
        log.follow()
        assert log.violations == []

    def release(self) -> None:
        """Start the code as it is now, and end the release before after a time with both."""
        older = self.running
        newest = self._start()
        self.load.urls = [*self.load.urls, newest]
        self.load.wait()
        self.load.urls = [newest]
        self.load.wait()
        older.close()

    def write(self, title: str, text: str) -> None:
        """Write a migration that follows the last one, as Alembic would."""
        [self.revision, before] = *REVISION.findall(text), self.revision
        text = DOWN_REVISION.sub(f'down_revision = "{before}"', text)
        (self.service.folder / title).write_text(text)

    def alembic(self, *words: str) -> None:
        """Run Alembic's command; print how long clients waited during each migration."""
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


def stamp(moment: str) -> float:
    return datetime.fromisoformat(moment.replace(",", ".")).timestamp()


@pytest.fixture
def copy(service: Service, migrated: Database, tmp_path: Path) -> Service:
    """A service whose table has rows."""
    fill(migrated)
    return service.copy(tmp_path / "service")


def test_the_schema_changes_while_items_are_read_and_written(
    copy: Service, migrated: Database
) -> None:
    follower = Follower(copy, migrated)
    try:
        with follower.load.run():
            follow(follower)
    finally:
        follower.running.close()
    load = follower.load

    # What clients have stored is there, under its new name, and the rest is what it was.
    with follower.service.serve(**migrated.variables) as server:
        for key, (name, text) in load.stored.items():
            found = server.client.get(f"/items/{key}").json()
            assert (found["name"], found["description"]) == (name, text)
        for key in load.deleted:
            assert server.client.get(f"/items/{key}").status_code == 404
    old = sum(key <= ROWS for key in load.stored)
    assert count(migrated, "true") == ROWS + len(load.stored) - old
    assert count(migrated, "details = 'as it was'") == ROWS - old
    assert count(migrated, "slug = name") == ROWS + len(load.stored) - old

    for check in (("ruff", "format", "--check"), ("ruff", "check"), ("mypy", "app", "migrations")):
        copy.run(f".venv/bin/{check[0]}", *check[1:])


def follow(follower: Follower) -> None:
    """Do what the page says, from its beginning to its end."""
    for kind, title, text in steps(follower.service.database):
        if kind == "edit":
            edit(follower.service.folder / title, text)
        elif kind == "migration":
            follower.write(title, text)
        else:
            follower.alembic("upgrade", "head")
            follower.release()
    follower.alembic("upgrade", "head")
    follower.alembic("check")
    follower.alembic("downgrade", "fill_details")
    follower.alembic("upgrade", "head")
