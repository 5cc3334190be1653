"""Each engine rule that source code can break is refused by the services' own lint, by its number."""

import re
import signal
from pathlib import Path

import pytest

from tests.services import REPOSITORY, Database, Service, names_of_tests, replace

ASYNC = "from sqlalchemy.ext.asyncio import create_async_engine"
HANDLER = """
from fastapi import APIRouter, Request

router = APIRouter()


@router.get("/")
async def read(request: Request) -> None:
    {}
"""
OWN_SESSION = """
from fastapi import Depends, Request


async def connect(request: Request):
    async with request.app.state.sessionmaker() as session:
        yield session


Session = Depends(connect)
"""
WRITER = """
from app.sessions import SessionDep


async def write(session: SessionDep, response):
    {}
"""
LIFESPAN = "app/lifespan.py"

# The rule, the file, and what is written there: a whole file, or (old, new) in the one that is.
VIOLATIONS: list[tuple[str, str, str | tuple[str, str]]] = [
    ("E1", LIFESPAN, ("        yield\n", "        create_async_engine(settings.driver_url)\n        yield\n")),
    ("E2", LIFESPAN, ("create_async_engine(settings", "build(settings")),
    ("E2", "app/orders.py", f"{ASYNC}\n"),
    ("E3", "app/orders.py", f"{ASYNC} as make\n" + HANDLER.format('make("x")')),
    ("E3", "app/orders.py", "import sqlalchemy.ext.asyncio as sa\n" + HANDLER.format('sa.create_async_engine("x")')),
    ("E3", "app/items/repository.py", f"{ASYNC}\n\n\nclass Items:\n    engine = create_async_engine('x')\n"),
    ("E4", "app/orders.py", f"{ASYNC}\n\nengine = create_async_engine('x')\n"),
    ("E4", LIFESPAN, ("DISPOSE_TIMEOUT = ", "engine = create_async_engine('x')\nDISPOSE_TIMEOUT = ")),
    ("E5", "app/main.py", ("    return app\n", "    app.on_event('startup')\n    return app\n")),
    ("E5", "app/main.py", ("        lifespan=lifespan,\n", "        on_startup=[],\n")),
    ("E5", "app/main.py", ("    return app\n", "    app.router.add_event_handler('shutdown', print)\n    return app\n")),
    ("E6", LIFESPAN, ("        stack.push_async_callback(dispose, engine)\n", "")),
    ("E6", LIFESPAN, ("        stack.push_async_callback(dispose, engine)\n        watch_statements(engine, settings.database_slow_statement)\n", "        watch_statements(engine, settings.database_slow_statement)\n        stack.push_async_callback(dispose, engine)\n")),
    ("E7", LIFESPAN, ("        app.state.engine = engine\n", "")),
    ("E8", "app/orders.py", HANDLER.format("await request.app.state.engine.dispose()")),
    ("E9", "app/orders.py", 'URL = "{dialect}://user@host/name"\n'),
    ("E10", "app/orders.py", "from sqlalchemy import create_engine\n"),
    ("E10", "app/orders.py", "import sqlalchemy as sa\n\nengine = sa.create_engine('x')\n"),
    ("E11", "app/orders.py", 'URL = f"{dialect}://{{1}}@host/name"\n'),
    ("E11", "migrations/versions/x.py", 'URL = "{driver}:///name"\n'),
    ("E11", "tests/test_orders.py", 'URL = "{driver}:///name"\n'),
    ("E11", "app/orders.py", "from sqlalchemy import URL\n"),
    ("E11", "tests/test_orders.py", "from sqlalchemy.engine.url import make_url\n"),
    ("E12", "app/orders.py", "from sqlalchemy import StaticPool\n"),
    ("E13", "app/orders.py", "from sqlalchemy.pool import NullPool\n"),
    ("E13", "app/orders.py", "from sqlalchemy import NullPool as NoPool\n"),
    ("E14", "app/orders.py", "import asyncio\n" + HANDLER.format("asyncio.run(read(request))")),
    ("E14", "app/orders.py", "from asyncio import new_event_loop\n"),
    ("E15", "app/orders.py", "import os\n\nos.fork()\n"),
    ("E15", "app/orders.py", "from multiprocessing import Process\n"),
    ("E16", LIFESPAN, ("**settings.engine_options", "poolclass=None, **settings.engine_options")),
    ("commit before the response", "app/orders.py", "from fastapi import Depends\n\nfrom app.sessions import get_session\n\nSession = Depends(get_session)\n"),
    (
        "commit before the response",
        "app/orders.py",
        OWN_SESSION,
    ),
    ("a returned error commits", "app/orders.py", WRITER.format("return JSONResponse({{}}, 409)")),
    ("a returned error commits", "app/orders.py", WRITER.format("return responses.JSONResponse({{}}, status_code=HTTPStatus.CONFLICT)")),
    ("a returned error commits", "app/orders.py", WRITER.format("return problem(status.HTTP_409_CONFLICT)")),
    ("a returned error commits", "app/orders.py", WRITER.format("answer = Response(status_code=500)\n    return answer")),
    ("a returned error commits", "app/orders.py", WRITER.format("response.status_code = 409")),
    ("pure ASGI", "app/orders.py", "from starlette.middleware.base import BaseHTTPMiddleware\n"),
    ("pure ASGI", "app/main.py", ("    return app\n", '    app.middleware("http")(print)\n    return app\n')),
]  # fmt: skip
RULES = [f"E{number}" for number in range(1, 17)]


