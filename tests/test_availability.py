"""A service whose PostgreSQL is replicated survives the loss of a server, and loses no write."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import httpx2
import pytest

from tests.support.answers import unavailable
from tests.support.cluster import Cluster, Node, binaries, open_cluster
from tests.support.pages import blocks, follow, page_text
from tests.support.processes import free_port, wait_for
from tests.support.proxy import open_proxy
from tests.support.repository import replace
from tests.support.services import Server, Service

UVICORN = (".venv/bin/python", "-m", "app.server", "--timeout-graceful-shutdown", "10")
INSTALLED = binaries()

pytestmark = [
    pytest.mark.parametrize("database_name", ["postgresql"], indirect=True),
    pytest.mark.skipif(INSTALLED is None, reason="there is no PostgreSQL to replicate here"),
]

# `LOAD=long` writes for longer between the faults. Figures are printed: `-rP` shows them.
LONG = os.environ.get("LOAD") == "long"
STEADY = 8.0 if LONG else 0.5  # seconds
CLIENTS = 12
HEALED = 20.0  # seconds, in which a busy machine surely is back; how long it takes is printed
UNKNOWN = "/problems/outcome-unknown"
BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop'"  # of the service


@dataclass
class Load:
    """Clients that create items without a pause, each with a name of its own, sent once."""

    port: int
    acknowledged: dict[str, float] = field(default_factory=dict)  # and when
    refused: dict[str, float] = field(default_factory=dict)  # 503, to be repeated
    unknown: dict[str, float] = field(default_factory=dict)  # 503, not to be repeated
    unanswered: dict[str, float] = field(default_factory=dict)
    others: list[tuple[int, object]] = field(default_factory=list)
    slowest: float = 0.0  # seconds that an answer took
    over: threading.Event = field(default_factory=threading.Event)

    def write(self, client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for number in count():
            if self.over.is_set():
                return connection.close()
            name, start = f"{client}-{number}", time.monotonic()
            body = json.dumps({"name": name})
            try:
                connection.request("POST", "/items", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                answer = json.load(response)
            except (OSError, http.client.HTTPException):
                connection.close()
                self.unanswered[name] = time.monotonic()
                continue
            now = time.monotonic()
            self.slowest = max(self.slowest, now - start)
            again = response.headers["Retry-After"]
            match response.status, answer.get("type"), again:
                case 201, _, _:
                    self.acknowledged[name] = now
                case 503, "/problems/unavailable", "1":
                    self.refused[name] = now
                case 503, kind, None if kind == UNKNOWN:
                    self.unknown[name] = now
                case status, _, _:
                    self.others.append((status, answer))
            if response.status != 201:
                time.sleep(0.05)

    def last(self, seconds: float = STEADY) -> None:
        """Wait so long, and until some more writes are stored."""
        before = len(self.acknowledged)
        time.sleep(seconds)
        wait_for(lambda: len(self.acknowledged) > before + 20, HEALED)

    def first_after(self, moment: float) -> float:
        """Return how long after `moment` a write was acknowledged."""
        wait_for(lambda: any(at > moment for at in [*self.acknowledged.values()]), HEALED)
        return min(at for at in [*self.acknowledged.values()] if at > moment) - moment

    def check(
        self, primary: Node, title: str, figures: dict[str, float] | None = None, lost: int = 0
    ) -> None:
        """Compare what was answered with what is stored, and print it."""
        stored = Counter(primary.query("SELECT name FROM items").split())
        missing = self.acknowledged.keys() - stored.keys()
        shown = ", ".join(f"{name} {value:.2f} s" for name, value in (figures or {}).items())
        print(
            f"{title}: {len(self.acknowledged)} acknowledged, {len(missing)} of them lost,"
            f" {sum(stored.values()) - len(stored)} doubled; {len(self.refused)} refused,"
            f" {len(self.unknown)} unknown ({len(self.unknown.keys() & stored.keys())} stored),"
            f" {len(self.unanswered)} unanswered; slowest {self.slowest:.2f} s;"
            f" first stored write: {shown or '-'}"
        )
        assert len(missing) <= lost
        assert set(stored.values()) == {1}
        assert self.refused.keys() & stored.keys() == set()
        assert self.others == []
        known = self.acknowledged.keys() | self.unknown.keys() | self.unanswered.keys()
        assert stored.keys() <= known


@contextmanager
def loading(server: Server, clients: int = CLIENTS) -> Iterator[Load]:
    load = Load(server.client.base_url.port or 0)
    threads = [threading.Thread(target=load.write, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        load.last()
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def pattern(service: Service) -> Iterator[Node]:
    """A node with the service's schema, to be copied; it is stopped."""
    assert INSTALLED is not None
    with open_cluster(INSTALLED) as cluster:
        node = cluster.create("pattern")
        variables = {"DATABASE_URL": cluster.url(node.address)}
        service.run(".venv/bin/alembic", "upgrade", "head", variables=variables)
        # A write that is sent twice must be seen.
        node.query("ALTER TABLE items DROP CONSTRAINT uq_items_name")
        node.stop()
        yield node


