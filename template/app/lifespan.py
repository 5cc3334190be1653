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

ROLLBACK_TIMEOUT = 1.0  # seconds
DISPOSE_TIMEOUT = 5.0  # seconds


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Own the engine for as long as the service runs.

    Nothing connects here: while the database is unreachable, the service starts all the same, says
    so at `/health/ready`, and recovers by itself. Push another resource on the same stack: they are
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
        # An object can be read after the commit; a session that was closed can't be used again.
        app.state.sessionmaker = Sessionmaker(
            engine, expire_on_commit=False, close_resets_only=False
        )
        app.state.reader = Reader(engine)

        yield


async def dispose(engine: AsyncEngine) -> None:
    """Close the pooled connections; requests have ended by now, or have been cancelled."""
    try:
        # On a silent network each idle connection would wait for a timeout of its own.
        async with asyncio.timeout(DISPOSE_TIMEOUT):
            await roll_back(engine)
            await engine.dispose()
            assert isinstance(engine.dialect, Dialect)
            await asyncio.gather(*engine.dialect.closing)  # connections terminated just now
        logger.info("engine disposed of")
    except TimeoutError:
        logger.warning(
            "the database did not answer; its connections were left to the operating system"
        )


async def roll_back(engine: AsyncEngine) -> None:
    """Let cancelled requests roll back and be answered before the process exits."""
    pool: Any = engine.pool
    with suppress(TimeoutError):
        async with asyncio.timeout(ROLLBACK_TIMEOUT):
            while pool.checkedout():
                await asyncio.sleep(0.01)
