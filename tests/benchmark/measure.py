"""The measurements: each starts what it compares, and lets it take turns in rounds."""

import asyncio
import itertools
import json
import sqlite3
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from tests.benchmark.clients import Client, connect, request, send_all
from tests.proxy import Proxy, open_proxy
from tests.services import Database, PostgreSQLDatabase, Server, Service, SQLiteDatabase

APPS = Path(__file__).parent / "apps"
# The service logs each request by itself.
SERVER = (".venv/bin/uvicorn", "measured:app", "--no-access-log", "--timeout-keep-alive", "600")

SEEDS = 200  # rows: behind a page of 100 there is another
ROWS = 1_000_000
DELAY = 0.002  # seconds: 1 ms of network each way
POOL_SIZE = 2  # connections: so few that the pool is the limit, and not two cores

numbers = itertools.count()


def create() -> bytes:
    body = {"name": f"item {next(numbers)}", "description": "of some length, as they are " * 2}
    return request("POST", "/items", body)


GET = request("GET", "/items/7")
LIST = request("GET", "/items?limit=100")
LIVE = request("GET", "/health/live")

# What is sent, and how often in one sample.
KINDS: dict[str, tuple[Callable[[], bytes], int]] = {
    "get": (lambda: GET, 250),
    "list": (lambda: LIST, 100),
    "post": (create, 150),
    "live": (lambda: LIVE, 400),
}


def apps(service: Service) -> dict[str, str]:
    return {
        "bare": f"bare_{service.database}:app",
        "service": "app.main:app",
        "usual": "usual:app",
    }


