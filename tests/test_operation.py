"""The page on operation: two roles, point in time, collations, squashing; a lost host."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import Cluster, Node, binaries, binaries_of, open_cluster
from tests.support.databases import Database, PostgreSQLDatabase
from tests.support.pages import Typist, block_text, page_text, tools_first
from tests.support.processes import wait_for
from tests.support.repository import REPOSITORY, replace
from tests.support.services import FIRST, Service

INSTALLED = binaries()
POSTGRESQL = pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
CLUSTER = pytest.mark.skipif(INSTALLED is None, reason="there is no PostgreSQL to set up here")

PAGE = page_text("how-to/operate-the-database.md")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    assert INSTALLED is not None
    with open_cluster(INSTALLED) as cluster:
        yield cluster


@pytest.fixture
def node(cluster: Cluster) -> Node:
    return cluster.create("node")


def type_in(node: Node, command: str, folder: Path, said: str = "") -> None:
    """Type a command as the administrator of the server, or in its container."""
    tools = Path(node.cluster.program("psql")).parent
    place = {"PATH": tools_first(tools), "PGHOST": "127.0.0.1", "PGPORT": str(node.port)}
    Typist(folder, place, {"docker compose exec -T db ": ""}).type(command, said)


@POSTGRESQL
@CLUSTER
@pytest.mark.parametrize("lived", [False, True], ids=["new", "lived in"])
def test_one_role_migrates_and_another_serves(
    service: Service, cluster: Cluster, node: Node, tmp_path: Path, lived: bool
) -> None:
    copy = service.copy(tmp_path / "service")
    node.query("CREATE ROLE app SUPERUSER LOGIN; CREATE DATABASE app OWNER app")
    place = {"DATABASE_HOST": "127.0.0.1", "DATABASE_PORT": str(node.port), "DATABASE_NAME": "app"}
    # Logging in with a password requires the right one.
    rules = node.folder / "pg_hba.conf"
    rules.write_text(f"host all app_owner,app_service all scram-sha-256\n{rules.read_text()}")
    node.query("SELECT pg_reload_conf()")
    if lived:
        copy.run(".venv/bin/alembic", "upgrade", "head", variables=place | {"DATABASE_USER": "app"})
    (copy.folder / "roles.sql").write_text(block_text(PAGE, "roles.sql"))
    type_in(node, block_text(PAGE, "Compose"), copy.folder)
    for role in ("app_owner", "app_service"):
        assert f"`\\password {role}`" in PAGE
        command = f"psql --username=app --dbname=app --command='\\password {role}'"
        type_in(node, command, copy.folder, f"{role}'s\n{role}'s\n")
    override = yaml.safe_load(block_text(PAGE, "compose.override.yaml"))["services"]
    owner, serving = (
        place | override[part]["environment"] | {"DATABASE_PASSWORD": f"{role}'s"}
        for part, role in (("migrate", "app_owner"), ("app", "app_service"))
    )

    copy.run(".venv/bin/alembic", "upgrade", "head", variables=owner)
    with copy.serve(".venv/bin/python", "-m", "app.server", **serving) as server:
        http = server.client
        assert http.get("/health/ready").status_code == 200
        path = http.post("/items", json={"name": "a"}).headers["Location"]
        assert http.get("/items").json()["items"][0]["name"] == "a"
        assert http.patch(path, json={"name": "b"}).json()["name"] == "b"
        assert http.get(path).json()["name"] == "b"
        assert http.delete(path).status_code == 204

        key = 'sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)'
        made = [f'op.create_table("notes", {key})', 'op.execute("CREATE SEQUENCE numbers")']
        copy.add_revision("notes", FIRST, made, 'op.drop_table("notes")')
        copy.run(".venv/bin/alembic", "upgrade", "head", variables=owner)
        assert http.post("/items", json={"name": "c"}).status_code == 201

    def ask(statement: str) -> str:
        done = node.psql(
            f"\\connect app\n\\set ON_ERROR_STOP on\nSET ROLE app_service;\n{statement};"
        )
        return done.stderr

    for allowed in (
        "INSERT INTO notes DEFAULT VALUES",
        "UPDATE items SET description = 'seen'",
        "SELECT nextval('numbers')",
        "SELECT version_num FROM alembic_version",
    ):
        assert ask(allowed) == ""
    for refused in (
        "CREATE TABLE own (id int)",
        "CREATE SCHEMA own",
        "DROP TABLE items",
        "TRUNCATE items",
        "ALTER TABLE items ADD COLUMN own int",
        "CREATE INDEX ON items (description)",
    ):
        assert re.search("permission denied|must be owner", ask(refused)), refused
    done = copy.run(".venv/bin/alembic", "downgrade", "-1", variables=serving, check=False)
    assert done.returncode != 0
    assert "must be owner" in done.stdout


SESSION = """
from fastapi import APIRouter
from sqlalchemy import column, select, table

