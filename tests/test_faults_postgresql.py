"""A service that loses its PostgreSQL answers soon and honestly, recovers by itself, loses nothing."""

import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
import trustme

from tests.support import watcher
from tests.support.answers import unavailable
from tests.support.databases import PostgreSQLDatabase
from tests.support.processes import environment, wait_for
from tests.support.proxied import PASSWORD, ProxiedDatabase, open_proxied
from tests.support.proxy import fatal, open_proxy
from tests.support.random_client import Fault, RandomClient
from tests.support.repository import replace
from tests.support.services import Server, Service
from tests.support.watcher import UVICORN, left_in

pytestmark = pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)

STATES = "SELECT state FROM pg_stat_activity WHERE usename = 'guarded'"
MARGIN = 1.5  # seconds that a busy machine may take on top of a promised limit


@pytest.fixture
def empty(guarded_server: PostgreSQLDatabase) -> Iterator[ProxiedDatabase]:
    """A database without a schema."""
    with open_proxied(guarded_server, "template0") as proxied:
        yield proxied


@contextmanager
def serve_proxied(
    service: Service, proxied: ProxiedDatabase, *command: str, **variables: str
) -> Iterator[Server]:
    """Run the service; whatever happens, it leaves nothing behind and logs no password."""
    variables = {"DATABASE_URL": proxied.url} | variables
    with watcher.serve_watched(service, proxied.left, *command, **variables) as watched:
        yield watched.server
    log = watched.server.log()
    for sign in (PASSWORD, quote(PASSWORD, safe="")):
        assert sign not in log, log


def stop(server: Server) -> None:
    assert server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)


def test_a_database_that_comes_up_later_is_found_within_two_seconds(
    service: Service, proxied: ProxiedDatabase
) -> None:
    proxied.proxy.refuse()
    with serve_proxied(service, proxied) as server:
        http = server.client
        assert http.get("/health/live").status_code == 200
        for method, path in [("GET", "/health/ready"), ("GET", "/items"), ("POST", "/items")] * 5:
            start = time.monotonic()
            assert unavailable(http.request(method, path, json={"name": "a"}))
            assert time.monotonic() - start < 1

        proxied.proxy.accept()

        wait_for(lambda: http.get("/health/ready").status_code == 200, seconds=2)
        assert http.post("/items", json={"name": "a"}).status_code == 201


def test_connections_that_the_server_ended_are_replaced_unnoticed(
    service: Service, proxied: ProxiedDatabase
) -> None:
    with serve_proxied(service, proxied) as server, ThreadPoolExecutor(20) as pool:

        def request(number: int) -> int:
            if number % 2:
                return server.client.get("/items").status_code
            return server.client.post("/items", json={"name": f"item {number}"}).status_code

        assert set(pool.map(request, range(100, 140))) == {200, 201}
        proxied.terminate()
        assert {request(number) for number in range(50)} == {200, 201}
        proxied.terminate()
        assert set(pool.map(request, range(50, 100))) == {200, 201}
        proxied.proxy.cut()
        assert set(pool.map(request, range(140, 150))) == {200, 201}


@pytest.mark.parametrize("sqlstate", ["57P01", "57P05"])  # terminated, or idle for too long
def test_a_connection_is_discarded_when_the_server_announces_its_end(
    extended: Service, proxied: ProxiedDatabase, sqlstate: str
) -> None:
    with serve_proxied(extended, proxied) as server, ThreadPoolExecutor() as pool:
        http = server.client
        for number in range(3):
            assert http.post("/items", json={"name": f"{number}"}).status_code == 201
            proxied.proxy.say(fatal(sqlstate))
            assert len(http.get("/items").json()["items"]) == number + 1

        proxied.proxy.say(fatal(sqlstate))
        assert unavailable(http.post("/items", json={"name": "unsent"}))
        assert http.post("/items", json={"name": "sent"}).status_code == 201

        idle = pool.submit(http.post, "/idle", params={"seconds": 1.5})
        wait_for(lambda: "idle in transaction" in proxied.query(STATES))
        proxied.proxy.say(fatal(sqlstate))
        assert unavailable(idle.result())
        assert [item["name"] for item in http.get("/items").json()["items"]][3:] == ["sent"]

        lines = [line for line in server.log().splitlines() if "unavailable: " in line]
        for line, reason in zip(lines, ("connection lost", "outcome unknown"), strict=True):
            assert f"unavailable: {reason}: cannot switch to state" in line


# A test of the service's, whose table gives autovacuum work for minutes.
VACUUMED = """
import asyncio

from app.settings import ServiceSettings
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine
from tests.database import database, settings_for

FILL = (
    "CREATE TABLE work AS SELECT n, repeat('x', 500) AS text FROM generate_series(1, 20000) AS n",
    "ALTER TABLE work"
    " SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)",
    "UPDATE work SET n = n + 1",
)
WORKS = text("SELECT count(*) FROM pg_stat_progress_vacuum WHERE datname = :name")


async def main():
    url = ServiceSettings().driver_url
    options = {"isolation_level": "AUTOCOMMIT", "poolclass": NullPool}
    async with create_async_engine(url, **options).connect() as server:
        async with database(server, "template0") as name:
            engine = create_async_engine(settings_for(name).driver_url, **options)
            async with engine.connect() as connection:
                for statement in FILL:
                    await connection.execute(text(statement))
            async with asyncio.timeout(30):
                while not await server.scalar(WORKS, {"name": name}):
                    await asyncio.sleep(0.1)
        print("dropped", name, flush=True)


asyncio.run(main())
"""


