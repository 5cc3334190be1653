"""A service that loses its SQLite file answers soon and honestly, recovers by itself, loses nothing."""

import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from tests.support import watcher
from tests.support.answers import cut_short, unavailable
from tests.support.databases import SQLiteDatabase
from tests.support.processes import wait_for
from tests.support.random_client import RandomClient
from tests.support.repository import replace, substitute
from tests.support.services import Server, Service
from tests.support.watcher import UVICORN, left_in_sqlite

pytestmark = pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)

# A user whom the file's mode binds, as it does not bind root.
BOUND = ("setpriv", "--bounding-set=-all") if os.geteuid() == 0 else ()
MARGIN = 1.5  # seconds that a busy machine may take on top of a promised limit


@pytest.fixture(scope="module")
def pattern(service: Service, tmp_path_factory: pytest.TempPathFactory) -> SQLiteDatabase:
    """A migrated file to copy."""
    pattern = SQLiteDatabase(tmp_path_factory.mktemp("faults"))
    service.migrate(pattern)
    return pattern


@pytest.fixture
def file(pattern: SQLiteDatabase, tmp_path: Path) -> Iterator[Path]:
    """A migrated file without rows; whatever a test does to it, it is sound in the end."""
    path = SQLiteDatabase(tmp_path).path
    shutil.copy(pattern.path, path)
    yield path
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "PRAGMA foreign_key_check") == []


@contextmanager
def serve_file(service: Service, file: Path, *command: str, **variables: str) -> Iterator[Server]:
    """Run the service; whatever happens, it leaves nothing behind."""
    variables = {"DATABASE_URL": f"sqlite:///{file}"} | variables
    with watcher.serve_watched(
        service, lambda: left_in_sqlite(file), *command, **variables
    ) as watched:
        yield watched.server


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Hold a write transaction open meanwhile, in a process outside the service."""
    connection = sqlite3.connect(file, isolation_level=None)
    # It blocks readers too, unless the file has a write-ahead log.
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


def rows(file: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def names(file: Path) -> set[object]:
    return {name for (name,) in rows(file, "SELECT name FROM items")}


def post(server: Server, name: str, description: str = "") -> httpx2.Response:
    return server.client.post("/items", json={"name": name, "description": description})


MODEL = """
from sqlalchemy import ForeignKey, Identity
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, BigIntegerKey


class Part(Base):
    __tablename__ = "parts"

    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(), primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id", ondelete="CASCADE"))
"""
ROUTES = """
from fastapi import APIRouter
from sqlalchemy import text

from app.dependencies import SessionDep
from app.features.items.models import Item
from app.features.more.models import Part

router = APIRouter()


@router.post("/count/{item_id}")
async def count_up(item_id: int, session: SessionDep) -> None:
    item = await session.get_one(Item, item_id, with_for_update=True)
    item.description = str(int(item.description) + 1)


@router.post("/parts/{item_id}", status_code=201)
async def create_part(item_id: int, session: SessionDep) -> None:
    session.add(Part(item_id=item_id))


@router.post("/endless")
async def count_for_ever(session: SessionDep) -> None:
    session.add(Item(name="endless"))
    await session.flush()
    numbers = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r)"
    await session.execute(text(f"{numbers} SELECT max(n) FROM r"))
