"""Rows for the tables of any migration, made from the database's and the models' metadata."""

import datetime
import decimal
import uuid
import warnings
from collections.abc import Container
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Enum,
    MetaData,
    NullPool,
    Table,
    func,
    insert,
    inspect,
    literal,
    select,
)
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.types import TypeDecorator, TypeEngine

from app.settings import ServiceSettings
from migrations.autogenerate import SCHEMAS
from migrations.metadata import metadata

ROWS = 2
REMEDY = 'name a value that will do in the model: mapped_column(…, info={"example": …})'
EXAMPLES: dict[type, Any] = {
    bool: False,
    bytes: b"a",
    datetime.timedelta: datetime.timedelta(hours=1),
    dict: {},
    list: [],
    object: {},  # of JSON
}


async def fill(settings: ServiceSettings) -> None:
    """Put two rows into each empty table; the second has NULL wherever it may."""
    await call(settings, fill_tables)


async def fill_referred(settings: ServiceSettings, name: str) -> None:
    """Put three rows into each table that a model's table refers to, directly or indirectly."""
    tables = [metadata.tables[name]]
    for table in tables:  # grows while it is iterated
        found = [key.column.table for key in table.foreign_keys]
        tables += [referred for referred in found if referred not in tables]
    only = {table.key for table in tables[1:]}
    await call(settings, lambda connection: fill_tables(connection, only, rows=3))


async def names(settings: ServiceSettings) -> set[str]:
    """Return the names of all tables and types."""
    found: set[str] = await call(settings, find_names)
    return found


async def call(settings: ServiceSettings, function: Any) -> Any:
    # One connection: no pool (E13).
    engine = create_async_engine(settings.driver_url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(function)
    finally:
        await engine.dispose()


def find_names(connection: Connection) -> set[str]:
    inspector = inspect(connection)
    found = set()
    for schema in SCHEMAS:
        found |= {f"TABLE {name}" for name in inspector.get_table_names(schema)}
    types: list[Any] = getattr(inspector, "get_enums", list)()
    return found - {"TABLE alembic_version"} | {f"TYPE {kind['name']}" for kind in types}


def fill_tables(
    connection: Connection, only: Container[str] | None = None, rows: int = ROWS
) -> None:
    reflected = MetaData()
    # What can't be reflected, or sorted, doesn't matter for a row.
    with warnings.catch_warnings(action="ignore"):
        for schema in SCHEMAS:
            reflected.reflect(connection, schema)
        for table in reflected.sorted_tables:
            wanted = table.name != "alembic_version" if only is None else table.key in only
            if wanted and not connection.scalar(select(func.count()).select_from(table)):
                for number in range(rows):
                    add(connection, table, number)


def add(connection: Connection, table: Table, number: int) -> None:
    model = metadata.tables.get(table.key)
    known = {} if model is None else dict(model.columns)
    values = {
        column.name: value(connection, column, known.get(column.name), number)
        for column in table.columns
        if column.computed is None
        and column.identity is None
        and (column is not table.autoincrement_column or column.foreign_keys)
    }
    try:
        with connection.begin_nested():
            connection.execute(insert(table).values(values))
    except StatementError as error:
        # Of a table that no model has any more, nobody could say what it takes.
        if known.keys() >= values.keys():
            pytest.fail(f"no row for {table}: {error.orig}; {REMEDY}")


def value(
    connection: Connection, column: Column[Any], known: Column[Any] | None, number: int
) -> Any:
    for key in column.foreign_keys:
        parents = select(key.column).order_by(*key.column.table.primary_key.columns)
        return connection.scalar(parents.offset(number).limit(1))
    if number and column.nullable:
        return None
    kind: TypeEngine[Any] = column.type
    if known is not None:
        if "example" in known.info:
            return known.info["example"]
        # The model's type knows more, once the migrations have come that far.
        if known.type.compile(connection.dialect) == kind.compile(connection.dialect):
            kind = known.type
    if isinstance(kind, Enum):
        return literal(kind.enums[number % len(kind.enums)], kind)
    python = (kind.impl_instance if isinstance(kind, TypeDecorator) else kind).python_type
    if issubclass(python, datetime.datetime):
        moment = datetime.datetime(2026, 1, 1 + number, tzinfo=datetime.UTC)
        naive = isinstance(kind, DateTime) and not kind.timezone
        return literal(moment.replace(tzinfo=None) if naive else moment, kind)
    if issubclass(python, uuid.UUID):
        return literal(uuid.UUID(int=number), kind)
    if python is datetime.date:
        return literal(datetime.date(2026, 1, 1 + number), kind)
    if python is datetime.time:
        return literal(datetime.time(12, number), kind)
    if python is decimal.Decimal:
        return literal(decimal.Decimal(1 + number).scaleb(-(getattr(kind, "scale", 0) or 0)), kind)
    if python in (int, float, str):
        return literal(python(1 + number), kind)
    return literal(EXAMPLES.get(python), kind)