def test_a_test_database_is_dropped_while_autovacuum_works_in_it(
    service: Service, proxied: ProxiedDatabase
) -> None:
    server = proxied.server
    server.query("ALTER SYSTEM SET autovacuum_naptime = '1s'; SELECT pg_reload_conf()")
    try:
        said = service.run(
            ".venv/bin/python", "-c", VACUUMED, variables={"DATABASE_URL": proxied.url}
        ).stdout
    finally:
        server.query("ALTER SYSTEM RESET autovacuum_naptime; SELECT pg_reload_conf()")

    [name] = re.findall("dropped (.*)", said)
    assert name not in server.query("SELECT datname FROM pg_database")


SESSIONS = "SELECT 'pid=' || pid FROM pg_stat_activity WHERE usename = 'guarded'"


@pytest.mark.parametrize(
    ("request_", "state"),
    [
        ("/slow", "query ~ '^SELECT pg_sleep'"),
        ("/idle?seconds=1", "state = 'idle in transaction'"),
        (None, "state = 'idle'"),
    ],
    ids=["at work", "in a transaction", "in the pool"],
)
def test_a_session_that_an_administrator_ends_takes_no_other_with_it(
    extended: Service, proxied: ProxiedDatabase, request_: str | None, state: str
) -> None:
    def sessions(state: str = "true") -> list[str]:
        return re.findall(r"pid=(\d+)", proxied.query(f"{SESSIONS} AND {state} ORDER BY pid"))

    with serve_proxied(extended, proxied) as server, ThreadPoolExecutor(5) as pool:
        http = server.client
        with proxied.holding("LOCK TABLE items"):
            reads = [pool.submit(http.get, "/items") for _ in range(4)]
            wait_for(lambda: proxied.waiting() == 4)
        assert {read.result().status_code for read in reads} == {200}
        answer = pool.submit(http.post, request_) if request_ else None
        wait_for(lambda: len(sessions(state)) > 0)
        ended = sessions(state)[0]
        others = set(sessions()) - {ended}
        assert len(others) >= 3

        proxied.query(f"SELECT pg_terminate_backend({ended}, 5000)")

        assert answer is None or unavailable(answer.result())
        for _ in range(5):
            assert http.get("/items").status_code == 200
        assert others <= set(sessions())


@pytest.mark.parametrize("ended", ["by the server", "by nobody who says so"])
def test_a_process_that_was_frozen_answers_the_next_request(
    service: Service, proxied: ProxiedDatabase, ended: str
) -> None:
    with serve_proxied(service, proxied) as server, ThreadPoolExecutor(5) as pool:
        http = server.client
        assert {answer.status_code for answer in pool.map(http.get, ["/items"] * 20)} == {200}
        for method, status in (("POST", 201), ("GET", 200)):
            os.killpg(server.process.pid, signal.SIGSTOP)
            if ended == "by the server":
                proxied.terminate()
            else:
                proxied.proxy.forget()
            time.sleep(1.1)  # for which a connection is trusted
            os.killpg(server.process.pid, signal.SIGCONT)
            answer = http.request(
                method, "/items", json={"name": "a"} if method == "POST" else None
            )
            assert answer.status_code == status


def test_a_read_whose_connection_dies_before_its_answer_is_retried(
    service: Service, proxied: ProxiedDatabase
) -> None:
    with serve_proxied(service, proxied) as server, ThreadPoolExecutor() as pool:
        with proxied.holding("LOCK TABLE items"):
            read = pool.submit(server.client.get, "/items")
            wait_for(lambda: proxied.waiting() == 1)
            proxied.proxy.cut()
        assert read.result().status_code == 200
        assert proxied.proxy.sessions == 2


def test_a_commit_whose_connection_is_lost_is_503_and_never_a_success(
    service: Service, proxied: ProxiedDatabase
) -> None:
    proxied.query(
        "ALTER TABLE items DROP CONSTRAINT uq_items_name,"
        " ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"
    )
    insert = (
        "INSERT INTO items (name, created_at, updated_at, version) VALUES ('a', now(), now(), 1)"
    )
    committing = (
        "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^COMMIT' AND wait_event_type = 'Lock'"
    )
    with (
        serve_proxied(service, proxied) as server,
        ThreadPoolExecutor() as pool,
        proxied.holding(insert),  # of the same name: only the commit will wait for it
    ):
        posted = pool.submit(server.client.post, "/items", json={"name": "a"})
        wait_for(lambda: proxied.number(committing) == 1)
        proxied.proxy.cut()
        assert unavailable(posted.result())
        assert posted.result().json()["type"] == "/problems/outcome-unknown"
        assert "unavailable: outcome unknown" in server.log()