@pytest.fixture
def cluster(pattern: Node) -> Iterator[Cluster]:
    with pattern.cluster.ending():
        yield pattern.cluster


@pytest.fixture
def one(cluster: Cluster, pattern: Node) -> Node:
    """The primary."""
    return cluster.copy(pattern, "one")


@pytest.fixture
def two(cluster: Cluster, one: Node) -> Node:
    """Its standby, asynchronous."""
    return cluster.standby("two", one)


@pytest.fixture
def hosts(cluster: Cluster, one: Node, two: Node) -> str:
    """A URL that names both."""
    return cluster.url(one.address, two.address, target_session_attrs="read-write")


@contextmanager
def serve_without_traceback(service: Service, url: str, **variables: str) -> Iterator[Server]:
    with service.serve(*UVICORN, DATABASE_URL=url, **variables) as server:
        yield server
    assert "Traceback" not in server.log()


def ready(server: Server) -> int:
    return server.client.get("/health/ready").status_code


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
def test_a_primary_is_killed_and_its_standby_takes_the_writes(
    service: Service, one: Node, two: Node, hosts: str, kind: str
) -> None:
    if kind == "synchronous":
        one.wait_for_synchronous(two)
    with serve_without_traceback(service, hosts) as server, loading(server) as load:
        killed = time.monotonic()
        one.kill()
        time.sleep(0.5)
        assert ready(server) == 503
        two.promote()
        healed = load.first_after(time.monotonic())
        load.last()
        assert ready(server) == 200
        one.rejoin(two)
        load.last()

    # An asynchronous standby lacks what had not reached it: here, on one machine, next to nothing.
    recent = [at for at in load.acknowledged.values() if killed - 1 < at < killed + 1]
    lost = 0 if kind == "synchronous" else len(recent)
    load.check(two, f"crash, {kind}", {"after the promotion": healed}, lost)


@pytest.mark.parametrize("kind", ["frozen", "cut off"])
def test_a_primary_falls_silent_and_its_standby_takes_the_writes(
    service: Service, cluster: Cluster, one: Node, two: Node, kind: str
) -> None:
    one.wait_for_synchronous(two)
    limits = {"DATABASE_CONNECT_TIMEOUT": "1", "DATABASE_COMMAND_TIMEOUT": "2"}
    if kind == "frozen" or LONG:  # and once with the defaults
        limits = {}
    with open_proxy(one.socket) as proxy:
        addresses = (f"127.0.0.1:{proxy.port}", two.address)
        url = cluster.url(*addresses, target_session_attrs="read-write")
        with serve_without_traceback(service, url, **limits) as server, loading(server) as load:
            if kind == "frozen":
                one.freeze()
            else:
                proxy.silent = True
            time.sleep(0.5)
            two.promote()
            healed = load.first_after(time.monotonic())
            load.last()
            assert ready(server) == 200
        assert f"silent: {addresses[0]} did not answer" in server.log()
        load.check(two, f"silence, {kind}", {"after the promotion": healed})


def test_a_primary_that_hangs_for_a_while_is_used_again_and_keeps_no_old_backend(
    service: Service, one: Node, two: Node, hosts: str
) -> None:
    one.wait_for_synchronous(two)
    limits = {"DATABASE_CONNECT_TIMEOUT": "1", "DATABASE_COMMAND_TIMEOUT": "1"}
    with serve_without_traceback(service, hosts, **limits) as server, loading(server) as load:
        one.freeze()
        try:
            time.sleep(4)
        finally:
            one.thaw()
        healed = load.first_after(time.monotonic())
        load.last()
        wait_for(lambda: one.number(f"{BACKENDS} AND state_change < now() - '8 s'::interval") == 0)
        assert one.number(BACKENDS) <= 15
    load.check(one, "a hang", {"after its end": healed})


def test_an_address_that_moves_late_is_followed(
    service: Service, cluster: Cluster, one: Node, two: Node
) -> None:
    with open_proxy(one.socket) as proxy:
        url = cluster.url(f"127.0.0.1:{proxy.port}")
        with serve_without_traceback(service, url) as server, loading(server) as load:
            make_read_only(one)
            one_has = one.written()
            wait_for(lambda: two.has_replayed(one_has))
            two.promote()
            promoted = time.monotonic()
            wait_for(lambda: ready(server) == 503)
            time.sleep(STEADY)
            assert not any(at > promoted for at in load.acknowledged.values())
            proxy.upstream = two.socket
            moved = time.monotonic()
            healed = load.first_after(moved)
            wait_for(lambda: ready(server) == 200)
            load.last()
            # No connection is left that leads to the old one.
            assert not any(at > moved + HEALED for at in load.refused.values())
        assert one.query("SELECT pg_current_wal_flush_lsn()") >= one_has
        load.check(two, "an address that moves late", {"after the move": healed})


