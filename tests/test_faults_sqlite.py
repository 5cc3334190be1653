"""A service that loses its SQLite file answers soon and honestly, heals by itself, loses nothing."""

import os
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.services import Server, Service, SQLiteDatabase

# The service that the other modules use, in the same worker.
pytestmark = pytest.mark.parametrize(
    "database_name",
    [pytest.param("sqlite", marks=pytest.mark.xdist_group("sqlite"))],
    indirect=True,
)

UVICORN = (".venv/bin/uvicorn", "app.main:app", "--timeout-graceful-shutdown", "10")
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
def serve(service: Service, file: Path, *wrapper: str, **variables: str) -> Iterator[Server]:
    """Run the service; whatever happens, it logs no traceback and no warning of Python's."""
    variables = {"DATABASE_URL": f"sqlite:///{file}", "PYTHONWARNINGS": "default"} | variables
    with service.serve(*wrapper, *UVICORN, **variables) as server:
        yield server
    for sign in ("Traceback", "Warning", "garbage collector"):
        assert sign not in server.log(), server.log()


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Have a write transaction open meanwhile, in a process that is none of the service's."""
    connection = sqlite3.connect(file, isolation_level=None)
    # It also keeps readers away, but from a file with a write-ahead log.
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


def wait_for(happened: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def unavailable(response: httpx2.Response) -> bool:
    return response.status_code == 503 and response.headers.get("retry-after") == "1"


def post(server: Server, name: str, description: str = "") -> httpx2.Response:
    return server.client.post("/items", json={"name": name, "description": description})


@pytest.mark.parametrize(("timeout", "statuses"), [("60", {200}), ("0.001", {200, 503})])
def test_processes_that_change_the_same_row_lose_no_update(
    service: Service, file: Path, timeout: str, statuses: set[int]
) -> None:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve(service, file, DATABASE_COMMAND_TIMEOUT=timeout))
            for _ in range(3)
        ]
        url = post(servers[0], "counter").headers["location"]

        def change(number: int) -> httpx2.Response:
            client = servers[number % 3].client
            return client.patch(url, json={"description": str(number)})

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(change, range(150)))
        version = servers[0].client.get(url).headers["etag"]

    assert {answer.status_code for answer in answers} <= statuses
    assert all(answer.status_code == 200 or unavailable(answer) for answer in answers)
    changes = [answer.headers["etag"] for answer in answers if answer.status_code == 200]
    assert len(set(changes)) == len(changes) > 0
    assert version == f'"{1 + len(changes)}"'


def test_a_long_write_of_another_process_lets_reads_through_and_ends_writes_in_time(
    service: Service, file: Path
) -> None:
    with serve(service, file, DATABASE_COMMAND_TIMEOUT="0.5") as server:
        created = post(server, "before").json()
        with writing(file):
            start = time.monotonic()
            assert unavailable(post(server, "meanwhile"))
            assert 0.4 < time.monotonic() - start < 0.5 + MARGIN
            assert unavailable(server.client.patch(f"/items/{created['id']}", json={}))
            assert unavailable(server.client.delete(f"/items/{created['id']}"))
            start = time.monotonic()
            assert server.client.get("/items").json()["items"] == [created]
            assert server.client.get("/health/ready").json() == {"status": "ready"}
            assert time.monotonic() - start < 0.4
        assert post(server, "after").status_code == 201
    assert names(file) == {"before", "after"}


def test_a_client_that_goes_away_keeps_no_writer_waiting(service: Service, file: Path) -> None:
    limits = {"DATABASE_POOL_SIZE": "1", "DATABASE_MAX_OVERFLOW": "0"}
    with serve(service, file, **limits) as server:
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
        serve(service, file, **limits) as server,
        ThreadPoolExecutor(20) as pool,
        writing(file),
    ):
        waiting = [pool.submit(post, server, f"item {number}") for number in range(20)]
        time.sleep(0.5)
        start = time.monotonic()
        assert server.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert time.monotonic() - start < 2 + MARGIN
        assert all(unavailable(answer.result()) for answer in waiting)


@contextmanager
def missing(file: Path) -> Iterator[None]:
    """The folder is away."""
    away = file.parent.rename(file.parent.with_name("away"))
    yield
    away.rename(file.parent)


@contextmanager
def garbage(file: Path) -> Iterator[None]:
    """Another file is in its place, and is not a database."""
    with missing(file):
        file.parent.mkdir()
        file.write_bytes(b"This is not a database. " * 1000)
        yield
        shutil.rmtree(file.parent)


@contextmanager
def directory(file: Path) -> Iterator[None]:
    """A folder is in its place."""
    with missing(file):
        file.mkdir(parents=True)
        yield
        shutil.rmtree(file.parent)


@contextmanager
def unwritable(file: Path) -> Iterator[None]:
    """Nobody may write to the file, its log or their folder."""
    paths = [*file.parent.iterdir(), file.parent]
    for path in paths:
        path.chmod(0o555)
    yield
    for path in paths:
        path.chmod(0o755)


FAULTS = pytest.mark.parametrize("fault", [missing, garbage, directory, unwritable])
Fault = Callable[[Path], AbstractContextManager[None]]


@FAULTS
def test_a_service_that_starts_without_its_file_heals(
    service: Service, file: Path, fault: Fault
) -> None:
    with ExitStack() as mended:
        mended.enter_context(fault(file))
        with serve(service, file, *BOUND) as server:
            http = server.client
            for _ in range(3):
                assert http.get("/health/live").status_code == 200
                assert unavailable(http.get("/health/ready"))
                assert unavailable(http.get("/items"))
                assert unavailable(post(server, "meanwhile"))
            mended.close()
            assert http.get("/health/ready").status_code == 200
            assert post(server, "after").status_code == 201
    assert names(file) == {"after"}


@contextmanager
def small_disk(folder: Path, server_pid: Callable[[], int]) -> Iterator[None]:
    yield


def test_what_was_acknowledged_survives_a_kill_in_the_middle_of_writes(
    service: Service, file: Path
) -> None:
    acknowledged: set[object] = set()
    for attempt in range(4):
        before = len(acknowledged)
        with serve(service, file) as server, ThreadPoolExecutor(8) as pool:

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