def test_a_link_that_has_died_silently_is_replaced_unnoticed(
    service: Service, proxied: ProxiedDatabase
) -> None:
    with serve_proxied(service, proxied) as server:
        assert server.client.get("/items").status_code == 200
        for method, status in (("GET", 200), ("POST", 201)):
            time.sleep(1.1)  # one that was used a moment ago is not tested
            proxied.proxy.forget()
            start = time.monotonic()
            body = {"name": "a"} if method == "POST" else None
            assert server.client.request(method, "/items", json=body).status_code == status
            assert time.monotonic() - start < 1 + MARGIN


def test_a_restart_of_the_server_under_load_is_503_only_while_it_lasts(
    service: Service, proxied: ProxiedDatabase
) -> None:
    acknowledged: list[str] = []
    answers: list[tuple[float, float, int]] = []
    over = threading.Event()
    folder = proxied.server.socket.removesuffix("/.s.PGSQL.5432")
    user = f"guarded:{quote(PASSWORD, safe='')}"
    url = f"postgresql://{user}@/{proxied.name}?host={folder}"

    with serve_proxied(service, proxied, DATABASE_URL=url) as server, ThreadPoolExecutor(4) as pool:

        def load(worker: int) -> None:
            for number in range(2000):
                if over.is_set():
                    return
                name, start = f"{worker}-{number}", time.monotonic()
                status = server.client.post("/items", json={"name": name}).status_code
                answers.append((start, time.monotonic(), status))
                if status == 201:
                    acknowledged.append(name)
                time.sleep(0.01)

        for worker in range(4):
            pool.submit(load, worker)
        wait_for(lambda: len(acknowledged) > 20)
        down = time.monotonic()
        proxied.server.take_away()
        time.sleep(0.3)
        proxied.server.give_back()
        up = time.monotonic()
        before = len(acknowledged)
        wait_for(lambda: len(acknowledged) > before + 20)
        over.set()

    assert {status for _, _, status in answers} == {201, 503}
    assert {status for start, end, status in answers if end < down or start > up} == {201}
    stored = proxied.query("SELECT 'name=' || name FROM items")
    assert all(f"name={name}\n" in stored for name in acknowledged)


def test_a_silent_network_is_503_within_the_time_limits(
    service: Service, proxied: ProxiedDatabase
) -> None:
    limits = {"DATABASE_CONNECT_TIMEOUT": "1", "DATABASE_COMMAND_TIMEOUT": "1.5"}
    with serve_proxied(service, proxied, **limits) as server, ThreadPoolExecutor(10) as pool:
        http = server.client

        def answered(method: str, path: str, limit: float) -> bool:
            start = time.monotonic()
            response = http.request(method, path, json={"name": "a"} if method == "POST" else None)
            assert unavailable(response)
            assert time.monotonic() - start < limit + MARGIN
            return True

        # Connections that are in the pool wait for an answer, new ones for the connection.
        for method, path in (("GET", "/health/ready"), ("GET", "/items"), ("POST", "/items")):
            assert http.get("/items").status_code == 200
            proxied.proxy.silent = True
            assert answered(method, path, 1.5)
            assert answered(method, path, 1)
            proxied.proxy.silent = False
        start = time.monotonic()
        assert http.post("/items", json={"name": "a"}).status_code == 201
        assert time.monotonic() - start < MARGIN

        proxied.proxy.silent = True
        reasons = re.findall("(?:not ready|timed out|unreachable): (.*) ", server.log())
        assert {reason.partition(" ")[0] for reason in reasons} == {
            f"127.0.0.1:{proxied.proxy.port}:"
        }

        waiting = [pool.submit(answered, method, "/items", 2) for method in ["GET", "POST"] * 5]
        time.sleep(0.5)
        start = time.monotonic()
        stop(server)
        assert time.monotonic() - start < 10
        assert all(request.result() for request in waiting)


@pytest.mark.parametrize(("path", "limit"), [("/items", 5), ("/health/ready", 4)])
def test_a_silent_network_is_503_within_the_default_limits(
    service: Service, proxied: ProxiedDatabase, path: str, limit: float
) -> None:
    with serve_proxied(service, proxied) as server:
        assert server.client.get("/items").status_code == 200
        proxied.proxy.silent = True
        start = time.monotonic()
        assert unavailable(server.client.get(path))
        assert time.monotonic() - start < limit + MARGIN