"""


@pytest.fixture
def extended(service: Service, tmp_path: Path) -> Service:
    """A copy of the service that counts in an item, and has parts that go with their item."""
    extended = service.copy(tmp_path / "extended")
    extended.extend(models=MODEL, routes=ROUTES)
    return extended


@pytest.mark.parametrize(("timeout", "statuses"), [("60", {200}), ("0.001", {200, 503})])
def test_processes_that_change_the_same_row_lose_no_update(
    extended: Service, file: Path, timeout: str, statuses: set[int]
) -> None:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve_file(extended, file, DATABASE_COMMAND_TIMEOUT=timeout))
            for _ in range(3)
        ]
        created = post(servers[0], "counter", "0").json()

        def count_up(number: int) -> httpx2.Response:
            return servers[number % 3].client.post(f"/count/{created['id']}")

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(count_up, range(150)))
        counted = servers[0].client.get(f"/items/{created['id']}").json()["description"]

    assert {answer.status_code for answer in answers} <= statuses
    assert all(answer.status_code == 200 or unavailable(answer) for answer in answers)
    assert int(counted) == sum(answer.status_code == 200 for answer in answers) > 0


def test_a_long_write_of_another_process_lets_reads_through_and_ends_writes_in_time(
    service: Service, file: Path
) -> None:
    with serve_file(service, file, DATABASE_COMMAND_TIMEOUT="0.5") as server:
        created = post(server, "before").json()
        with writing(file):
            start = time.monotonic()
            assert unavailable(post(server, "meanwhile"))
            assert 0.4 < time.monotonic() - start < 0.5 + MARGIN
            assert unavailable(server.client.patch(f"/items/{created['id']}", json={}))
            assert unavailable(server.client.delete(f"/items/{created['id']}"))
            # A read that had to wait would be 503: the write outlasts every timeout.
            assert server.client.get("/items").json()["items"] == [created]
            assert server.client.get("/health/ready").json() == {"status": "ready"}
        assert post(server, "after").status_code == 201
    assert names(file) == {"before", "after"}


def test_reads_do_not_queue_behind_writers(service: Service, file: Path) -> None:
    limits = {"DATABASE_COMMAND_TIMEOUT": "2", "DATABASE_POOL_TIMEOUT": "2"}
    with serve_file(service, file, **limits) as server, ThreadPoolExecutor(40) as pool:
        with writing(file):
            start = time.monotonic()
            waiting = [pool.submit(post, server, f"item {number}") for number in range(40)]
            while time.monotonic() - start < 1.5:
                begun = time.monotonic()
                assert server.client.get("/items").status_code == 200
                assert server.client.get("/health/ready").json() == {"status": "ready"}
                assert time.monotonic() - begun < 1
                time.sleep(0.1)
            assert all(unavailable(answer.result()) for answer in waiting)
            assert time.monotonic() - start < 2 + 2 + MARGIN
        assert names(file) == set()

        waiting = [pool.submit(post, server, f"item {number}") for number in range(40)]
        assert {answer.result().status_code for answer in waiting} == {201}


def test_a_client_that_goes_away_blocks_no_writer(service: Service, file: Path) -> None:
    limits = {"DATABASE_POOL_SIZE": "1", "DATABASE_MAX_OVERFLOW": "0"}
    with serve_file(service, file, **limits) as server:
        address = (server.client.base_url.host, server.client.base_url.port)
        request = (
            b"POST /items HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b'Content-Length: 13\r\n\r\n{"name": "a"}'
        )
        with writing(file), ExitStack() as stack:
            for _ in range(3):
                client = stack.enter_context(socket.create_connection(address))
                client.sendall(request)
            time.sleep(0.3)
        assert post(server, "b").status_code == 201
        assert server.client.get("/items").status_code == 200


def test_writers_that_wait_do_not_keep_a_server_from_stopping(service: Service, file: Path) -> None:
    limits = {"DATABASE_COMMAND_TIMEOUT": "1", "DATABASE_POOL_TIMEOUT": "1"}
    with (
        serve_file(service, file, **limits) as server,
        ThreadPoolExecutor(20) as pool,
        writing(file),
    ):
        waiting = [pool.submit(post, server, f"item {number}") for number in range(20)]
        time.sleep(0.5)
        start = time.monotonic()
        assert server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert time.monotonic() - start < 2 + MARGIN
        assert all(unavailable(answer.result()) for answer in waiting)


def test_requests_that_outlast_the_graceful_timeout_are_cut_and_rolled_back(
    service: Service, file: Path, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    options = copy.folder / "app/server/run.py"
    substitute(options, r"^GRACEFUL_TIMEOUT = \d+$", "GRACEFUL_TIMEOUT = 1")
    with (
        serve_file(copy, file, *UVICORN[:-2]) as server,
        ThreadPoolExecutor() as pool,
        writing(file),
    ):
        # One has the write lock and waits for the file, the others wait for the lock.
        waiting = [pool.submit(post, server, f"item {number}") for number in range(3)]
        time.sleep(0.5)
        start = time.monotonic()
        assert server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert time.monotonic() - start < 1 + MARGIN
        assert all(map(cut_short, waiting))
    assert names(file) == set()


def test_a_second_sigint_ends_at_once_with_one_line(service: Service, file: Path) -> None:
    with (
        serve_file(service, file, DATABASE_COMMAND_TIMEOUT="20") as server,
        ThreadPoolExecutor() as pool,
        writing(file),
    ):
        waiting = pool.submit(post, server, "a")
        time.sleep(0.5)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: "CTRL+C to force quit" in server.log())
        server.stop(signal.SIGINT)
        assert cut_short(waiting)
        assert "Traceback" not in server.log()
        assert "WARNING uvicorn.error: ended at once, as asked" in server.log()
    assert names(file) == set()


@contextmanager
def missing(file: Path) -> Iterator[None]:
    """The folder is missing."""
    away = file.parent.rename(file.parent.with_name("away"))
    try:
        yield
    finally:
        away.rename(file.parent)


@contextmanager
def garbage(file: Path) -> Iterator[None]:
    """Another file is in its place, and is not a database."""
    with missing(file):
        file.parent.mkdir()
        file.write_bytes(b"This is not a database. " * 1000)
        try:
            yield
        finally:
            shutil.rmtree(file.parent)


@contextmanager
def directory(file: Path) -> Iterator[None]:
    """A folder is in its place."""
    with missing(file):
        file.mkdir(parents=True)
        try:
            yield
        finally:
            shutil.rmtree(file.parent)


@contextmanager
def unwritable(file: Path) -> Iterator[None]:
    """Nobody may write to the file, its log or their folder."""
    paths = [*file.parent.iterdir(), file.parent]
    for path in paths:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in paths:
            path.chmod(0o755)


@contextmanager
def unreadable(file: Path) -> Iterator[None]:
    file.chmod(0)
    yield
    file.chmod(0o600)


@contextmanager
def closed(file: Path) -> Iterator[None]:
    """Nobody may make a log in the file's folder."""
    file.parent.chmod(0o555)
    yield
    file.parent.chmod(0o755)


