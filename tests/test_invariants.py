"""However a read or a write fails, it leaves nothing behind, and the next valid one succeeds."""

import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from itertools import count, product
from pathlib import Path

import httpx2
import pytest

from tests.support import watcher
from tests.support.answers import is_outcome_unknown
from tests.support.databases import SQLiteDatabase
from tests.support.processes import wait_for
from tests.support.proxied import ProxiedDatabase, open_guarded_server, open_proxied
from tests.support.proxy import Action, Trap
from tests.support.services import Service
from tests.support.watcher import Left, Watcher, left_in_sqlite

POSTGRESQL = pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
SQLITE = pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
WAYS = ("reader", "session", "task")  # in which a handler reaches the database
HELD = 0.09  # seconds for which a message is held, and what waits for it is given up
PROMPT = 2.0  # seconds in which a valid request is answered, on a busy machine
LIMITS = {
    "DATABASE_POOL_SIZE": "2",
    "DATABASE_MAX_OVERFLOW": "0",
    "DATABASE_CONNECT_TIMEOUT": "0.5",
    "DATABASE_COMMAND_TIMEOUT": "0.6",
    "DATABASE_POOL_TIMEOUT": "1.5",
}

# Each kind of statement with a value that succeeds and one that fails. Its text is another for
# each `name`, so that a connection has not prepared it, unless it was sent by that name before.
ROUTES = """
import asyncio
import datetime
import random
import string

from fastapi import APIRouter, Request
from sqlalchemy import (
    BigInteger, Enum, Float, Integer, String, bindparam, cast, column, func, insert, literal,
    literal_column, select, table, text,
)

from app.dependencies import ReaderDep, SessionDep
from app.features.items.models import Item

router = APIRouter()
NOW = datetime.datetime.now(datetime.UTC)
VALUE = bindparam("value")
THINGS = table(
    "things",
    column("tag", String),
    column("number", Integer),
    column("mood", Enum("calm", name="mood")),
)
TICKETS = table("tickets", column("id", Integer), column("tag", String))
COMMITS = table("commits", column("number", Float))


def noise(length):
    return "".join(random.choices(string.ascii_letters, k=length))


def item_where(condition):
    return lambda name: select(Item.id.label(name)).where(condition)


def insert_into(into, **values):
    return lambda name: insert(into).values(values).returning(literal_column("1").label(name))


def count_to(name):
    return select(
        text("n FROM (WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r"
             f" WHERE n < :value) SELECT count(*) AS n FROM r) AS {name}")
    )


KINDS = {
    "integer": (item_where(Item.version == VALUE), lambda: 1, lambda: 2**70),
    "32 bits": (item_where(Item.version == VALUE), lambda: 1, lambda: 99999999999),
    "surrogate": (item_where(Item.name == VALUE), lambda: "a", lambda: "\\ud800"),
    "wrong type": (item_where(Item.version == VALUE), lambda: 1, lambda: ["x"]),
    "no zone": (item_where(Item.created_at == VALUE), lambda: NOW, lambda: NOW.replace(tzinfo=None)),
    "NUL": (item_where(Item.name == VALUE), lambda: "a", lambda: "a\\0b"),
    "too large for a cast": (
        lambda name: select(cast(bindparam("value", type_=BigInteger), Integer).label(name)),
        lambda: 1,
        lambda: 2**40,
    ),
    "no number": (
        lambda name: select(cast(bindparam("value", type_=String), Integer).label(name)),
        lambda: "1",
        lambda: "x",
    ),
    "no table": (
        lambda name: select(literal_column("1").label(name)).select_from(table("passing")),
        None,
        None,
    ),
    "enum": (
        lambda name: select(literal_column("1").label(name)).where(THINGS.c.mood == VALUE),
        lambda: "calm",
        lambda: "calm",
    ),
    "sleep": (
        lambda name: select(func.pg_sleep(bindparam("value", type_=Float)).label(name)),
        lambda: 0,
        lambda: 30,
    ),
    "long": (count_to, lambda: 1, lambda: 10**9),
    "write": (insert_into(THINGS, tag=VALUE), lambda: noise(20), lambda: noise(20)),
    "write 32 bits": (insert_into(THINGS, number=VALUE), lambda: 1, lambda: 99999999999),
    "write integer": (insert_into(THINGS, number=VALUE), lambda: 1, lambda: 2**70),
    "taken": (insert_into(THINGS, tag=VALUE), lambda: noise(20), lambda: "taken"),
    "too large for an index": (
        insert_into(THINGS, tag=VALUE), lambda: noise(20), lambda: noise(9000)
    ),
    "exhausted": (insert_into(TICKETS, tag="a"), None, None),
    "commit": (insert_into(COMMITS, number=VALUE), lambda: 0, lambda: 30),
}


def choose(kind, name, good):
    make, *values = KINDS[kind]
    value = values[0 if good else 1]
    return make(name), {} if value is None else {"value": value()}


@router.post("/reader/{kind}")
async def read(kind: str, name: str, reader: ReaderDep, good: bool = False, limit: float | None = None) -> int:
    statement, values = choose(kind, name, good)
    async with asyncio.timeout(limit):
        return len((await reader.execute(statement, values)).all())


@router.post("/session/{kind}")
async def write(kind: str, name: str, session: SessionDep, good: bool = False, limit: float | None = None) -> int:
    statement, values = choose(kind, name, good)
    async with asyncio.timeout(limit):
        return len((await session.execute(statement, values)).all())


@router.post("/task/{kind}")
async def write_in_a_task(kind: str, name: str, request: Request, good: bool = False, limit: float | None = None) -> int:
    statement, values = choose(kind, name, good)

    async def work():
        async with request.app.state.sessionmaker.begin() as session:
            return len((await session.execute(statement, values)).all())

    async with asyncio.timeout(limit):
        return await asyncio.create_task(work())
"""

