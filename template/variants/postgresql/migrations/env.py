"""Alembic's environment: the service's settings, dialect and models."""

import asyncio
import logging
import sys
from pathlib import Path

from alembic import context
from alembic.util import CommandError
from sqlalchemy import NullPool, event
from sqlalchemy.ext.asyncio import create_async_engine

import migrations.impl  # noqa: F401 - defines the class that Alembic uses for PostgreSQL
from app.database.dialect import Dialect
from app.logging import configure_logging
from app.settings import ServiceSettings, load_settings
from app.settings_sources import describe_database
from migrations.autogenerate import OPTIONS
from migrations.locks import NO_LIMITS, PARAMETERS, limit_locks, take_lock
from migrations.runner import end_on_sigterm, exits, run

MAX_REVISION = 32  # characters, of Alembic's column

logger = logging.getLogger("migrations")


def get_settings() -> ServiceSettings:
    given: ServiceSettings | None = context.config.attributes.get("settings")
    folder = None
    if given is None and Path("scripts/database.py").is_file():  # in a checkout, and not the image
        from scripts.database import find_database

        folder = find_database(make=False)
    settings = given or load_settings(ServiceSettings)
    if settings.database_pooler:  # the lock would stay with the pooler's connection
        sys.exit("Migrate on PostgreSQL itself: set its own URL, and DATABASE_POOLER=false.")
    if given is None:  # called from the command line
        configure_logging(settings)
        logger.info("%s", describe_database(settings, folder))
    return settings


def check_revisions() -> None:
    for script in context.script.walk_revisions():
        if len(script.revision) > MAX_REVISION:
            raise CommandError(f"{script.revision} is longer than {MAX_REVISION} characters")


async def run_online(settings: ServiceSettings) -> None:
    end_on_sigterm()
    # One connection, used once, needs no pool (E13). The service's timeouts don't apply: an index
    # on a large table takes its time.
    engine = create_async_engine(
        settings.driver_url,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args=settings.database_login
        | {
            "timeout": settings.database_connect_timeout,
            "server_settings": PARAMETERS,
        },
    )
    assert isinstance(engine.dialect, Dialect)
    async with engine.connect() as connection:
        await take_lock(connection)
        event.listen(engine.sync_engine, "begin", limit_locks)
        await connection.run_sync(run, **OPTIONS)


def run_offline(settings: ServiceSettings) -> None:
    context.configure(
        url=settings.driver_url,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=True,
        **OPTIONS,
    )
    context.execute(NO_LIMITS)
    for name, value in PARAMETERS.items():
        context.execute(f"SET {name} = '{value}'")
    context.run_migrations()


settings = get_settings()
with exits(settings):
    check_revisions()
    if context.is_offline_mode():
        run_offline(settings)
    else:
        asyncio.run(run_online(settings))
