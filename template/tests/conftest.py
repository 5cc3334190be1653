"""Fixtures that behave like production: a real database, the lifespan run, every commit real.

The template's tests run without the features, whose own tests stand below `features/`.
"""

from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient

from app.database.revisions import revisions
from app.factory import create_app
from app.settings import ServiceSettings
from migrations.runner import TWO_HEADS
from scripts.openapi import make_settings
from tests.isolation import hide_env_file, hide_variables

pytest_plugins = ["tests.database"]


def pytest_configure() -> None:
    """Hide the developer's own settings: no test may depend on them, or reach that database."""
    hide_env_file()
    hide_variables()
    try:
        make_settings()
    except SystemExit as error:  # a setting that is required has no value
        raise pytest.UsageError(error.code) from None
    if len(revisions()[0]) > 1:
        raise pytest.UsageError(TWO_HEADS)

    from tests.database import start

    start()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def app(settings: ServiceSettings) -> AsyncGenerator[FastAPI]:
    """The running service without features, on a migrated database that no other test sees."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client
