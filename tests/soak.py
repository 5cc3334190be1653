"""Random faults under steady load for a long time: nothing is lost, doubled, left behind or leaked.

    python3 dev.py soak                          PostgreSQL, then SQLite, 15 minutes each
    python3 dev.py soak sqlite --minutes 60      one of them, for longer

It ends with exit code 1 if anything that must hold did not. `SEED` repeats the same faults.
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from itertools import count
from pathlib import Path

import httpx2

from tests.support import watcher
from tests.support.answers import is_outcome_unknown, unavailable
from tests.support.databases import DATABASES, SQLiteDatabase
from tests.support.proxied import ProxiedDatabase, open_guarded_server, open_proxied
from tests.support.proxy import Trap
from tests.support.random_client import SEED
from tests.support.repository import snapshot
from tests.support.services import Service, render
from tests.support.watcher import Watcher, left_in_sqlite

WORKERS = 12
PROCESSES = {"postgresql": 1, "sqlite": 4}
WARM = 120.0  # seconds after which memory does not grow
GROWTH = 1.2  # of it, at the most
LIMITS = {
    "DATABASE_CONNECT_TIMEOUT": "1",
    "DATABASE_COMMAND_TIMEOUT": "1",
    "DATABASE_POOL_SIZE": "5",
    "DATABASE_MAX_OVERFLOW": "0",
}
SLOW = "its COMMIT hangs"
SLOW_COMMITS = f"""
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql
AS 'BEGIN PERFORM pg_sleep(20); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON items DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.description = '{SLOW}') EXECUTE FUNCTION take_time()
"""

Fault = Callable[[], AbstractContextManager[None]]


class Soak:
    """A service under load; answers are counted until they are compared with what is stored."""

    def __init__(self, starts: list[Callable[[], AbstractContextManager[Watcher]]]) -> None:
        self.random = random.Random(SEED)
        self.violations: list[str] = []
        self.requests = 0
        self.faults = 0
        self.slow_commits = False
        self.acknowledged: set[str] = set()
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self._starts = starts
        self._stacks = [ExitStack() for _ in starts]
        self.watchers = [
            stack.enter_context(start()) for stack, start in zip(self._stacks, starts, strict=True)
        ]
        self._numbers = count()
        self._over = threading.Event()
        self._going = threading.Event()
        self._idle = threading.Semaphore(0)
        self._start = time.monotonic()

    def resident(self) -> int:
        """Return the memory of the first process, in bytes, which is never killed."""
        return self.watchers[0].resident()

    def kill(self, number: int) -> None:
        """End a process without a warning, and start another in its place."""
        self.watchers[number].server.stop(signal.SIGKILL)
        self._close(number)
        self._stacks[number] = ExitStack()
        self.watchers[number] = self._stacks[number].enter_context(self._starts[number]())

    def close(self) -> None:
        for number in range(len(self.watchers)):
            self._close(number)

    def _close(self, number: int) -> None:
        try:
            self._stacks[number].close()
        except AssertionError as error:
            self.violate(str(error))

    def violate(self, text: str) -> None:
        self.violations.append(text)
        print(f"\nVIOLATION after {time.monotonic() - self._start:.0f} s: {text}\n", flush=True)

    def go(
        self, seconds: float, faults: list[Fault], stored: Callable[[], list[str]], empty: Fault
    ) -> None:
        """Load the service, inject one fault after another, and compare after each."""
        self._start = time.monotonic()
        first, warm = self.resident(), 0
        self._going.set()
        with ThreadPoolExecutor(WORKERS) as pool:
            workers = [pool.submit(self._load, number) for number in range(WORKERS)]
            progress = threading.Thread(target=self._tell, daemon=True)
            progress.start()
            try:
                while (passed := time.monotonic() - self._start) < seconds:
                    self._going.set()
                    time.sleep(self.random.uniform(0.1, 0.5))
                    fault = self.random.choice(faults)
                    with fault():
                        time.sleep(self.random.uniform(0.1, 1.5))
                    time.sleep(self.random.uniform(0, 0.3))
                    self.faults += 1
                    with self.paused():
                        self._compare(fault.__name__, stored())
                        with empty():
                            pass
                    if passed > WARM and not warm:
                        warm = self.resident()
                self._going.clear()
                last = self.resident()
            finally:
                self._over.set()
                self._going.set()
            for worker in workers:
                worker.result()
        grown = f"{first >> 20} MiB at first, {warm >> 20} when warm, {last >> 20} at last"
        print(f"Memory: {grown}", flush=True)
        if warm and last > GROWTH * warm:
            self.violate(f"memory grows: {grown}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the requests in flight end, and send no more."""
        self._going.clear()
        for _ in range(WORKERS):
            self._idle.acquire()
        yield

    def resume(self) -> None:
        self._going.set()

    def _load(self, worker: int) -> None:
        while True:
            if not self._going.is_set():
                self._idle.release()
                self._going.wait()
            if self._over.is_set():
                return
            try:
                self._send(worker)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                self.violate(f"a request failed: {error!r}")

    def _send(self, worker: int) -> None:
        http = self.watchers[worker % len(self.watchers)].server.client
        self.requests += 1
        if worker % 3 == 2:
            with suppress(httpx2.TransportError, RuntimeError):
                answer = http.get("/items", params={"limit": 5})
                if answer.status_code not in (200, 503):
                    self.violate(f"a read: {answer.status_code}: {answer.text}")
            return
        name = f"item {next(self._numbers)}"
        slow = self.slow_commits and worker == 0
        try:
            answer = http.post("/items", json={"name": name, "description": SLOW if slow else ""})
        except (httpx2.TransportError, RuntimeError):  # killed, or closed since
            self.unknown.add(name)
            return
        if answer.status_code == 201:
            self.acknowledged.add(name)
        elif unavailable(answer):
            (self.unknown if is_outcome_unknown(answer) else self.refused).add(name)
        else:  # 409: stored twice, or before it was asked for
            self.violate(f"a write: {answer.status_code}: {answer.text}")

    def _compare(self, fault: str, stored: list[str]) -> None:
        """Check that a fault left nothing behind, and that what was acknowledged is stored, once."""
        for number, watched in enumerate(self.watchers):
            try:
                watched.check(f"{fault}, process {number}")
            except AssertionError as error:
                self.violate(str(error))
                watched.log.violations.clear()
        found = set(stored)
        for what, names in (
            ("lost", self.acknowledged - found),
            ("stored, though refused", self.refused & found),
            ("stored, and never sent", found - self.acknowledged - self.refused - self.unknown),
        ):
            if names:
                self.violate(f"after {fault}: {len(names)} {what}, such as {min(names)}")
        if len(stored) > len(found):
            self.violate(f"after {fault}: {len(stored) - len(found)} doubled")
        for names in (self.acknowledged, self.refused, self.unknown):
            names.clear()

    def _tell(self) -> None:
        while not self._over.wait(10):
            print(
                f"{time.monotonic() - self._start:5.0f} s: {self.requests} requests,"
                f" {self.faults} faults, {len(self.violations)} violations,"
                f" {self.resident() >> 20} MiB",
                flush=True,
            )


