"""Migrations of a running service: beside other replicas, under load, killed half-way."""

import json
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support import watcher
from tests.support.databases import Database, PostgreSQLDatabase, SQLiteDatabase
from tests.support.processes import environment, wait_for
from tests.support.proxied import ProxiedDatabase
from tests.support.repository import replace
from tests.support.services import FIRST, Service

postgresql = pytest.mark.parametrize("database_name", ["postgresql"], indirect=True)
FREED = 5.0  # seconds in which the locks of a migration that was killed are free

# As long as a replica is made to be slow.
SLOW = "op.execute(f\"SELECT pg_sleep({os.environ.get('SLOW', 0)})\")"
PLAIN = ['op.add_column("items", sa.Column("note", sa.String(20)))', SLOW]
CONCURRENTLY = [
    "with op.get_context().autocommit_block():",
    '    op.execute("DROP INDEX IF EXISTS ix_items_version")',
    '    op.create_index("ix_items_version", "items", ["version"], postgresql_concurrently=True)',
    f"    {SLOW}",
    '    op.execute("DROP INDEX IF EXISTS ix_items_created")',
    '    op.create_index("ix_items_created", "items", ["created_at"], postgresql_concurrently=True)',
]


def start_alembic(
    service: Service, url: str, *words: str, **variables: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [".venv/bin/alembic", *(words or ("upgrade", "head"))],
        cwd=service.folder,
        env=environment(DATABASE_URL=url, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until_it_waits(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any("another process migrates" in line for line in process.stdout)


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """Return what the processes said, all of which succeed."""
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


@pytest.fixture
def proxied(proxied: ProxiedDatabase) -> ProxiedDatabase:
    """A migrated database with a row."""
    proxied.query(
        "INSERT INTO items (name, created_at, updated_at, version) VALUES ('a', now(), now(), 1)"
    )
    return proxied


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
    living: Service, proxied: ProxiedDatabase, upgrade: list[str]
) -> None:
    living.add_revision("more", FIRST, upgrade)
    finish(*(start_alembic(living, proxied.url, SLOW="1") for _ in range(3)))
    assert "more" in proxied.query("SELECT version_num FROM alembic_version")
    proxied.query("UPDATE alembic_version SET version_num = 'ff1af746d745'")
    proxied.query("ALTER TABLE items DROP COLUMN IF EXISTS note")

    killed = start_alembic(living, proxied.url, SLOW="300")
    wait_for(lambda: proxied.number(f"{MIGRATING} AND query LIKE '%pg_sleep%'") == 1, 60)
    others = [start_alembic(living, proxied.url) for _ in range(2)]
    for other in others:
        read_until_it_waits(other)
    killed.kill()
    wait_for(lambda: proxied.number(f"{MIGRATING} AND query LIKE '%pg_sleep%'") == 0, FREED)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL

    finish(*others)
    assert "more" in proxied.query("SELECT version_num FROM alembic_version")
    assert proxied.number(MIGRATING) == 0


@postgresql
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("upgrade", "what"),
    [
        (PLAIN, "the running migration is rolled back."),
        (CONCURRENTLY, "what its autocommit_block has done is kept, and is run again."),
    ],
    ids=["plain", "concurrently"],
)
def test_a_migration_that_is_interrupted_says_so_and_is_rolled_back(
    living: Service, proxied: ProxiedDatabase, upgrade: list[str], what: str, kind: signal.Signals
) -> None:
    living.add_revision("more", FIRST, upgrade)
    migration = start_alembic(living, proxied.url, SLOW="300")
    wait_for(lambda: proxied.number(f"{MIGRATING} AND query LIKE '%pg_sleep%'") == 1, 60)

    migration.send_signal(kind)
    said, _ = migration.communicate(timeout=30)

    assert migration.returncode == 1
    assert said.endswith(f"Interrupted: {what}\n")
    assert FIRST in proxied.query("SELECT version_num FROM alembic_version")
    wait_for(lambda: proxied.number(MIGRATING) == 0, FREED)


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
def test_a_migration_whose_lock_is_not_free_is_retried_and_no_request_fails(
    living: Service, proxied: ProxiedDatabase
) -> None:
    living.add_revision("more", FIRST, PLAIN)
    variables = {"DATABASE_URL": proxied.url}
    with (
        watcher.serve_watched(living, proxied.left, **variables) as watched,
        reading(watched.server.client) as statuses,
    ):
        with proxied.holding("SELECT * FROM items"):
            migration = start_alembic(living, proxied.url)
            wait_for(lambda: proxied.waiting() > 0, 60)
            time.sleep(2)
        [said] = finish(migration)

    assert "attempt 1 of 30" in said
    assert set(statuses) == {200}


@postgresql
def test_a_migration_that_never_gets_its_lock_says_so_in_one_line(
    living: Service, proxied: ProxiedDatabase
) -> None:
    living.add_revision("early", FIRST, ['op.execute("CREATE TABLE early (id integer)")'])
    living.add_revision("more", "early", PLAIN)
    replace(living.folder / "migrations" / "runner.py", "ATTEMPTS = 30", "ATTEMPTS = 2")
    with proxied.holding("SELECT * FROM items"):
        migration = start_alembic(living, proxied.url)
        said, _ = migration.communicate(timeout=60)

    assert migration.returncode == 1
    *_, last = said.splitlines()
    for words in (
        "early -> more",
        "2 times",
        "lock timeout",
        "ADD COLUMN",
        "Run the command again",
    ):
        assert words in last
    assert "not available" not in said
    assert "Traceback" not in said
    finish(start_alembic(living, proxied.url))


@postgresql
def test_a_retried_relative_downgrade_goes_no_further(
    living: Service, proxied: ProxiedDatabase
) -> None:
    wait = 'op.execute("LOCK TABLE items")'
    for name, after in [("one", FIRST), ("two", "one"), ("three", "two")]:
        living.add_revision(name, after, [], *([wait] if name == "two" else []))
    finish(start_alembic(living, proxied.url))
    with proxied.holding("SELECT * FROM items"):
        migration = start_alembic(living, proxied.url, "downgrade", "-2")
        wait_for(lambda: proxied.waiting() > 0, 60)
        time.sleep(1.5)
    [said] = finish(migration)

    assert "attempt 1 of 30" in said
    assert "one" in proxied.query("SELECT version_num FROM alembic_version")


@postgresql
def test_migrations_that_succeed_one_by_one_succeed_together(
    living: Service, proxied: ProxiedDatabase
) -> None:
    mood = "op.execute(\"CREATE TYPE mood AS ENUM ('calm')\")"
    column = 'op.execute("ALTER TABLE items ADD COLUMN mood mood")'
    label = "op.execute(\"ALTER TYPE mood ADD VALUE 'glad'\")"
    living.add_revision("mood", FIRST, [mood, column])
    living.add_revision("label", "mood", [label])
    living.add_revision("used", "label", ["op.execute(\"UPDATE items SET mood = 'glad'\")"])
    parts = (
        "CREATE TABLE parts (id bigint PRIMARY KEY,"
        " item_id bigint REFERENCES items DEFERRABLE INITIALLY DEFERRED)"
    )
    filled = "INSERT INTO parts SELECT id, id FROM items"
    living.add_revision("parts", "used", [f'op.execute("{parts}")'])
    living.add_revision("filled", "parts", [f'op.execute("{filled}")'])
    living.add_revision("altered", "filled", ['op.execute("ALTER TABLE parts ADD x integer")'])

    finish(start_alembic(living, proxied.url))

    assert proxied.number("SELECT count(*) FROM parts") == 1


@postgresql
def test_sql_for_others_to_run_has_the_same_limits(
    living: Service, proxied: ProxiedDatabase
) -> None:
    living.add_revision("more", FIRST, PLAIN)
    printed = living.run(
        ".venv/bin/alembic",
        "upgrade",
        f"{FIRST}:head",
        "--sql",
        variables={"DATABASE_URL": proxied.url},
    ).stdout
    script = printed[printed.index("SELECT set_config") :]

    assert "BEGIN;\n\nSET LOCAL lock_timeout = '1s';" in script
    for setting in ("statement_timeout", "client_connection_check_interval", "application_name"):
        assert setting in script
    sql = "\n".join(line for line in script.splitlines() if " INFO " not in line)
    proxied.query(f"SET ROLE guarded;\n{sql}")
    assert "more" in proxied.query("SELECT version_num FROM alembic_version")


MODELS = """
import enum

from sqlalchemy import CheckConstraint, Computed, Enum, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base


class Mood(enum.Enum):
    calm = "calm"
    glad = "glad"


class Thing(Base):
    __tablename__ = "things"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    price: Mapped[int] = mapped_column(server_default=text("1"))
    word: Mapped[str] = mapped_column(server_default="it's")
    twice: Mapped[int] = mapped_column(Computed("price * 2"))
    mood: Mapped[Mood] = mapped_column(Enum(Mood, name="mood"))
    __table_args__ = (
        CheckConstraint("price > 0", name="price"),
        Index("ix_things_lower", func.lower(text("name"))),
        Index("ix_things_price", text("price DESC")),
    )
"""
ELSEWHERE = """

class Other(Base):
    __tablename__ = "others"

    id: Mapped[int] = mapped_column(primary_key=True)
    thing_id: Mapped[int] = mapped_column(ForeignKey(Thing.id))
    __table_args__ = {"schema": "other"}
"""
# Changes of the models that can be made together, and what `alembic check` says of each.
REMOVED = {
    ('CheckConstraint("price > 0", name="price"),', ""): "'remove_constraint'.*'ck_things_price'",
    ('server_default=text("1")', ""): r"'modify_default', None, 'things', 'price', .*None\)\]",
    ("it's", "its"): r"'modify_default', None, 'things', 'word', .*DefaultClause\('its'",
}
CHANGED = {
    ('name="price"', 'name="cost"'): "'remove_constraint'.*_price'.*'add_constraint'.*_cost'",
    (
        'server_default=text("1")',
        'server_default=text("2")',
    ): "'modify_default', None, 'things', 'price', ",
}
SEEN_BY_POSTGRESQL = {
    ('    glad = "glad"', '    glad = "glad"\n    sad = "sad"'): "'modify_type'.*'mood'.*'sad'",
    ("func.lower", "func.upper"): "'remove_index'.*_lower'.*'add_index'.*_lower'.*upper",
    ('text("price DESC")', '"price"'): "'remove_index'.*_price'.*'add_index'.*_price', Column",
    (
        "    thing_id",
        "    more: Mapped[int]\n    thing_id",
    ): "'add_column', 'other', 'others'.*more",
}


def write_models(service: Service, models: str) -> None:
    package = service.folder / "app" / "features" / "more"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "models.py").write_text(models)


