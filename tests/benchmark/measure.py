"""The measurements: each starts what it compares, and runs them alternately, in rounds."""

import asyncio
import itertools
import json
import time
from base64 import urlsafe_b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psutil

from tests.benchmark.clients import Client, connect, request, send_all
from tests.support.databases import Database, PostgreSQLDatabase, SQLiteDatabase, execute
from tests.support.pages import block_text, page_text
from tests.support.proxy import Proxy, open_proxy
from tests.support.services import Server, Service

APPS = Path(__file__).parent / "apps"
SERVER = (
    *(".venv/bin/python", "-m", "app.server", "measured:app"),
    *("--no-access-log", "--timeout-keep-alive", "600"),
)

SEEDS = 200  # rows: after a page of 100 there is another
ROWS = 1_000_000
DELAY = 0.002  # seconds: 1 ms of network each way
POOL_SIZE = 2  # connections: so few that the pool is the limit, and not two cores

numbers = itertools.count()


def new_item() -> dict[str, str]:
    return {"name": f"item {next(numbers)}", "description": "of some length, as they are " * 2}


def create(path: str = "/items") -> bytes:
    return request("POST", path, new_item())


LIST = request("GET", "/items?limit=100")
GREET = request("GET", "/greetings/Anna")  # needs no database
# Requests in one sample. `once` is a POST whose only statement is its own transaction.
COUNTS = {"get": 250, "list": 100, "post": 150, "once": 150, "plain": 400}
QUIET = {"DOCS_ENABLED": "false", "LOG_LEVEL": "WARNING"}


