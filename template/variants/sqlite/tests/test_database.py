import asyncio
import datetime
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from pydantic import ValidationError
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    Table,
    TypeDecorator,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.schema import CreateTable

from app.database import UTCDateTime
from app.database.connections import set_up
from app.database.dialect import Dialect
from app.database.errors import explain, public_message
from app.database.json_serializer import load
from app.database.reader import Reader
from app.database.revisions import VERSIONS
from app.database.violations import violated_columns
from app.doctor import examine
from app.factory import create_app
from app.settings import ServiceSettings
from migrations.impl import definitions
from tests.database import alembic

METADATA = MetaData()
MOMENTS = Table("tested_moments", METADATA, Column("moment", UTCDateTime))
COUNTERS = Table("tested_counters", METADATA, Column("value", Integer))


@pytest.mark.parametrize(
    ("given", "driver_url"),
    [
        ("sqlite:///./app.db", "sqlite+aiosqlite:///./app.db"),
        ("sqlite+aiosqlite:////data/app.db", "sqlite+aiosqlite:////data/app.db"),
    ],
)
def test_a_url_is_normalised_to_aiosqlites(given: str, driver_url: str) -> None:
    assert ServiceSettings(database_url=given).driver_url.render_as_string() == driver_url


@pytest.mark.parametrize(
    "wrong",
    [
        "sqlite+pysqlite:///./app.db",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///./app.db?mode=memory",
        "sqlite+aiosqlite://host/app.db",
        "sqlite+aiosqlite://:hunter2@:80/app.db",
        "./app.db",
    ],
)
def test_what_names_no_file_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        ServiceSettings(database_url=wrong)


def test_only_a_migration_creates_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServiceSettings(database_url=f"sqlite+aiosqlite:///{tmp_path}/none.db")
    # As in a service that has migrations: the first one is begun on an empty file.
    monkeypatch.setattr("alembic.script.ScriptDirectory.get_heads", lambda _: ["some"])

    for ask in (command.current, command.check):
        with pytest.raises(SystemExit, match="none.db is missing"):
            ask(alembic(settings))

    assert [*tmp_path.iterdir()] == []


def test_a_migration_that_never_gets_its_lock_says_so(
    unmigrated_settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = unmigrated_settings.model_copy(update={"database_command_timeout": 0.1})
    command.upgrade(alembic(settings), "head")
    monkeypatch.setattr("migrations.runner.ATTEMPTS", 2)
    monkeypatch.setattr("migrations.runner.PAUSE", 0)
    with closing(sqlite3.connect(str(settings.driver_url.database))) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SystemExit, match="was rolled back 2 times, at last for: .*BEGIN"):
            command.downgrade(alembic(settings), "base")


def test_a_definition_is_found_whatever_is_said_beside_it() -> None:
    table = """CREATE TABLE t (
        a INTEGER, -- the owner's (really, b
        "b""c" TEXT /* it's, d */, d TEXT DEFAULT '--', CHECK (d <> '/*')
    )"""

    found = definitions(table)

    assert {"a", 'b"c', "d", "CHECK"} <= found.keys()
    assert "'--'" in found["d"]
    assert "'/*'" in found["CHECK"]


async def test_a_value_that_is_not_of_its_columns_type_names_the_column(app: FastAPI) -> None:
    async with app.state.engine.begin() as connection:
        await connection.run_sync(COUNTERS.create)
    async with app.state.engine.connect() as connection:
        with pytest.raises(IntegrityError) as refused:
            await connection.execute(text("INSERT INTO tested_counters VALUES ('many')"))

    assert violated_columns(refused.value) == ("value",)


def test_a_type_that_decorates_another_is_checked_as_that_one() -> None:
    class Local(TypeDecorator[datetime.datetime]):
        impl = UTCDateTime
        cache_ok = True

    table = Table("tested", MetaData(), Column("moment", Local))

    assert "type_of_moment" in str(CreateTable(table).compile(dialect=Dialect()))


def test_what_json_lacks_is_the_text_that_is_stored() -> None:
    assert load("[NaN, Infinity]") == "[NaN, Infinity]"


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT tested.colour FROM tested", "no such column: tested.colour"),
        ("UPDATE tested SET colour = 1", "no such column: colour"),
        ("INSERT INTO tested (colour) VALUES (1)", "table tested has no column named colour"),
        ("ALTER TABLE tested ADD COLUMN name TEXT", "duplicate column name: name"),
        (
            "ALTER TABLE tested ADD COLUMN host TEXT NOT NULL",
            "Cannot add a NOT NULL column with default value NULL",
        ),
        ("SELECT json_extract('{}', 'hunter2')", "SQLITE_ERROR"),
        ("CREATE INDEX tested_names ON tested ('hunter2''s')", "SQLITE_ERROR"),
        ("ALTER TABLE tested DROP COLUMN 'hunter2'", "SQLITE_ERROR"),
    ],
)
def test_the_log_names_a_missing_column_and_no_text(statement: str, shown: str) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE tested (name TEXT)")
        connection.execute("INSERT INTO tested VALUES ('a')")
        with pytest.raises(sqlite3.Error) as raised:
            connection.execute(statement)

    assert public_message(raised.value) == shown


