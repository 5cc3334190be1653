"""The service with its features, for their tests. Yours: an update leaves it alone."""

from collections.abc import AsyncGenerator

import pytest
from fastapi import FastAPI

from app.factory import create_app
from app.features.registration import add_features
from app.settings import ServiceSettings, Settings


@pytest.fixture
def settings(settings: ServiceSettings) -> Settings:
    """Those of the service, and of the features: give a required one its value here."""
    return Settings(database_url=settings.database_url)


@pytest.fixture
async def app(settings: Settings) -> AsyncGenerator[FastAPI]:
    """The running service, with a migrated database that no other test sees."""
    app = create_app(settings, add_features)
    async with app.router.lifespan_context(app):
        yield app
