from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import (
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    column,
    delete,
    func,
    insert,
    select,
    table,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from app.database import Base
from app.database.violations import violated_columns
from app.dependencies import ReaderDep, SessionDep

PARENTS = table("tested_parents", column("id"))
CHILDREN = table("tested_children", column("parent_id"))


class OtherBase(DeclarativeBase):
    """A base whose tables are none of the service's."""


class Parent(OtherBase):
    __tablename__ = "tested_parents"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client of the service with two more tables, and routes that write to them."""
    async with app.state.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE tested_parents (id INTEGER PRIMARY KEY)"))
        await connection.execute(
            text(
                "CREATE TABLE tested_children (parent_id INTEGER NOT NULL"
                " REFERENCES tested_parents (id) DEFERRABLE INITIALLY DEFERRED)"
            )
        )

    @app.post("/parents/{parent_id}", status_code=201)
    async def create_parent(parent_id: int, session: SessionDep) -> None:
        await session.execute(insert(PARENTS).values(id=parent_id))

    @app.post("/orphans", status_code=201)
    async def create_orphan(session: SessionDep) -> None:
        # The constraint is deferred: only the commit will fail.
        await session.execute(insert(CHILDREN).values(parent_id=1))

    @app.post("/refused")
    async def refuse(session: SessionDep) -> None:
        await session.execute(insert(PARENTS).values(id=1))
        raise HTTPException(418)

    @app.post("/broken")
    async def broken(session: SessionDep) -> int:
        await session.execute(insert(PARENTS).values(id=1))
        return "not a number"  # type: ignore[return-value]

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client


@asynccontextmanager
async def of_the_models(app: FastAPI, *tables: Table) -> AsyncGenerator[None]:
    """Create tables, which belong to the models for as long."""
    async with app.state.engine.begin() as connection:
        for made in tables:
            await connection.run_sync(made.create)
            made.to_metadata(Base.metadata)
    try:
        yield
    finally:
        for made in reversed(tables):
            Base.metadata.remove(Base.metadata.tables[made.name])


@pytest.fixture
async def addresses(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client of the service with a table whose constraints only the models can tell."""
    table = Table(
        "tested_addresses",
        MetaData(naming_convention=Base.metadata.naming_convention),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("street", String(100), nullable=False),
        Column("town", String(100)),
        Column("number", Integer, server_default="1"),
        UniqueConstraint("street", "number"),
        CheckConstraint(column("id") > 0, "positive"),
    )
    Index("tested_towns", func.lower(table.c.town), unique=True)

    @app.post("/addresses")
    async def create_address(values: dict[str, Any], session: SessionDep) -> None:
        await session.execute(insert(table).values(**values))

    @app.post("/asking")
    async def ask(values: dict[str, Any], session: SessionDep) -> None:
        try:
            await session.execute(insert(table).values(**values))
        except IntegrityError as error:
            raise HTTPException(418, ", ".join(violated_columns(error))) from None

    async with (
        of_the_models(app, table),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("values", "status", "code", "columns"),
    [
        ({"id": 1, "street": "a", "town": "b"}, 409, "unique", ["id"]),
        ({"id": 2, "street": "a", "town": "c"}, 409, "unique", ["street", "number"]),
        ({"id": 2, "street": "b", "town": "B"}, 409, "unique", ["town"]),
        ({"id": 3, "street": None}, 422, "not_null", ["street"]),
        ({"id": -1, "street": "c"}, 422, "check", ["id"]),
    ],
)
async def test_a_violation_names_its_columns_to_the_client_and_to_a_handler(
    addresses: AsyncClient, values: dict[str, Any], status: int, code: str, columns: list[str]
) -> None:
    await addresses.post("/addresses", json={"id": 1, "street": "a", "town": "b"})

    refused = await addresses.post("/addresses", json=values)
    asked = await addresses.post("/asking", json=values)

    assert refused.status_code == status
    errors = refused.json()["errors"]
    assert [(error["name"], error["code"]) for error in errors] == [
        (name, code) for name in columns
    ]
    assert not any("in" in error for error in errors)  # a column's value may come from anywhere
    assert asked.json()["detail"] == ", ".join(columns)


async def test_a_column_that_only_a_newer_release_has_is_not_the_clients_fault(
    app: FastAPI,
) -> None:
    added = Column("version", Integer, nullable=False)  # the models have one, of another table
    table = Table("tested_newer", MetaData(), Column("id", Integer), added)
    async with app.state.engine.begin() as connection:
        await connection.run_sync(table.create)

    @app.post("/older")
    async def create(values: dict[str, Any], session: SessionDep) -> None:
        await session.execute(insert(table).values(**values))

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        older = await client.post("/older", json={"id": 1})
        newer = await client.post("/older", json={"id": 1, "version": None})

    assert older.status_code == 503
    assert "version" not in older.text
    assert newer.status_code == 422


async def test_a_value_that_a_default_gives_is_a_conflict_like_any_other(app: FastAPI) -> None:
    table = Table(
        "tested_numbers",
        MetaData(naming_convention=Base.metadata.naming_convention),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("number", Integer, server_default="1", unique=True),
        Column("remainder", Integer, Computed("id % 3", persisted=True), unique=True),
    )

    @app.post("/numbers")
    async def create(values: dict[str, Any], session: SessionDep) -> None:
        await session.execute(insert(table).values(**values))

    @app.patch("/numbers")
    async def change(values: dict[str, Any], session: SessionDep) -> None:
        await session.execute(update(table).values(**values))

    async with (
        of_the_models(app, table),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        answers = [
            await client.post("/numbers", json=values)
            for values in ({"id": 1}, {"id": 2}, {"id": 4, "number": 2}, {"id": 2, "number": 2})
        ]
        answers.append(await client.patch("/numbers", json={"number": 1}))

    assert [answer.status_code for answer in answers] == [200, 409, 409, 200, 409]


@pytest.mark.parametrize("action", ["NO ACTION", "RESTRICT"])
async def test_what_still_refers_to_a_row_is_named_to_nobody(app: FastAPI, action: str) -> None:
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)
    parents = Table("tested_owners", metadata, Column("id", Integer, primary_key=True))
    key = ForeignKey("tested_owners.id", ondelete=action, onupdate=action)
    owned = Table("tested_owned", metadata, Column("owner_id", key))
    statements = (delete(parents), update(parents).values(id=2), update(owned).values(owner_id=3))

    @app.post("/owners/{number}")
    async def write(number: int, session: SessionDep) -> None:
        await session.execute(statements[number])

    async with (
        of_the_models(app, parents, owned),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        async with app.state.engine.begin() as connection:
            await connection.execute(insert(parents).values(id=1))
            await connection.execute(insert(owned).values(owner_id=1))
        answers = [await client.post(f"/owners/{number}") for number in range(3)]

    assert [answer.status_code for answer in answers] == [409] * 3
    assert ["errors" in answer.json() for answer in answers[:2]] == [False, False]


async def test_a_handler_may_ask_which_database_it_is(app: FastAPI) -> None:
    @app.get("/asking")
    async def ask(session: SessionDep) -> str:
        return session.get_bind().dialect.name

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/asking")).json() == app.state.engine.dialect.name


async def count(app: FastAPI, name: str) -> int:
    async with app.state.engine.connect() as connection:
        return len((await connection.execute(text(f"SELECT 1 FROM {name}"))).all())


async def test_a_row_is_stored_before_the_response_is_sent(
    app: FastAPI, client: AsyncClient
) -> None:
    seen: list[int] = []

    async def observing(scope: Any, receive: Any, send: Any) -> None:
        async def observe(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.append(await count(app, "tested_parents"))
            await send(message)

        await app(scope, receive, observe)

    async with AsyncClient(transport=ASGITransport(observing), base_url="http://test") as observer:
        response = await observer.post("/parents/1")

    assert response.status_code == 201
    assert seen == [1]


async def test_a_commit_that_fails_is_never_a_success(app: FastAPI, client: AsyncClient) -> None:
    response = await client.post("/orphans")

    assert response.status_code == 409
    assert await count(app, "tested_children") == 0


@pytest.mark.parametrize(("path", "status"), [("/refused", 418), ("/broken", 500)])
async def test_a_handler_that_fails_after_a_write_stores_nothing(
    app: FastAPI, client: AsyncClient, path: str, status: int
) -> None:
    response = await client.post(path)

    assert response.status_code == status
    assert await count(app, "tested_parents") == 0


async def test_no_request_keeps_a_connection(app: FastAPI, client: AsyncClient) -> None:
    for path in ("/parents/1", "/parents/1", "/orphans", "/refused", "/broken"):
        await client.post(path)
        assert app.state.engine.pool.checkedout() == 0


async def test_a_reader_keeps_no_connection_while_its_handler_goes_on(
    app: FastAPI, client: AsyncClient
) -> None:
    @app.get("/reading")
    async def read(reader: ReaderDep) -> int:
        await reader.execute(select(PARENTS.c.id))
        checked_out: int = app.state.engine.pool.checkedout()
        return checked_out

    assert (await client.get("/reading")).json() == 0


async def test_a_session_that_outlives_its_request_refuses_to_work(
    app: FastAPI, client: AsyncClient
) -> None:
    leaked: list[AsyncSession] = []

    @app.post("/leaking")
    async def leak(session: SessionDep) -> None:
        leaked.append(session)

    await client.post("/leaking")

    with pytest.raises(InvalidRequestError):
        await leaked[0].execute(select(PARENTS))


async def test_a_reader_reads_and_refuses_to_write(app: FastAPI, client: AsyncClient) -> None:
    errors: list[TypeError] = []

    @app.post("/reading")
    async def read(reader: ReaderDep) -> int:
        try:
            await reader.execute(insert(PARENTS).values(id=2))  # type: ignore[arg-type]
        except TypeError as error:
            errors.append(error)
        try:
            written = insert(PARENTS).values(id=3).returning(PARENTS.c.id).cte()
            await reader.execute(select(written.c.id))
        except TypeError as error:
            errors.append(error)
        return len((await reader.execute(select(PARENTS.c.id))).all())

    await client.post("/parents/1")

    assert (await client.post("/reading")).json() == 1
    assert len(errors) == 2


@pytest.mark.parametrize(
    "statement",
    [
        select(PARENTS.c.id).with_for_update(),
        select(select(PARENTS.c.id).with_for_update().subquery()),
        select(Parent),
        select(aliased(Parent), PARENTS.c.id),
        text("SELECT 1"),
    ],
)
async def test_a_reader_refuses_a_lock_that_would_end_at_once_and_objects_that_it_does_not_load(
    app: FastAPI, statement: Any
) -> None:
    with pytest.raises(TypeError):
        await app.state.reader.execute(statement)