def test_what_the_models_have_and_the_database_lacks_is_found(
    living: Service, migrated: Database
) -> None:
    models = MODELS
    variables = migrated.variables | {"PYTHONWARNINGS": "error"}  # as pytest takes them
    if isinstance(migrated, PostgreSQLDatabase):
        models += ELSEWHERE
        migrated.query("CREATE SCHEMA other; CREATE SCHEMA foreign_; CREATE TABLE foreign_.t ()")
    write_models(living, models)
    alembic = ".venv/bin/alembic"
    living.run(alembic, "revision", "--autogenerate", "-m", "create", variables=variables)
    living.run(alembic, "upgrade", "head", variables=variables)
    living.run(alembic, "check", variables=variables)

    more = SEEN_BY_POSTGRESQL if isinstance(migrated, PostgreSQLDatabase) else {}
    for changes in (REMOVED, CHANGED | more):
        changed = models
        for old, new in changes:
            replaced = changed.replace(old, new)
            assert replaced != changed
            changed = replaced
        write_models(living, changed)
        refused = living.run(alembic, "check", variables=variables, check=False)
        assert refused.returncode != 0
        for found in changes.values():
            assert re.search(found, refused.stdout), (found, refused.stdout)


def own_tests(service: Service) -> str:
    """Run the service's own tests of its migrations, and return what they say."""
    done = service.run(".venv/bin/pytest", "tests/test_migrations.py", "-k", "rows", check=False)
    return "" if done.returncode == 0 else done.stdout