@contextmanager
def serve(
    service: Service, app: str, database: Database, proxy: Proxy | None = None, **variables: str
) -> Iterator[Server]:
    found = database.variables
    if proxy is not None:
        found = {"DATABASE_URL": f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"}
    with service.serve(*SERVER, MEASURED_APP=app, PYTHONPATH=str(APPS), **found, **variables) as it:
        yield it


def port_of(server: Server) -> int:
    port = server.client.base_url.port
    assert port is not None
    return port


def cost(server: Server) -> dict[str, float]:
    measured: dict[str, float] = server.client.get("/measured").json()
    return measured


def empty(database: Database) -> None:
    execute(database, "DELETE FROM items")


def execute(database: Database, *statements: str) -> None:
    if isinstance(database, PostgreSQLDatabase):
        database.query(";\n".join(statements))
    elif isinstance(database, SQLiteDatabase):
        with sqlite3.connect(database.path) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()


class Progress:
    """Says in one line how far a measurement is."""

    def __init__(self, what: str, steps: int) -> None:
        self.what, self.steps, self.done = what, steps, 0
        self.start = time.monotonic()

    def step(self) -> None:
        self.done += 1
        end = "\n" if self.done == self.steps else ""
        seconds = time.monotonic() - self.start
        print(f"\r{self.what}: {self.done} of {self.steps}, {seconds:.0f} s", end=end, flush=True)


def cpu(service: Service, database: Database, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return CPU seconds a request: by kind and app, one of each round."""
    samples: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in apps(service)} for kind in KINDS
    }
    progress = Progress(f"{service.database}: CPU", rounds)
    with ExitStack() as stack, asyncio.Runner() as runner:
        proxy = None
        if isinstance(database, PostgreSQLDatabase):  # by TCP, as in production
            proxy = stack.enter_context(open_proxy(database.socket))
        servers = {
            name: stack.enter_context(serve(service, app, database, proxy))
            for name, app in apps(service).items()
        }
        clients = {name: runner.run(connect(port_of(server))) for name, server in servers.items()}
        runner.run(send_all([clients["service"]], create, SEEDS))
        first = json.loads(runner.run(clients["service"].send(LIST)))["items"][0]["id"]
        get = request("GET", f"/items/{first}")
        for number in range(-1, rounds):
            for kind, (message, count) in KINDS.items():
                messages = (lambda: get) if kind == "get" else message
                for name, client in clients.items():
                    before = cost(servers[name])["cpu_seconds"]
                    runner.run(send_all([client], messages, count))
                    seconds = (cost(servers[name])["cpu_seconds"] - before) / count
                    if number >= 0:  # the one before is there to warm up
                        samples[kind][name].append(seconds)
            if number >= 0:
                progress.step()
        for client in clients.values():
            client.writer.close()
    empty(database)
    return samples


def round_trips(service: Service, database: PostgreSQLDatabase) -> dict[str, dict[str, int]]:
    """Return how often a request waits for the server, on a connection that is in use."""
    counted: dict[str, dict[str, int]] = {}
    for name, app in apps(service).items():
        with open_proxy(database.socket) as proxy, serve(service, app, database, proxy) as server:
            http = server.client

            def trips(method: str, path: str, body: Any = None, idle: float = 0) -> int:
                for _ in range(3):  # statements are prepared once
                    sent = {**body, "name": f"item {next(numbers)}"} if body else None
                    time.sleep(idle)
                    before = proxy.round_trips
                    http.request(method, path, json=sent).raise_for_status()
                return proxy.round_trips - before

            ids = [
                http.post("/items", json={"name": f"item {next(numbers)}"}).json()["id"]
                for _ in range(4)
            ]
            counted[name] = {
                "get": trips("GET", f"/items/{ids[0]}"),
                "list": trips("GET", "/items?limit=100"),
                "post": trips("POST", "/items", {"description": "x"}),
                "get after 2 s": trips("GET", f"/items/{ids[0]}", idle=2),
            }
            if name == "service":
                counted[name]["patch"] = trips("PATCH", f"/items/{ids[0]}", {"description": "y"})
                deleted = iter(ids[1:])
                before = 0
                for item in deleted:
                    before = proxy.round_trips
                    http.delete(f"/items/{item}").raise_for_status()
                counted[name]["delete"] = proxy.round_trips - before
    empty(database)
    return counted


def thread_hops(service: Service, database: SQLiteDatabase) -> dict[str, dict[str, float]]:
    """Return how many calls a request sends to the driver's thread."""
    counted: dict[str, dict[str, float]] = {}
    for name, app in apps(service).items():
        with serve(service, app, database, MEASURED_THREAD_HOPS="1") as server:
            http = server.client
            location = http.post("/items", json={"name": f"item {next(numbers)}"}).headers[
                "location"
            ]

            def hops(method: str, path: str, body: Any = None) -> float:
                before = cost(server)["thread_hops"]
                for _ in range(10):
                    sent = {**body, "name": f"item {next(numbers)}"} if body else None
                    http.request(method, path, json=sent).raise_for_status()
                return (cost(server)["thread_hops"] - before) / 10

            http.get(location)
            counted[name] = {
                "get": hops("GET", location),
                "list": hops("GET", "/items?limit=100"),
                "post": hops("POST", "/items", {"description": "x"}),
            }
    empty(database)
    return counted


def start_and_memory(
    service: Service, database: Database, rounds: int
) -> dict[str, dict[str, float]]:
    """Return seconds from process start to the first 200, and bytes after the first row."""
    starts: dict[str, list[float]] = {name: [] for name in apps(service)}
    memory: dict[str, list[int]] = {name: [] for name in apps(service)}
    progress = Progress(f"{service.database}: start", rounds)
    for _ in range(rounds):
        for name, app in apps(service).items():
            begin = time.perf_counter()
            with serve(service, app, database) as server:
                starts[name].append(time.perf_counter() - begin)
                created = server.client.post("/items", json={"name": f"item {next(numbers)}"})
                server.client.get(created.headers["location"]).raise_for_status()
                memory[name].append(psutil.Process(server.process.pid).memory_info().rss)
        progress.step()
    empty(database)
    return {
        name: {"start_seconds": median(starts[name]), "memory_bytes": median(memory[name])}
        for name in starts
    }


def pages(service: Service, database: Database, rounds: int) -> float:
    """Return what a page behind a million rows takes, as a multiple of one near the first row."""
    columns = "name, created_at, updated_at, version"
    if isinstance(database, PostgreSQLDatabase):
        series = f"SELECT 'row ' || n, now(), now(), 1 FROM generate_series(1, {ROWS}) AS n"
        analyze = "VACUUM ANALYZE items"
    else:
        series = (
            "WITH RECURSIVE series(n) AS"
            f" (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < {ROWS})"
            " SELECT 'row ' || n, '2026-01-01 00:00:00', '2026-01-01 00:00:00', 1 FROM series"
        )
        analyze = "ANALYZE items"
    print(f"{service.database}: filling a table with {ROWS:,} rows", flush=True)
    execute(database, f"INSERT INTO items ({columns}) {series}")
    execute(database, analyze)

    with serve(service, "app.main:app", database) as server, asyncio.Runner() as runner:
        client = runner.run(connect(port_of(server)))
        first = json.loads(runner.run(client.send(LIST)))["items"][0]["id"]

        def page(row: int) -> bytes:
            cursor = urlsafe_b64encode((first + row - 1).to_bytes(8)).rstrip(b"=").decode()
            return request("GET", f"/items?limit=100&cursor={cursor}")

        def seconds(message: bytes) -> float:
            start = time.perf_counter()
            runner.run(send_all([client], lambda: message, 20))
            return time.perf_counter() - start

        near, far = page(10), page(ROWS - 200)
        assert len(json.loads(runner.run(client.send(far)))["items"]) == 100
        times = [(seconds(near), seconds(far)) for _ in range(rounds)]
        client.writer.close()
    empty(database)
    return min(far for _, far in times) / min(near for near, _ in times)


def throughput(service: Service, database: PostgreSQLDatabase) -> dict[str, float]:
    """Return, for 10 and 200 clients, the part of the time in which the pool's connections work."""
    used: dict[str, float] = {}
    variables = {
        "DATABASE_POOL_SIZE": str(POOL_SIZE),
        "DATABASE_MAX_OVERFLOW": "0",
        "MEASURED_CONNECTIONS": "1",
        "LOG_LEVEL": "WARNING",
    }
    with (
        open_proxy(database.socket) as proxy,
        serve(service, "app.main:app", database, proxy, **variables) as server,
        asyncio.Runner() as runner,
    ):
        created = server.client.post("/items", json={"name": f"item {next(numbers)}"})
        message = request("GET", created.headers["location"])
        proxy.delay = DELAY
        for count in (10, 200):

            async def open_all() -> list[Client]:
                return [await connect(port_of(server)) for _ in range(count)]

            clients = runner.run(open_all())
            runner.run(send_all(clients, lambda: message, 2 * count))
            before, start = cost(server)["connection_seconds"], time.perf_counter()
            runner.run(send_all(clients, lambda: message, 3000))
            elapsed = time.perf_counter() - start
            held = cost(server)["connection_seconds"] - before
            used[str(count)] = held / (POOL_SIZE * elapsed)
            for client in clients:
                client.writer.close()
    empty(database)
    return used


def middle_half(values: list[float]) -> tuple[float, float]:
    low, _, high = quantiles(values, n=4)
    return low, high