def soak_postgresql(service: Service, folder: Path, seconds: float) -> list[str]:
    with open_guarded_server(service, folder) as server, open_proxied(server, "pattern") as proxied:
        proxied.query(SLOW_COMMITS)
        variables = {"DATABASE_URL": proxied.url, **LIMITS}
        soak = Soak([lambda: watcher.serve_watched(service, proxied.left, **variables)])
        try:
            soak.go(
                seconds, postgresql_faults(soak, proxied), lambda: stored(proxied), emptied(proxied)
            )
        finally:
            soak.close()
    return soak.violations


def stored(proxied: ProxiedDatabase) -> list[str]:
    printed = proxied.query("SELECT 'stored=' || name FROM items")
    return [line.split("stored=")[1].strip() for line in printed.splitlines() if "stored=" in line]


def emptied(proxied: ProxiedDatabase) -> Fault:
    @contextmanager
    def empty() -> Iterator[None]:
        proxied.query("TRUNCATE items")
        yield

    return empty


def postgresql_faults(soak: Soak, proxied: ProxiedDatabase) -> list[Fault]:
    proxy = proxied.proxy

    @contextmanager
    def cut() -> Iterator[None]:
        yield
        proxy.cut()

    @contextmanager
    def cut_at_a_message() -> Iterator[None]:
        number, to_server = soak.random.randrange(40), soak.random.random() < 0.5
        proxy.trap = Trap(to_server, number, "cut")
        yield
        proxy.trap = None

    @contextmanager
    def silent() -> Iterator[None]:
        proxy.silent = True
        yield
        proxy.silent = False

    @contextmanager
    def refused() -> Iterator[None]:
        proxy.refuse()
        yield
        proxy.accept()

    @contextmanager
    def slow() -> Iterator[None]:
        proxy.delay = 0.05
        yield
        proxy.delay = 0

    @contextmanager
    def terminated() -> Iterator[None]:
        yield
        proxied.terminate()

    @contextmanager
    def locked() -> Iterator[None]:
        with proxied.holding("LOCK TABLE items"):
            yield

    @contextmanager
    def slow_commits() -> Iterator[None]:
        soak.slow_commits = True
        yield
        soak.slow_commits = False

    @contextmanager
    def restarted() -> Iterator[None]:
        proxied.server.take_away()
        yield
        proxied.server.give_back()

    return [
        cut, cut_at_a_message, silent, refused, slow, terminated, locked, slow_commits, restarted
    ]  # fmt: skip