def make_read_only(node: Node) -> None:
    """Make it refuse writes; returns when the last is done."""
    node.configure("default_transaction_read_only", "on")
    time.sleep(0.5)  # until each connection has read it
    before = node.query("SELECT clock_timestamp()")
    older = (
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        f" AND xact_start < '{before}' AND pid <> pg_backend_pid()"
    )
    wait_for(lambda: node.number(older) == 0)


def test_connections_follow_an_address_whose_old_server_lives_on(
    service: Service, cluster: Cluster, one: Node, two: Node
) -> None:
    with open_proxy(one.socket) as proxy:
        url = cluster.url(f"127.0.0.1:{proxy.port}")
        with (
            serve_without_traceback(service, url, DATABASE_POOL_RECYCLE="1") as server,
            loading(server, clients=4),
        ):
            two.promote()  # by mistake, or in a move that was begun in the wrong order
            proxy.upstream = two.socket
            time.sleep(1 + 2)
            before = one.number("SELECT count(*) FROM items")
            wait_for(lambda: two.number("SELECT count(*) FROM items") > before)
            assert one.number("SELECT count(*) FROM items") == before


def test_a_planned_switchover_there_and_back_loses_nothing(
    service: Service, one: Node, two: Node, hosts: str
) -> None:
    with serve_without_traceback(service, hosts) as server, loading(server) as load:
        figures = {}
        for way, old, new in (("there", one, two), ("back", two, one)):
            old.stop()
            new.promote()
            figures[way] = load.first_after(time.monotonic())
            old.follow(new)
            load.last()
    load.check(one, "switchover", figures)


def test_without_its_synchronous_standby_a_commit_is_503_and_leaves_no_backend(
    service: Service, cluster: Cluster, one: Node, two: Node
) -> None:
    one.wait_for_synchronous(two)
    capacity, limit = 5, 1.0
    limits = {
        "DATABASE_POOL_SIZE": str(capacity),
        "DATABASE_MAX_OVERFLOW": "0",
        "DATABASE_COMMAND_TIMEOUT": str(limit),
        "DATABASE_POOL_TIMEOUT": "2",
    }
    with serve_without_traceback(service, cluster.url(one.address), **limits) as server:
        with loading(server, clients=20) as load:
            two.kill()
            away = time.monotonic()
            seen = 0
            while time.monotonic() < away + 4 + STEADY:
                seen = max(seen, one.number(BACKENDS))
                time.sleep(0.2)
            print(f"at most {seen} backends of a capacity of {capacity}")
            assert not any(at > away + limit for at in load.acknowledged.values())
            assert any(at > away + limit for at in load.unknown.values())
        assert seen <= 3 * capacity
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_for(lambda: one.number(waits) == 0)
        assert one.number(BACKENDS) <= capacity
        two.start()
        wait_for(lambda: posted(server) == 201, HEALED)
        one.query("DELETE FROM items WHERE name = 'once more'")
        load.check(one, "a synchronous standby that is away")


def posted(server: Server, name: str = "once more") -> int:
    return server.client.post("/items", json={"name": name}).status_code


def test_a_server_that_takes_no_writes_is_not_ready(
    service: Service, cluster: Cluster, one: Node, two: Node
) -> None:
    def refuses(server: Server) -> bool:
        answer = server.client.get("/health/ready")
        return unavailable(answer) and answer.json()["detail"] == "The database takes no writes."

    with serve_without_traceback(service, cluster.url(one.address)) as server:
        assert (ready(server), posted(server)) == (200, 201)
        one.configure("default_transaction_read_only", "on")
        wait_for(lambda: refuses(server))
        assert unavailable(server.client.post("/items", json={"name": "a"}))
        assert server.client.get("/items").status_code == 200
        one.configure("default_transaction_read_only", None)
        wait_for(lambda: ready(server) == 200)
        assert posted(server) == 201

    with serve_without_traceback(service, cluster.url(two.address)) as server:
        assert refuses(server)
        assert unavailable(server.client.post("/items", json={"name": "a"}))
        two.promote()
        wait_for(lambda: ready(server) == 200)
        assert posted(server) == 201


def test_no_server_that_takes_writes_is_503_until_there_is_one(
    service: Service, one: Node, two: Node, hosts: str
) -> None:
    with serve_without_traceback(service, hosts) as server:
        one.kill()
        for method, path in (("GET", "/items"), ("POST", "/items"), ("GET", "/health/ready")):
            body = {"name": "a"} if method == "POST" else None
            answer: httpx2.Response = server.client.request(method, path, json=body)
            assert unavailable(answer)
        two.promote()
        wait_for(lambda: posted(server) == 201)


