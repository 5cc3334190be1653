import asyncio
from collections.abc import AsyncGenerator

import pytest
from alembic import command
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import text

from app.factory import create_app
from app.settings import ServiceSettings
from tests.database import alembic


async def serve(settings: ServiceSettings) -> AsyncGenerator[AsyncClient]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
async def unmigrated(unmigrated_settings: ServiceSettings) -> AsyncGenerator[AsyncClient]:
    async for client in serve(unmigrated_settings):
        yield client


@pytest.fixture
async def cut_off(unreachable_settings: ServiceSettings) -> AsyncGenerator[AsyncClient]:
    async for client in serve(unreachable_settings):
        yield client


async def test_a_migrated_service_is_live_and_ready(client: AsyncClient) -> None:
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/health/ready")).json() == {"status": "ready"}


async def test_a_service_is_not_ready_before_its_migrations(
    unmigrated: AsyncClient, unmigrated_settings: ServiceSettings
) -> None:
    assert (await unmigrated.get("/health/ready")).status_code == 503

    await asyncio.to_thread(command.upgrade, alembic(unmigrated_settings), "head")

    assert (await unmigrated.get("/health/ready")).status_code == 200


async def test_a_service_stays_ready_when_a_newer_release_has_migrated(
    app: FastAPI, client: AsyncClient
) -> None:
    async with app.state.engine.begin() as connection:
        await connection.execute(text("DELETE FROM alembic_version"))
        await connection.execute(text("INSERT INTO alembic_version VALUES ('newer')"))

    assert (await client.get("/health/ready")).status_code == 200


async def test_a_service_without_its_database_is_live_but_not_ready(cut_off: AsyncClient) -> None:
    assert (await cut_off.get("/health/live")).status_code == 200

    response = await cut_off.get("/health/ready")

    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_readiness_that_fails_says_why(
    unmigrated: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await unmigrated.get("/health/ready")

    assert "not ready: " in caplog.text


async def test_an_exhausted_pool_is_load_and_not_unreadiness(
    app: FastAPI, client: AsyncClient, settings: ServiceSettings
) -> None:
    connections = [await app.state.engine.connect() for _ in range(settings.database_capacity)]

    response = await client.get("/health/ready")

    for connection in connections:
        await connection.close()
    assert response.json() == {"status": "busy"}
