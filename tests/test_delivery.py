"""Work that must happen is done, wherever the process that does it is killed."""

import http.server
import json
import signal
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.support import watcher
from tests.support.databases import (
    Database,
    PostgreSQLDatabase,
    SQLiteDatabase,
    execute,
    transaction,
)
from tests.support.pages import follow, table
from tests.support.processes import START_TIMEOUT, environment, wait_for
from tests.support.services import Server, Service
from tests.support.watcher import left_in

# The service, which kills itself where the article of an order says, at the first attempt.
KILLED = """
import os
import signal

from app.features.orders import queries as orders
from app.features.outbox import delivery, queries as outbox
from sqlalchemy.ext.asyncio import AsyncSession

from app.main import app

create_order, commit, send = orders.create_order, AsyncSession.commit, delivery.send
remove_message = outbox.remove_message


def die(where, article):
    if article == where:
        os.kill(os.getpid(), signal.SIGKILL)


async def created(session, values):
    order = await create_order(session, values)
    session.info["article"] = values["article"]
    return order


async def committed(session):
    article = session.info.pop("article", None)
    die("before the commit", article)
    await commit(session)
    die("after the commit, before the response", article)


async def sent(client, url, message):
    article = message.payload["article"] if message.attempts == 1 else ""
    die("after the claim", article)
    await send(client, url, message)


async def removed(session, message):
    article = message.payload["article"] if message.attempts == 1 else ""
    die("after the delivery, before its removal", article)
    await remove_message(session, message)


orders.create_order, AsyncSession.commit, delivery.send = created, committed, sent
outbox.remove_message = removed
"""


KILLED_APP = (".venv/bin/python", "-m", "app.server", "killed:app")


@dataclass
class Warehouse:
    """The other side: it counts what it gets by key, and fails as it is told."""

    url: str
    keys: Counter[str] = field(default_factory=Counter)
    articles: Counter[str] = field(default_factory=Counter)
    victim: Server | None = None  # killed while it asks
    slow: threading.Event = field(default_factory=threading.Event)  # let go of what is slow