def test_a_busy_service_is_ready_and_one_on_a_silent_network_is_not(
    service: Service, proxied: ProxiedDatabase
) -> None:
    limits = {"DATABASE_CONNECT_TIMEOUT": "0.5", "DATABASE_COMMAND_TIMEOUT": "0.5"}
    small = {"DATABASE_POOL_SIZE": "2", "DATABASE_POOL_TIMEOUT": "1"}
    over = threading.Event()
    with (
        serve_proxied(service, proxied, **limits, **small) as server,
        ThreadPoolExecutor(6) as pool,
    ):
        http = server.client

        def load() -> None:
            for _ in range(5000):
                if over.is_set():
                    return
                http.get("/items")

        def is_ready() -> bool:
            return http.get("/health/ready").status_code == 200

        try:
            for _ in range(6):
                pool.submit(load)
            assert all(is_ready() for _ in range(20))
            proxied.proxy.silent = True
            wait_for(lambda: not is_ready())
            proxied.proxy.silent = False
            wait_for(is_ready)
        finally:
            over.set()


def test_a_silent_network_keeps_no_service_from_stopping(
    service: Service, proxied: ProxiedDatabase
) -> None:
    with serve_proxied(service, proxied) as server, ThreadPoolExecutor(20) as pool:
        proxied.proxy.delay = 0.02  # so that requests need connections at the same time
        assert set(pool.map(lambda _: server.client.get("/items").status_code, range(40))) == {200}
        wait_for(lambda: proxied.connections() > 5)
        proxied.proxy.silent = True
        start = time.monotonic()
        stop(server)
        assert time.monotonic() - start < 2 + MARGIN  # one is waited for, and stands for the others
    assert "engine disposed of" in server.log()


def test_a_slow_network_works(service: Service, proxied: ProxiedDatabase) -> None:
    proxied.proxy.delay = 0.2
    with serve_proxied(service, proxied) as server:
        http = server.client
        assert http.get("/health/ready").status_code == 200
        assert http.post("/items", json={"name": "a"}).status_code == 201
        assert len(http.get("/items").json()["items"]) == 1
        stop(server)
    assert proxied.proxy.graceful_closes == proxied.proxy.sessions


def test_a_full_pool_is_503_within_its_timeout_and_loses_no_connection(
    service: Service, proxied: ProxiedDatabase
) -> None:
    limits = {
        "DATABASE_POOL_SIZE": "1",
        "DATABASE_MAX_OVERFLOW": "0",
        "DATABASE_POOL_TIMEOUT": "0.5",
    }
    with serve_proxied(service, proxied, **limits) as server, ThreadPoolExecutor() as pool:
        http = server.client
        with proxied.holding("LOCK TABLE items IN EXCLUSIVE MODE"):
            posted = pool.submit(http.post, "/items", json={"name": "a"})
            wait_for(lambda: proxied.waiting() == 1)
            start = time.monotonic()
            assert unavailable(http.get("/items"))
            assert time.monotonic() - start < 0.5 + MARGIN
            assert http.get("/health/ready").json() == {"status": "busy"}
        assert posted.result().status_code == 201
        assert http.get("/items").status_code == 200
        assert proxied.proxy.sessions == 1


def test_a_server_without_room_for_the_pool_is_503_for_what_it_refuses(
    service: Service, proxied: ProxiedDatabase
) -> None:
    # Three connections are left for the service, the others are a superuser's.
    proxied.server.query("ALTER SYSTEM SET max_connections = 6")
    try:
        proxied.server.take_away()
        proxied.server.give_back()
        with serve_proxied(service, proxied) as server, ThreadPoolExecutor(15) as pool:
            http = server.client
            assert http.get("/items").status_code == 200
            proxied.proxy.delay = 0.1  # so that requests need connections at the same time
            answers = list(pool.map(lambda _: http.get("/items"), range(30)))
            assert all(answer.status_code == 200 or unavailable(answer) for answer in answers)
            assert {answer.status_code for answer in answers} == {200, 503}
            assert "remaining connection slots are reserved" in server.log()
            assert proxied.connections() == 3
            assert {http.get("/items").status_code for _ in range(10)} == {200}
    finally:
        proxied.server.query("ALTER SYSTEM RESET max_connections")
        proxied.server.take_away()
        proxied.server.give_back()


@pytest.mark.parametrize(
    ("fault", "fixed", "cause"),
    [
        (
            "ALTER ROLE guarded CONNECTION LIMIT 0",
            "ALTER ROLE guarded CONNECTION LIMIT -1",
            "too many connections",
        ),
        ("ALTER ROLE guarded NOLOGIN", "ALTER ROLE guarded LOGIN", "not permitted to log in"),
        ("ALTER ROLE guarded RENAME TO other", "", "password authentication failed"),
        ("ALTER ROLE guarded PASSWORD 'other'", "", "password authentication failed"),
        (
            "ALTER DATABASE {0} RENAME TO other",
            "ALTER DATABASE other RENAME TO {0}",
            'database "{0}" does not exist',
        ),
        (
            "ALTER DATABASE {0} SET default_transaction_read_only = on",
            "ALTER DATABASE {0} RESET default_transaction_read_only",
            "read-only transaction",
        ),
        (
            "ALTER DATABASE {0} ALLOW_CONNECTIONS false",
            "ALTER DATABASE {0} ALLOW_CONNECTIONS true",
            "not accepting connections: ",
        ),
    ],
    ids=["full", "locked out", "role", "password", "database missing", "read-only", "closed"],
)
def test_the_log_says_once_why_the_database_is_refused(
    service: Service, proxied: ProxiedDatabase, fault: str, fixed: str, cause: str
) -> None:
    quoted = PASSWORD.replace("'", "''")
    fixed = fixed or f"ALTER ROLE guarded PASSWORD '{quoted}'"
    if "RENAME TO other" in fault and "ROLE" in fault:
        fixed = f"ALTER ROLE other RENAME TO guarded; {fixed}"
    with serve_proxied(service, proxied) as server:
        http = server.client
        assert http.post("/items", json={"name": "a"}).status_code == 201
        proxied.terminate()
        proxied.server.query(fault.format(proxied.name))
        assert http.get("/health/live").status_code == 200  # it has learned of the end by then
        try:
            assert unavailable(http.post("/items", json={"name": "b"}))
        finally:
            proxied.server.query(fixed.format(proxied.name))
        [line] = [line for line in server.log().splitlines() if "unavailable: " in line]
        assert cause.format(proxied.name) in line
        proxied.terminate()
        assert http.post("/items", json={"name": "b"}).status_code == 201