async def test_each_upgrade_gathers_index_statistics(
    app: FastAPI, settings: ServiceSettings
) -> None:
    engine = app.state.engine

    async def plan() -> str:
        await engine.dispose()  # a connection keeps the statistics with which it was opened
        async with engine.connect() as connection:
            query = "EXPLAIN QUERY PLAN SELECT * FROM tested_pairs WHERE one = 0 AND two = 0"
            return str((await connection.execute(text(query))).one().detail)

    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE tested_pairs (one INTEGER, two INTEGER)"))
        await connection.execute(text("CREATE INDEX by_one ON tested_pairs (one)"))
        await connection.execute(text("CREATE INDEX by_two ON tested_pairs (two)"))
    guess, better = ("by_one", "by_two") if "by_one" in await plan() else ("by_two", "by_one")
    row = "0, number" if guess == "by_one" else "number, 0"
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "WITH RECURSIVE numbers (number) AS"
                " (SELECT 1 UNION ALL SELECT number + 1 FROM numbers LIMIT 10000)"
                f" INSERT INTO tested_pairs SELECT {row} FROM numbers"
            )
        )

    assert guess in await plan()  # all of the rows
    await asyncio.to_thread(command.upgrade, alembic(settings), "head")
    assert better in await plan()


async def test_every_connection_enforces_foreign_keys(app: FastAPI) -> None:
    async with app.state.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE tested_parents (id INTEGER PRIMARY KEY)"))
        await connection.execute(
            text("CREATE TABLE tested_children (parent_id INTEGER REFERENCES tested_parents (id))")
        )

    for _ in range(3):
        with pytest.raises(IntegrityError):
            async with app.state.engine.begin() as connection:
                await connection.execute(text("INSERT INTO tested_children VALUES (1)"))


async def test_a_commit_is_on_the_disk_when_it_returns(app: FastAPI) -> None:
    async with app.state.engine.connect() as connection:
        synchronous = await connection.exec_driver_sql("PRAGMA synchronous")

        # FULL, https://sqlite.org/pragma.html#pragma_synchronous
        assert synchronous.scalar_one() == 2


async def test_no_update_is_lost_when_many_read_and_write(app: FastAPI) -> None:
    async with app.state.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
        await connection.execute(insert(COUNTERS).values(value=0))

    async def count_up() -> None:
        async with app.state.sessionmaker.begin() as session:
            value = (await session.execute(select(COUNTERS.c.value))).scalar_one()
            await session.execute(update(COUNTERS).values(value=value + 1))

    await asyncio.gather(*(count_up() for _ in range(20)))

    [row] = (await app.state.reader.execute(select(COUNTERS.c.value))).all()
    assert row.value == 20


async def test_a_transaction_without_a_statement_blocks_no_other(app: FastAPI) -> None:
    async with app.state.sessionmaker.begin(), app.state.sessionmaker.begin() as other:
        await other.execute(text("SELECT 1"))


async def test_a_commit_that_fails_leaves_no_transaction_open(app: FastAPI) -> None:
    async with app.state.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE tested_parents (id INTEGER PRIMARY KEY)"))
        await connection.execute(
            text(
                "CREATE TABLE tested_children"
                " (id INTEGER REFERENCES tested_parents DEFERRABLE INITIALLY DEFERRED)"
            )
        )

    for _ in range(2):  # the second time on the same connection
        async with app.state.sessionmaker() as session:
            await session.execute(text("INSERT INTO tested_children VALUES (1)"))
            with pytest.raises(IntegrityError):
                await session.commit()


async def test_a_missing_file_is_unavailability_and_is_not_created(
    unmigrated_settings: ServiceSettings,
) -> None:
    app = create_app(unmigrated_settings)
    path = unmigrated_settings.driver_url.database
    assert path is not None
    Path(path).unlink()

    async with app.router.lifespan_context(app):
        with pytest.raises(DBAPIError) as failed:
            await app.state.reader.execute(select(text("1")))

    assert explain(failed.value)[0] == 503
    assert not Path(path).exists()


async def test_a_file_that_is_replaced_while_it_is_opened_takes_no_commit(
    app: FastAPI, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(str(settings.driver_url.database))

    async def replace_and_set_up(connection: Any) -> None:
        file.parent.rename(file.parent.with_name(f"{file.parent.name}-moved"))
        file.parent.mkdir()
        file.write_bytes(b"another")
        await set_up(connection)

    with monkeypatch.context() as patch, pytest.raises(DBAPIError) as failed:
        patch.setattr("app.database.dialect.set_up", replace_and_set_up)
        async with app.state.engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)

    assert explain(failed.value) == (503, "unreachable")