TABLES = """
CREATE TYPE mood AS ENUM ('calm');
CREATE TABLE things (tag text UNIQUE, number integer, mood mood);
INSERT INTO things VALUES ('taken', 1, 'calm');
CREATE SEQUENCE numbers MAXVALUE 1000;
CREATE TABLE tickets (id integer DEFAULT nextval('numbers'), tag text);
CREATE TABLE commits (number float);
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql
AS 'BEGIN PERFORM pg_sleep(NEW.number); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON commits DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION take_time();
CREATE TABLE passing (n integer);
ALTER TABLE things OWNER TO guarded;
ALTER TABLE tickets OWNER TO guarded;
ALTER TABLE commits OWNER TO guarded;
ALTER TABLE passing OWNER TO guarded;
ALTER SEQUENCE numbers OWNER TO guarded
"""
# The table `commits` lets a COMMIT fail; a column of another kind lets nothing else fail.
SQLITE_TABLES = """
CREATE TABLE things (tag text UNIQUE, number integer, mood text);
INSERT INTO things (tag) VALUES ('taken');
CREATE TABLE commits (
    number integer REFERENCES commits (missing) DEFERRABLE INITIALLY DEFERRED, missing integer UNIQUE
);
INSERT INTO commits (number, missing) VALUES (NULL, 0);
CREATE TABLE passing (n integer);
"""
SQLITE_PASSING = "CREATE TABLE IF NOT EXISTS passing (n integer)"
MAKE_PASSING = f"{SQLITE_PASSING}; GRANT ALL ON passing TO guarded"
MORE_NUMBERS = "SELECT setval('numbers', 1)"
NEW_ENUM = """
ALTER TABLE things ALTER mood TYPE text;
DROP TYPE mood;
CREATE TYPE mood AS ENUM ('calm');
ALTER TABLE things ALTER mood TYPE mood USING mood::mood
"""
SLOW = ("sleep", "commit")
WRITES = ("taken", "too large for an index", "exhausted", "commit")

names = (f"n{number}" for number in count())


