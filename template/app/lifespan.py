"""The service's one engine: created at startup, disposed of at shutdown."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.database.dialect import Dialect
from app.database.reader import Reader
from app.database.sessionmaker import Sessionmaker
from app.database.statements import watch_statements
from app.settings import ServiceSettings

logger = logging.getLogger(__name__)

CHECKIN_TIMEOUT = 1.0  # seconds
DISPOSE_TIMEOUT = 5.0  # seconds


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Create the engine at startup, and dispose of it at shutdown.

    Nothing connects here, so the service starts without its database, answers 503 at
    `/health/ready`, and recovers by itself. Enter another resource on the same stack: they are
    released in reverse order.
    """
    async with AsyncExitStack() as stack:
        settings: ServiceSettings = app.state.settings
        engine = create_async_engine(settings.driver_url, **settings.engine_options)
        stack.push_async_callback(dispose, engine)
        watch_statements(engine, settings.database_slow_statement)
        if settings.telemetry_enabled:
            from app.telemetry import telemetry  # its packages are an extra

            await stack.enter_async_context(telemetry(engine, settings.database_capacity))
        app.state.engine = engine
        # Attributes stay loaded after the commit; a closed session refuses to be used again.
        app.state.sessionmaker = Sessionmaker(
            engine, expire_on_commit=False, close_resets_only=False
        )
        app.state.reader = Reader(engine)

        yield


async def dispose(engine: AsyncEngine) -> None:
    """Close the pooled connections; the server has completed or cancelled all requests."""
    try:
        # On a silent network each idle connection would wait for a timeout of its own.
        async with asyncio.timeout(DISPOSE_TIMEOUT):
            await wait_for_checkins(engine)
            await engine.dispose()
            assert isinstance(engine.dialect, Dialect)
            await asyncio.gather(*engine.dialect.closing)  # those that are closed in the background
        logger.info("engine disposed of")
    except TimeoutError:
        logger.warning(
            "the database did not answer; its connections were left to the operating system"
        )


async def wait_for_checkins(engine: AsyncEngine) -> None:
    """Let cancelled requests return their connections, rolled back, and be answered."""
    pool: Any = engine.pool
    with suppress(TimeoutError):
        async with asyncio.timeout(CHECKIN_TIMEOUT):
            while pool.checkedout():
                await asyncio.sleep(0.01)