def test_migrations_find_the_server_that_takes_writes(
    service: Service, cluster: Cluster, one: Node, two: Node
) -> None:
    url = cluster.url(two.address, one.address, target_session_attrs="read-write")
    variables = {"DATABASE_URL": url}
    service.run(".venv/bin/alembic", "downgrade", "base", variables=variables)
    service.run(".venv/bin/alembic", "upgrade", "head", variables=variables)
    service.run(".venv/bin/python", "-m", "app.doctor", variables=variables)
    one.kill()
    refused = service.run(".venv/bin/alembic", "upgrade", "head", variables=variables, check=False)
    assert refused.returncode == 1
    assert len(refused.stdout.splitlines()) == 2  # whose database it is, and why it is refused


def test_a_route_reads_from_a_replica(
    service: Service, cluster: Cluster, one: Node, two: Node, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    page = blocks(page_text("how-to/availability.md"))
    [lines] = [block.text for block in page if "create_async_engine" in block.text]

    def insert(title: str) -> None:
        lifespan = copy.folder / "app/lifespan.py"
        if "Reader(replica)" not in lifespan.read_text():
            imported = "from app.settings import ServiceSettings\n"
            replace(lifespan, imported, f"from app.database.url import parse\n{imported}")
            replace(lifespan, "\n        yield\n", f"{lines}\n        yield\n")
            routes = copy.folder / "app/features/items/routes.py"
            imported = "from app.fields import"
            replace(routes, imported, f"from app.features.replica import ReplicaDep\n{imported}")
            listing = "def list_items(\n    reader: "
            replace(routes, f"{listing}ReaderDep", f"{listing}ReplicaDep")

    follow("availability", copy, {}, before=insert)
    url = cluster.url(one.address)
    replica = cluster.url(two.address, one.address, target_session_attrs="prefer-standby")

    def names(server: Server) -> list[str]:
        return [item["name"] for item in server.client.get("/items").json()["items"]]

    with serve_without_traceback(copy, url, REPLICA_URL=replica) as server:
        assert posted(server, "a") == 201
        wait_for(lambda: names(server) == ["a"])
        assert two.number(BACKENDS) == 1
        two.query("SELECT pg_wal_replay_pause()")
        assert posted(server, "b") == 201
        assert names(server) == ["a"]
        two.query("SELECT pg_wal_replay_resume()")
        wait_for(lambda: names(server) == ["a", "b"])
        two.kill()
        wait_for(lambda: server.client.get("/items").status_code == 200)
        assert names(server) == ["a", "b"]  # of the primary
        server.stop(signal.SIGTERM)
        assert server.log().count("engine disposed of") == 2
    wait_for(lambda: one.number(BACKENDS) == 0)

    with serve_without_traceback(copy, url) as server:
        assert names(server) == ["a", "b"]


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="there is no haproxy here")
def test_the_proxy_of_the_page_leads_to_the_primary(
    service: Service, cluster: Cluster, one: Node, two: Node, tmp_path: Path
) -> None:
    one.wait_for_synchronous(two)
    page = blocks(page_text("how-to/availability.md"))
    [configuration] = [block.text for block in page if "haproxy" in block.title]
    port = free_port()
    with telling_role(one) as role_of_one, telling_role(two) as role_of_two:
        for old, new in (
            ("127.0.0.1:5432", f"127.0.0.1:{port}"),
            ("192.0.2.20:5432 check port 8008", f"{one.address} check port {role_of_one}"),
            ("192.0.2.21:5432 check port 8008", f"{two.address} check port {role_of_two}"),
        ):
            assert old in configuration
            configuration = configuration.replace(old, new)
        file = tmp_path / "haproxy.cfg"
        file.write_text(configuration)
        with subprocess.Popen(["haproxy", "-db", "-q", "-f", str(file)]) as process:
            try:
                with serve_without_traceback(service, cluster.url(f"127.0.0.1:{port}")) as server:
                    wait_for(lambda: ready(server) == 200)
                    with loading(server) as load:
                        one.kill()
                        time.sleep(0.5)
                        two.promote()
                        healed = load.first_after(time.monotonic())
                        load.last()
                        assert ready(server) == 200
                    load.check(two, "HAProxy, crash", {"after the promotion": healed})
            finally:
                process.terminate()


@contextmanager
def telling_role(node: Node) -> Iterator[int]:
    """Answer as Patroni does, at the port that this yields: 200 from the primary."""

    class Handler(BaseHTTPRequestHandler):
        def do_OPTIONS(self) -> None:
            running = node.process is not None and node.process.poll() is None
            primary = running and node.psql("SELECT pg_is_in_recovery()").stdout == "f\n"
            self.send_response(200 if primary else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