class Arena:
    """One service on which one case follows the other, each seen to leave nothing behind."""

    def __init__(
        self,
        serve: Callable[[], AbstractContextManager[Watcher]],
        execute: Callable[[str], object],
        clean: Callable[[], None] = lambda: None,
    ) -> None:
        self.execute = execute  # in its database, past the service
        self.clean = clean  # ends what a broken service has left behind
        self.broken: list[str] = []
        self._serve = serve
        self._running = ExitStack()
        self.watcher = self._running.enter_context(serve())

    @property
    def http(self) -> httpx2.Client:
        return self.watcher.server.client

    def close(self) -> None:
        self._running.close()

    def send(
        self, way: str, kind: str, name: str, *, good: bool = False, limit: float | None = None
    ) -> httpx2.Response:
        params = {"name": name, "good": str(good)} | ({"limit": str(limit)} if limit else {})
        return self.http.post(f"/{way}/{kind}", params=params, extensions={"right": good})

    def prepare(self, way: str, kind: str, name: str) -> None:
        """Have a statement succeed on each connection of the pool."""
        for _ in range(4):
            answer = self.send(way, kind, name, good=True)
            assert answer.status_code == 200, (way, kind, answer.text)

    def conclude(
        self,
        case: str,
        answers: Iterable[httpx2.Response],
        allowed: set[int],
        *,
        watch_first: bool = True,
    ) -> None:
        """Check that answers are among the allowed ones, and that all is as it was before.

        The next requests would cover up what is left on a connection; and they are not to wait
        until it is gone. So some cases look first, and some send first.
        """
        wrong = []
        for answer in answers:
            if answer.status_code not in allowed:
                wrong.append(f"{answer.status_code}: {answer.text}")
            if answer.status_code == 500:
                self.watcher.excuse(answer)
        steps = [self._watch, self._go_on]
        for step in steps if watch_first else reversed(steps):
            wrong += step(case)
        if wrong:
            self.broken += [f"{case}: {text}" for text in wrong]
            self.clean()
            with suppress(AssertionError):
                self.close()
            self.watcher = self._running.enter_context(self._serve())

    def _watch(self, case: str) -> Iterator[str]:
        try:
            self.watcher.check(case)
        except AssertionError as error:
            yield str(error)

    def _go_on(self, case: str) -> Iterator[str]:
        start = time.monotonic()
        for way, kind in (("reader", "integer"), ("session", "write")):
            right = self.send(way, kind, next(names), good=True)
            if right.status_code != 200:
                yield f"the next one, {way}: {right.status_code}: {right.text}"
        if (seconds := time.monotonic() - start) > PROMPT:
            yield f"the next ones took {seconds:.1f} s"

    def verdict(self) -> None:
        broken, self.broken = self.broken, []
        assert not broken, "\n\n".join(broken)


def starter(
    service: Service, left: Left, folder: Path, **variables: str
) -> Callable[[], AbstractContextManager[Watcher]]:
    """Return what runs the service with the test's routes."""
    extended = service.copy(folder / "service")
    extended.extend(routes=ROUTES)

    @contextmanager
    def serve() -> Iterator[Watcher]:
        with watcher.serve_watched(extended, left, **LIMITS | variables) as watched:
            watched.settles = 4.0
            yield watched

    return serve


@pytest.fixture(scope="module")
def proxied(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProxiedDatabase]:
    with (
        open_guarded_server(service, tmp_path_factory.mktemp("server")) as server,
        open_proxied(server, "pattern") as proxied,
    ):
        proxied.query(TABLES)
        yield proxied


