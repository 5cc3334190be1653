import logging
import subprocess
import sys
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.lifespan import lifespan
from app.main import create_app
from app.settings import Settings


def watch(engine: AsyncEngine) -> list[str]:
    """Note each opening and closing of a connection."""
    seen: list[str] = []
    event.listen(engine.sync_engine, "connect", lambda *_: seen.append("open"))
    event.listen(engine.sync_engine, "close", lambda *_: seen.append("close"))
    return seen


async def test_the_engine_is_disposed_of_when_the_service_ends(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = create_app(settings)

    async with app.router.lifespan_context(app):
        seen = watch(app.state.engine)
        async with app.state.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        assert seen == ["open"]

    assert seen == ["open", "close"]
    assert "engine disposed of" in caplog.messages


async def test_the_engine_is_disposed_of_when_the_service_fails(settings: Settings) -> None:
    app = FastAPI()
    app.state.settings = settings
    seen: list[str] = []

    with pytest.raises(RuntimeError):
        async with lifespan(app):
            seen = watch(app.state.engine)
            async with app.state.engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            raise RuntimeError

    assert seen == ["open", "close"]


async def test_the_settings_reach_the_pool(settings: Settings) -> None:
    changes: dict[str, Any] = {"database_pool_size": 2, "database_pool_recycle": 60}
    app = create_app(settings.model_copy(update=changes))

    async with app.router.lifespan_context(app):
        assert app.state.engine.pool.size() == 2


def test_importing_the_service_opens_nothing() -> None:
    program = (
        "import sys\n"
        "sys.addaudithook(lambda name, _: name.endswith('.connect') and sys.exit(name))\n"
        "import app.main\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