Fault = Callable[[Path], AbstractContextManager[None]]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (missing, "{file} is missing, and so is its folder"),
        (garbage, "file is not a database"),
        (directory, "{file} is a folder"),
        (unreadable, "{file} may not be read"),
        (unwritable, "{file} is read-only"),
        (closed, "no write-ahead log beside {file}: "),
    ],
)
def test_a_service_that_starts_without_its_file_says_why_and_heals(
    service: Service, file: Path, fault: Fault, cause: str
) -> None:
    with ExitStack() as mended:
        mended.enter_context(fault(file))
        with serve_file(service, file, *BOUND, *UVICORN) as server:
            http = server.client
            for _ in range(3):
                assert http.get("/health/live").status_code == 200
                assert unavailable(http.get("/health/ready"))
                assert unavailable(http.get("/items"))
                assert unavailable(post(server, "meanwhile"))
            assert cause.format(file=file) in server.log()
            assert "alembic" not in server.log().replace(".alembic", "")
            mended.close()
            assert http.get("/health/ready").status_code == 200
            assert post(server, "after").status_code == 201
    assert names(file) == {"after"}


@pytest.mark.parametrize("fault", [missing, garbage, directory])
def test_a_service_whose_file_is_lost_while_it_runs_heals(
    service: Service, file: Path, fault: Fault
) -> None:
    with serve_file(service, file) as server, ThreadPoolExecutor(10) as pool:
        http = server.client

        def read(_: int) -> httpx2.Response:
            return http.get("/items")

        created = [post(server, f"item {number}").json() for number in range(10)]
        assert {answer.status_code for answer in pool.map(read, range(20))} == {200}
        with fault(file):
            # What open connections would still write is lost.
            assert http.get("/health/live").status_code == 200
            assert unavailable(post(server, "lost"))
            assert all(unavailable(answer) for answer in pool.map(read, range(20)))
            assert unavailable(post(server, "lost"))
        assert http.get("/health/ready").status_code == 200
        assert http.get("/items").json()["items"] == created
        assert post(server, "after").status_code == 201
    assert names(file) == {"after", *(item["name"] for item in created)}