from app.dependencies import ReaderDep

router = APIRouter()
SETTINGS = select(column("name"), column("setting")).select_from(table("pg_settings"))


@router.get("/session")
async def read_session(reader: ReaderDep) -> dict[str, str]:
    return {name: setting for name, setting in (await reader.execute(SETTINGS)).all()}
"""


@POSTGRESQL
@CLUSTER
def test_the_server_detects_a_lost_host_within_two_minutes(
    service: Service, cluster: Cluster, node: Node, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    copy.extend(routes=SESSION)
    with copy.serve(DATABASE_URL=cluster.url(node.address)) as server:
        session = server.client.get("/session").json()

    idle, interval, probes = (
        int(session[f"tcp_keepalives_{name}"]) for name in ("idle", "interval", "count")
    )
    assert 0 < idle + interval * probes <= 120


@CLUSTER
def test_a_server_returns_to_the_moment_before_a_mistake(cluster: Cluster, node: Node) -> None:
    archive = cluster.folder / "archive"
    archive.mkdir()
    cluster.own(archive)

    def set_in(folder: Path, **settings: str) -> None:
        assert all(f"`{name}" in PAGE for name in settings)
        with (folder / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    node.stop()
    set_in(node.folder, archive_mode="on", archive_command=f"cp %p {archive}/%f")
    node.start()
    node.query("CREATE TABLE items (name text); INSERT INTO items VALUES ('before')")
    returned = cluster.node("returned")
    cluster.run("pg_basebackup", f"--pgdata={returned.folder}", f"--dbname={node.source}")
    node.query("INSERT INTO items VALUES ('after')")
    moment = node.query("SELECT clock_timestamp()")
    node.query("DELETE FROM items")
    segment = node.query("SELECT pg_walfile_name(pg_switch_wal())")
    wait_for((archive / segment).exists)
    node.kill()

    set_in(
        returned.folder,
        archive_mode="off",
        restore_command=f"cp {archive}/%f %p",
        recovery_target_time=moment,
        recovery_target_action="promote",
    )
    cluster.own(returned.folder / "recovery.signal")
    returned.start()

    wait_for(lambda: returned.query("SELECT pg_is_in_recovery()") == "f")
    assert returned.query("SELECT name FROM items").split() == ["before", "after"]


@CLUSTER
def test_the_order_of_texts_in_composes_database_is_the_servers_own(cluster: Cluster) -> None:
    compose = yaml.safe_load((REPOSITORY / "template/variants/postgresql/compose.yaml").read_text())
    arguments = compose["services"]["db"]["environment"]["POSTGRES_INITDB_ARGS"].split()
    node = cluster.node("compose")
    cluster.run(
        "initdb", f"--pgdata={node.folder}", "--username=postgres", "--auth=trust", *arguments
    )
    node.start()

    # Neither depends on what is installed beside the server.
    assert node.query("SELECT datlocprovider FROM pg_database WHERE datname = 'template1'") == "b"
    texts = (
        "SELECT string_agg(text, ' ' ORDER BY text) FROM (VALUES ('é'), ('a'), ('Z')) AS t (text)"
    )
    assert node.query(texts) == "Z a é"
    assert node.query("SELECT upper('é')") == "É"


POSTGRESQL_15 = binaries_of(15)  # which has orders of a library's, with versions


@pytest.mark.skipif(POSTGRESQL_15 is None, reason="there is no PostgreSQL 15 of Debian's here")
def test_after_the_order_of_texts_has_changed_indexes_are_rebuilt(tmp_path: Path) -> None:
    assert POSTGRESQL_15 is not None
    with open_cluster(POSTGRESQL_15) as cluster:
        node = cluster.create("node")
        node.query(
            "CREATE ROLE app LOGIN; CREATE DATABASE app OWNER app TEMPLATE template0"
            " LOCALE_PROVIDER icu ICU_LOCALE 'und'"
        )
        node.query("\\connect app\nSET ROLE app; CREATE TABLE items (name text UNIQUE)")
        node.query("UPDATE pg_database SET datcollversion = '0' WHERE datname = 'app'")
        index = "\\connect app\nSELECT relfilenode FROM pg_class WHERE relname = 'items_name_key'"
        assert "collation version mismatch" in node.psql(index).stderr
        before = node.query(index)

        # Outside of a transaction, each as it stands.
        for statement in block_text(PAGE, "after the C library has changed").strip().splitlines():
            type_in(node, f'psql --username=app --dbname=app --command="{statement}"', tmp_path)

        assert node.query(index) != before
        assert "mismatch" not in node.psql(index).stderr


def test_migrations_are_squashed_into_one(
    service: Service, database: Database, tmp_path: Path
) -> None:
    copy = service.copy(tmp_path / "service")
    versions = copy.folder / "migrations/versions"
    number = 'sa.Column("number", sa.Integer(), server_default="0", nullable=False)'
    copy.add_revision("number", FIRST, [f'op.add_column("items", {number})'])
    model = copy.folder / "app/features/items/models.py"
    version = "    version: Mapped[int]"
    replace(
        model, version, f'    number: Mapped[int] = mapped_column(server_default="0")\n{version}'
    )
    databases = NamedDatabases(database, tmp_path)

    def alembic(place: str, *words: str) -> str:
        return copy.run(".venv/bin/alembic", *words, variables=databases.variables(place)).stdout

    alembic("lived", "upgrade", "head")
    for file in versions.glob("*.py"):
        file.unlink()

    copy.run(
        "sh",
        "-c",
        block_text(PAGE, "step 3").strip().replace("uv run", "uv run --no-sync"),
        variables=databases.variables("compared") | {"REVISION": "number"},
    )

    assert len([*versions.glob("*.py")]) == 1
    alembic("new", "upgrade", "head")
    alembic("lived", "upgrade", "head")
    for place in ("new", "lived"):
        alembic(place, "check")
        assert "number (head)" in alembic(place, "current")
    assert databases.columns("new") == databases.columns("lived")


class NamedDatabases:
    """Several databases where there is one, by their names."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._made: set[str] = set()

    def variables(self, name: str) -> dict[str, str]:
        if isinstance(self._database, PostgreSQLDatabase):
            if name not in self._made:
                self._database.query(f"CREATE DATABASE {name}")
            self._made.add(name)
            uri: str = self._database.server.get_uri()
            return {"DATABASE_URL": uri.replace("/postgres?", f"/{name}?")}
        return {"DATABASE_URL": f"sqlite+aiosqlite:///{self._folder}/{name}.db"}

    def columns(self, name: str) -> set[str]:
        if isinstance(self._database, PostgreSQLDatabase):
            found = self._database.query(
                f"\\connect {name}\nSELECT column_name || ' ' || data_type || ' ' || is_nullable"
                " FROM information_schema.columns WHERE table_name = 'items'"
            )
            return {line for line in found.splitlines() if "items" not in line and name not in line}
        with closing(sqlite3.connect(f"{self._folder}/{name}.db")) as connection:
            columns = connection.execute(
                "SELECT name, type, \"notnull\" FROM pragma_table_info('items')"
            )
            return {str(column) for column in columns}
