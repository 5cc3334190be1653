"""The service with its features, for their tests. Yours: an update leaves it alone.

If every route requires credentials, a fixture `client` with their headers belongs here.
"""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi import FastAPI

from app.factory import create_app
from app.features.registration import add_features
from app.settings import ServiceSettings, Settings

# A value for each setting that the features require, for the tests and for the OpenAPI document:
# {"payment_token": "not a secret"}.
REQUIRED: dict[str, Any] = {}


@pytest.fixture
def settings(settings: ServiceSettings) -> Settings:
    return Settings(database_url=settings.database_url, **REQUIRED)


@pytest.fixture
async def app(settings: Settings) -> AsyncGenerator[FastAPI]:
    """The running service, with a migrated database that no other test sees."""
    app = create_app(settings, add_features)
    async with app.router.lifespan_context(app):
        yield app
