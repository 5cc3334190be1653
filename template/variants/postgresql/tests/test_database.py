import asyncio
import datetime
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from alembic import command
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from pydantic import SecretStr, ValidationError
from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.schema import CreateSchema

from app.database import Base, UTCDateTime
from app.database.connections import Hosts
from app.database.errors import explain
from app.database.violations import violated_columns
from app.dependencies import SessionDep
from app.doctor import examine
from app.redaction import reason_of
from app.settings import ServiceSettings
from tests.database import alembic

SEVERAL = "postgresql+asyncpg://u:p@/d?host={}&port={}"
PASSWORD = "p@ss:w/o#r?d%41&é "


@pytest.fixture
def no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")


@pytest.mark.usefixtures("no_url")
@pytest.mark.parametrize(
    ("given", "driver_url"),
    [
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@h:5433/d", "postgresql+asyncpg://u:p@h:5433/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql+asyncpg://u:p@h/d"),
        ("postgresql://u:p@[::1]:5432/d", "postgresql+asyncpg://u:p@[::1]:5432/d"),
        ("postgresql://u:p@h/d?sslmode=require", "postgresql+asyncpg://u:p@h/d?ssl=require"),
        ("postgresql:///d?host=/run/pg", "postgresql+asyncpg:///d?host=%2Frun%2Fpg"),
        ("postgresql://%2Frun%2Fpg/d", "postgresql+asyncpg:///d?host=%2Frun%2Fpg"),
        ("postgresql:///d", "postgresql+asyncpg:///d"),
        ("postgresql://u:p@h1,h2:5433/d", SEVERAL.format("h1%2Ch2", "5432%2C5433")),
        ("postgresql://u:p@[::1]:5433,h2/d", SEVERAL.format("%3A%3A1%2Ch2", "5433%2C5432")),
        ("postgresql://u:p@/d?host=h1,h2&port=5433", SEVERAL.format("h1%2Ch2", "5433%2C5433")),
        ("postgresql://u:p@/d?host=h1&host=h2:5433", SEVERAL.format("h1%2Ch2", "5432%2C5433")),
    ],
)
def test_a_url_is_normalised_to_asyncpgs(given: str, driver_url: str) -> None:
    settings = ServiceSettings(database_url=SecretStr(given))

    assert settings.driver_url.render_as_string(hide_password=False) == driver_url


@pytest.mark.usefixtures("no_url")
@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("db.example", "db.example"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("/run/postgresql", None),
        ("h1,h2", None),
    ],
)
def test_the_parts_make_a_url_whatever_the_password(host: str, expected: str | None) -> None:
    url = ServiceSettings(
        database_host=host,
        database_user="user",
        database_password=SecretStr(PASSWORD),
        database_name="name",
    ).driver_url

    assert (url.drivername, url.host, url.password) == ("postgresql+asyncpg", expected, PASSWORD)


@pytest.mark.usefixtures("no_url")
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"database_host": "h", "database_user": "u"},
        {"database_url": "postgresql://u:hunter2@h/d", "database_host": "h"},
        {"database_url": "postgresql+psycopg2://u:hunter2@h/d"},
        {"database_url": "postgresql+psycopg://u:hunter2@h/d"},
        {"database_url": "oracle://u:hunter2@h/d"},
        {"database_url": "postgresql://u:hunter2@h/d?sslkey=k"},
        {"database_url": "postgresql://u:hunter2@h:port/d"},
        {"database_url": "postgresql://u:p@hunter2@h/d"},
        {"database_url": "postgresql://u:hunter2@a..b/d"},
        {"database_url": "postgresql://u:hunter2@h1,,h2/d"},
        {"database_url": "postgresql://u:hunter2@h1,h2:99999/d"},
        {"database_url": "postgresql://u:hunter2@/d?host=h1,h2&port=1,2,3"},
        {"database_url": "postgresql://u:hunter2@h/d?sslmode=required"},
        {"database_url": "postgresql://u:hunter2@h/d?sslmode="},
        {"database_url": "postgresql://u:hunter2@h/d?sslmode=require&ssl=disable"},
        {"database_url": "postgresql://u:hunter2@h/d?target_session_attrs=writable"},
    ],
    ids=repr,
)
def test_what_names_no_server_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        ServiceSettings(**wrong)

    assert "hunter2" not in str(refused.value)


