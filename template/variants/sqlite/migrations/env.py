"""Alembic's environment: the service's settings, dialect and models."""

import asyncio
import logging
import sqlite3
import sys
import warnings
from contextlib import closing, nullcontext, suppress
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import NullPool, event
from sqlalchemy.ext.asyncio import create_async_engine

from app.database.dialect import Dialect
from app.logging import configure_logging
from app.settings import ServiceSettings, load_settings
from app.settings_sources import describe_database
from migrations.autogenerate import OPTIONS
from migrations.impl import analyze, check_rows
from migrations.locks import create, migration_lock
from migrations.runner import end_on_sigterm, exits, run

logger = logging.getLogger("migrations")

OPTIONS_HERE: dict[str, Any] = OPTIONS | {
    "render_as_batch": True,  # most changes of a table copy it
    "transactional_ddl": True,
}


def get_settings() -> ServiceSettings:
    settings: ServiceSettings | None = context.config.attributes.get("settings")
    if settings is None:  # called from the command line
        settings = load_settings(ServiceSettings)
        configure_logging(settings)
        logger.info("%s", describe_database(settings))
    return settings


def may_create() -> bool:
    """Return whether the command migrates, or begins a history; any other opens an existing file."""
    with suppress(CommandError):  # there are two heads, as `run` says
        try:
            context.get_revision_argument()
        except KeyError:  # such as `current`
            return not context.script.get_heads()
    return True


async def run_online(settings: ServiceSettings) -> None:
    end_on_sigterm()
    if may_create():
        with closing(sqlite3.connect(create(str(settings.driver_url.database)))) as file:
            # Persists in the file: readers and the writer do not block each other.
            file.execute("PRAGMA journal_mode = WAL")

    # One connection, used once, needs no pool (E13).
    engine = create_async_engine(
        settings.driver_url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args=settings.connect_args,
    )
    assert isinstance(engine.dialect, Dialect)

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        # If on, copying a table would delete the rows that refer to it (ON DELETE CASCADE).
        cursor.execute("PRAGMA foreign_keys = OFF")
        cursor.close()

    async with engine.connect() as connection:
        await connection.run_sync(run, on_version_apply=check_rows, **OPTIONS_HERE)
        if "destination_rev" in context.get_context().opts:  # an upgrade, or a downgrade
            await connection.run_sync(analyze)


def run_offline(settings: ServiceSettings) -> None:
    context.configure(
        url=settings.driver_url,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=True,
        **OPTIONS_HERE,
    )
    context.run_migrations()


# What Alembic skips is kept and compared nevertheless, in impl.py.
warnings.filterwarnings(
    "ignore", ".*(Unnamed CHECK|Skipped unsupported reflection|autogenerate skipping)"
)
settings = get_settings()
if context.is_offline_mode():
    run_offline(settings)
else:
    try:
        path = str(settings.driver_url.database)
        with exits(settings), migration_lock(path) if may_create() else nullcontext():
            asyncio.run(run_online(settings))
    except sqlite3.Error as error:
        sys.exit(f"{settings.driver_url} is not available: {error}")
