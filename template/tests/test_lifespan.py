import asyncio
import logging
import os
import subprocess
import sys
from typing import Any

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.database.pool import FairPool
from app.factory import create_app
from app.lifespan import lifespan
from app.settings import ServiceSettings
from tests.isolation import HIDE_ENV_FILE


@pytest.fixture
def settings(shared_settings: ServiceSettings) -> ServiceSettings:
    return shared_settings


def watch(engine: AsyncEngine) -> list[str]:
    """Note each opening and closing of a connection."""
    seen: list[str] = []
    event.listen(engine.sync_engine, "connect", lambda *_: seen.append("open"))
    event.listen(engine.sync_engine, "close", lambda *_: seen.append("close"))
    return seen


async def test_the_engine_is_disposed_of_when_the_service_ends(
    settings: ServiceSettings, caplog: pytest.LogCaptureFixture
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


async def test_the_engine_is_disposed_of_when_the_service_fails(settings: ServiceSettings) -> None:
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


async def test_the_engine_is_disposed_of_when_the_start_fails(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "app.telemetry", None)  # as if its packages were missing
    app = FastAPI()
    app.state.settings = settings.model_copy(update={"telemetry_enabled": True})

    with pytest.raises(ImportError):
        async with lifespan(app):
            pass

    assert "engine disposed of" in caplog.messages


async def test_one_engine_serves_every_request(settings: ServiceSettings) -> None:
    app = create_app(settings)
    assert not hasattr(app.state, "engine")
    pools: set[int] = set()

    def note(connection: Connection) -> None:
        pools.add(id(connection.engine.pool))

    event.listen(Engine, "engine_connect", note)
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://test") as client,
    ):
        for _ in range(200):
            assert (await client.get("/health/ready")).status_code == 200
        assert pools == {id(app.state.engine.pool)}
    event.remove(Engine, "engine_connect", note)


async def test_the_settings_reach_the_pool(settings: ServiceSettings) -> None:
    changes: dict[str, Any] = {"database_pool_size": 1, "database_max_overflow": 1}
    app = create_app(settings.model_copy(update=changes | {"database_pool_timeout": 0.05}))

    async with app.router.lifespan_context(app):
        engine = app.state.engine
        assert isinstance(engine.pool, FairPool)
        async with engine.connect(), engine.connect():
            with pytest.raises(PoolTimeoutError, match=r"no connection of 2 .* 0\.05 s"):
                await engine.connect()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
async def test_a_forked_child_leaves_its_parents_connections_alone(
    settings: ServiceSettings,
) -> None:
    program = """
import asyncio, os
from fastapi import FastAPI
from sqlalchemy import event, text
from app.lifespan import lifespan
from app.settings import ServiceSettings, load_settings

app, opened = FastAPI(), []
app.state.settings = load_settings(ServiceSettings)
runner = asyncio.Runner()
context = lifespan(app)
runner.run(context.__aenter__())
engine = app.state.engine
event.listen(engine.sync_engine, "connect", lambda *_: opened.append(os.getpid()))

async def query():
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))

runner.run(query())
child = os.fork()
if child == 0:
    # Kept, or the driver may close its parent's sockets gracefully when it is collected.
    inherited = engine.pool
    async def use():
        await engine.dispose(close=False)
        await query()
    asyncio.run(use())
    os._exit(len(opened) - 2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
runner.run(query())
assert opened == [os.getpid()], opened
runner.run(context.__aexit__(None, None, None))
"""
    url = settings.driver_url.render_as_string(hide_password=False)

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HIDE_ENV_FILE + program, env=os.environ | {"DATABASE_URL": url}
    )

    assert await process.wait() == 0


def test_creating_the_service_opens_nothing() -> None:
    program = HIDE_ENV_FILE + (
        "import sys\n"
        "sys.addaudithook(lambda name, _: name.endswith('.connect') and sys.exit(name))\n"
        "from app.factory import create_app\n"
        "from app.settings import ServiceSettings, load_settings\n"
        "create_app(load_settings(ServiceSettings))\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
