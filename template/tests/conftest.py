"""Fixtures that behave like production: a real database, the lifespan run, every commit real."""

import os
from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient

from app.settings import Settings

pytest_plugins = ["tests.database"]


def pytest_configure() -> None:
    """Hide the developer's own settings: no test may depend on them, or reach that database."""
    Settings.model_config["env_file"] = None
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)

    from tests.database import start

    start()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def app(settings: Settings) -> AsyncGenerator[FastAPI]:
    """The running service, with a migrated database that no other test sees."""
    from app.main import create_app

    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client