@pytest.mark.usefixtures("no_url")
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"database_host": "h"}, "set DATABASE_USER, DATABASE_NAME too"),
        ({"database_url": "postgresql://u:p@h/d?ssl=true"}, "ssl must be one of"),
        ({"database_url": "postgresql://u:p@h/d?sslmode=true"}, "sslmode must be one of"),
    ],
    ids=repr,
)
def test_a_wrong_parameter_is_named_as_it_was_written(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ServiceSettings(**wrong)


@pytest.mark.usefixtures("no_url")
@pytest.mark.parametrize(
    ("mode", "variable"),
    [
        ("prefer", "PGSSLCERT"),
        ("require", "PGSSLCERT"),
        ("require", "PGSSLROOTCERT"),
        ("require", "PGSSLCRL"),
        ("verify-full", "PGSSLROOTCERT"),
    ],
)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        ("folder", "cannot be read: Is a directory"),
        ("", "is no (certificate|revocation list)"),
        ("junk", "is no (certificate|revocation list)"),
    ],
)
def test_an_unusable_tls_file_is_refused_by_its_variable_and_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    variable: str,
    content: str | None,
    reason: str,
) -> None:
    file = tmp_path / "file.pem"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_text(content)
    monkeypatch.setenv(variable, str(file))
    url = f"postgresql://u:p@h/d?sslmode={mode}"

    with pytest.raises(ValidationError, match=rf"{variable} \({file}\) {reason}"):
        ServiceSettings(database_url=SecretStr(url))

    ServiceSettings(database_url=SecretStr(url.replace(mode, "disable")))


@pytest.mark.usefixtures("no_url")
async def test_a_password_is_read_from_its_file_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    url, with_password = SecretStr("postgresql://u@h/d"), SecretStr("postgresql://u:p@h/d")
    settings = ServiceSettings(database_url=url, database_password_file=file)
    read = settings.connect_args["password"]

    assert await read() == PASSWORD
    file.write_text("hunter2\nhunter3\n")
    with pytest.raises(OSError, match=rf"DATABASE_PASSWORD_FILE \({file}\): has more") as error:
        await read()
    assert "hunter" not in f"{error.value} {settings!r} {settings.connect_args!r}"
    with pytest.raises(ValidationError, match="remove one"):
        ServiceSettings(database_url=with_password, database_password_file=file)


@pytest.mark.usefixtures("no_url")
def test_no_password_shows() -> None:
    settings = ServiceSettings(database_url=SecretStr("postgresql://u:hunter2@h/d"))

    assert "hunter2" not in f"{settings!r} {settings} {settings.driver_url!r} {settings.driver_url}"


async def test_the_time_limits_reach_the_server(app: FastAPI) -> None:
    async with app.state.engine.connect() as connection:
        limits = [
            (await connection.execute(text(f"SHOW {name}"))).scalar_one()
            for name in ("statement_timeout", "idle_in_transaction_session_timeout")
        ]

    assert limits == ["5s", "1min"]


@pytest.mark.parametrize(
    ("sql", "status", "reason"),
    [
        ("INSERT INTO numbers VALUES (CAST(:value AS integer))", 422, ""),  # the driver's refusal
        ("INSERT INTO numbers VALUES (CAST(CAST(:text AS text) AS integer))", 422, ""),
        ("INSERT INTO numbers VALUES (-1)", 422, ""),
        ("INSERT INTO numbers VALUES (1), (1)", 409, ""),
        ("INSERT INTO numbers SELECT nextval('s') FROM generate_series(1, 3)", 503, "server error"),
        ("SELECT * FROM numbers WHERE CAST(:value AS integer) = number", 422, ""),
        ("SELECT 'xy' LIKE :text || '\\'", 422, ""),
        ("SELECT 'a' ~ (:text || '(')", 422, ""),
        ("SELECT CAST(stored AS integer) FROM (VALUES ('x')) AS texts (stored)", 500, ""),
        ("WITH texts AS (SELECT 'x' AS s) SELECT CAST(s AS integer) FROM texts", 500, ""),
        ("SELECT CAST(s AS integer) AS update FROM (VALUES ('x')) AS texts (s)", 500, ""),
        ("WITH t AS (SELECT 'x' AS s) INSERT INTO numbers SELECT s::integer FROM t", 422, ""),
        ("SELECT 1 / 0", 500, ""),
        ("SELECT * FROM nothing", 503, "schema changed"),
        ("INSERT INTO numbers (nothing) VALUES (1)", 503, "schema changed"),
        ("SELECT pg_sleep(1)", 503, "statement timeout"),
        ("DO $$BEGIN RAISE SQLSTATE '57P01'; END$$", 503, "shutting down"),
        ("DO $$BEGIN RAISE SQLSTATE '57P04'; END$$", 503, "no such database"),
        ("DO $$BEGIN RAISE SQLSTATE '57P05'; END$$", 503, "connection lost"),
    ],
)
async def test_an_error_has_a_status_and_a_503_its_reason(
    app: FastAPI, sql: str, status: int, reason: str
) -> None:
    values = {"value": 2**40, "text": "x"}
    async with app.state.engine.connect() as connection:
        await connection.execute(
            text("CREATE TEMPORARY TABLE numbers (number integer UNIQUE CHECK (number > 0))")
        )
        await connection.execute(text("CREATE TEMPORARY SEQUENCE s MAXVALUE 2"))
        if "pg_sleep" in sql:
            await connection.execute(text("SET statement_timeout = 10"))
        statement = text(sql)
        used = {name: values[name] for name in statement.compile().params}
        with pytest.raises(DBAPIError) as failed:
            await connection.execute(statement, used)

    assert explain(failed.value) == (status, reason)
    if "nextval" in sql:
        assert 'maximum value of sequence "s"' in reason_of(failed.value)


