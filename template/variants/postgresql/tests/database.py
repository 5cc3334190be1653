"""The tests' databases: each test has its own, cloned from a migrated one and dropped afterwards.

They are on the server of `TEST_DATABASE_URL`, or on one that is started for this run. The tests
connect only to databases made here, and to the server's own for `CREATE DATABASE`.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from sqlalchemy import NullPool, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.settings import ServiceSettings
from scripts.database import start as start_postgres


def start() -> None:
    """Start a server for this run, unless there is one; pytest's parallel workers find it too."""
    if "TEST_DATABASE_URL" not in os.environ:
        data = Path(tempfile.mkdtemp(prefix="test-postgres-"))
        try:
            os.environ["TEST_DATABASE_URL"] = start_postgres(data, temporary=True)
        except OSError as error:
            raise pytest.UsageError(f"{error}\nWith TEST_DATABASE_URL, another is used.") from None
    os.environ["DATABASE_URL"] = os.environ["TEST_DATABASE_URL"]


def settings_for(name: str) -> ServiceSettings:
    url = ServiceSettings().driver_url.set(database=name)
    return ServiceSettings(database_url=SecretStr(url.render_as_string(hide_password=False)))


def alembic(settings: ServiceSettings) -> Config:
    """Return an Alembic configuration for the database of `settings`."""
    return Config(toml_file="pyproject.toml", attributes={"settings": settings})


@asynccontextmanager
async def database(server: AsyncConnection, template: str) -> AsyncGenerator[str]:
    name = f"test_{secrets.token_hex(8)}"
    await server.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield name
    finally:
        try:
            await server.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        except ProgrammingError:
            # Autovacuum is at work there, and FORCE lets only a superuser end it. Without, it ends.
            await server.execute(text(f"DROP DATABASE {name}"))


@pytest.fixture(scope="session")
async def server() -> AsyncGenerator[AsyncConnection]:
    # One connection: no pool (E13).
    engine = create_async_engine(
        ServiceSettings().driver_url, isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    async with engine.connect() as connection:
        yield connection


@pytest.fixture(scope="session")
async def migrated_database(server: AsyncConnection) -> AsyncGenerator[str]:
    """A database with the newest schema, made once and cloned by each test."""
    async with database(server, "template0") as name:
        await asyncio.to_thread(command.upgrade, alembic(settings_for(name)), "head")
        yield name


@pytest.fixture
async def settings(
    server: AsyncConnection, migrated_database: str
) -> AsyncGenerator[ServiceSettings]:
    """Settings with a migrated database that no other test sees."""
    async with database(server, migrated_database) as name:
        yield settings_for(name)


@pytest.fixture(scope="session")
async def shared_settings(
    server: AsyncConnection, migrated_database: str
) -> AsyncGenerator[ServiceSettings]:
    """Settings with a migrated database for all tests that write nothing."""
    async with database(server, migrated_database) as name:
        yield settings_for(name)


@pytest.fixture
async def unmigrated_settings(server: AsyncConnection) -> AsyncGenerator[ServiceSettings]:
    """Settings with a database that has no schema yet."""
    async with database(server, "template0") as name:
        yield settings_for(name)


@pytest.fixture
def unreachable_settings() -> ServiceSettings:
    """Settings with a server that can't be reached: nothing listens on port 1."""
    url = ServiceSettings().driver_url.set(host="127.0.0.1", port=1, query={})
    return ServiceSettings(database_url=SecretStr(url.render_as_string(hide_password=False)))
