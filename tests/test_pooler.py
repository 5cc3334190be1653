"""A PgBouncer in transaction mode may stand between the service and its PostgreSQL."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.benchmark.measure import used_by
from tests.support.answers import unavailable
from tests.support.databases import Database, PostgreSQLDatabase
from tests.support.pages import blocks, page_text
from tests.support.processes import free_port, wait_for
from tests.support.proxy import open_proxy
from tests.support.services import Service

pytestmark = [
    pytest.mark.parametrize("database_name", ["postgresql"], indirect=True),
    pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="there is no pgbouncer here"),
]


@pytest.fixture
def pooler(migrated: Database, tmp_path: Path) -> Iterator[str]:
    """The Unix socket of a PgBouncer, which listens on the port of its name as well."""
    assert isinstance(migrated, PostgreSQLDatabase)
    port = str(free_port())
    folder = migrated.socket.removesuffix("/.s.PGSQL.5432")
    page = blocks(page_text("how-to/pgbouncer.md"))
    [configuration] = [block.text for block in page if "pgbouncer.ini" in block.title]
    for old, new in (
        ("shop = host=192.0.2.20", f"shop = host={folder} dbname=postgres user=postgres"),
        ("6432", f"{port}\nunix_socket_dir = {folder}"),
        ("scram-sha-256\nauth_file = /etc/pgbouncer/userlist.txt", "any"),
        # A transaction seldom gets the connection that the client's last one had.
        ("pool_size = 20", "pool_size = 2"),
    ):
        assert old in configuration
        configuration = configuration.replace(old, new)
    file = tmp_path / "pgbouncer.ini"
    file.write_text(configuration)
    command = ["pgbouncer", str(file)]
    if os.geteuid() == 0:  # which it refuses to be
        command += ["--user", Path(folder).owner()]
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(command, stderr=output) as process:
        wait_for(lambda: b"process up" in log.read_bytes())
        yield f"{folder}/.s.PGSQL.{port}"
        process.terminate()


def url(port: int | str) -> str:
    return f"postgresql://anybody@127.0.0.1:{port}/shop"


@pytest.fixture
def behind(pooler: str) -> dict[str, str]:
    """The variables of a service behind the pooler."""
    return {"DATABASE_URL": url(pooler.rpartition(".")[2]), "DATABASE_POOLER": "true"}


def test_a_setting_is_all_that_a_pooler_needs(service: Service, behind: dict[str, str]) -> None:
    # Two processes, since each would give its prepared statements the same names.
    command = ("uv", "run", "--no-sync", "python", "-m", "app.server", "--workers", "2")
    with service.serve(*command, **behind) as server, ThreadPoolExecutor(20) as pool:
        http = server.client

        def use(number: int) -> set[int]:
            created = http.post("/items", json={"name": f"item {number}"})
            path = created.headers["location"]
            changed = http.patch(path, json={"description": "changed"})
            read = http.get(path)
            assert read.json() == changed.json()
            return {created.status_code, changed.status_code, read.status_code}

        assert http.get("/health/ready").status_code == 200
        assert set().union(*pool.map(use, range(200))) == {200, 201}


def test_behind_a_pooler_nothing_is_prepared_so_each_statement_is_two_round_trips(
    service: Service, pooler: str, behind: dict[str, str]
) -> None:
    with open_proxy(pooler) as proxy:
        variables = behind | {"DATABASE_URL": url(proxy.port)}
        with service.serve(**variables) as server:
            trips = used_by(server.client, lambda: proxy.round_trips)

    # With those that begin a transaction and commit it.
    assert {kind: trips[kind] for kind in ("get", "list", "post", "patch", "delete")} == {
        "get": 2,
        "list": 2,
        "post": 4,
        "patch": 4,
        "delete": 4,
    }


def test_the_pooler_sets_the_servers_time_limits(
    migrated: Database, behind: dict[str, str]
) -> None:
    assert isinstance(migrated, PostgreSQLDatabase)
    psql = [str(migrated.server.bin_path / "psql"), behind["DATABASE_URL"], "--tuples-only"]
    for name, value in (
        ("statement_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "1min"),
    ):
        shown = subprocess.check_output([*psql, f"--command=SHOW {name}"], text=True)
        assert shown.strip() == value


DAY = """
import asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from app.settings import Settings


async def ask():
    settings = Settings()
    engine = create_async_engine(settings.driver_url, **settings.engine_options)
    async with engine.connect() as connection:
        day = await connection.execute(text("SELECT CAST(timestamptz '2026-11-24 20:00Z' AS date)"))
        print(day.scalar_one())
    await engine.dispose()


asyncio.run(ask())
"""


def test_behind_a_pooler_a_day_begins_at_midnight_utc_too(
    service: Service, migrated: Database, behind: dict[str, str]
) -> None:
    assert isinstance(migrated, PostgreSQLDatabase)
    migrated.query("ALTER DATABASE postgres SET timezone = 'Asia/Tokyo'")

    assert service.run(".venv/bin/python", "-c", DAY, variables=behind).stdout == "2026-11-24\n"


def test_nobody_migrates_behind_a_pooler(service: Service, behind: dict[str, str]) -> None:
    done = service.run(".venv/bin/alembic", "upgrade", "head", variables=behind, check=False)

    assert done.returncode == 1
    assert done.stdout.startswith("Migrate on PostgreSQL itself")
    dev = service.run(".venv/bin/python", "-m", "scripts.dev", variables=behind, check=False)
    assert dev.returncode == 1
    assert dev.stdout.splitlines()[-1].startswith("Migrate on PostgreSQL itself")


def test_without_the_setting_the_service_says_what_is_wrong(
    service: Service, behind: dict[str, str]
) -> None:
    with service.serve(**behind | {"DATABASE_POOLER": "false"}) as server:
        assert unavailable(server.client.get("/items"))
        assert "unsupported startup parameter" in server.log()


def test_behind_a_pooler_a_server_that_comes_back_is_found_soon(
    service: Service, migrated: Database, behind: dict[str, str]
) -> None:
    with service.serve(**behind) as server:
        assert server.client.get("/items").status_code == 200
        migrated.take_away()
        assert unavailable(server.client.get("/items"))
        migrated.give_back()
        # Its own default is 15 s.
        wait_for(lambda: server.client.get("/items").status_code == 200, seconds=8)