async def test_a_key_that_the_database_gives_again_is_not_the_clients_fault(app: FastAPI) -> None:
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)
    key = Column("id", BigInteger, Identity(), primary_key=True)
    table = Table("tested_keys", metadata, key, Column("name", Text, unique=True))
    async with app.state.engine.begin() as connection:
        await connection.run_sync(table.create)
        await connection.execute(insert(table).values(id=1, name="a"))
    table.to_metadata(Base.metadata)

    @app.post("/keys")
    async def create(values: dict[str, Any], session: SessionDep) -> None:
        await session.execute(insert(table).values(**values).returning(table.c.id))

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        given = ({"name": "b"}, {"name": "b"}, {"name": "b"}, {"name": "c", "id": 1})
        answers = [await client.post("/keys", json=values) for values in given]
    Base.metadata.remove(Base.metadata.tables[table.name])

    assert [answer.status_code for answer in answers] == [503, 200, 409, 409]


async def test_a_conflict_names_the_columns_of_the_schema_that_is_written(app: FastAPI) -> None:
    metadata, columns = MetaData(), []
    for schema, name in (("tested_one", "id"), ("tested_two", "code")):
        Table("keys", metadata, Column(name, BigInteger), schema=schema).append_constraint(
            UniqueConstraint(name, name="uq_keys")
        )
    async with app.state.engine.connect() as connection:
        for table in metadata.sorted_tables:
            await connection.execute(CreateSchema(str(table.schema)))
            await connection.run_sync(table.create)
            table.to_metadata(Base.metadata)
        for table in metadata.sorted_tables:
            [name] = table.columns.keys()
            with pytest.raises(IntegrityError) as refused:
                async with connection.begin_nested():
                    await connection.execute(insert(table), [{name: 1}, {name: 1}])
            columns.append(violated_columns(refused.value))
    for key in metadata.tables:
        Base.metadata.remove(Base.metadata.tables[key])

    assert columns == [("id",), ("code",)]


@pytest.mark.parametrize(
    ("routine", "status"), [("GetNewTransactionId", 503), ("_bt_check_third_page", 422)]
)
def test_a_limit_of_the_server_is_no_limit_of_a_value(routine: str, status: int) -> None:
    told = {"S": "ERROR", "C": "54000", "M": "a limit is exceeded", "R": routine}
    driver_error = asyncpg.PostgresError.new(told)
    error = AsyncAdapt_asyncpg_dbapi.Error("", driver_error)  # type: ignore[no-untyped-call]

    assert explain(DBAPIError("INSERT INTO items", None, error))[0] == status


def test_a_host_that_was_silent_is_asked_last_whatever_is_wanted() -> None:
    hosts = Hosts()
    hosts.order(["silent", "primary"], [5432, 5432], ["any"])
    hosts.note(("silent", 5432), TimeoutError())

    tried = hosts.order(["silent", "primary"], [5432, 5432], ["standby", "any"])

    assert [(target, host) for target, (host, _) in tried] == [
        ("standby", "primary"),
        ("any", "primary"),
        ("standby", "silent"),
        ("any", "silent"),
    ]