def test_a_deleted_file_is_not_recreated_before_it_is_migrated(
    service: Service, file: Path
) -> None:
    with serve_file(service, file) as server:
        http = server.client
        assert post(server, "lost").status_code == 201
        for path in file.parent.iterdir():
            path.unlink()
        for _ in range(3):
            assert http.get("/health/live").status_code == 200
            assert unavailable(http.get("/health/ready"))
            assert unavailable(http.get("/items"))
            assert unavailable(post(server, "meanwhile"))
        assert f"unreachable: {file} is missing" in server.log()
        assert not file.exists()

        service.run(
            ".venv/bin/alembic", "upgrade", "head", variables={"DATABASE_URL": f"sqlite:///{file}"}
        )

        assert http.get("/health/ready").status_code == 200
        assert post(server, "after").status_code == 201
    assert names(file) == {"after"}


def test_a_file_that_becomes_unwritable_goes_on_where_it_is_open_and_is_503_elsewhere(
    service: Service, file: Path
) -> None:
    with (
        serve_file(service, file, *BOUND, *UVICORN) as server,
        serve_file(service, file, *BOUND, *UVICORN) as other,
    ):
        acknowledged = {"before"}
        assert post(server, "before").status_code == 201
        with unwritable(file):
            # The mode was asked when the file was opened: what is acknowledged is stored.
            for name in ("open", "still open"):
                assert post(server, name).status_code == 201
                acknowledged.add(name)
            assert unavailable(post(other, "refused"))
        assert post(other, "after").status_code == 201
    assert names(file) == {*acknowledged, "after"}


def test_a_backup_that_is_put_in_the_files_place_is_used_at_once(
    service: Service, file: Path
) -> None:
    backup = file.with_name("backup.db")
    with serve_file(service, file) as server:
        assert post(server, "stored").status_code == 201
        rows(file, f"VACUUM INTO '{backup}'")
        assert post(server, "too late").status_code == 201
        rows(file, "PRAGMA wal_checkpoint(TRUNCATE)")
        backup.rename(file)
        assert post(server, "after").status_code == 201
        assert len(server.client.get("/items").json()["items"]) == 2
    assert names(file) == {"stored", "after"}


def test_without_a_ping_the_first_write_finds_that_the_file_was_replaced(
    service: Service, file: Path
) -> None:
    backup = file.with_name("backup.db")
    with serve_file(service, file, DATABASE_POOL_PRE_PING="false") as server:
        assert post(server, "stored").status_code == 201
        rows(file, f"VACUUM INTO '{backup}'")
        backup.rename(file)
        assert unavailable(post(server, "refused"))
        assert post(server, "after").status_code == 201
        assert len(server.client.get("/items").json()["items"]) == 2
    assert names(file) == {"stored", "after"}


def test_a_statement_on_a_file_that_was_replaced_is_a_lost_connection(
    extended: Service, file: Path
) -> None:
    backup = file.with_name("backup.db")
    with serve_file(extended, file) as server, ThreadPoolExecutor() as pool:
        assert post(server, "stored").status_code == 201
        rows(file, f"VACUUM INTO '{backup}'")
        endless = pool.submit(server.client.post, "/endless")
        wait_for(lambda: is_locked(file))
        backup.rename(file)
        assert unavailable(server.client.get("/items"))  # while the old one is in use
        assert unavailable(endless.result())
        assert "unavailable: connection lost: interrupted" in server.log()
        assert len(server.client.get("/items").json()["items"]) == 1
    assert names(file) == {"stored"}


def is_locked(file: Path) -> bool:
    """Return whether a transaction writes to the file."""
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
    return False


