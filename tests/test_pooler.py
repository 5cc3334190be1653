"""A PgBouncer in transaction mode may stand between the service and its PostgreSQL."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.services import (
    Database,
    PostgreSQLDatabase,
    Service,
    free_port,
    unavailable,
    wait_for,
)

pytestmark = [
    pytest.mark.parametrize("database_name", ["postgresql"], indirect=True),
    pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="there is no pgbouncer here"),
]

# Two connections for all: a transaction seldom gets the one that the client's last one had.
CONFIGURATION = """\
[databases]
postgres = host={folder} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""


@pytest.fixture
def url(migrated: Database, tmp_path: Path) -> Iterator[str]:
    assert isinstance(migrated, PostgreSQLDatabase)
    port = free_port()
    folder = migrated.socket.removesuffix("/.s.PGSQL.5432")
    file = tmp_path / "pgbouncer.ini"
    file.write_text(CONFIGURATION.format(folder=folder, port=port))
    command = ["pgbouncer", str(file)]
    if os.geteuid() == 0:  # which it refuses to be
        command += ["--user", Path(folder).owner()]
    log = tmp_path / "log"
    with log.open("wb") as output, subprocess.Popen(command, stderr=output) as pooler:
        wait_for(lambda: b"process up" in log.read_bytes())
        yield f"postgresql://anybody@127.0.0.1:{port}/postgres"
        pooler.terminate()


def test_a_setting_is_all_that_a_pooler_needs(service: Service, url: str) -> None:
    with (
        service.serve(DATABASE_URL=url, DATABASE_POOLER="true") as server,
        ThreadPoolExecutor(20) as pool,
    ):
        http = server.client

        def use(number: int) -> set[int]:
            created = http.post("/items", json={"name": f"item {number}"})
            path = created.headers["location"]
            changed = http.patch(path, json={"description": "changed"})
            read = http.get(path)
            assert read.json() == changed.json()
            return {created.status_code, changed.status_code, read.status_code}

        assert http.get("/health/ready").status_code == 200
        assert set().union(*pool.map(use, range(100))) == {200, 201}


def test_without_it_the_service_says_what_is_wrong(service: Service, url: str) -> None:
    with service.serve(DATABASE_URL=url) as server:
        assert unavailable(server.client.get("/items"))
        assert "unsupported startup parameter" in server.log()