@pytest.mark.usefixtures("no_url")
def test_a_service_that_asks_for_a_standby_wants_no_writes() -> None:
    url = "postgresql://u:p@h/d?target_session_attrs={}"
    wanted = {
        attributes: ServiceSettings(database_url=SecretStr(url.format(attributes))).database_writes
        for attributes in ("any", "read-write", "primary", "standby", "prefer-standby", "read-only")
    }

    assert [name for name, writes in wanted.items() if writes] == ["any", "read-write", "primary"]


async def test_the_doctor_counts_what_the_database_allows(
    app: FastAPI, settings: ServiceSettings
) -> None:
    async with app.state.engine.begin() as connection:
        name = settings.driver_url.database
        await connection.execute(text(f"ALTER DATABASE {name} CONNECTION LIMIT 5"))

    [server] = [
        finding for finding in await examine(settings, processes=1) if finding.subject == "server"
    ]

    assert server.wrong
    assert "may open 15 of its 5 connections" in server.text


async def test_a_readiness_check_that_times_out_names_the_server(
    app: FastAPI,
    client: AsyncClient,
    settings: ServiceSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("app.health.READY_TIMEOUT", 0.1)
    async with app.state.engine.begin() as connection:
        await connection.execute(text("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE"))
        response = await client.get("/health/ready")

    assert response.status_code == 503
    assert f"no answer within 0.1 s: {settings.driver_url!r} is silent or locked" in caplog.text


async def test_a_stricter_limit_of_the_role_stays(app: FastAPI, settings: ServiceSettings) -> None:
    async with app.state.engine.begin() as connection:
        name = settings.driver_url.database
        await connection.execute(text(f"ALTER DATABASE {name} SET statement_timeout = '2s'"))
        setting = "idle_in_transaction_session_timeout = '5min'"
        await connection.execute(text(f"ALTER DATABASE {name} SET {setting}"))
    await app.state.engine.dispose()

    async with app.state.engine.connect() as connection:
        limits = [
            (await connection.execute(text(f"SHOW {name}"))).scalar_one()
            for name in ("statement_timeout", "idle_in_transaction_session_timeout")
        ]

    assert limits == ["2s", "1min"]


async def test_a_day_begins_at_midnight_utc_whatever_the_server_is_set_to(
    app: FastAPI, settings: ServiceSettings
) -> None:
    async with app.state.engine.begin() as connection:
        name = settings.driver_url.database
        await connection.execute(text(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'"))
    await app.state.engine.dispose()

    async with app.state.engine.connect() as connection:
        day = await connection.execute(text("SELECT CAST(timestamptz '2026-11-24 20:00Z' AS date)"))

    assert day.scalar_one() == datetime.date(2026, 11, 24)


async def test_every_execution_is_planned_for_its_own_values(
    app: FastAPI,
) -> None:
    by_key = text("SELECT relname FROM pg_class WHERE oid = CAST(:id AS oid)")
    plans = text(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements"
        " WHERE statement LIKE 'SELECT relname FROM pg_class%'"
    )
    async with app.state.engine.connect() as connection:
        for number in range(10):
            await connection.execute(by_key, {"id": number})
        found = (await connection.execute(plans)).one()

    assert tuple(found) == (0, 10)


async def test_a_moment_is_stored_in_utc_and_needs_a_time_zone(app: FastAPI) -> None:
    statement = select(bindparam("moment", type_=UTCDateTime))
    tokyo = datetime.timezone(datetime.timedelta(hours=9))
    moment = datetime.datetime(2026, 11, 24, 12, 0, 0, 123456, tokyo)

    async with app.state.engine.connect() as connection:
        stored = (await connection.execute(statement, {"moment": moment})).scalar_one()
        with pytest.raises(StatementError):
            await connection.execute(statement, {"moment": moment.replace(tzinfo=None)})

    assert (stored, stored.utcoffset()) == (moment, datetime.timedelta(0))


async def test_the_migrations_can_be_written_out_as_sql(
    unmigrated_settings: ServiceSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(command.upgrade, alembic(unmigrated_settings), "head", sql=True)

    written = capsys.readouterr().out
    assert "SET " in written
    assert written.count("COMMIT;") == written.count("-- Running upgrade")