@contextmanager
def owned(file: Path) -> Iterator[None]:
    """Another process holds an exclusive lock: nobody else can even read."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("DELETE FROM items")
    try:
        yield
    finally:
        connection.close()


def test_connections_that_are_opened_wait_for_the_file_side_by_side(
    service: Service, file: Path
) -> None:
    with (
        serve_file(service, file, DATABASE_COMMAND_TIMEOUT="1") as server,
        ThreadPoolExecutor(10) as pool,
    ):

        def read(_: int) -> tuple[bool, float]:
            start = time.monotonic()
            return unavailable(server.client.get("/items")), time.monotonic() - start

        with owned(file):
            answers = list(pool.map(read, range(10)))
        assert all(refused for refused, _ in answers)
        # One by one, the last would have waited for ten timeouts.
        assert max(seconds for _, seconds in answers) < 2 * (1 + MARGIN)
        assert server.client.get("/items").status_code == 200


OPENING = """
import asyncio, shutil, sys
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.database import dialect
from app.settings import Settings

set_up = dialect.set_up
folder = Path(FILE).parent
away = folder.with_name("away")


async def set_up_once_it_is_back(connection):
    shutil.rmtree(folder)
    away.rename(folder)
    await set_up(connection)


async def refuse(engine):
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except Exception as error:
        print("refused:", type(error).__name__)


async def main():
    settings = Settings()
    engine = create_async_engine(settings.driver_url, **settings.engine_options)
    async with engine.connect(), engine.begin() as connection:
        await connection.execute(text("UPDATE items SET description = 'changed'"))
    folder.rename(away)
    folder.mkdir()
    Path(FILE).write_bytes(CONTENT)
    dialect.set_up = set_up_once_it_is_back
    await refuse(engine)
    dialect.set_up = set_up
    if away.exists():
        shutil.rmtree(folder)
        away.rename(folder)
    for _ in range(20):
        async with engine.begin() as connection:
            changed = await connection.scalars(text("SELECT description FROM items"))
            assert changed.all() == ["changed"]
    await engine.dispose()


asyncio.run(main())
"""


@pytest.mark.parametrize("content", ["garbage", "nothing", "a copy"])
def test_a_file_that_comes_back_while_another_is_opened_in_its_place_loses_nothing(
    service: Service, file: Path, content: str
) -> None:
    put = {"garbage": b"This is not a database. " * 1000, "nothing": b""}
    put["a copy"] = file.read_bytes()
    script = f"FILE = {str(file)!r}\nCONTENT = {put[content]!r}\n{OPENING}"
    with serve_file(service, file) as server:
        assert post(server, "stored", "as sent").status_code == 201
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    done = service.run(
        ".venv/bin/python", "-c", script, variables={"DATABASE_URL": f"sqlite:///{file}"}
    )
    assert "refused: " in done.stdout
    assert rows(file, "SELECT name, description FROM items") == [("stored", "changed")]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Give `folder` a disk of its own, which only root may."""
    if os.geteuid() != 0:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def full(folder: Path, server: Server) -> Iterator[None]:
    """Leave no room on the disk of `folder`, or without root: let no file of the server grow."""
    if folder.is_mount():
        filler = folder / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1024)):
                pass
        yield
        filler.unlink()
        return
    pid, kind = server.process.pid, resource.RLIMIT_FSIZE
    limits = resource.prlimit(pid, kind)
    largest = max(path.stat().st_size for path in folder.iterdir())
    resource.prlimit(pid, kind, (largest, limits[1]))
    yield
    resource.prlimit(pid, kind, limits)


def test_a_full_disk_is_503_and_loses_nothing(
    service: Service, pattern: SQLiteDatabase, tmp_path: Path
) -> None:
    with small_disk(tmp_path):
        file = Path(shutil.copy(pattern.path, tmp_path / "app.db"))
        with serve_file(service, file) as server:
            http = server.client
            acknowledged = ["before"]
            assert post(server, "before").status_code == 201
            with full(tmp_path, server):
                for number in range(50):
                    answer = post(server, f"item {number}", "long " * 400)
                    if answer.status_code == 201:
                        acknowledged.append(f"item {number}")
                    else:
                        assert unavailable(answer)
                assert len(acknowledged) < 50
                assert http.get("/health/live").status_code == 200
                assert http.get("/health/ready").status_code == 200
                listed = http.get("/items").json()["items"]
                assert [item["name"] for item in listed] == acknowledged
            assert post(server, "after").status_code == 201
        assert rows(file, "PRAGMA integrity_check") == [("ok",)]
        assert names(file) == {*acknowledged, "after"}