def lint(service: Service) -> str:
    """Run the two steps of `poe check` that know the rules."""
    concise = ("--output-format", "concise", "--no-cache")
    ruff = service.run(".venv/bin/ruff", "check", *concise, check=False)
    rules = service.run(".venv/bin/python", "engine_rules.py", check=False)
    if ruff.returncode == rules.returncode == 0:
        return ""
    return ruff.stdout + rules.stdout


@pytest.fixture
def copy(service: Service, tmp_path: Path) -> Service:
    return service.copy(tmp_path / "service")


def test_a_fresh_service_keeps_every_rule(copy: Service) -> None:
    assert lint(copy) == ""


@pytest.mark.parametrize(
    ("rule", "file", "written"),
    VIOLATIONS,
    ids=[f"{number}-{violation[0]}" for number, violation in enumerate(VIOLATIONS)],
)
def test_a_broken_rule_is_refused_by_its_number(
    copy: Service, rule: str, file: str, written: str | tuple[str, str]
) -> None:
    path = copy.folder / file
    if isinstance(written, tuple):
        replace(path, *written)
    else:
        driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
        dialect = copy.database
        text = written.replace("{dialect}", dialect).replace("{driver}", driver[dialect])
        path.write_text(text.replace("{{", "{").replace("}}", "}"))

    lines = lint(copy).splitlines()

    told = [line for line in lines if line.startswith(f"{file}:")]
    assert [line for line in told if re.search(rf"(?<!\w){rule}(?!\w)", line)], lines


def test_what_joins_the_stack_later_is_released_before_the_engine(
    copy: Service, database: Database
) -> None:
    more = '        stack.callback(logger.info, "later resource released")\n        yield\n'
    replace(copy.folder / LIFESPAN, "        yield\n", more)

    with copy.serve(".venv/bin/uvicorn", "app.main:app", **database.variables) as server:
        server.stop(signal.SIGTERM)

    assert 0 < server.log().index("later resource released") < server.log().index("disposed of")


def test_every_rule_is_broken_here_and_explained_in_the_reference() -> None:
    page = (REPOSITORY / "docs/reference/engine-rules.md").read_text()
    tests = names_of_tests()

    assert {rule for rule, _, _ in VIOLATIONS} >= set(RULES)
    rows = dict(re.findall(r"^\| (E\d+) \|(.*)\|$", page, re.MULTILINE))
    assert sorted(rows) == sorted(RULES)
    for rule, cells in rows.items():
        named = re.findall(r"`(test_\w+)`", cells.split("|")[-1])
        assert named, f"{rule} names no test that observes it"
        assert set(named) <= tests
