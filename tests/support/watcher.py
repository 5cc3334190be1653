"""What must hold of a service after whatever was done to it, on either database."""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from tests.support.answers import is_outcome_unknown
from tests.support.databases import Database, PostgreSQLDatabase, SQLiteDatabase
from tests.support.processes import open_client
from tests.support.services import Server, Service

SETTLES = 10.0  # seconds; longer than any limit after which something is given up
APP = Path(__file__).parent / "watched"
# `watched:app` is the service with a path that tells what is in use.
UVICORN = (
    *(".venv/bin/python", "-m", "app.server", "watched:app"),
    *("--timeout-graceful-shutdown", "10"),
)
RIGHT = {"right": True}  # extensions of a valid request: it gets no 4xx

RECORD = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<level>[A-Z]+) +(?P<logger>[\w.]+): ", re.MULTILINE
)
REQUEST_ID = re.compile(r" \[(\S+)\]$", re.MULTILINE)
ACCESS = re.compile(r"(?P<method>[A-Z]+) (?P<path>\S+) (?P<status>\d+) [\d.]+ ms")
# Of an answer with 503; the second is a probe's.
REASON = re.compile(r"(unavailable: |(?=not ready: ))(?P<reason>[a-z][a-z -]*[a-z])(:|$)")
EXPLAINED = (
    "slow: ",
    "silent: ",
    "outbox: ",  # of how-tos: a task that tries again
    "stream ended: ",  # … and clients that come again
    "the database did not answer",  # at shutdown
    # uvicorn's: of requests that outlast the graceful timeout, and of bytes that are no request
    "Cancel ",
    "ended at once, as asked",
    "Invalid HTTP request received.",
)

# Sent with psql, whose own connection is not the service's; nor are those of other tests' psql.
LEFT = r"""
WITH backends AS (
    SELECT pid, state, concat_ws(' ', application_name, state, wait_event_type, wait_event,
        left(regexp_replace(query, '\s+', ' ', 'g'), 100)) AS found
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
    AND application_name <> 'psql'
)
SELECT 'left=not idle: ' || found FROM backends WHERE state IS DISTINCT FROM 'idle'
UNION ALL
SELECT 'left=' || concat_ws(' ', mode, 'on', locktype, relation::regclass, 'held by', found)
FROM pg_locks JOIN backends USING (pid) WHERE locktype IN ('relation', 'advisory')
UNION ALL
SELECT 'backends=' || count(*) FROM backends
"""


@dataclass
class Log:
    """What a service has logged so far, read piece by piece."""

    file: Path
    violations: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # of each 503, by its request's id
    excused: set[str] = field(default_factory=set)  # requests whose 500 is expected
    requests: int = 0
    _read: int = 0

    def follow(self) -> None:
        """Read what has been added, but for a line that is still being written."""
        with self.file.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        added = added[: added.rfind(b"\n") + 1]
        self._read += len(added)
        text = added.decode("utf-8", "replace")
        starts = [match.start() for match in RECORD.finditer(text)]
        for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
            self._judge(text[start:end].rstrip("\n"))

    def _judge(self, text: str) -> None:
        match = RECORD.match(text)
        message = text[match.end() :] if match else text
        found = REQUEST_ID.search(message)
        request = found[1] if found else "-"
        logger = match["logger"] if match else ""
        if logger == "app.access" and (access := ACCESS.match(message)):
            self.requests += 1
            self._judge_access(access, request)
            return
        if reason := REASON.match(message):
            self.reasons[request] = reason["reason"]
            explained = True
        else:
            explained = message.startswith(EXPLAINED)
        if request in self.excused:
            return
        signs = ("Traceback", "Warning", "garbage collector")
        level = match["level"] if match else "INFO"
        if any(sign in text for sign in signs) or (
            level in ("WARNING", "ERROR", "CRITICAL") and not explained
        ):
            self.violations.append(f"logged: {text}")

    def _judge_access(self, access: re.Match[str], request: str) -> None:
        status = int(access["status"])
        if status == 503 and request not in self.reasons:
            self.violations.append(f"503 and no reason is logged: {access[0]} [{request}]")
        if status >= 500 and status != 503 and request not in self.excused:
            self.violations.append(f"answered: {access[0]} [{request}]")


# Asks a database what the service holds in it that it should not, and how many connections.
Left = Callable[[], tuple[list[str], int | None]]