@contextmanager
def open_warehouse() -> Iterator[Warehouse]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            article = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["article"]
            warehouse.keys[self.headers["Idempotency-Key"]] += 1
            warehouse.articles[article] += 1
            if article == "while the other side is asked" and warehouse.articles[article] == 1:
                assert warehouse.victim is not None
                warehouse.victim.process.kill()
            if article == "slow":
                warehouse.slow.wait(START_TIMEOUT)
            self.send_response(500 if article == "refused" else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        warehouse = Warehouse(f"http://127.0.0.1:{other.server_port}")
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield warehouse
        warehouse.slow.set()
        other.shutdown()


def rows(database: Database, query: str) -> list[str]:
    """Return the first column of a query, as text."""
    if isinstance(database, SQLiteDatabase):
        with closing(sqlite3.connect(database.path)) as connection:
            return [str(row[0]) for row in connection.execute(query)]
    assert isinstance(database, PostgreSQLDatabase)
    lines = database.query(f"SELECT 'row=' || shown FROM ({query}) AS rows (shown)").splitlines()
    return [line.strip().removeprefix("row=") for line in lines if line.strip().startswith("row=")]


def is_empty(database: Database, table: str) -> bool:
    return rows(database, f"SELECT count(*) FROM {table}") == ["0"]


def make_due(database: Database, attempts: int | None = None) -> None:
    """Make what is stored due, as after so many attempts.

    With the number it stays due: who postpones an attempt looks for its own.
    """
    counted = "attempts" if attempts is None else attempts
    past = "'2026-01-01 00:00:00.000000'"
    execute(database, f"UPDATE outbox SET attempts = {counted}, due_at = {past}")


def order(server: Server, article: str) -> int:
    """Order, and return the status, or 0 where there is no answer."""
    try:
        return server.client.post("/orders", json={"article": article}).status_code
    except httpx2.TransportError:
        return 0


@pytest.mark.long
def test_what_is_stored_is_delivered_wherever_the_process_is_killed(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    follow("outbox", copy, migrated.variables)
    (copy.folder / "killed.py").write_text(KILLED)
    check_kills(copy, migrated)
    check_sharing(copy, migrated)
    check_shutdown(copy, migrated)


def check_kills(service: Service, database: Database) -> None:
    said = table("how-to/outbox.md", "When the process is killed")
    stored: dict[str, tuple[str, str]] = {}
    with open_warehouse() as warehouse:
        variables = database.variables | {"WAREHOUSE_URL": warehouse.url}
        for where in [*said, ""]:
            with service.serve(*KILLED_APP, **variables) as server:
                wait_for(lambda: is_empty(database, "outbox"))  # of what the one before has left
                if not where:
                    break
                execute(database, "DELETE FROM orders")
                warehouse.victim = server
                status = order(server, where)
                assert server.process.wait(START_TIMEOUT) == -signal.SIGKILL
                assert (status == 201) == ("201" in said[where][3])
            orders, messages = (
                "lost" if is_empty(database, name) else "stored" for name in ("orders", "outbox")
            )
            stored[where] = (orders, messages)
            make_due(database)  # as when the lease has ended
        found = {where: (*cells, warehouse.articles[where]) for where, cells in stored.items()}
    times = {"never": 0, "once": 1, "once, when the lease has ended": 1, "twice": 2}
    times["perhaps twice"] = 2  # this warehouse had it before the kill
    assert found == {where: (a, b, times[c]) for where, (a, b, c, _) in said.items()}
    assert set(warehouse.keys.values()) == {1, 2}  # the same key when it came again


def check_sharing(service: Service, database: Database) -> None:
    """Two processes deliver each message once, and set aside what is refused."""
    with open_warehouse() as warehouse:
        variables = database.variables | {"WAREHOUSE_URL": warehouse.url}
        with service.serve(**variables) as first, service.serve(**variables) as second:
            for number in range(30):
                assert order(first, f"article {number}") == 201
            wait_for(lambda: rows(database, "SELECT id FROM outbox") == [])
            assert set(warehouse.keys.values()) == {1}
            assert len(warehouse.keys) == 30

            assert order(first, "refused") == 201
            wait_for(lambda: rows(database, "SELECT attempts FROM outbox") == ["1"])
            make_due(database, attempts=14)
            wait_for(lambda: "attempt 15, set aside: " in first.log() + second.log())
            make_due(database, attempts=16)
            assert order(first, "good") == 201
            wait_for(lambda: warehouse.articles["good"] == 1)  # which passes it
            assert warehouse.articles["refused"] == 2
            make_due(database, attempts=0)
            wait_for(lambda: warehouse.articles["refused"] == 3)
            if isinstance(database, PostgreSQLDatabase):
                check_that_a_lock_is_passed(database, first, warehouse)
        execute(database, "DELETE FROM outbox")


def check_that_a_lock_is_passed(
    database: PostgreSQLDatabase, server: Server, warehouse: Warehouse
) -> None:
    database.query("UPDATE outbox SET due_at = now() + interval '3 seconds'")
    with transaction(database, "SELECT id FROM outbox FOR UPDATE"):  # as one who claims it
        wait_for(lambda: rows(database, "SELECT id FROM outbox WHERE due_at < now()") != [])
        assert order(server, "behind it") == 201
        wait_for(lambda: warehouse.articles["behind it"] == 1)


def check_shutdown(service: Service, database: Database) -> None:
    """The task outlives an outage, and delivers the message under way before the process ends."""
    with open_warehouse() as warehouse:
        variables = database.variables | {"WAREHOUSE_URL": warehouse.url}
        with watcher.serve_watched(service, left_in(database), **variables) as watched:
            server = watched.server
            database.take_away()
            wait_for(lambda: "outbox: " in server.log())
            database.give_back()
            wait_for(lambda: order(server, "slow") == 201)
            wait_for(lambda: warehouse.articles["slow"] == 1)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "Waiting for application shutdown" in server.log())
            warehouse.slow.set()
            server.process.wait(START_TIMEOUT)
        assert rows(database, "SELECT id FROM outbox") == []
        assert "disposed of" in server.log()


# The service and its worker, which kill themselves where the title of a report says, once.
KILLED_AT_A_JOB = """
import os
import signal
from datetime import timedelta
from pathlib import Path

from app.features.reports import queries, worker as own
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.main import app

create_report, make_report = queries.create_report, queries.make_report
runs = Path("runs")
own.HEARTBEAT = timedelta(seconds=1)


def die(where, title):
    if title == where and not (runs.exists() and runs.read_text().count(title) > 1):
        os.kill(os.getpid(), signal.SIGKILL)


async def created(session, values):
    report = await create_report(session, values)
    session.info["title"] = values["title"]
    return report


async def made(session, report_id):
    title = (await queries.get_report(session, report_id)).title
    with runs.open("a") as file:
        file.write(f"{title}\\n")
    if title == "refused":
        raise ValueError(f"secret of {title}")
    await make_report(session, report_id)
    die("worker, in the job", title)
    session.info["made"] = title


def before_commit(session):
    die("service, before the commit", session.info.get("title"))


def after_commit(session):
    die("service, after the commit", session.info.get("title"))
    die("worker, after the job's commit", session.info.get("made"))


queries.create_report, queries.make_report = created, made
event.listen(Session, "before_commit", before_commit)
event.listen(Session, "after_commit", after_commit)
if __name__ == "__main__":
    own.main()
"""


@contextmanager
def working(service: Service, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    command = (".venv/bin/python", "killed.py")
    with (service.folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=service.folder, env=environment(**variables), stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(START_TIMEOUT)


@pytest.mark.long
@pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
def test_a_job_is_done_wherever_the_worker_is_killed(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    assert isinstance(migrated, PostgreSQLDatabase)
    copy = service.copy(tmp_path / "service")
    follow("queue", copy, migrated.variables)
    (copy.folder / "killed.py").write_text(KILLED_AT_A_JOB)
    log = copy.folder / "worker.log"

    def ask(server: Server, title: str) -> int:
        with suppress(httpx2.TransportError):
            return server.client.post("/reports", json={"title": title}).status_code
        return 0

    def stored(title: str) -> tuple[str, str]:
        reports = rows(migrated, f"SELECT id FROM reports WHERE title = $${title}$$")
        jobs = rows(migrated, "SELECT id FROM queue.pgqueuer")
        return "stored" if reports else "lost", "stored" if jobs else "lost"

    said = table("how-to/queue.md", "When the worker is killed")
    found = {}
    for where in said:
        with copy.serve(*KILLED_APP, **migrated.variables) as server:
            killed = ask(server, where) == 0
            assert killed == where.startswith("service")
            found[where] = stored(where)
        if "stored" in found[where]:
            if not killed:
                with working(copy, **migrated.variables) as worker:
                    assert worker.wait(START_TIMEOUT) == -signal.SIGKILL
            with working(copy, **migrated.variables):
                wait_for(lambda: rows(migrated, "SELECT id FROM queue.pgqueuer") == [], 30)
        made = rows(migrated, "SELECT title FROM reports WHERE made_at IS NOT NULL")
        assert (where in made) == ("lost" not in found[where])
    runs = (copy.folder / "runs").read_text().splitlines()
    assert found == {where: tuple(cells[:2]) for where, cells in said.items()}
    # In the job it is begun twice, and what the first has done is rolled back.
    assert [runs.count(where) for where in said] == [0, 1, 2, 2]

    with copy.serve(**migrated.variables) as server, working(copy, **migrated.variables) as worker:
        assert ask(server, "refused") == 202
        wait_for(lambda: "refused" in (copy.folder / "runs").read_text())
        execute(migrated, "UPDATE queue.pgqueuer SET attempts = 10, execute_after = now()")
        wait_for(lambda: rows(migrated, "SELECT status FROM queue.pgqueuer") == ["failed"], 30)
        url = {"PGDSN": migrated.variables["DATABASE_URL"]}
        shown = copy.run(".venv/bin/pgq", "--schema", "queue", "failed", variables=url).stdout
        assert "make_report" in shown
        worker.terminate()
        assert worker.wait(START_TIMEOUT) == 0
    assert "ValueError" in log.read_text()
    assert "secret of refused" not in log.read_text()
    assert "engine disposed of" in log.read_text()


def events_of(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Yield the events of a stream as a browser reads them."""
    event: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield event
            event = {}


def test_a_stream_tells_the_newest_version_and_holds_no_connection(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    follow("events", copy, migrated.variables)
    routes = copy.folder / "app" / "features" / "watch" / "routes.py"
    routes.write_text(routes.read_text().replace("LONGEST = 15.0", "LONGEST = 4.0"))
    variables = migrated.variables | {"DATABASE_POOL_SIZE": "1"}

    with watcher.serve_watched(copy, left_in(migrated), **variables) as watched:
        server = watched.server
        http = server.client
        item = http.post("/items", json={"name": "Spanner"}).headers["Location"]
        assert http.get("/watch/items/99").status_code == 404

        with ExitStack() as streams:
            for _ in range(20):  # one connection serves all of them, and others too
                streams.enter_context(http.stream("GET", f"/watch{item}"))
            watched_by = streams.enter_context(http.stream("GET", f"/watch{item}"))
            assert watched_by.headers["content-type"].startswith("text/event-stream")
            events = events_of(watched_by.iter_lines())
            first = next(events)
            assert (first["event"], first["id"]) == ("item", "1")
            assert json.loads(first["data"])["name"] == "Spanner"
            http.patch(item, json={"name": "Wrench"}).raise_for_status()
            second = next(events)
            assert (second["id"], json.loads(second["data"])["name"]) == ("2", "Wrench")
            assert list(events) == []  # it ends by itself
        again = {"Last-Event-ID": "2"}
        with http.stream("GET", f"/watch{item}", headers=again) as stream:
            http.patch(item, json={"name": "Saw"}).raise_for_status()
            events = events_of(stream.iter_lines())
            assert next(events)["id"] == "3"  # and not the one that it has
            http.delete(item).raise_for_status()
            assert [event["event"] for event in events] == ["deleted"]
        watched.check("clients that have left")

        item = http.post("/items", json={"name": "Saw"}).headers["Location"]
        with http.stream("GET", f"/watch{item}") as stream:
            events = events_of(stream.iter_lines())
            next(events)
            migrated.take_away()
            assert list(events) == []
            migrated.give_back()
        wait_for(lambda: http.get(item).status_code == 200)

        with http.stream("GET", f"/watch{item}") as stream:
            events = events_of(stream.iter_lines())
            next(events)
            server.process.terminate()
            assert list(events) == []
            server.process.wait(START_TIMEOUT)
    assert "Cancel" not in server.log()
    assert "Traceback" not in server.log()