def apps(database: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return what is compared: an app, and its settings. None but `logging` writes a line."""
    return {
        "bare": (f"bare_{database}:app", {}),
        "service": ("app.main:app", QUIET),
        "logging": ("app.main:app", QUIET | {"LOG_LEVEL": "INFO"}),
        "usual": ("usual:app", {}),
        "twenty": ("twenty:app", QUIET),
    }


def extend(service: Service) -> None:
    """Add what the example has not: a route that needs no database, and the write of a how-to."""
    code = block_text(page_text("how-to/one-statement.md"), "app/features/no_rollback.py")
    (service.folder / "app/features/no_rollback.py").write_text(code)
    service.extend(routes=(APPS / "routes.py").read_text())


def is_measured(name: str, kind: str) -> bool:
    if name == "twenty":
        return kind == "get"
    return kind != "once" or name in ("bare", "service")


@contextmanager
def serve_measured(
    service: Service, name: str, database: Database, proxy: Proxy | None = None, **more: str
) -> Iterator[Server]:
    app, settings = apps(service.database)[name]
    variables = {"MEASURED_APP": app, "PYTHONPATH": str(APPS), **settings, **more}
    variables |= database.variables
    if proxy is not None:
        variables["DATABASE_URL"] = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
    with service.serve(*SERVER, **variables) as server:
        yield server


def port_of(server: Server) -> int:
    port = server.client.base_url.port
    assert port is not None
    return port


def cost(server: Server, kind: str) -> float:
    measured: float = server.client.get("/measured").json()[kind]
    return measured


def post(client: httpx2.Client) -> str:
    """Create an item, and return its path."""
    location: str = client.post("/items", json=new_item()).headers["location"]
    return location


@contextmanager
def emptied(database: Database) -> Iterator[None]:
    yield
    execute(database, "DELETE FROM items")


class Progress:
    """Shows the progress of a measurement in one line."""

    def __init__(self, what: str, steps: int) -> None:
        self._what, self._steps, self._done = what, steps, 0
        self._start = time.monotonic()

    def step(self) -> None:
        self._done += 1
        end = "\n" if self._done == self._steps else ""
        seconds = time.monotonic() - self._start
        print(
            f"\r{self._what}: {self._done} of {self._steps}, {seconds:.0f} s", end=end, flush=True
        )


def cpu(
    service: Service, database: Database, processes: int, rounds: int, share: float = 1
) -> dict[str, dict[str, list[float]]]:
    """Return the CPU seconds of a request: by kind and app, one of each round.

    The processes are started anew several times, since no two of the same program cost the same.
    """
    samples: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in apps(service.database) if is_measured(name, kind)}
        for kind in COUNTS
    }
    progress = Progress(f"{service.database}: CPU", processes * rounds)
    for _ in range(processes):
        with emptied(database), ExitStack() as stack, asyncio.Runner() as runner:
            proxy = None
            if isinstance(database, PostgreSQLDatabase):  # by TCP, as in production
                proxy = stack.enter_context(open_proxy(database.socket))
            servers = {
                name: stack.enter_context(serve_measured(service, name, database, proxy))
                for name in apps(service.database)
            }
            clients = {name: runner.run(connect(port_of(it))) for name, it in servers.items()}
            runner.run(send_all([clients["service"]], create, SEEDS))
            get = request("GET", post(servers["service"].client))
            same = {"get": get, "list": LIST, "plain": GREET}
            for number in range(-1, rounds):
                for kind, found in samples.items():
                    for name, seconds in found.items():
                        message = same.get(kind, create)
                        if (kind, name) == ("once", "service"):
                            message = partial(create, "/once")
                        count = int(COUNTS[kind] * share)
                        before = cost(servers[name], "cpu_seconds")
                        runner.run(send_all([clients[name]], message, count))
                        used = cost(servers[name], "cpu_seconds") - before
                        if number >= 0:  # the first one is a warm-up
                            seconds.append(used / count)
                if number >= 0:
                    progress.step()
            for client in clients.values():
                client.writer.close()
    return samples


def used_by(client: httpx2.Client, read: Callable[[], float]) -> dict[str, float]:
    """Return by how much `read` grows with a request of each kind, once it has been made before."""

    def used(method: str, path: Callable[[], str], body: Any = None, idle: float = 0) -> float:
        for number in range(3):
            target = path()
            sent = body() if callable(body) else body
            time.sleep(idle if number == 2 else 0)
            before = read()
            client.request(method, target, json=sent).raise_for_status()
            time.sleep(0.05)  # for what comes after the response
            grown = read() - before
        return grown

    path = post(client)
    found = {
        "get": used("GET", lambda: path),
        "list": used("GET", lambda: "/items?limit=100"),
        "post": used("POST", lambda: "/items", new_item),
        "get after 2 s": used("GET", lambda: path, idle=2),
    }
    if "POST" in client.options("/once").headers.get("allow", ""):
        found["once"] = used("POST", lambda: "/once", new_item)
    if "PATCH" in client.options("/items/1").headers.get("allow", ""):
        found["patch"] = used("PATCH", lambda: path, {"description": "other"})
        found["delete"] = used("DELETE", lambda: post(client))
    return found


def round_trips(service: Service, database: PostgreSQLDatabase) -> dict[str, dict[str, float]]:
    """Return how often each kind of request waits for PostgreSQL."""
    counted: dict[str, dict[str, float]] = {}
    for name in ("bare", "service", "usual"):
        with (
            emptied(database),
            open_proxy(database.socket) as proxy,
            serve_measured(service, name, database, proxy) as server,
        ):
            counted[name] = used_by(server.client, partial(getattr, proxy, "round_trips"))
    return counted


def thread_hops(
    service: Service,
    database: SQLiteDatabase,
    names: tuple[str, ...] = ("bare", "service", "usual"),
) -> dict[str, dict[str, float]]:
    """Return how often each kind of request sends a call to the driver's thread."""
    counted: dict[str, dict[str, float]] = {}
    for name in names:
        with (
            emptied(database),
            serve_measured(service, name, database, MEASURED_THREAD_HOPS="1") as server,
        ):
            counted[name] = used_by(server.client, partial(cost, server, "thread_hops"))
    return counted


def processes(service: Service, database: Database, rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds from process start to the first 200, and resident bytes after a row."""
    starts, memory = defaultdict(list), defaultdict(list)
    progress = Progress(f"{service.database}: start", rounds)
    with emptied(database):
        for _ in range(rounds):
            for name in ("bare", "service", "usual"):
                start = time.perf_counter()
                with serve_measured(service, name, database) as server:
                    starts[name].append(time.perf_counter() - start)
                    server.client.get(post(server.client)).raise_for_status()
                    memory[name].append(psutil.Process(server.process.pid).memory_info().rss)
            progress.step()
    return {
        name: {"start_seconds": median(starts[name]), "memory_bytes": median(memory[name])}
        for name in starts
    }


def far_page(service: Service, database: Database, rounds: int) -> float:
    """Return what a page behind a million rows takes, as a multiple of one near the first row."""
    columns = "name, created_at, updated_at, version"
    if isinstance(database, PostgreSQLDatabase):
        series = f"SELECT 'row ' || n, now(), now(), 1 FROM generate_series(1, {ROWS}) AS n"
    else:
        series = (
            "WITH RECURSIVE series(n, moment) AS (SELECT 1, '2026-01-01 00:00:00.000000'"
            f" UNION ALL SELECT n + 1, moment FROM series WHERE n < {ROWS})"
            " SELECT 'row ' || n, moment, moment, 1 FROM series"
        )
    print(f"{service.database}: pages of {ROWS:,} rows", flush=True)
    with emptied(database):
        execute(database, f"INSERT INTO items ({columns}) {series}")
        execute(database, "ANALYZE items")
        with serve_measured(service, "service", database) as server, asyncio.Runner() as runner:
            client = runner.run(connect(port_of(server)))
            first = json.loads(runner.run(client.send(LIST)))["items"][0]["id"]

            def page(row: int) -> bytes:
                cursor = urlsafe_b64encode((first + row - 1).to_bytes(8)).rstrip(b"=").decode()
                return request("GET", f"/items?limit=100&cursor={cursor}")

            def seconds(message: bytes) -> float:
                start = time.perf_counter()
                runner.run(send_all([client], message, 20))
                return time.perf_counter() - start

            near, far = page(10), page(ROWS - 200)
            assert len(json.loads(runner.run(client.send(far)))["items"]) == 100
            times = [(seconds(near), seconds(far)) for _ in range(rounds)]
            client.writer.close()
    return min(far for _, far in times) / min(near for near, _ in times)


def pool_use(service: Service, database: PostgreSQLDatabase) -> dict[str, float]:
    """Return the part of the time in which the pool's connections work, by the number of clients.

    It is the throughput as a part of what the pool allows: connections, divided by the time that a
    request holds one.
    """
    used: dict[str, float] = {}
    settings = {"DATABASE_POOL_SIZE": str(POOL_SIZE), "DATABASE_MAX_OVERFLOW": "0"}
    with (
        emptied(database),
        open_proxy(database.socket) as proxy,
        serve_measured(
            service, "service", database, proxy, MEASURED_CONNECTIONS="1", **settings
        ) as server,
        asyncio.Runner() as runner,
    ):
        message = request("GET", post(server.client))
        proxy.delay = DELAY
        for clients in (10, 200):
            print(f"{service.database}: {clients} clients of {POOL_SIZE} connections", flush=True)
            used[str(clients)] = runner.run(use(server, message, clients)) / POOL_SIZE
    return used


async def use(server: Server, message: bytes, count: int) -> float:
    """Return how many connections are in use on average."""
    clients: list[Client] = [await connect(port_of(server)) for _ in range(count)]
    await send_all(clients, message, 2 * count)
    before, start = cost(server, "connection_seconds"), time.perf_counter()
    await send_all(clients, message, 3000)
    elapsed = time.perf_counter() - start
    for client in clients:
        client.writer.close()
    return (cost(server, "connection_seconds") - before) / elapsed
