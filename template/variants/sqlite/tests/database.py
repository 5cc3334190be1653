"""The tests' databases: a file of its own for each test, under pytest's temporary folder."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from app.settings import ServiceSettings


def start() -> None:
    """Nothing needs to run for the tests' files."""


def settings_for(path: Path) -> ServiceSettings:
    url = ServiceSettings().driver_url.set(database=str(path))
    return ServiceSettings(database_url=url.render_as_string())


def alembic(settings: ServiceSettings) -> Config:
    """Return an Alembic configuration for the database of `settings`."""
    return Config(toml_file="pyproject.toml", attributes={"settings": settings})


@pytest.fixture(scope="session")
async def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the newest schema, made once and copied by each test."""
    path = tmp_path_factory.mktemp("database") / "migrated.db"
    await asyncio.to_thread(command.upgrade, alembic(settings_for(path)), "head")
    return path


@pytest.fixture
def settings(migrated_file: Path, tmp_path: Path) -> ServiceSettings:
    """Settings with a migrated database that no other test sees."""
    return settings_for(Path(shutil.copy(migrated_file, tmp_path / "test.db")))


@pytest.fixture(scope="session")
def shared_settings(migrated_file: Path) -> ServiceSettings:
    """Settings with a migrated database for all tests that write nothing."""
    return settings_for(Path(shutil.copy(migrated_file, migrated_file.with_name("shared.db"))))


@pytest.fixture
def unmigrated_settings(tmp_path: Path) -> ServiceSettings:
    """Settings with a database that has no schema yet."""
    path = tmp_path / "empty.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")  # makes a database of it
    return settings_for(path)


@pytest.fixture
def unreachable_settings(tmp_path: Path) -> ServiceSettings:
    """Settings with a database that can't be reached: its folder is not there."""
    return settings_for(tmp_path / "missing" / "test.db")