def test_a_column_that_must_not_be_null_is_refused_without_a_default(living: Service) -> None:
    note = 'sa.Column("note", sa.String(20), nullable=False{more})'
    add = "with op.batch_alter_table('items') as batch:\n        batch.add_column({column})"
    wrong, right = (note.format(more=more) for more in ("", ', server_default=""'))
    drop = ["with op.batch_alter_table('items') as batch:", "    batch.drop_column('note')"]
    living.add_revision("note", FIRST, [add.format(column=wrong)], *drop)
    assert "note" in own_tests(living)
    living.add_revision("note", FIRST, [add.format(column=right)], *drop)
    assert own_tests(living) == ""


@postgresql
def test_a_type_that_a_downgrade_leaves_behind_is_named(living: Service) -> None:
    make = (
        'op.create_table("moods", sa.Column("id", sa.Integer, primary_key=True),'
        ' sa.Column("mood", sa.Enum("calm", "glad", name="mood"), nullable=False))'
    )
    drop = 'op.drop_table("moods")'
    living.add_revision("moods", FIRST, [make], drop)
    assert 'Add: op.execute("DROP TYPE mood")' in own_tests(living)
    living.add_revision("moods", FIRST, [make], drop, 'op.execute("DROP TYPE mood")')
    assert own_tests(living) == ""