def test_a_lock_that_stays_taken_is_503_and_the_connection_stays_usable(
    service: Service, proxied: ProxiedDatabase
) -> None:
    proxied.server.query(f"ALTER DATABASE {proxied.name} SET lock_timeout = '300ms'")
    with serve_proxied(service, proxied) as server:
        http = server.client
        with proxied.holding("LOCK TABLE items IN EXCLUSIVE MODE"):
            start = time.monotonic()
            assert unavailable(http.post("/items", json={"name": "a"}))
            assert time.monotonic() - start < 0.3 + MARGIN
        assert "lock timeout" in server.log()
        assert http.post("/items", json={"name": "a"}).status_code == 201
        assert proxied.number("SELECT count(*) FROM items") == 1
        assert proxied.proxy.sessions == 1


def test_a_statement_that_takes_too_long_is_503_and_rolled_back(
    service: Service, proxied: ProxiedDatabase
) -> None:
    limits = {"DATABASE_COMMAND_TIMEOUT": "0.5"}
    with serve_proxied(
        service, proxied, DATABASE_POOL_SIZE="1", DATABASE_MAX_OVERFLOW="0", **limits
    ) as server:
        http = server.client
        with proxied.holding("LOCK TABLE items IN EXCLUSIVE MODE"):
            start = time.monotonic()
            assert unavailable(http.post("/items", json={"name": "a"}))
            assert time.monotonic() - start < 0.5 + MARGIN
            wait_for(lambda: proxied.waiting() == 0, seconds=MARGIN)
        assert http.post("/items", json={"name": "a"}).status_code == 201
        assert proxied.number("SELECT count(*) FROM items") == 1
        assert proxied.connections() == 1


ROUTES = """
import asyncio

from fastapi import APIRouter
from sqlalchemy import text

from app.dependencies import SessionDep
from app.features.items.models import Item

router = APIRouter()
others = asyncio.Barrier(2)


@router.post("/both/{first}/{second}")
async def change_both(first: int, second: int, meet: bool, session: SessionDep) -> None:
    (await session.get_one(Item, first, with_for_update=True)).description = "changed"
    await session.flush()
    if meet:
        await others.wait()
    (await session.get_one(Item, second, with_for_update=True)).description = "changed"


@router.post("/serializable/{key}")
async def change_what_was_read(key: int, meet: bool, session: SessionDep) -> None:
    await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
    item = await session.get_one(Item, key)
    if meet:
        await others.wait()
    item.description = "changed"


@router.post("/idle")
async def wait_in_a_transaction(seconds: float, session: SessionDep) -> None:
    session.add(Item(name="idle"))
    await session.flush()
    await asyncio.sleep(seconds)


@router.post("/slow")
async def give_up(session: SessionDep, limit: float | None = None) -> None:
    session.add(Item(name="slow"))
    await session.flush()
    async with asyncio.timeout(limit):
        await session.execute(text("SELECT pg_sleep(10)"))
"""


