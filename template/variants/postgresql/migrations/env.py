"""How Alembic reaches the database: by the service's own settings and models."""

import asyncio
import sys
from pathlib import Path
from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, NullPool
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from app import NAME
from app.database_errors import explain
from app.observability import configure_logging
from app.settings import Settings, load_settings
from migrations.metadata import metadata

LOCK = 5_390_771_402  # an arbitrary number, the same in every replica
LOCK_TIMEOUT = "5s"
# The role's own would end a migration that takes its time, or waits for its turn.
NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN (
        'statement_timeout', 'lock_timeout', 'transaction_timeout',
        'idle_in_transaction_session_timeout'
    )
"""


def get_settings() -> Settings:
    settings: Settings | None = context.config.attributes.get("settings")
    if settings is None:  # called from the command line
        if Path(".postgres").is_dir():  # a checkout in which `poe dev` has run
            from dev import find_database

            find_database()
        settings = load_settings()
        if settings.database_pooler:  # it would keep the lock below, and nobody would get it again
            sys.exit("Migrate on PostgreSQL itself: set its own URL, and DATABASE_POOLER=false.")
        configure_logging(settings)
    return settings


def render_item(kind: str, item: object, autogen: AutogenContext) -> str | Literal[False]:
    """Write the service's own column types into a new revision by their names."""
    if kind != "type" or type(item).__module__ != "app.database":
        return False
    autogen.imports.add("from app import database")
    return f"database.{type(item).__name__}()"


def migrate(connection: Connection) -> None:
    connection.exec_driver_sql(NO_LIMITS)
    # Replicas that start together wait here for the first one. The lock ends with the connection.
    connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK})")
    # A table lock that is not to be had soon is given up, or every request would queue behind it.
    connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    connection.commit()

    context.configure(connection=connection, target_metadata=metadata, render_item=render_item)
    with context.begin_transaction():
        context.run_migrations()


async def run_online(settings: Settings) -> None:
    # One connection, used once: a pool would only cost. And no time limit of the service's holds,
    # since an index of a large table takes its time.
    engine = create_async_engine(
        settings.driver_url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={
            "timeout": settings.database_connect_timeout,
            "server_settings": {"application_name": f"{NAME} migrations"},
        },
    )
    async with engine.connect() as connection:
        await connection.run_sync(migrate)


def run_offline(settings: Settings) -> None:
    context.configure(
        url=settings.driver_url,
        target_metadata=metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
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