def test_rows_are_made_for_tables_of_every_kind(living: Service, migrated: Database) -> None:
    write_models(living, MODELS)
    alembic = (".venv/bin/alembic", "revision", "--autogenerate", "-m", "create")
    living.run(*alembic, variables=migrated.variables)
    [path] = (living.folder / "migrations" / "versions").glob("*_create.py")
    if isinstance(migrated, PostgreSQLDatabase):
        path.write_text(f'{path.read_text()}    op.execute("DROP TYPE mood")\n')
    assert own_tests(living) == ""


def test_a_revision_that_is_written_by_hand_keeps_its_imports(
    living: Service, migrated: Database
) -> None:
    living.run(".venv/bin/alembic", "revision", "-m", "by hand", variables=migrated.variables)
    [path] = (living.folder / "migrations" / "versions").glob("*_by_hand.py")
    replace(path, "upgrade() -> None:\n    pass", "upgrade() -> None:\n    op.execute('SELECT 1')")
    living.run(".venv/bin/ruff", "check")
    assert "import sqlalchemy as sa" in path.read_text()
    living.run(".venv/bin/alembic", "upgrade", "head", variables=migrated.variables)


@postgresql
def test_a_revision_that_its_column_cannot_hold_is_refused_before_anything_runs(
    living: Service, proxied: ProxiedDatabase
) -> None:
    living.add_revision("early", FIRST, ['op.execute("CREATE TABLE early (id integer)")'])
    living.add_revision("r" * 33, "early", [])
    migration = start_alembic(living, proxied.url)
    said, _ = migration.communicate(timeout=60)

    assert migration.returncode != 0
    assert f"{'r' * 33} is longer than 32 characters" in said
    assert FIRST in proxied.query("SELECT version_num FROM alembic_version")


sqlite = pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)

TABLE = [
    """\
for statement in (
        "CREATE TABLE things (id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, name VARCHAR(20),"
        " price INTEGER CHECK (price > 0), CONSTRAINT ck_things_name CHECK (length(name) < 19))",
        "CREATE INDEX ix_lower ON things (lower(name))",
        "CREATE INDEX ix_some ON things (name) WHERE price > 3",
        "CREATE INDEX ix_down ON things (price DESC)",
        "CREATE INDEX ix_gone ON things (price)",
        "CREATE VIEW names AS SELECT name FROM things",
        "CREATE TRIGGER own AFTER INSERT ON things BEGIN UPDATE items SET version = 2; END",
        "CREATE TRIGGER others AFTER INSERT ON items BEGIN UPDATE things SET price = 2; END",
        "INSERT INTO things VALUES (7, 'a', 1), (9, 'b', 2)",
        "DELETE FROM things WHERE id = 9",
    ):
        op.execute(statement)""",
    'op.execute(f"CREATE TABLE slow{os.getpid()} (id INTEGER)")',
]
KEPT = ["ix_lower", "ix_some", "ix_down", "names", "own", "others"]


def objects(database: SQLiteDatabase) -> dict[str, str]:
    with closing(sqlite3.connect(database.path)) as connection:
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


@sqlite
def test_a_recreated_table_keeps_what_it_has(living: Service, migrated: Database) -> None:
    assert isinstance(migrated, SQLiteDatabase)
    url = migrated.variables["DATABASE_URL"]
    rebuild = "with op.batch_alter_table('things') as batch:"
    longer = "    batch.alter_column('name', type_=sa.String(30))"
    living.add_revision("table", FIRST, TABLE)
    finish(start_alembic(living, url))
    before = objects(migrated)
    living.add_revision("longer", "table", [rebuild, longer, "    batch.drop_index('ix_gone')"])
    finish(start_alembic(living, url))

    after = objects(migrated)
    assert {name: after.get(name) for name in KEPT} == {name: before[name] for name in KEPT}
    assert "ix_gone" not in after
    for part in ("VARCHAR(30)", "AUTOINCREMENT", "CHECK (price > 0)", "ck_things_name"):
        assert part in after["things"]
    with closing(sqlite3.connect(migrated.path)) as connection:
        added = connection.execute("INSERT INTO things (name, price) VALUES ('c', 1) RETURNING id")
        assert added.fetchall() == [(10,)]


