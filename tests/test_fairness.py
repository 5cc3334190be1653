"""The pool serves in the order of arrival: readers, sessions and tasks wait in one queue."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest

from tests.support import watcher
from tests.support.answers import unavailable
from tests.support.processes import wait_for
from tests.support.proxied import ProxiedDatabase
from tests.support.services import Server, Service
from tests.support.watcher import RIGHT

pytestmark = pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)

WAYS = ("reader", "session", "task")
ROUTES = """
from fastapi import APIRouter, Request
from sqlalchemy import BigInteger, Float, bindparam, func, select

from app.dependencies import ReaderDep, SessionDep

router = APIRouter()
served: list[int] = []
SLEEP = select(
    func.pg_advisory_xact_lock_shared(bindparam("lock", type_=BigInteger)).label("locked"),
    func.pg_sleep(bindparam("seconds", type_=Float)).label("slept"),
)


@router.get("/served")
async def list_served() -> list[int]:
    return served


@router.post("/reader/{number}")
async def read(number: int, seconds: float, reader: ReaderDep, lock: int = 0) -> None:
    await reader.execute(SLEEP, {"lock": lock, "seconds": seconds})
    served.append(number)


@router.post("/session/{number}")
async def write(number: int, seconds: float, session: SessionDep, lock: int = 0) -> None:
    await session.execute(SLEEP, {"lock": lock, "seconds": seconds})
    served.append(number)


@router.post("/task/{number}")
async def work(number: int, seconds: float, request: Request, lock: int = 0) -> None:
    async with request.app.state.sessionmaker.begin() as session:
        await session.execute(SLEEP, {"lock": lock, "seconds": seconds})
    served.append(number)
"""
POOL_OF_2 = {
    "DATABASE_POOL_SIZE": "2",
    "DATABASE_MAX_OVERFLOW": "0",
    "DATABASE_POOL_TIMEOUT": "60",
    "DATABASE_COMMAND_TIMEOUT": "60",
}
HELD = 1  # the lock of who takes a connection until the test says otherwise


@pytest.fixture(scope="module")
def extended(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Service:
    extended = service.copy(tmp_path_factory.mktemp("extended") / "service")
    extended.extend(routes=ROUTES)
    return extended


def waiting(server: Server) -> int:
    found: int = server.client.get("/health/watched").json()["waiting"]
    return found


def send(server: Server, number: int, lock: int = 0) -> int:
    path, params = f"/{WAYS[number % 3]}/{number}", {"seconds": 0.02, "lock": lock}
    return server.client.post(path, params=params, extensions=RIGHT).status_code


@contextmanager
def hold_both(
    proxied: ProxiedDatabase, server: Server, pool: ThreadPoolExecutor
) -> Iterator[list[Future[int]]]:
    """Hold both connections meanwhile, by two requests that are answered afterwards."""
    with proxied.holding(f"SELECT pg_advisory_xact_lock({HELD})"):
        held = [pool.submit(send, server, number, HELD) for number in range(2)]
        wait_for(lambda: server.client.get("/health/watched").json()["in use"] == 2)
        yield held


def test_those_who_came_first_are_served_first(extended: Service, proxied: ProxiedDatabase) -> None:
    with (
        watcher.serve_watched(
            extended, proxied.left, DATABASE_URL=proxied.url, **POOL_OF_2
        ) as watched,
        ThreadPoolExecutor(40) as pool,
    ):
        server = watched.server
        with hold_both(proxied, server, pool) as sent:
            for number in range(2, 32):
                sent.append(pool.submit(send, server, number))
                wait_for(lambda number=number: waiting(server) == number - 1)  # type: ignore[misc]
        assert {answer.result() for answer in sent} == {200}
        served = server.client.get("/served").json()

    # Two connections: each is at most one place ahead of the other.
    late = {number: served.index(number) - number for number in served}
    assert max(map(abs, late.values())) <= 2, late


def test_newcomers_do_not_pass_those_who_wait(extended: Service, proxied: ProxiedDatabase) -> None:
    with (
        watcher.serve_watched(
            extended, proxied.left, DATABASE_URL=proxied.url, **POOL_OF_2
        ) as watched,
        ThreadPoolExecutor(40) as pool,
    ):
        end, numbers = time.monotonic() + 3, count()

        def load(worker: int) -> list[float]:
            taken = []
            while time.monotonic() < end:
                start = time.monotonic()
                path = f"/{WAYS[worker % 3]}/{next(numbers)}"
                answer = watched.server.client.post(
                    path, params={"seconds": 0.01}, extensions=RIGHT
                )
                assert answer.status_code == 200, answer.text
                taken.append(time.monotonic() - start)
            return taken

        taken = sorted(second for loads in pool.map(load, range(40)) for second in loads)

    # Everyone waits for the same 38 others.
    assert taken[-1] < 4 * taken[len(taken) // 2], (taken[len(taken) // 2], taken[-1])


def test_a_waiter_that_is_gone_or_out_of_time_leaves_no_trace(
    extended: Service, proxied: ProxiedDatabase
) -> None:
    limits = POOL_OF_2 | {"DATABASE_POOL_TIMEOUT": "2"}
    with (
        watcher.serve_watched(
            extended, proxied.left, DATABASE_URL=proxied.url, **limits
        ) as watched,
        ThreadPoolExecutor(10) as pool,
    ):
        server = watched.server
        base = server.client.base_url
        with hold_both(proxied, server, pool) as held:
            with ExitStack() as gone:
                for number in range(6):
                    client = gone.enter_context(socket.create_connection((base.host, base.port)))
                    path = f"/{WAYS[number % 3]}/{number}?seconds=0"
                    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
                    client.sendall(head.encode())
                wait_for(lambda: waiting(server) == 6)
            late = [
                pool.submit(server.client.post, f"/{way}/9", params={"seconds": 0}) for way in WAYS
            ]
            assert all(unavailable(answer.result()) for answer in late)
            full = "unavailable: pool full: no connection of 2 became free in 2 s"
            assert server.log().count(full) == 9
            assert waiting(server) == 0
        assert {answer.result() for answer in held} == {200}
        for way in WAYS * 2:
            right = server.client.post(f"/{way}/9", params={"seconds": 0}, extensions=RIGHT)
            assert right.status_code == 200
    assert proxied.proxy.sessions == 2


def test_no_connection_is_opened_under_load_once_all_are_there(
    service: Service, proxied: ProxiedDatabase
) -> None:
    with (
        watcher.serve_watched(service, proxied.left, DATABASE_URL=proxied.url) as watched,
        ThreadPoolExecutor(32) as pool,
    ):

        def read(_: int) -> int:
            return watched.server.client.get("/items", extensions=RIGHT).status_code

        proxied.proxy.delay = 0.02  # so that requests need connections at the same time
        assert set(pool.map(read, range(64))) == {200}
        proxied.proxy.delay = 0.002
        before = proxied.proxy.sessions
        assert 1 < before <= 15
        for _ in range(5):
            assert set(pool.map(read, range(60))) == {200}
            time.sleep(0.1)
        assert proxied.proxy.sessions <= max(before, 15)
        warm = proxied.proxy.sessions
        assert set(pool.map(read, range(200))) == {200}
        assert proxied.proxy.sessions == warm
