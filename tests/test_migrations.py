"""Migrations of a service that runs: beside other replicas, under load, killed half-way."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import watcher
from tests.places import Place, open_place, open_server
from tests.services import PostgreSQLDatabase, Service, environment, replace, wait_for

postgresql = pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
FREED = 5.0  # seconds in which the locks of a migration that was killed are free

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
# As long as a replica is told to be slow.
SLOW = "op.execute(f\"SELECT pg_sleep({os.environ.get('SLOW', 0)})\")"
PLAIN = ['op.add_column("items", sa.Column("note", sa.String(20)))', SLOW]
CONCURRENTLY = [
    "with op.get_context().autocommit_block():",
    '    op.execute("DROP INDEX IF EXISTS ix_items_version")',
    '    op.create_index("ix_items_version", "items", ["version"], postgresql_concurrently=True)',
    f"    {SLOW}",
]


def add_revision(
    service: Service, name: str, after: str, upgrade: list[str], *downgrade: str
) -> None:
    def body(lines: list[str] | tuple[str, ...]) -> str:
        return "\n".join(f"    {line}" for line in lines or ["pass"])

    (service.folder / "migrations" / "versions" / f"{name}.py").write_text(
        REVISION.format(name=name, after=after, upgrade=body(upgrade), downgrade=body(downgrade))
    )


FIRST = "ff1af746d745"


def start(service: Service, url: str, *words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [".venv/bin/alembic", *(words or ("upgrade", "head"))],
        cwd=service.folder,
        env=environment(DATABASE_URL=url, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """Return what the processes said, all of which succeed."""
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


@pytest.fixture(scope="module")
def server(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgreSQLDatabase]:
    with open_server(service, tmp_path_factory.mktemp("migrations")) as server:
        yield server


@pytest.fixture
def place(server: PostgreSQLDatabase) -> Iterator[Place]:
    """A migrated database with a row."""
    with open_place(server, "pattern") as place:
        place.query(
            "INSERT INTO items (name, created_at, updated_at, version) VALUES ('a', now(), now(), 1)"
        )
        yield place


@pytest.fixture
def living(service: Service, tmp_path: Path) -> Service:
    """A service to which a test adds migrations."""
    return service.copy(tmp_path / "service")


MIGRATING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name LIKE '%migrations'"
)


@postgresql
@pytest.mark.parametrize("upgrade", [PLAIN, CONCURRENTLY], ids=["plain", "concurrently"])
def test_replicas_migrate_at_the_same_time_and_one_is_killed(
    living: Service, place: Place, upgrade: list[str]
) -> None:
    add_revision(living, "more", FIRST, upgrade)
    finish(*(start(living, place.url, SLOW="1") for _ in range(3)))
    assert "more" in place.query("SELECT version_num FROM alembic_version")
    place.query("UPDATE alembic_version SET version_num = 'ff1af746d745'")
    place.query("ALTER TABLE items DROP COLUMN IF EXISTS note")

    killed = start(living, place.url, SLOW="300")
    wait_for(lambda: place.number(f"{MIGRATING} AND query LIKE '%pg_sleep%'") == 1, 60)
    others = [start(living, place.url) for _ in range(2)]
    wait_for(lambda: place.number(MIGRATING) == 3, 60)
    killed.kill()
    wait_for(lambda: place.number(f"{MIGRATING} AND query LIKE '%pg_sleep%'") == 0, FREED)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL

    assert any("another process migrates" in said for said in finish(*others))
    assert "more" in place.query("SELECT version_num FROM alembic_version")
    assert place.number(MIGRATING) == 0


@contextmanager
def reading(client: object) -> Iterator[list[int]]:
    statuses: list[int] = []
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            statuses.append(client.get("/items").status_code)  # type: ignore[attr-defined]

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


@postgresql
def test_a_migration_whose_lock_is_not_free_is_tried_again_and_no_request_fails(
    living: Service, place: Place
) -> None:
    add_revision(living, "more", FIRST, PLAIN)
    variables = {"DATABASE_URL": place.url}
    with (
        watcher.serve(living, place.left, **variables) as watched,
        reading(watched.server.client) as statuses,
    ):
        with place.holding("SELECT * FROM items"):
            migration = start(living, place.url)
            wait_for(lambda: place.waiting() > 0, 60)
            time.sleep(2)
        [said] = finish(migration)

    assert "attempt 1 of 30" in said
    assert set(statuses) == {200}


@postgresql
def test_a_migration_that_never_gets_its_lock_says_so_in_one_line(
    living: Service, place: Place
) -> None:
    add_revision(living, "early", FIRST, ['op.execute("CREATE TABLE early (id integer)")'])
    add_revision(living, "more", "early", PLAIN)
    replace(living.folder / "migrations" / "running.py", "ATTEMPTS = 30", "ATTEMPTS = 2")
    with place.holding("SELECT * FROM items"):
        migration = start(living, place.url)
        said, _ = migration.communicate(timeout=60)

    assert migration.returncode == 1
    *_, last = said.splitlines()
    for words in ("early -> more", "2 times", "lock timeout", "ADD COLUMN", "at revision early"):
        assert words in last
    assert "not available" not in said
    assert "Traceback" not in said
    finish(start(living, place.url))


@postgresql
def test_a_relative_downgrade_that_is_tried_again_goes_no_further(
    living: Service, place: Place
) -> None:
    wait = 'op.execute("LOCK TABLE items")'
    for name, after in [("one", FIRST), ("two", "one"), ("three", "two")]:
        add_revision(living, name, after, [], *([wait] if name == "two" else []))
    finish(start(living, place.url))
    with place.holding("SELECT * FROM items"):
        migration = start(living, place.url, "downgrade", "-2")
        wait_for(lambda: place.waiting() > 0, 60)
        time.sleep(1.5)
    [said] = finish(migration)

    assert "attempt 1 of 30" in said
    assert "one" in place.query("SELECT version_num FROM alembic_version")


@postgresql
def test_migrations_that_succeed_one_by_one_succeed_together(living: Service, place: Place) -> None:
    mood = "op.execute(\"CREATE TYPE mood AS ENUM ('calm')\")"
    column = 'op.execute("ALTER TABLE items ADD COLUMN mood mood")'
    label = "op.execute(\"ALTER TYPE mood ADD VALUE 'glad'\")"
    add_revision(living, "mood", FIRST, [mood, column])
    add_revision(living, "label", "mood", [label])
    add_revision(living, "used", "label", ["op.execute(\"UPDATE items SET mood = 'glad'\")"])
    parts = (
        "CREATE TABLE parts (id bigint PRIMARY KEY,"
        " item_id bigint REFERENCES items DEFERRABLE INITIALLY DEFERRED)"
    )
    filled = "INSERT INTO parts SELECT id, id FROM items"
    add_revision(living, "parts", "used", [f'op.execute("{parts}")'])
    add_revision(living, "filled", "parts", [f'op.execute("{filled}")'])
    add_revision(living, "altered", "filled", ['op.execute("ALTER TABLE parts ADD x integer")'])

    finish(start(living, place.url))

    assert place.number("SELECT count(*) FROM parts") == 1


@postgresql
def test_sql_for_others_to_run_has_the_same_limits(living: Service, place: Place) -> None:
    add_revision(living, "more", FIRST, PLAIN)
    printed = living.run(
        ".venv/bin/alembic",
        "upgrade",
        f"{FIRST}:head",
        "--sql",
        variables={"DATABASE_URL": place.url},
    ).stdout
    script = printed[printed.index("SELECT set_config") :]

    assert "BEGIN;\n\nSET LOCAL lock_timeout = '1s';" in script
    for setting in ("statement_timeout", "client_connection_check_interval", "application_name"):
        assert setting in script
    sql = "\n".join(line for line in script.splitlines() if " INFO " not in line)
    place.query(f"SET ROLE guarded;\n{sql}")
    assert "more" in place.query("SELECT version_num FROM alembic_version")