@sqlite
@pytest.mark.parametrize(
    ("table", "change", "named"),
    [
        ("x VARCHAR", "batch.drop_column('name')", "trigger tr"),
        ("x VARCHAR", "batch.alter_column('name', new_column_name='more')", "trigger tr"),
        ("x VARCHAR COLLATE NOCASE", "batch.alter_column('name', nullable=False)", "COLLATE"),
        ("x VARCHAR, UNIQUE (x) ON CONFLICT IGNORE", "batch.drop_index('ix_x')", "ON CONFLICT"),
        ("x VARCHAR", "batch.drop_column('x')", "view v"),
        ("old INTEGER, x VARCHAR COLLATE NOCASE", "batch.drop_column('old')", "COLLATE"),
        ("x VARCHAR, y INTEGER, CHECK (y > 0)", "batch.drop_column('y')", "a CHECK of things"),
    ],
)
def test_a_table_that_would_lose_something_is_refused_by_name(
    living: Service, migrated: Database, table: str, change: str, named: str
) -> None:
    assert isinstance(migrated, SQLiteDatabase)
    with closing(sqlite3.connect(migrated.path)) as connection:
        connection.executescript(
            f"CREATE TABLE things (id INTEGER NOT NULL PRIMARY KEY, name VARCHAR(20), {table});"
            "CREATE INDEX ix_x ON things (id);"
            "CREATE VIEW v AS SELECT x FROM things;"
            "CREATE TRIGGER tr AFTER INSERT ON things BEGIN SELECT new.name; END;"
        )
    before = objects(migrated)
    rebuild = "with op.batch_alter_table('things', recreate='always') as batch:"
    living.add_revision("change", FIRST, [rebuild, f"    {change}"])
    migration = start_alembic(living, migrated.variables["DATABASE_URL"])
    said, _ = migration.communicate(timeout=60)

    assert migration.returncode != 0
    assert named in said
    assert objects(migrated) == before


@sqlite
def test_a_copy_keeps_what_reflection_does_not_know(living: Service, migrated: Database) -> None:
    assert isinstance(migrated, SQLiteDatabase)
    with closing(sqlite3.connect(migrated.path)) as connection:
        connection.executescript(
            "CREATE TABLE things (id INTEGER NOT NULL PRIMARY KEY, old VARCHAR COLLATE NOCASE,"
            " x INTEGER, twice INTEGER GENERATED ALWAYS AS (x * 2) STORED, CHECK (x < 9));"
            "ALTER TABLE things ADD COLUMN item_id INTEGER CONSTRAINT fk REFERENCES items (id)"
            " ON DELETE CASCADE;"
            "INSERT INTO things (id, x) VALUES (1, 4);"
        )
    rebuild = "with op.batch_alter_table('things') as batch:"
    change = [
        "    batch.drop_column('old')",  # with its collation
        "    batch.alter_column('x', type_=sa.BigInteger(), existing_type=sa.Integer())",
    ]
    living.add_revision("change", FIRST, [rebuild, *change])
    finish(start_alembic(living, migrated.variables["DATABASE_URL"]))

    made = objects(migrated)["things"]
    for part in ("CHECK (x < 9)", "ON DELETE CASCADE", "type_of_x"):
        assert part in made
    with closing(sqlite3.connect(migrated.path)) as connection:
        assert connection.execute("SELECT x, twice FROM things").fetchall() == [(4, 8)]


