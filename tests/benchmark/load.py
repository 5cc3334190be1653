"""Many clients at a time: the service beside its handlers on the driver, and beside its peers.

The server has a core of its own; the clients and PostgreSQL share the others.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.benchmark import load_client, peers
from tests.benchmark.clients import request
from tests.benchmark.measure import APPS, QUIET, SERVER, Progress, cost, port_of
from tests.benchmark.report import middle
from tests.support import watcher
from tests.support.cluster import PASSWORD, USER, Node, binaries, open_cluster
from tests.support.databases import SQLiteDatabase
from tests.support.services import Server, Service
from tests.support.watcher import Left, Watcher, left_in_postgresql, left_in_sqlite

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
SERVERS_CORE, OTHER_CORES = CORES[:1], CORES[1:] or CORES
ALL = (12, 32, 200)
LOADS = {
    "postgresql": [*[("get", clients) for clients in ALL], ("list", 32), ("post", 32)],
    "sqlite": [("get", 32), ("get", 200), ("post", 32)],
}
SECONDS = {12: 0.8, 32: 0.8, 200: 1.6}  # of one sample
SEEDS = 101  # rows: behind a page of 100 there is another
PLACE = "0" * 20  # of a number in a request
MIGRATE = ("uv", "run", "--no-sync", "alembic", "upgrade", "head")
UVICORN = (".venv/bin/python", "-m", "uvicorn", "measured:app", "--no-access-log")
OPENED = f"connection authorized: user={USER}"  # what PostgreSQL logs

Figures = dict[str, list[float]]


@dataclass
class App:
    """What is compared: a server, what it is sent, and how many connections it has opened."""

    service: Service
    server: Server
    requests: dict[str, bytes]
    opened: Callable[[], int]


def item(name: str) -> dict[str, str]:
    return {"name": name, "description": "of some length, as they are " * 2}


def numbered(method: str, path: str, body: dict[str, str]) -> bytes:
    """Return a request whose name is another number each time."""
    return request(method, path, body).replace(PLACE.encode(), load_client.NUMBER)


def items_requests(server: Server) -> dict[str, bytes]:
    """Store what is read, and return the requests."""
    for number in range(SEEDS):
        server.client.post("/items", json=item(f"item {number}")).raise_for_status()
    listed = server.client.get("/items?limit=1").json()["items"]
    return {
        "get": request("GET", f"/items/{listed[0]['id']}"),
        "list": request("GET", "/items?limit=100"),
        "post": numbered("POST", "/items", item(PLACE)),
    }


def s3rius_requests(server: Server) -> dict[str, bytes]:
    """Its example has no GET by id: a list of one stands in; its rows have two columns."""
    for number in range(SEEDS):
        server.client.put("/api/dummy/", json={"name": f"item {number}"}).raise_for_status()
    return {
        "get": request("GET", "/api/dummy/?limit=1"),
        "list": request("GET", "/api/dummy/?limit=100"),
        "post": numbered("PUT", "/api/dummy/", {"name": PLACE}),
    }


def pin(process: psutil.Process, cores: list[int]) -> None:
    if cores and hasattr(process, "cpu_affinity"):
        with suppress(psutil.NoSuchProcess):
            process.cpu_affinity(cores)


@contextmanager
def serve(service: Service, app: str, *command: str, **variables: str) -> Iterator[Server]:
    paths = f"{APPS}:{watcher.APP}"
    with service.serve(
        *(command or SERVER), MEASURED_APP=app, PYTHONPATH=paths, **variables
    ) as server:
        pin(psutil.Process(server.process.pid), SERVERS_CORE)
        yield server


@contextmanager
def serve_watched(service: Service, left: Left, **variables: str) -> Iterator[Server]:
    """Serve the service; in the end, it has kept its guarantees."""
    with serve(service, "watched:app", **variables) as server:
        watched = Watcher(server, left)
        yield server
        watched.check("the load")


@contextmanager
def on_sqlite(service: Service, folder: Path) -> Iterator[dict[str, App]]:
    apps = {}
    with ExitStack() as stack:
        for name, (app, variables) in {
            "bare": ("bare_sqlite:app", {}),
            "service": ("", QUIET),
            "usual": ("usual:app", {}),
        }.items():
            place = folder / name
            place.mkdir()
            database = SQLiteDatabase(place)
            service.migrate(database)
            variables = database.variables | variables
            if app:
                server = stack.enter_context(serve(service, app, **variables))
            else:
                left: Left = lambda file=database.path: left_in_sqlite(file)  # type: ignore[misc]
                server = stack.enter_context(serve_watched(service, left, **variables))
            apps[name] = App(service, server, items_requests(server), lambda: 0)
        yield apps


@contextmanager
def open_postgresql() -> Iterator[Node]:
    installed = binaries()
    assert installed is not None
    with open_cluster(installed) as cluster:
        node = cluster.create("load")
        for name, value in {
            "max_connections": "120",
            "shared_buffers": "128MB",
            "log_connections": "on",
        }.items():
            node.query(f"ALTER SYSTEM SET {name} = '{value}'")
        node.stop()
        node.start()
        for process in node.processes():
            pin(process, OTHER_CORES)
        yield node


def opened(node: Node, database: str) -> int:
    return node.log().count(f"{OPENED} database={database}")


@contextmanager
def on_postgresql(
    service: Service, folder: Path, *, with_peers: bool = True
) -> Iterator[dict[str, App]]:
    """Serve the service and its peers, each on a database of its own."""
    with open_postgresql() as node, ExitStack() as stack:
        apps = {}

        def database(name: str, *, migrate: bool = True) -> dict[str, str]:
            node.query(f"CREATE DATABASE {name} OWNER {USER}")
            url = f"postgresql://{USER}:{PASSWORD}@{node.address}/{name}"
            variables = {"DATABASE_URL": url}
            if migrate:
                service.run(*MIGRATE, variables=variables)
            return variables

        def left() -> tuple[list[str], int]:
            return left_in_postgresql(lambda text: node.query(f"\\connect service\n{text}"))

        def add(
            name: str,
            context: AbstractContextManager[Server],
            owner: Service = service,
            requests: Callable[[Server], dict[str, bytes]] = items_requests,
        ) -> None:
            server = stack.enter_context(context)
            count = partial(opened, node, name)
            apps[name] = App(owner, server, requests(server), count)

        add("bare", serve(service, "bare_postgresql:app", BARE_POOL="1", **database("bare")))
        add("service", serve_watched(service, left, **database("service"), **QUIET))
        add("usual", serve(service, "usual:app", **database("usual")))
        if with_peers:
            print("postgresql: installing s3rius' template and Litestar", flush=True)
            place = {"PEER_DB_HOST": "127.0.0.1", "PEER_DB_PORT": str(node.port)}
            place |= {"PEER_DB_USER": USER, "PEER_DB_PASS": PASSWORD, "PEER_DB_BASE": "s3rius"}
            database("s3rius", migrate=False)
            peer = peers.s3rius(folder / "s3rius")
            peer.run(".venv/bin/alembic", "upgrade", "head", variables=place)
            add("s3rius", serve(peer, "s3rius:app", *UVICORN, **place), peer, s3rius_requests)
            peer = peers.litestar(folder / "litestar")
            add("litestar", serve(peer, "alchemy:app", *UVICORN, **database("litestar")), peer)
        yield apps


def clients(port: int, count: int, seconds: float, message: bytes) -> dict[str, float]:
    command = [sys.executable, load_client.__file__, str(port), str(count), str(seconds)]
    done = subprocess.run(
        [*command, *map(str, OTHER_CORES)], input=message, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{message.decode()}\n\n{done.stderr.decode()}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def ceiling(service: Service) -> dict[str, float]:
    """Return what the clients manage against a server that does nothing, by their number."""
    found = {}
    with service.serve(".venv/bin/python", str(APPS / "canned.py")) as server:
        pin(psutil.Process(server.process.pid), SERVERS_CORE)
        for count in ALL:
            got = clients(port_of(server), count, 0.5, request("GET", "/"))
            found[str(count)] = got["requests_per_second"]
            print(f"{count} clients send at most {found[str(count)]:,.0f} requests a second")
    return found


def measure(apps: dict[str, App], database: str, rounds: int, share: float = 1) -> dict[str, Any]:
    """Return figures by clients, app and kind of request; the samples take turns."""
    for app in apps.values():  # until its pool has what it needs
        clients(port_of(app.server), 32, 0.5 * share, app.requests["get"])
    samples: dict[tuple[str, str, str], Figures] = defaultdict(lambda: defaultdict(list))
    loads = LOADS[database]
    progress = Progress(f"{database}: load", rounds * len(loads))
    for number in range(rounds):
        for kind, count in loads:
            for name, app in apps.items():
                before, cpu = app.opened(), cost(app.server, "cpu_seconds")
                seconds = SECONDS[count] * share
                got = clients(port_of(app.server), count, seconds, app.requests[kind])
                used = cost(app.server, "cpu_seconds") - cpu
                sample = samples[str(count), name, kind]
                for key in ("requests_per_second", "median_seconds", "p99_seconds"):
                    sample[key].append(got[key])
                sample["cpu_seconds"].append(used / got["sent"])
                sample["connections_per_second"].append((app.opened() - before) / seconds)
            progress.step()
    found: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    for (count_, name, kind), sample in samples.items():
        bare = samples[count_, "bare", kind]["requests_per_second"]
        pairs = zip(sample["requests_per_second"], bare, strict=True)
        sample["throughput_of_bare"] = [ours / theirs for ours, theirs in pairs]
        found[count_][name][kind] = {key: middle(values, 6) for key, values in sample.items()}
    return found