@pytest.fixture(scope="module")
def extended(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """A service with routes for what the example does not do."""
    extended = service.copy(tmp_path_factory.mktemp("extended") / "service")
    extended.extend(routes=ROUTES)
    settings = extended.folder / "app" / "database" / "settings.py"
    replace(settings, '_session_timeout": 60_000', '_session_timeout": 2_000')
    migrations = extended.folder / "migrations"
    replace(migrations / "locks.py", 'LOCK_TIMEOUT = "1s"', 'LOCK_TIMEOUT = "300ms"')
    replace(migrations / "runner.py", "ATTEMPTS = 30", "ATTEMPTS = 2")
    return extended


@pytest.mark.parametrize(
    ("paths", "cause"),
    [
        (["/both/1/2", "/both/2/1"], "deadlock detected"),
        (["/serializable/1", "/serializable/1"], "could not serialize access"),
    ],
)
def test_of_two_conflicting_transactions_one_is_503_and_may_be_retried(
    extended: Service, proxied: ProxiedDatabase, paths: list[str], cause: str
) -> None:
    limits = {"DATABASE_POOL_SIZE": "2", "DATABASE_MAX_OVERFLOW": "0"}
    with serve_proxied(extended, proxied, **limits) as server, ThreadPoolExecutor() as pool:
        http = server.client
        for name in "ab":
            http.post("/items", json={"name": name})

        def post(path: str) -> httpx2.Response:
            return http.post(path, params={"meet": True})

        done, refused = sorted(pool.map(post, paths), key=lambda answer: answer.status_code)

        assert done.status_code == 200
        assert unavailable(refused)
        [line] = [line for line in server.log().splitlines() if "unavailable: " in line]
        assert cause in line
        again = refused.request.url.copy_set_param("meet", False)
        assert http.post(again).status_code == 200
        assert http.get("/items").status_code == 200
        assert proxied.proxy.sessions == 2
        assert proxied.connections() == 2


def test_an_idle_transaction_is_ended_and_rolled_back(
    extended: Service, proxied: ProxiedDatabase
) -> None:
    limits = {"DATABASE_POOL_SIZE": "1", "DATABASE_MAX_OVERFLOW": "0"}
    with serve_proxied(extended, proxied, **limits) as server:
        http = server.client
        assert unavailable(http.post("/idle", params={"seconds": 3}))
        assert http.get("/items").json()["items"] == []
        assert http.post("/idle", params={"seconds": 0}).status_code == 200
        assert proxied.connections() == 1


def test_a_handler_that_gives_up_waiting_is_503_and_rolled_back(
    extended: Service, proxied: ProxiedDatabase
) -> None:
    limits = {
        "DATABASE_POOL_SIZE": "1",
        "DATABASE_MAX_OVERFLOW": "0",
        "DATABASE_COMMAND_TIMEOUT": "1.5",
    }
    with serve_proxied(extended, proxied, **limits) as server:
        http = server.client
        start = time.monotonic()
        assert unavailable(http.post("/slow", params={"limit": 0.3}))
        assert time.monotonic() - start < 0.3 + MARGIN
        assert re.search(r"timed out: TimeoutError in .*/routes.py.* in give_up", server.log())
        assert http.get("/items").json()["items"] == []
        assert http.get("/health/ready").json() == {"status": "ready"}
        # The server learns of it from its own time limit.
        wait_for(lambda: proxied.connections() == 1, seconds=1.5 + MARGIN)


def test_a_request_that_outlasts_the_graceful_timeout_is_cut_and_rolled_back(
    extended: Service, proxied: ProxiedDatabase
) -> None:
    limits = {"DATABASE_COMMAND_TIMEOUT": "2.5"}
    with (
        serve_proxied(extended, proxied, *UVICORN[:-1], "1", **limits) as server,
        ThreadPoolExecutor() as pool,
    ):
        posted = pool.submit(server.client.post, "/slow")
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'"
        wait_for(lambda: proxied.number(asleep) == 1)
        start = time.monotonic()
        stop(server)
        assert time.monotonic() - start < 1 + MARGIN
        assert unavailable(posted.result())
        assert posted.result().json()["type"] == "/problems/outcome-unknown"
    assert "engine disposed of" in server.log()
    wait_for(lambda: proxied.connections() == 0, seconds=2.5 + MARGIN)
    assert proxied.number("SELECT count(*) FROM items") == 0


def test_a_client_that_goes_away_keeps_no_connection(
    service: Service, proxied: ProxiedDatabase
) -> None:
    limits = {
        "DATABASE_POOL_SIZE": "1",
        "DATABASE_MAX_OVERFLOW": "0",
        "DATABASE_COMMAND_TIMEOUT": "1",
    }
    with serve_proxied(service, proxied, **limits) as server:
        http = server.client
        address = (http.base_url.host, http.base_url.port)
        request = (
            b"POST /items HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b'Content-Length: 13\r\n\r\n{"name": "a"}'
        )
        with proxied.holding("LOCK TABLE items IN EXCLUSIVE MODE"):
            with socket.create_connection(address) as client:
                client.sendall(request)
                wait_for(lambda: proxied.waiting() == 1)
            wait_for(lambda: proxied.waiting() == 0, seconds=1 + MARGIN)
            assert http.get("/items").json()["items"] == []
        assert http.post("/items", json={"name": "b"}).status_code == 201
        wait_for(lambda: proxied.connections() == 1)
        stop(server)
    assert proxied.connections() == 0


def test_a_killed_service_leaves_no_connection_behind(
    service: Service, proxied: ProxiedDatabase
) -> None:
    limits = {"DATABASE_COMMAND_TIMEOUT": "1.5"}
    with (
        serve_proxied(service, proxied, **limits) as server,
        ThreadPoolExecutor() as pool,
        proxied.holding("LOCK TABLE items IN EXCLUSIVE MODE"),
    ):
        posted = pool.submit(server.client.post, "/items", json={"name": "a"})
        wait_for(lambda: proxied.waiting() == 1)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        assert isinstance(posted.exception(), httpx2.TransportError)
        # A server that waits for a lock sees no socket; its statement's time limit ends it.
        wait_for(lambda: proxied.connections() == 0, seconds=1.5 + MARGIN)
    assert proxied.number("SELECT count(*) FROM items") == 0


@pytest.mark.parametrize(
    "change",
    [
        "ADD COLUMN colour text NOT NULL DEFAULT 'red'",
        "ALTER COLUMN description TYPE text",
        "ALTER COLUMN version TYPE bigint",
    ],
)
def test_a_schema_that_changes_under_the_service_gives_no_wrong_data(
    service: Service, proxied: ProxiedDatabase, change: str
) -> None:
    with serve_proxied(service, proxied) as server, ThreadPoolExecutor(4) as pool:
        http = server.client

        def read(_: int) -> httpx2.Response:
            return http.get("/items")

        created = http.post("/items", json={"name": "a", "description": "b"}).json()
        list(pool.map(read, range(20)))

        proxied.query(f"ALTER TABLE items {change}")

        responses = list(pool.map(read, range(20)))
        wrong = [answer.status_code for answer in responses if answer.status_code != 200]
        assert set(wrong) <= {503}
        assert all(answer.json()["items"] == [created] for answer in responses if answer.is_success)
        patched = http.patch(f"/items/{created['id']}", json={"name": "c"})
        assert patched.status_code in (200, 503)
        assert http.patch(f"/items/{created['id']}", json={"name": "d"}).json()["name"] == "d"
        assert http.get("/items").json()["items"][0]["name"] == "d"


def test_a_sequence_that_is_behind_its_rows_is_not_the_clients_fault(
    service: Service, migrated: PostgreSQLDatabase
) -> None:
    left = left_in(migrated)
    with watcher.serve_watched(service, left, **migrated.variables) as watched:
        http = watched.server.client
        for name in ("Spanner", "Hammer"):
            assert http.post("/items", json={"name": name}).status_code == 201
        migrated.query("ALTER TABLE items ALTER id RESTART")

        names = ("Spanner", "Saw", "Saw", "Saw")
        answers = [http.post("/items", json={"name": name}) for name in names]

        assert [answer.status_code for answer in answers] == [503, 503, 201, 409]
        log = watched.server.log()
        assert log.count("unavailable: server error: duplicate key value violates unique") == 2


def test_every_connection_is_closed_gracefully(service: Service, proxied: ProxiedDatabase) -> None:
    with serve_proxied(service, proxied) as server, ThreadPoolExecutor(20) as pool:
        proxied.proxy.delay = 0.02  # so that requests need connections at the same time
        assert set(pool.map(lambda _: server.client.get("/items").status_code, range(40))) == {200}
        stop(server)
    assert proxied.proxy.sessions > 5
    assert proxied.proxy.graceful_closes == proxied.proxy.sessions


@pytest.fixture(params=["IPv6", "IPv6 in parts", "socket", "TLS", "verified TLS"])
def reached(
    request: pytest.FixtureRequest, empty: ProxiedDatabase, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """Variables that lead to an empty database in another way than the usual."""
    name, password = empty.name, quote(PASSWORD, safe="")
    if request.param == "socket":
        folder = empty.server.socket.removesuffix("/.s.PGSQL.5432")
        yield {"DATABASE_URL": f"postgresql://guarded:{password}@/{name}?host={folder}"}
    elif request.param.startswith("IPv6"):
        with open_proxy(empty.server.socket, host="::1") as proxy:
            if request.param == "IPv6":
                yield {"DATABASE_URL": f"postgresql://guarded:{password}@[::1]:{proxy.port}/{name}"}
            else:
                yield {
                    "DATABASE_HOST": "::1",
                    "DATABASE_PORT": str(proxy.port),
                    "DATABASE_USER": "guarded",
                    "DATABASE_PASSWORD": PASSWORD,
                    "DATABASE_NAME": name,
                }
    else:
        authority, tls = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(tls)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        mode = "require" if request.param == "TLS" else "verify-full"
        with open_proxy(empty.server.socket, tls=tls) as proxy:
            url = f"postgresql://guarded:{password}@localhost:{proxy.port}/{name}?sslmode={mode}"
            yield {"DATABASE_URL": url, "PGSSLROOTCERT": str(tmp_path / "ca.pem")}


def test_the_service_its_migrations_and_its_tests_reach_the_database_in_every_way(
    service: Service, empty: ProxiedDatabase, reached: dict[str, str]
) -> None:
    service.run(".venv/bin/alembic", "upgrade", "head", variables=reached)
    with watcher.serve_watched(service, empty.left, **reached) as watched:
        server = watched.server
        assert server.client.get("/health/ready").status_code == 200
        assert server.client.post("/items", json={"name": "a"}).status_code == 201
    assert empty.number("SELECT count(*) FROM items") == 1
    if "DATABASE_URL" in reached:
        variables = reached | {"TEST_DATABASE_URL": reached["DATABASE_URL"]}
        service.run(".venv/bin/pytest", "tests/test_health.py", variables=variables)


def test_a_server_without_tls_is_refused_where_tls_is_required(
    service: Service, proxied: ProxiedDatabase
) -> None:
    url = f"{proxied.url}?sslmode=require"
    with serve_proxied(service, proxied, DATABASE_URL=url) as server:
        assert unavailable(server.client.get("/items"))
        assert "rejected SSL upgrade" in server.log()
    variables = {"DATABASE_URL": url}
    migrated = service.run(".venv/bin/alembic", "upgrade", "head", variables=variables, check=False)
    assert migrated.returncode == 1
    assert re.fullmatch(
        r".*migrations: postgresql://.*\n"
        r"postgresql\+asyncpg://guarded:\*\*\*@.* is not available: .*\n",
        migrated.stdout,
    )


def test_a_migration_gives_up_a_lock_before_requests_queue_behind_it(
    extended: Service, proxied: ProxiedDatabase
) -> None:
    variables = {"DATABASE_URL": proxied.url}
    with proxied.holding("SELECT * FROM items"):
        downgrade = (".venv/bin/alembic", "downgrade", "base")
        refused = extended.run(*downgrade, variables=variables, check=False)

    assert refused.returncode == 1
    assert "canceling statement due to lock timeout" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert proxied.number("SELECT count(*) FROM alembic_version") == 1


def test_after_random_requests_and_faults_what_was_acknowledged_is_stored(
    service: Service, proxied: ProxiedDatabase
) -> None:
    limits = {
        "DATABASE_CONNECT_TIMEOUT": "1",
        "DATABASE_COMMAND_TIMEOUT": "1",
        "DATABASE_POOL_SIZE": "2",
    }
    client = RandomClient(lambda: serve_proxied(service, proxied, **limits))

    @contextmanager
    def cut() -> Iterator[None]:
        yield
        proxied.proxy.cut()

    @contextmanager
    def terminated() -> Iterator[None]:
        yield
        proxied.terminate()
        # The end of a connection may reach the process after the FATAL before it: a read is
        # retried then, and a write would be 503.
        client.server.client.get("/items?limit=1").raise_for_status()

    @contextmanager
    def refused() -> Iterator[None]:
        proxied.proxy.refuse()
        yield
        proxied.proxy.accept()

    @contextmanager
    def silent() -> Iterator[None]:
        proxied.proxy.silent = True
        yield
        proxied.proxy.silent = False

    @contextmanager
    def locked() -> Iterator[None]:
        with proxied.holding("LOCK TABLE items IN EXCLUSIVE MODE"):
            yield

    @contextmanager
    def killed() -> Iterator[None]:
        yield
        client.restart(signal.SIGKILL)

    def stored() -> Iterator[tuple[int, str, str, int]]:
        printed = proxied.query("SELECT id, name, description, version FROM items")
        for line in re.findall(r"^ +\d+ \|.*$", printed, re.MULTILINE):
            key, name, description, version = map(str.strip, line.split("|"))
            yield int(key), name, description, int(version)

    faults: dict[Fault, int] = {
        cut: 30,
        terminated: 10,
        refused: 30,
        silent: 1,
        locked: 5,
        killed: 1,
    }
    try:
        for _ in range(10):
            client.go(25, faults)
            client.check(stored())
    finally:
        client.close()


def test_timeouts_of_the_role_end_no_migration_that_waits(
    service: Service, empty: ProxiedDatabase
) -> None:
    for limit in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
        empty.server.query(f"ALTER DATABASE {empty.name} SET {limit} = '100ms'")
    migrating = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% migrations'"
        " AND query LIKE '%pg_try_advisory_lock%' AND datname = current_database()"
    )
    command = [".venv/bin/alembic", "upgrade", "head"]
    variables = environment(DATABASE_URL=empty.url)
    mine = "SET idle_in_transaction_session_timeout = 0; SELECT pg_advisory_lock(5390771402)"
    with empty.holding(mine):
        migration = subprocess.Popen(command, cwd=service.folder, env=variables)
        wait_for(lambda: empty.number(migrating) == 1)
        time.sleep(1)
    assert migration.wait(60) == 0


def test_migrations_survive_one_that_is_killed(service: Service, empty: ProxiedDatabase) -> None:
    def migrate() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [".venv/bin/alembic", "upgrade", "head"],
            cwd=service.folder,
            env=environment(DATABASE_URL=empty.url),
        )

    def connected() -> int:
        return empty.number(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '% migrations'"
            " AND datname = current_database()"
        )

    # The first is killed in the middle of its transaction: a table of that name is being made.
    with empty.holding("CREATE TABLE items (id integer)"), migrate() as killed:
        wait_for(lambda: empty.waiting() > 0)
        others = [migrate() for _ in range(3)]
        try:
            wait_for(lambda: connected() == 4)
        finally:
            killed.kill()
    assert killed.returncode == -signal.SIGKILL
    assert [process.wait(60) for process in others] == [0, 0, 0]
    assert empty.connections() == 0

    with serve_proxied(service, empty) as server:
        assert server.client.get("/health/ready").status_code == 200