@postgresql
def test_the_check_of_a_type_follows_its_column(living: Service, proxied: ProxiedDatabase) -> None:
    def checks() -> dict[str, str]:
        rows = proxied.query(
            "SELECT 'found=' || json_object_agg(conname, pg_get_constraintdef(oid)) FROM pg_constraint"
            " WHERE conrelid = 'items'::regclass AND conname LIKE 'type_of_%'"
        )
        found: dict[str, str] = json.loads(re.findall(r"found=(\{.*\})", rows)[0])
        return found

    before = checks()
    living.add_revision("add", FIRST, ["op.add_column('items', sa.Column('due', sa.Date))"])
    finish(start_alembic(living, proxied.url))
    added = checks().keys() - before.keys()
    # Existing rows are not scanned, which would take a lock of the whole table.
    assert (added, checks()["type_of_due"][-9:]) == ({"type_of_due"}, "NOT VALID")

    rename = "op.alter_column('items', 'due', new_column_name='deadline')"
    retype = "op.alter_column('items', 'description', type_=sa.Float(), postgresql_using='NULL')"
    living.add_revision("change", "add", [rename, retype])
    finish(start_alembic(living, proxied.url))
    assert checks().keys() - before.keys() == {"type_of_deadline", "type_of_description"}
    assert "NaN" in checks()["type_of_description"]

    back = "op.alter_column('items', 'description', type_=sa.String(99), postgresql_using='NULL')"
    living.add_revision("back", "change", [back, "op.drop_column('items', 'deadline')"])
    finish(start_alembic(living, proxied.url))
    assert checks() == before


@sqlite
def test_replicas_that_copy_tables_take_turns_and_one_is_killed(
    living: Service, migrated: Database, tmp_path: Path
) -> None:
    assert isinstance(migrated, SQLiteDatabase)
    url = migrated.variables["DATABASE_URL"]
    there = tmp_path / "there"
    wait = [
        "if 'SLOW' in os.environ:",
        f"    import pathlib, time; pathlib.Path({str(there)!r}).touch(); time.sleep(300)",
    ]
    rebuild = "with op.batch_alter_table('items') as batch:"
    longer = "    batch.alter_column('name', type_=sa.String(201))"
    outside = ["with op.get_context().autocommit_block():", "    op.execute('SELECT 1')"]
    living.add_revision("longer", FIRST, [rebuild, longer])
    living.add_revision("slow", "longer", [*outside, *wait])
    living.add_revision("table", "slow", ["op.create_table('made', sa.Column('id', sa.Integer))"])

    killed = start_alembic(living, url, SLOW="1")
    wait_for(there.exists, 60)
    others = [start_alembic(living, url) for _ in range(2)]
    for other in others:
        read_until_it_waits(other)
    killed.kill()
    killed.communicate()

    finish(*others)
    assert "made" in objects(migrated)


def test_a_release_is_rolled_back_by_its_image_alone(
    service: Service, living: Service, migrated: Database
) -> None:
    living.add_revision("newer", FIRST, ["op.create_table('made', sa.Column('id', sa.Integer))"])
    variables = migrated.variables
    step = re.findall(r"command: \[(.*)\]", (service.folder / "compose.yaml").read_text())[0]
    command = [
        f".venv/bin/{word}" if word == "alembic" else word for word in json.loads(f"[{step}]")
    ]
    living.run(*command, variables=variables)

    back = service.run(*command, variables=variables)
    assert "revision newer, which is not among these migrations" in back.stdout
    with service.serve(**variables) as server:
        assert server.client.get("/health/ready").status_code == 200
        assert server.client.post("/items", json={"name": "a"}).status_code == 201

    plain = service.run(".venv/bin/alembic", "upgrade", "head", variables=variables, check=False)
    assert plain.returncode != 0
    assert "another branch's" in plain.stdout
    assert "Traceback" not in plain.stdout
    forward = living.run(*command, variables=variables)
    assert "not among these migrations" not in forward.stdout


@postgresql
def test_a_role_that_may_not_read_the_revision_is_told_so(
    service: Service, proxied: ProxiedDatabase
) -> None:
    proxied.query("ALTER TABLE alembic_version OWNER TO CURRENT_USER")
    proxied.query("REVOKE ALL ON alembic_version FROM guarded")
    variables = {"DATABASE_URL": proxied.url}
    denied = "permission denied for table alembic_version"

    examined = service.run(".venv/bin/python", "-m", "app.doctor", variables=variables, check=False)
    assert examined.returncode == 1
    assert denied in examined.stdout
    assert "upgrade head" not in examined.stdout

    with watcher.serve_watched(service, proxied.left, **variables) as watched:
        assert watched.server.client.get("/health/ready").status_code == 503
        assert f"not ready: {denied}" in watched.server.log()

    refused = service.run(".venv/bin/alembic", "upgrade", "head", variables=variables, check=False)
    assert refused.returncode == 1
    assert denied in refused.stdout
    assert "not available" not in refused.stdout