async def test_a_session_that_is_cancelled_at_any_step_leaves_the_file_to_others(
    app: FastAPI,
) -> None:
    async def work() -> None:
        async with app.state.sessionmaker() as session:
            await session.execute(text("SELECT 1"))

    async def give_up() -> None:
        with suppress(asyncio.CancelledError):
            await work()

    await work()
    for steps in 3 * [*range(30)]:
        cancelled, waiting = asyncio.create_task(give_up()), asyncio.create_task(work())
        for _ in range(steps):
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled, waiting])
        waiting.result()  # or "database is locked"


@pytest.mark.parametrize(
    ("statement", "status"),
    [
        ("SELECT zeroblob(2000000000)", 500),
        ("WITH large AS (SELECT zeroblob(2000000000) AS b) SELECT b FROM large", 500),
        ("INSERT INTO alembic_version VALUES (zeroblob(2000000000))", 422),
    ],
)
async def test_a_value_that_is_too_large_is_the_clients_only_in_a_write(
    app: FastAPI, statement: str, status: int
) -> None:
    assert explain(await refusal(app, statement)) == (status, "")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT * FROM absent", (503, "schema changed")),
        ("SELECT absent FROM alembic_version", (503, "schema changed")),
        ("INSERT INTO alembic_version (absent) VALUES (1)", (503, "schema changed")),
        ("SELECT json_extract('{}', 'absent')", (500, "")),
    ],
)
async def test_a_table_or_a_column_that_is_missing_is_the_schemas_fault(
    app: FastAPI, statement: str, expected: tuple[int, str]
) -> None:
    assert explain(await refusal(app, statement)) == expected


async def refusal(app: FastAPI, statement: str) -> DBAPIError:
    async with app.state.engine.connect() as connection:
        with pytest.raises(DBAPIError) as failed:
            await connection.execute(text(statement))
    return failed.value


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_a_file_that_is_replaced_during_a_transaction_takes_no_commit(
    app: FastAPI, settings: ServiceSettings, suffix: str
) -> None:
    file = Path(f"{settings.driver_url.database}{suffix}")

    with pytest.raises(DBAPIError) as failed:
        async with app.state.engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
            file.rename(f"{file}-moved")
            file.touch()

    assert explain(failed.value) == (503, "unreachable")


async def test_reads_continue_while_another_process_writes(
    app: FastAPI, settings: ServiceSettings
) -> None:
    reader: Reader = app.state.reader
    path = settings.driver_url.database
    assert path is not None
    writer = sqlite3.connect(path, isolation_level=None)
    # It blocks readers too, unless the file has a write-ahead log.
    writer.execute("BEGIN EXCLUSIVE")

    try:
        assert len((await reader.execute(VERSIONS)).all()) < 2  # none if there is no migration
    finally:
        writer.close()


async def test_a_readiness_check_that_times_out_names_the_file(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings)
    monkeypatch.setattr("app.health.READY_TIMEOUT", 0.1)
    owner = sqlite3.connect(str(settings.driver_url.database), isolation_level=None)
    owner.execute("PRAGMA locking_mode = EXCLUSIVE")
    owner.execute("BEGIN EXCLUSIVE")

    transport = ASGITransport(app)
    async with app.router.lifespan_context(app), AsyncClient(transport=transport) as client:
        response = await client.get("http://test/health/ready")
        owner.close()

    assert response.status_code == 503
    assert f"no answer within 0.1 s: {settings.driver_url!r} is silent or locked" in caplog.text


async def test_the_doctor_finds_damage(app: FastAPI, settings: ServiceSettings) -> None:
    async with app.state.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
        sizes = "SELECT page_size, rootpage FROM pragma_page_size, sqlite_master WHERE name = :name"
        size, page = (await connection.execute(text(sizes), {"name": MOMENTS.name})).one()
    await app.state.engine.dispose()
    file = Path(str(settings.driver_url.database))
    pages = file.read_bytes()
    file.write_bytes(pages[: size * (page - 1)] + b"\xff" * size + pages[size * page :])

    findings = await examine(settings, processes=1)

    [server] = [finding for finding in findings if finding.subject == "server"]
    assert server.wrong
    assert "damaged: " in server.text


async def test_a_file_that_stays_locked_is_unavailability(settings: ServiceSettings) -> None:
    app = create_app(settings.model_copy(update={"database_command_timeout": 0.01}))
    path = settings.driver_url.database
    assert path is not None
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")

    async with app.router.lifespan_context(app):
        with pytest.raises(DBAPIError) as failed:
            async with app.state.engine.begin():
                pass
    writer.close()

    assert explain(failed.value)[0] == 503


async def test_a_moment_is_stored_in_utc_and_needs_a_time_zone(app: FastAPI) -> None:
    tokyo = datetime.timezone(datetime.timedelta(hours=9))
    moment = datetime.datetime(2026, 11, 24, 12, 0, 0, 123456, tokyo)

    async with app.state.engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
        await connection.execute(insert(MOMENTS).values(moment=moment))
        stored = (await connection.execute(select(MOMENTS.c.moment))).scalar_one()
        with pytest.raises(StatementError):
            await connection.execute(insert(MOMENTS).values(moment=moment.replace(tzinfo=None)))

    assert (stored, stored.utcoffset()) == (moment, datetime.timedelta(0))