class Watcher:
    """One for each process of a service."""

    def __init__(self, server: Server, left: Left) -> None:
        self.server = server
        self.log = Log(server.log_file)
        self.settles = SETTLES
        self._left = left
        self._before = self._look()
        self._files = self._open_files()

    @property
    def running(self) -> bool:
        return self.server.process.poll() is None

    def excuse(self, response: httpx2.Response) -> None:
        """Accept a 500, with its traceback: the test has provoked it."""
        self.log.excused.add(response.headers["x-request-id"])

    def check(self, case: str = "the test") -> None:
        """Check that all holds, or soon does; a stopped service has only a log."""
        end = time.monotonic() + self.settles
        while True:
            found = self.check_answers()
            if self.running and not found:
                found = self._look_around()
            if not found:
                return
            if time.monotonic() > end or self.log.violations:
                break
            time.sleep(0.02)
        tail = self.server.log().splitlines()[-10:]
        more = [f"and {len(found) - 10} more"] if len(found) > 10 else []
        lines = [f"after {case}:", *found[:10], *more, "The log ends with:", *tail]
        raise AssertionError("\n".join(lines))

    def check_answers(self) -> list[str]:
        """Return the faults of the answers and the log so far."""
        self.log.follow()
        while self.server.answers:
            self.log.violations += self._judge(self.server.answers.pop())
        return self.log.violations

    def resident(self) -> int:
        """Return the bytes of memory that the service uses."""
        return sum(process.memory_info().rss for process in self._processes())

    def _judge(self, answer: httpx2.Response) -> Iterator[str]:
        status, request = answer.status_code, answer.headers.get("x-request-id", "-")
        text = f"{answer.request.method} {answer.request.url.raw_path.decode()} {status}"
        if status < 500 and answer.request.extensions.get("right"):
            yield f"{text}, though the request is right: {answer.text}"
        if status < 500 or request in self.log.excused:
            return
        if status != 503:
            yield f"{text}: {answer.text}"
            return
        unknown = is_outcome_unknown(answer)
        repeatable = not unknown or answer.request.method not in ("POST", "PATCH")
        if answer.headers.get("retry-after") != ("1" if repeatable else None):
            yield f"{text}, Retry-After: {answer.headers.get('retry-after')}: {answer.text}"
        reason = self.log.reasons.get(request)
        if reason is None:
            yield f"{text} and no reason is logged [{request}]"
        elif unknown != (reason == "outcome unknown" and answer.request.method != "GET"):
            yield f"{text}, logged as {reason}: {answer.text}"

    def _look(self) -> dict[str, int]:
        with open_client(str(self.server.client.base_url), 10) as client:
            found: dict[str, int] = client.get("/health/watched").json()
            return found

    def _look_around(self) -> list[str]:
        try:
            now = self._look()
        except httpx2.TransportError as error:
            return [f"not answering: {error!r}"]
        found = [
            f"{now[name]} connections {name}" if name == "in use" else f"{now[name]} {name}"
            for name in ("in use", "waiting")
            if now[name]
        ]
        if now["idle"] > now["capacity"]:
            found.append(f"{now['idle']} connections in a pool of {now['capacity']}")
        if now["tasks"] > self._before["tasks"]:
            found.append(f"{now['tasks']} tasks, and {self._before['tasks']} before")
        left, connections = self._left()
        found += left
        if connections is None:
            # Each of SQLite's has a thread, and up to three files.
            files = 3 * now["capacity"]
            threads = now["threads"] - self._before["threads"]
            if threads > now["idle"]:
                found.append(f"{threads} threads for {now['idle']} connections")
        else:
            files = now["capacity"]
            if connections > now["idle"]:
                found.append(f"{connections} connections, of which the pool has {now['idle']}")
        grown = self._open_files() - self._files
        if grown > files + 5:
            found.append(f"{grown} more open files than at the start")
        return found

    def _processes(self) -> list[psutil.Process]:
        """Return the service's own processes, without a `uv` that has started them."""
        first = psutil.Process(self.server.process.pid)
        every = [first, *first.children(recursive=True)]
        return [process for process in every if process.name() != "uv"]

    def _open_files(self) -> int:
        """Count open files and sockets, without those of the service's own clients."""
        port, count = self.server.client.base_url.port, 0
        with suppress(psutil.NoSuchProcess):
            for process in self._processes():
                sockets = process.net_connections(kind="tcp4")
                clients = sum(bool(it.laddr) and it.laddr.port == port for it in sockets)
                count += process.num_fds() - clients
        return count


def left_in_postgresql(query: Callable[[str], str]) -> tuple[list[str], int]:
    """Return what the connections of a service hold that should hold nothing, and their number."""
    answer = query(LEFT)
    [connections] = re.findall(r"^ *backends=(\d+)", answer, re.MULTILINE)
    return re.findall(r"^ *left=(.*?) *$", answer, re.MULTILINE), int(connections)


def left_in_sqlite(file: Path) -> tuple[list[str], None]:
    """Return what blocks another process from writing to a file, and readers that don't end."""
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", 0, uri=True)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE written (by_another_process INTEGER)")
            connection.execute("ROLLBACK")
            # It waits for readers, which would keep the log from ever being emptied.
            [(busy, *_)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError as error:
        return [f"not writable by another process: {error}"], None
    return ["a reader has not ended"] if busy else [], None


def left_in(database: Database) -> Left:
    if isinstance(database, PostgreSQLDatabase):
        return lambda: left_in_postgresql(database.query)
    assert isinstance(database, SQLiteDatabase)
    return lambda: left_in_sqlite(database.path)


@contextmanager
def serve_watched(
    service: Service,
    left: Left,
    *command: str,
    **variables: str,
) -> Iterator[Watcher]:
    """Run a service; in the end, while it still runs and once it has stopped, all holds."""
    variables = {"PYTHONPATH": str(APP), "PYTHONWARNINGS": "default"} | variables
    with service.serve(*(command or UVICORN), **variables) as server:
        watcher = Watcher(server, left)
        yield watcher
        watcher.check()
    watcher.check("its end")