@postgresql
def test_a_commit_that_gets_no_answer_is_not_called_a_rollback(
    living: Service, proxied: ProxiedDatabase
) -> None:
    proxied.query(
        "ALTER TABLE items DROP CONSTRAINT uq_items_name,"
        " ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"
    )
    insert = (
        "INSERT INTO items (name, created_at, updated_at, version) VALUES ('b', now(), now(), 1)"
    )
    living.add_revision("more", FIRST, [f'op.execute("{insert}")'])
    with proxied.holding(insert):  # of the same name: only the commit will wait for it
        migrating = start_alembic(living, proxied.url)
        committing = f"{MIGRATING} AND query ~ '^COMMIT' AND wait_event_type = 'Lock'"
        wait_for(lambda: proxied.number(committing) == 1, 60)
        proxied.proxy.cut()
        said, _ = migrating.communicate(timeout=120)
    assert migrating.returncode != 0
    assert "did not confirm a migration: `alembic current` says whether it is committed" in said
    assert "rolled back" not in said


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_the_models_of_a_feature_that_can_not_be_imported_are_not_taken_for_deleted(
    living: Service, migrated: Database
) -> None:
    package = living.folder / "app" / "features" / "broken"
    package.mkdir()
    (package / "__init__.py").write_text("import nowhere\n")
    (package / "models.py").touch()
    checked = living.run(".venv/bin/alembic", "check", variables=migrated.variables, check=False)
    assert checked.returncode != 0
    assert "No module named 'nowhere'" in checked.stdout


def test_an_index_of_an_expression_is_made_and_then_known(
    living: Service, migrated: Database
) -> None:
    models = living.folder / "app" / "features" / "items" / "models.py"
    index = 'Index("uq_items_lower_name", func.lower(Item.name), unique=True)'
    models.write_text(f"{models.read_text()}\n\nfrom sqlalchemy import Index, func\n\n{index}\n")

    def alembic(*words: str) -> str:
        return living.run(".venv/bin/alembic", *words, variables=migrated.variables).stdout

    alembic("revision", "--autogenerate", "-m", "names without case")
    alembic("upgrade", "head")
    assert "No new upgrade operations detected" in alembic("check")
    with living.serve(**migrated.variables) as server:
        statuses = [
            server.client.post("/items", json={"name": name}).status_code for name in ("a", "A")
        ]
    assert statuses == [201, 409]


COMPUTED = [
    'columns = sa.Column("a", sa.Integer), sa.Column("b", sa.Integer, sa.Computed("a * (1 + 1)"))',
    'op.create_table("twice", *columns)',
    'op.execute("INSERT INTO twice (a) VALUES (2)")',
    'with op.batch_alter_table("twice") as batch:',
    '    batch.add_column(sa.Column("c", sa.Integer, server_default="0", nullable=False))',
    '    batch.alter_column("a", nullable=False)',
    'assert [*op.get_bind().exec_driver_sql("SELECT a, b, c FROM twice")] == [(2, 4, 0)]',
]


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_a_table_whose_last_column_is_computed_can_be_copied(
    living: Service, migrated: Database
) -> None:
    living.add_revision("computed", FIRST, COMPUTED)
    living.migrate(migrated)


CODED = [
    'key, code = sa.Column("a key", sa.Uuid), sa.Column("a code", sa.CHAR(32))',
    'op.create_table("coded", key, code, sa.Column("number", sa.Integer))',
    "op.execute(f\"INSERT INTO coded VALUES ('{32 * 'a'}', '{32 * 'A'}', 1)\")",
    'with op.batch_alter_table("coded") as batch:',
    '    batch.alter_column("number", nullable=False)',
]


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_a_copied_table_knows_a_uuid_from_other_texts_whatever_the_names(
    living: Service, migrated: Database
) -> None:
    assert isinstance(migrated, SQLiteDatabase)
    living.add_revision("coded", FIRST, CODED)
    living.migrate(migrated)
    with closing(sqlite3.connect(migrated.path)) as connection:
        connection.execute("INSERT INTO coded VALUES (NULL, 'any text', 1)")
        with pytest.raises(sqlite3.IntegrityError, match="type_of_a key"):
            connection.execute("INSERT INTO coded VALUES ('any text', NULL, 1)")