def soak_sqlite(service: Service, folder: Path, seconds: float) -> list[str]:
    database = SQLiteDatabase(folder)
    service.migrate(database)
    file = database.path
    variables = {"DATABASE_URL": f"sqlite:///{file}", **LIMITS}

    def start() -> AbstractContextManager[Watcher]:
        return watcher.serve_watched(service, lambda: left_in_sqlite(file), **variables)

    def names() -> list[str]:
        with closing(sqlite3.connect(file)) as connection:
            return [name for (name,) in connection.execute("SELECT name FROM items")]

    @contextmanager
    def empty() -> Iterator[None]:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("DELETE FROM items")
            connection.commit()
        yield

    soak = Soak([start] * PROCESSES["sqlite"])
    try:
        soak.go(seconds, sqlite_faults(soak, file), names, empty)
    finally:
        soak.close()
    return soak.violations


def sqlite_faults(soak: Soak, file: Path) -> list[Fault]:
    @contextmanager
    def locked() -> Iterator[None]:
        with closing(sqlite3.connect(file, 10, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield

    @contextmanager
    def killed() -> Iterator[None]:
        yield
        soak.kill(soak.random.randrange(1, len(soak.watchers)))

    @contextmanager
    def missing() -> Iterator[None]:
        away = file.parent.rename(file.parent.with_name("away"))
        yield
        away.rename(file.parent)

    @contextmanager
    def garbage() -> Iterator[None]:
        with missing():
            file.parent.mkdir()
            other = file.with_name("garbage")
            other.write_bytes(b"This is not a database. " * 1000)
            other.rename(file)  # at once: an empty file would be a database without tables
            yield
            shutil.rmtree(file.parent)

    @contextmanager
    def restored() -> Iterator[None]:
        backup = file.with_name("backup.db")
        with soak.paused():  # what is written after a backup is lost with its restore
            with closing(sqlite3.connect(file)) as connection:
                connection.execute(f"VACUUM INTO '{backup}'")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            backup.rename(file)
        soak.resume()
        yield

    return [locked, killed, missing, garbage, restored]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 dev.py soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("database", nargs="?", choices=DATABASES)
    parser.add_argument("--minutes", type=float, default=15)
    arguments = parser.parse_args()
    violations = []
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = Path(temporary)
        (folder / "settings.yml").write_text("{}")
        os.environ["COPIER_SETTINGS_PATH"] = str(folder / "settings.yml")
        template = snapshot(folder / "template")
        for name in [arguments.database] if arguments.database else ["postgresql", "sqlite"]:
            print(f"{name}: SEED={SEED}", flush=True)
            service = Service(render(template, folder / name, database=name), name)
            service.run("uv", "sync", "--quiet", "--compile-bytecode")
            files = folder / f"{name}-files"
            files.mkdir()
            soak = {"postgresql": soak_postgresql, "sqlite": soak_sqlite}[name]
            violations += soak(service, files, arguments.minutes * 60)
    print(f"{len(violations)} violations")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
