"""Databases for single tests on one PostgreSQL that asks for a password, each behind a proxy."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import quote

from tests.support.databases import PostgreSQLDatabase, open_database
from tests.support.proxy import Proxy, open_proxy
from tests.support.services import Service
from tests.support.watcher import left_in_postgresql

PASSWORD = "p@ss:w/o#r?d%41&é 'x"


@dataclass
class ProxiedDatabase:
    """A database of its own for one test, reached through a proxy."""

    server: PostgreSQLDatabase
    name: str
    proxy: Proxy

    @property
    def url(self) -> str:
        user = f"guarded:{quote(PASSWORD, safe='')}"
        return f"postgresql://{user}@127.0.0.1:{self.proxy.port}/{self.name}"

    def query(self, statement: str) -> str:
        return self.server.query(f"\\connect {self.name}\n{statement}")

    def number(self, expression: str) -> int:
        return int(self.query(f"SELECT 'number=' || ({expression})").split("number=")[1].split()[0])

    def connections(self) -> int:
        return self.number(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'guarded'"
            f" AND datname = '{self.name}'"
        )

    def waiting(self) -> int:
        """Return how many statements wait for a lock."""
        return self.number("SELECT count(*) FROM pg_locks WHERE NOT granted")

    def terminate(self) -> None:
        self.server.query(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'guarded'"
        )
        self.proxy.settle()

    def left(self) -> tuple[list[str], int]:
        return left_in_postgresql(self.query)

    @contextmanager
    def holding(self, statement: str) -> Iterator[None]:
        """Hold the locks of `statement` meanwhile."""
        server = self.server.server
        command = [str(server.bin_path / "psql"), str(server.get_uri()), "--quiet"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as psql:
            assert psql.stdin is not None
            assert psql.stdout is not None
            psql.stdin.write(f"\\connect {self.name}\nBEGIN; {statement};\n\\echo held\n")
            psql.stdin.flush()
            while "held" not in psql.stdout.readline():
                assert psql.poll() is None
            try:
                yield
            finally:
                psql.stdin.close()  # psql ends, and its transaction with it


@contextmanager
def open_guarded_server(service: Service, folder: Path) -> Iterator[PostgreSQLDatabase]:
    """Start a PostgreSQL that asks for a password, with a migrated database to clone."""
    with open_database("postgresql", folder) as server:
        assert isinstance(server, PostgreSQLDatabase)
        rules = Path(server.server.pgdata) / "pg_hba.conf"
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        quoted = PASSWORD.replace("'", "''")
        server.query(
            f"SELECT pg_reload_conf(); CREATE ROLE guarded LOGIN CREATEDB PASSWORD '{quoted}'"
        )
        server.query("CREATE DATABASE pattern OWNER guarded")
        with open_proxy(server.socket) as proxy:
            proxied = ProxiedDatabase(server, "pattern", proxy)
            service.run(
                ".venv/bin/alembic", "upgrade", "head", variables={"DATABASE_URL": proxied.url}
            )
        yield server


numbers = count()


@contextmanager
def open_proxied(server: PostgreSQLDatabase, template: str) -> Iterator[ProxiedDatabase]:
    name = f"proxied_{next(numbers)}"
    server.query(f"CREATE DATABASE {name} TEMPLATE {template} OWNER guarded")
    with open_proxy(server.socket) as proxy:
        yield ProxiedDatabase(server, name, proxy)