@pytest.fixture(scope="module")
def postgresql(
    service: Service, proxied: ProxiedDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("postgresql")
    serve = starter(service, proxied.left, folder, DATABASE_URL=proxied.url)
    arena = Arena(serve, proxied.query, proxied.terminate)
    yield arena
    arena.close()


@pytest.fixture(scope="module")
def file(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = SQLiteDatabase(tmp_path_factory.mktemp("file"))
    service.migrate(database)
    execute_all(database.path, SQLITE_TABLES)
    return database.path


@pytest.fixture(scope="module")
def sqlite(
    service: Service, file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Arena]:
    folder, url = tmp_path_factory.mktemp("sqlite"), f"sqlite:///{file}"
    serve = starter(service, lambda: left_in_sqlite(file), folder, DATABASE_URL=url)
    arena = Arena(serve, lambda statements: execute_all(file, statements))
    yield arena
    arena.close()


def execute_all(file: Path, statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(statements)


def ways_of(kind: str) -> tuple[str, ...]:
    return WAYS[1:] if kind.startswith("write ") or kind == "write" or kind in WRITES else WAYS


def try_out(arena: Arena, kind: str, allowed: set[int], before: Mapping[str, str]) -> None:
    """Send what fails, on a connection that has not prepared the statement and on one that has."""
    orders = (True,) if kind in SLOW else (True, False)
    for way, prepared, watch_first in product(ways_of(kind), (False, True), orders):
        name = next(names)
        if prepared:
            if "good" in before:
                arena.execute(before["good"])
            arena.prepare(way, kind, name)
        if "bad" in before:
            arena.execute(before["bad"])
        times = 2 if prepared and kind not in SLOW else 1
        answers = [arena.send(way, kind, name) for _ in range(times)]
        case = f"{kind}, {way}, {'prepared before' if prepared else 'new'}"
        arena.conclude(case, answers, allowed, watch_first=watch_first)
        if kind == "enum":
            for _ in range(2):  # on what connections there are besides
                arena.send(way, kind, name)
            arena.conclude(f"{case}, once more", [arena.send(way, kind, name)], {200})
    arena.verdict()


@POSTGRESQL
@pytest.mark.parametrize(
    ("kind", "allowed", "before"),
    [
        ("integer", {422}, {}),
        ("32 bits", {422}, {}),
        ("surrogate", {422}, {}),
        ("wrong type", {422, 500}, {}),
        ("no zone", {422}, {}),
        ("NUL", {422}, {}),
        ("too large for a cast", {500}, {}),
        ("no number", {500}, {}),
        ("no table", {503}, {"good": MAKE_PASSING, "bad": "DROP TABLE IF EXISTS passing"}),
        ("enum", {200, 503}, {"bad": NEW_ENUM}),
        ("write integer", {422}, {}),
        ("write 32 bits", {422}, {}),
        ("taken", {409}, {}),
        ("too large for an index", {422}, {}),
        ("exhausted", {503}, {"good": MORE_NUMBERS, "bad": "SELECT setval('numbers', 1000)"}),
        ("sleep", {503}, {}),
        ("commit", {503}, {}),
    ],
)
def test_what_postgresql_or_its_driver_refuses_leaves_nothing_behind(
    postgresql: Arena, kind: str, allowed: set[int], before: Mapping[str, str]
) -> None:
    try_out(postgresql, kind, allowed, before)


@SQLITE
@pytest.mark.parametrize(
    ("kind", "allowed", "before"),
    [
        ("integer", {422}, {}),
        ("surrogate", {422}, {}),
        ("wrong type", {422, 500}, {}),
        ("no zone", {422}, {}),
        ("no table", {503}, {"good": SQLITE_PASSING, "bad": "DROP TABLE IF EXISTS passing"}),
        ("write integer", {422}, {}),
        ("taken", {409}, {}),
        ("commit", {409}, {}),
    ],
)
def test_what_sqlite_or_its_driver_refuses_leaves_nothing_behind(
    sqlite: Arena, kind: str, allowed: set[int], before: Mapping[str, str]
) -> None:
    try_out(sqlite, kind, allowed, before)


@contextmanager
def trapped(proxied: ProxiedDatabase, trap: Trap) -> Iterator[Trap]:
    proxied.proxy.trap = trap
    try:
        yield trap
    finally:
        proxied.proxy.trap = None


def walk_through(
    arena: Arena,
    proxied: ProxiedDatabase,
    kind: str,
    action: Action,
    *,
    to_server: bool,
    limit: float | None,
) -> int:
    """Inject something at each message of a request; return how many there are.

    On a connection that has not prepared the statement, and on one that has.
    """
    springs = 0
    read = "reader" in ways_of(kind)
    for way, prepared in (("reader" if read else "session", False), ("task", True)):
        for number in count():
            name = next(names)
            if prepared:
                arena.prepare(way, kind, name)
            with trapped(proxied, Trap(to_server, number, action, HELD)) as trap:
                answer = arena.send(way, kind, name, limit=limit)
            if not trap.sprung:
                arena.conclude(f"{kind}, {way}, {number} messages", [answer], {200, 422})
                break
            springs += 1
            end = f"{'to' if to_server else 'from'} the server"
            case = f"{action} at message {number} {end}: {kind}, {way}, {prepared=}"
            arena.conclude(case, [answer], {200, 422, 503}, watch_first=springs % 2 == 0)
    arena.verdict()
    return springs


@POSTGRESQL
@pytest.mark.parametrize("to_server", [True, False], ids=["to", "from"])
@pytest.mark.parametrize("kind", ["write", "32 bits"])
def test_a_connection_that_is_cut_at_any_message_leaves_nothing_behind(
    postgresql: Arena, proxied: ProxiedDatabase, kind: str, to_server: bool
) -> None:
    assert walk_through(postgresql, proxied, kind, "cut", to_server=to_server, limit=None) > 3


@POSTGRESQL
@pytest.mark.parametrize("to_server", [True, False], ids=["to", "from"])
@pytest.mark.parametrize("kind", ["write", "integer"])
def test_a_handler_that_gives_up_at_any_message_leaves_nothing_behind(
    postgresql: Arena, proxied: ProxiedDatabase, kind: str, to_server: bool
) -> None:
    limit = HELD / 3
    assert walk_through(postgresql, proxied, kind, "hold", to_server=to_server, limit=limit) > 3


@pytest.mark.long
@POSTGRESQL
def test_a_network_that_falls_silent_at_any_message_leaves_nothing_behind(
    postgresql: Arena, proxied: ProxiedDatabase
) -> None:
    for way, to_server, numbers in (
        ("reader", True, count(0, 2)),
        ("session", True, count()),
        ("session", False, count(0, 4)),
    ):
        for number in numbers:
            with trapped(proxied, Trap(to_server, number, "lose")) as trap:
                answer = postgresql.send(way, "sleep", next(names), good=True)
            if not trap.sprung:
                break
            case = f"silent at message {number}, {way}, {to_server=}"
            postgresql.conclude(case, [answer], {200, 503})
    postgresql.verdict()


@POSTGRESQL
@pytest.mark.parametrize("action", ["cut", "lose"])
def test_a_connection_that_fails_while_it_is_made_leaves_nothing_behind(
    postgresql: Arena, proxied: ProxiedDatabase, action: Action
) -> None:
    sprung = 0
    # A silent one takes the whole limit: only those of the login.
    for to_server, numbers in ((True, range(30)), (False, range(0, 60, 3))):
        for number in numbers if action == "cut" else numbers[:3]:
            way = WAYS[number % 3]
            proxied.terminate()
            with trapped(proxied, Trap(to_server, number, action)) as trap:
                answer = postgresql.send(way, "sleep", next(names), good=True)
            if not trap.sprung:
                break
            sprung += 1
            case = f"{action} at message {number} of a new connection, {way}, {to_server=}"
            postgresql.conclude(case, [answer], {200, 503})
    assert sprung > 5
    postgresql.verdict()


def sleeping(proxied: ProxiedDatabase) -> bool:
    asleep = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ 'pg_sleep.*n'"
    )
    return proxied.number(f"{asleep} AND application_name <> 'psql'") > 0


@POSTGRESQL
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ended", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_backend_that_is_ended_or_interrupted_leaves_nothing_behind(
    postgresql: Arena, proxied: ProxiedDatabase, way: str, ended: str
) -> None:
    with ThreadPoolExecutor() as pool:
        sent = pool.submit(postgresql.send, way, "sleep", next(names))
        wait_for(lambda: sleeping(proxied))
        proxied.query(f"SELECT {ended}(pid) FROM pg_stat_activity WHERE usename = 'guarded'")
        postgresql.conclude(f"{ended}, {way}", [sent.result()], {503})
    postgresql.verdict()


@POSTGRESQL
@pytest.mark.parametrize("way", WAYS)
def test_a_lock_that_lasts_leaves_nothing_behind(
    postgresql: Arena, proxied: ProxiedDatabase, way: str
) -> None:
    with proxied.holding("LOCK TABLE items, things"):
        for limit in (None, 0.1):
            kind = "integer" if way == "reader" else "write"
            answer = postgresql.send(way, kind, next(names), limit=limit)
            assert answer.status_code in (422, 503)
    postgresql.conclude(f"lock, {way}", [], set())
    postgresql.verdict()


def send_and_leave(arena: Arena, path: str, seconds: float) -> None:
    """Send a request, and close the connection after some time, whatever has come by then."""
    base = arena.http.base_url
    with socket.create_connection((base.host, base.port)) as client:
        client.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
        time.sleep(seconds)


@POSTGRESQL
@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_goes_away_leaves_nothing_behind(
    postgresql: Arena, proxied: ProxiedDatabase, way: str
) -> None:
    kind = "sleep" if way == "reader" else "write"
    for number in range(8):
        path = f"/{way}/{kind}?name={next(names)}&good=True"
        with trapped(proxied, Trap(number % 2 == 0, number // 2, "hold", HELD)):
            send_and_leave(postgresql, path, HELD / 2)
            postgresql.conclude(f"left at message {number // 2}, {way}", [], set())
    postgresql.verdict()


@POSTGRESQL
def test_what_was_answered_is_what_is_stored(postgresql: Arena, proxied: ProxiedDatabase) -> None:
    """Cut at each message of a transaction: 503 is no success, but where the outcome is unknown."""
    for to_server in (True, False):
        for number in count():
            before = proxied.number("SELECT count(*) FROM things")
            with trapped(proxied, Trap(to_server, number, "cut")) as trap:
                answer = postgresql.send("session", "write", next(names))
            if not trap.sprung:
                break
            grown = proxied.number("SELECT count(*) FROM things") - before
            case = f"cut at message {number}, {to_server=}: {answer.status_code}, {grown} stored"
            if answer.status_code == 200:
                assert grown == 1, case
            elif not is_outcome_unknown(answer):
                assert grown == 0, case


@SQLITE
@pytest.mark.parametrize("way", WAYS)
def test_an_abandoned_statement_ends_and_blocks_no_writer(sqlite: Arena, way: str) -> None:
    for prepared in (False, True):
        name = next(names)
        if prepared:
            sqlite.prepare(way, "long", name)
        answer = sqlite.send(way, "long", name, limit=0.1)
        sqlite.conclude(f"given up, {way}, {prepared=}", [answer], {503}, watch_first=prepared)
    sqlite.verdict()


@SQLITE
@pytest.mark.parametrize("way", WAYS)
def test_a_client_of_sqlite_that_goes_away_leaves_nothing_behind(
    sqlite: Arena, file: Path, way: str
) -> None:
    kind = "integer" if way == "reader" else "write"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(4):
            send_and_leave(sqlite, f"/{way}/{kind}?name={next(names)}&good=True", 0.05)
        given_up = [sqlite.send(way, kind, next(names), limit=0.1) for _ in range(2)]
    sqlite.conclude(f"left while locked, {way}", given_up, {422 if way == "reader" else 503})
    sqlite.verdict()


@contextmanager
def locked(arena: Arena, file: Path) -> Iterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def missing(arena: Arena, file: Path) -> Iterator[None]:
    away = file.parent.rename(file.parent.with_name("away"))
    yield
    away.rename(file.parent)


@contextmanager
def garbage(arena: Arena, file: Path) -> Iterator[None]:
    with missing(arena, file):
        file.parent.mkdir()
        other = file.with_name("garbage")
        other.write_bytes(b"This is not a database. " * 1000)
        other.rename(file)  # at once: an empty file would be a database without tables
        yield
        shutil.rmtree(file.parent)


@contextmanager
def another(arena: Arena, file: Path) -> Iterator[None]:
    """A copy takes its place, and stays."""
    copy = file.with_name("copy.db")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"VACUUM INTO '{copy}'")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy.rename(file)
    yield


@SQLITE
@pytest.mark.parametrize("fault", [locked, missing, garbage, another])
def test_a_file_that_is_taken_away_leaves_nothing_behind(
    sqlite: Arena, file: Path, fault: Callable[[Arena, Path], AbstractContextManager[None]]
) -> None:
    for _ in range(2):
        with fault(sqlite, file):
            answers = [
                sqlite.send(way, kind, next(names))
                for way in WAYS
                for kind in ("integer", "write")
                if way in ways_of(kind)
            ]
        sqlite.conclude(fault.__name__, answers, {200, 409, 422, 503})
    sqlite.verdict()
