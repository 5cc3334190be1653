"""How Alembic reaches the database: by the service's own settings and models."""

import asyncio
import sqlite3
import sys
from contextlib import closing
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, NullPool, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from app.database_errors import explain
from app.observability import configure_logging
from app.settings import Settings, load_settings
from migrations.metadata import metadata

ANALYSIS_LIMIT = 1000  # rows of each index that are looked at, however many there are


def get_settings() -> Settings:
    settings: Settings | None = context.config.attributes.get("settings")
    if settings is None:  # called from the command line
        settings = load_settings()
        configure_logging(settings)
    return settings


def render_item(kind: str, item: object, autogen: AutogenContext) -> str | Literal[False]:
    """Write the service's own column types into a new revision by their names."""
    if kind != "type" or type(item).__module__ != "app.database":
        return False
    autogen.imports.add("from app import database")
    return f"database.{type(item).__name__}()"


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_item=render_item,
        render_as_batch=True,  # most changes of a table mean a new table and a copy of the rows
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()
        if orphans := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
            raise RuntimeError(f"rows refer to rows that are not there: {orphans[:10]}")
        # How many rows share a value: without that, SQLite guesses which index to take.
        connection.exec_driver_sql(f"PRAGMA analysis_limit = {ANALYSIS_LIMIT}")
        connection.exec_driver_sql("ANALYZE")


async def run_online(settings: Settings) -> None:
    # Only migrations make the file: the service opens one that is there.
    with closing(sqlite3.connect(str(settings.driver_url.database))) as file:
        # Kept by the file from now on: readers and the writer do not wait for each other.
        file.execute("PRAGMA journal_mode = WAL")

    # One connection, used once: a pool would only cost.
    engine = create_async_engine(
        settings.driver_url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args=settings.connect_args,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        # Or the copy of a table would delete the rows that refer to it (ON DELETE CASCADE).
        cursor.execute("PRAGMA foreign_keys = OFF")
        cursor.close()

    async with engine.connect() as connection:
        await connection.run_sync(migrate)


def run_offline(settings: Settings) -> None:
    context.configure(
        url=settings.driver_url,
        target_metadata=metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


settings = get_settings()
if context.is_offline_mode():
    run_offline(settings)
else:
    try:
        asyncio.run(run_online(settings))
    except DBAPIError as error:
        if explain(error)[0] != 503:
            raise
        sys.exit(f"{settings.driver_url} is not available: {error.orig or error}")
    except sqlite3.Error as error:
        sys.exit(f"{settings.driver_url} is not available: {error}")
