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
from tests.test_docs import BLOCK, DOCS

pytestmark = [
    pytest.mark.parametrize("database_name", ["postgresql"], indirect=True),
    pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="there is no pgbouncer here"),
]


@pytest.fixture
def url(migrated: Database, tmp_path: Path) -> Iterator[str]:
    assert isinstance(migrated, PostgreSQLDatabase)
    port = str(free_port())
    folder = migrated.socket.removesuffix("/.s.PGSQL.5432")
    page = (DOCS / "how-to/pgbouncer.md").read_text()
    [configuration] = [text for _, title, text in BLOCK.findall(page) if "pgbouncer.ini" in title]
    for old, new in (
        ("shop = host=192.0.2.20", f"shop = host={folder} dbname=postgres user=postgres"),
        ("6432", f"{port}\nunix_socket_dir ="),
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
    with log.open("wb") as output, subprocess.Popen(command, stderr=output) as pooler:
        wait_for(lambda: b"process up" in log.read_bytes())
        yield f"postgresql://anybody@127.0.0.1:{port}/shop"
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