def test_what_was_acknowledged_survives_a_kill_in_the_middle_of_writes(
    service: Service, file: Path
) -> None:
    acknowledged: set[object] = set()
    for attempt in range(4):
        before = len(acknowledged)
        with serve_file(service, file) as server, ThreadPoolExecutor(8) as pool:

            def load(worker: int, server: Server = server, attempt: int = attempt) -> None:
                for number in range(2000):
                    name = f"{attempt}-{worker}-{number}"
                    if post(server, name).status_code == 201:
                        acknowledged.add(name)

            workers = [pool.submit(load, worker) for worker in range(8)]
            wait_for(lambda before=before: len(acknowledged) > before + 30)  # type: ignore[misc]
            assert server.stop(signal.SIGKILL) == -signal.SIGKILL
            assert all(isinstance(done.exception(), httpx2.TransportError) for done in workers)
        assert rows(file, "PRAGMA integrity_check") == [("ok",)]
        assert acknowledged <= names(file)


def test_after_random_requests_and_faults_what_was_acknowledged_is_stored(
    service: Service, file: Path
) -> None:
    client = RandomClient(lambda: serve_file(service, file, DATABASE_COMMAND_TIMEOUT="0.05"))

    @contextmanager
    def killed() -> Iterator[None]:
        yield
        client.restart(signal.SIGKILL)

    @contextmanager
    def stopped() -> Iterator[None]:
        yield
        client.restart(signal.SIGTERM)

    def around(fault: Fault) -> Callable[[], AbstractContextManager[None]]:
        return lambda: fault(file)

    faults = {around(writing): 20, around(missing): 20, around(garbage): 80, killed: 2, stopped: 1}
    try:
        for _ in range(10):
            client.go(25, faults)
            stored = rows(file, "SELECT id, name, description, version FROM items")
            client.check(stored)  # type: ignore[arg-type]
    finally:
        client.close()


def test_every_connection_enforces_foreign_keys_and_a_migration_deletes_no_row(
    extended: Service, file: Path
) -> None:
    def alembic(*arguments: str) -> None:
        variables = {"DATABASE_URL": f"sqlite:///{file}"}
        extended.run(".venv/bin/alembic", *arguments, variables=variables)

    alembic("revision", "--autogenerate", "--message", "create parts")
    alembic("upgrade", "head")
    with serve_file(extended, file) as server, ThreadPoolExecutor(20) as pool:
        created = post(server, "a").json()

        def add(item_id: int) -> int:
            return server.client.post(f"/parts/{item_id}").status_code

        assert set(pool.map(add, [created["id"]] * 20)) == {201}
        assert set(pool.map(add, [created["id"] + 1] * 20)) == {409}
    assert rows(file, "SELECT count(*) FROM parts") == [(20,)]

    # SQLite can't alter a column: the table is recreated, copied and dropped.
    models = extended.folder / "app" / "features" / "items" / "models.py"
    replace(models, "MAX_DESCRIPTION_LENGTH = 2_000", "MAX_DESCRIPTION_LENGTH = 3_000")
    alembic("revision", "--autogenerate", "--message", "longer descriptions")
    alembic("upgrade", "head")

    assert "VARCHAR(3000)" in str(rows(file, "SELECT sql FROM sqlite_master WHERE name = 'items'"))
    assert rows(file, "SELECT count(*) FROM parts") == [(20,)]
    with serve_file(extended, file) as server:
        assert server.client.delete(f"/items/{created['id']}").status_code == 204
    assert rows(file, "SELECT count(*) FROM parts") == [(0,)]
