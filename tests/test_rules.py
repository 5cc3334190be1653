"""Each engine rule that source code can break is refused by the services' lint, by its number."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.processes import once
from tests.support.repository import REPOSITORY, names_of_tests, replace
from tests.support.services import Service

pytestmark = pytest.mark.fast

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
USUAL_SESSION = """
from fastapi import Depends


async def connect():
    async with {} as session:
        yield session


Session = Depends(connect)
"""
WRITER = """
from app.dependencies import SessionDep


async def write(session: SessionDep, response):
    {}
"""
LIFESPAN = "app/lifespan.py"
REPLICA = """\
        replica = create_async_engine(settings.replica_url, **settings.engine_options)
        stack.push_async_callback(dispose, replica)
"""

# The rule, the file, and what is written there: a whole file, or (old, new) in the one that is.
VIOLATIONS: list[tuple[str, str, str | tuple[str, str]]] = [
    ("E1", LIFESPAN, ("        yield\n", "        create_async_engine(settings.driver_url)\n        yield\n")),
    ("E1", LIFESPAN, ("        yield\n", "        create_async_engine(url=settings.driver_url)\n        yield\n")),
    ("E1", LIFESPAN, ("        yield\n", REPLICA.replace("replica_url", "driver_url") + "        yield\n")),
    ("E1", LIFESPAN, ("        yield\n", "        import sqlalchemy.ext.asyncio as sa\n\n        sa.create_async_engine(settings.driver_url)\n        yield\n")),
    ("E2", LIFESPAN, ("create_async_engine(settings", "build(settings")),
    ("E2", "app/orders.py", f"{ASYNC}\n"),
    ("E2", "app/orders.py", "from sqlalchemy.ext.asyncio.engine import create_async_engine\n"),
    ("E2", "app/orders.py", "from sqlalchemy.ext.asyncio.engine import async_engine_from_config\n"),
    ("E2", "app/orders.py", "from sqlalchemy.ext.asyncio import create_async_pool_from_url\n"),
    ("E2", LIFESPAN, ("        yield\n", "        AsyncEngine(engine.sync_engine)\n        yield\n")),
    ("E3", "app/orders.py", f"{ASYNC} as make\n" + HANDLER.format('make("x")')),
    ("E3", "app/orders.py", "import sqlalchemy.ext.asyncio as sa\n" + HANDLER.format('sa.create_async_engine("x")')),
    ("E3", "app/features/items/repository.py", f"{ASYNC}\n\n\nclass Items:\n    engine = create_async_engine('x')\n"),
    ("E3", "app/orders.py", "from sqlalchemy.ext.asyncio import AsyncEngine\n" + HANDLER.format("AsyncEngine(request.app.state.engine.sync_engine)")),
    ("E3", "app/orders.py", "import asyncpg\n" + HANDLER.format("await asyncpg.connect()")),
    ("E3", "app/orders.py", "from asyncpg import create_pool\n" + HANDLER.format("await create_pool()")),
    ("E3", "app/orders.py", "import asyncpg.pool\n" + HANDLER.format("asyncpg.pool.Pool()")),
    ("E3", "app/orders.py", "from aiosqlite import connect as open_file\n" + HANDLER.format('await open_file("x")')),
    ("E3", "app/orders.py", "import sqlite3\n" + HANDLER.format('sqlite3.connect("x")')),
    ("E3", "app/orders.py", "from sqlite3.dbapi2 import connect\n" + HANDLER.format('connect("x")')),
    ("E4", "app/orders.py", f"{ASYNC}\n\nengine = create_async_engine('x')\n"),
    ("E4", LIFESPAN, ("DISPOSE_TIMEOUT = ", "engine = create_async_engine('x')\nDISPOSE_TIMEOUT = ")),
    ("E4", LIFESPAN, ("async def dispose(", "replica = create_async_engine(REPLICA)\n\n\nasync def dispose(")),
    ("E4", LIFESPAN, ("async def dispose(", "def build(url: str) -> AsyncEngine:\n    return create_async_engine(url)\n\n\nasync def dispose(")),
    ("E5", "app/factory.py", ("    return app\n", "    app.router.on_startup.append(print)\n    return app\n")),
    ("E5", "app/factory.py", ("    return app\n", "    app.router.on_shutdown = [print]\n    return app\n")),
    ("E5", "app/factory.py", ("    return app\n", "    setattr(app.router, 'on_startup', [print])\n    return app\n")),
    ("E5", "app/factory.py", ("        lifespan=lifespan,\n", "        **{'on_startup': []},\n")),
    ("E5", "app/factory.py", ("        lifespan=lifespan,\n", "")),
    ("E5", "app/factory.py", ("    return app\n", "    app.router.lifespan_context = other\n    return app\n")),
    ("E5", "app/factory.py", ("    return app\n", "    setattr(app.router, 'lifespan_context', other)\n    return app\n")),
    ("E5", "app/factory.py", ("    return app\n", "    start = app.router.on_event\n    start('startup')(print)\n    return app\n")),
    ("E5", "app/orders.py", "from fastapi import APIRouter\n\nrouter = APIRouter(on_shutdown=[print])\n"),
    ("E5", "app/factory.py", ("    return app\n", "    app.on_event('startup')\n    return app\n")),
    ("E5", "app/factory.py", ("        lifespan=lifespan,\n", "        on_startup=[],\n")),
    ("E5", "app/factory.py", ("    return app\n", "    app.router.add_event_handler('shutdown', print)\n    return app\n")),
    ("E6", LIFESPAN, ("        stack.push_async_callback(dispose, engine)\n", "")),
    ("E6", LIFESPAN, ("        stack.push_async_callback(dispose, engine)\n        watch_statements(engine, settings.database_slow_statement)\n", "        watch_statements(engine, settings.database_slow_statement)\n        stack.push_async_callback(dispose, engine)\n")),
    ("E6", LIFESPAN, ("        stack.push_async_callback(dispose, engine)\n", "        stack.push_async_callback(dispose, other)\n")),
    ("E6", LIFESPAN, ("        yield\n", REPLICA.splitlines()[0] + "\n        yield\n")),
    ("E6", LIFESPAN, ("        yield\n", "        replica: AsyncEngine = create_async_engine(settings.replica_url)\n        yield\n")),
    ("E6", LIFESPAN, ("        yield\n", "        app.state.replica = create_async_engine(settings.replica_url)\n        yield\n")),
    ("E6", LIFESPAN, ("    async with AsyncExitStack() as stack:\n", "    replica = create_async_engine(app.state.settings.replica_url)\n    async with AsyncExitStack() as stack:\n")),
    ("E6", LIFESPAN, ("        yield\n", "        watch_statements(create_async_engine(settings.replica_url), 1)\n        yield\n")),
    ("E7", LIFESPAN, ("        app.state.engine = engine\n", "        logger.info(app.state.engine)\n")),
    ("E7", "app/factory.py", ("    app.state.settings = settings\n", "")),
    ("E7", LIFESPAN, ("        app.state.engine = engine\n", "")),
    ("E8", "app/orders.py", HANDLER.format("await request.app.state.engine.dispose()")),
    ("E8", "app/orders.py", HANDLER.format("await request.app.state.engine.dispose(close=True)")),
    ("E8", "app/orders.py", HANDLER.format("request.app.state.engine.sync_engine.dispose()")),
    ("E8", "app/orders.py", HANDLER.format("request.app.state.engine.pool.dispose()")),
    ("E8", "app/orders.py", HANDLER.format("end = request.app.state.engine.dispose\n    await end()")),
    ("E8", LIFESPAN, ("        yield\n", "        yield\n        await engine.dispose()\n")),
    ("E9", "app/orders.py", 'URL = "{dialect}://user@host/name"\n'),
    ("E10", "app/orders.py", "from sqlalchemy import create_engine\n"),
    ("E10", "app/orders.py", "import sqlalchemy as sa\n\nengine = sa.create_engine('x')\n"),
    ("E10", "app/orders.py", "from sqlalchemy.engine import create_engine\n"),
    ("E10", "app/orders.py", "from sqlalchemy.engine.create import create_engine\n"),
    ("E10", "app/orders.py", "from sqlalchemy.future import create_engine\n"),
    ("E10", "app/orders.py", "from sqlalchemy.future.engine import create_engine\n"),
    ("E10", "app/orders.py", "from sqlalchemy import create_pool_from_url\n"),
    ("E10", "app/orders.py", "from sqlalchemy.engine import engine_from_config\n"),
    ("E10", "app/orders.py", "import psycopg\n"),
    ("E10", LIFESPAN, ("        yield\n", "        from sqlalchemy import create_engine\n\n        create_engine(settings.replica_url)\n        yield\n")),
    ("E11", "app/orders.py", "from app.settings import Settings\n\n\ndef other(settings: Settings) -> object:\n    return settings.driver_url.set(database='x')\n"),
    ("E11", "app/orders.py", "from app.settings import Settings\n\n\ndef other(settings: Settings) -> object:\n    return settings.driver_url.update_query_string('a=b')\n"),
    ("E11", "app/orders.py", 'URL = f"{dialect}://{{1}}@host/name"\n'),
    ("E11", "migrations/versions/x.py", 'URL = "{driver}:///name"\n'),
    ("E11", "tests/test_orders.py", 'URL = "{driver}:///name"\n'),
    ("E11", "app/orders.py", "from sqlalchemy import URL\n"),
    ("E11", "tests/test_orders.py", "from sqlalchemy.engine.url import make_url\n"),
    ("E12", "app/orders.py", "from sqlalchemy import StaticPool\n"),
    ("E12", "app/orders.py", "from sqlalchemy import AssertionPool\n"),
    ("E12", "app/orders.py", "from sqlalchemy import Pool, SingletonThreadPool\n"),
    ("E12", "app/orders.py", HANDLER.format("request.app.state.engine.sync_engine.pool = None")),
    ("E12", LIFESPAN, ("**settings.engine_options", "pool_pre_ping=False")),
    ("E12", LIFESPAN, ("**settings.engine_options", "pool=None")),
    ("E13", "app/orders.py", "from sqlalchemy.pool.impl import NullPool\n"),
    ("E13", "app/orders.py", "import sqlalchemy as sa\n\nOptions = sa.pool.NullPool\n"),
    ("E13", "app/orders.py", "from sqlalchemy.pool import NullPool\n"),
    ("E13", "app/orders.py", "from sqlalchemy import NullPool as NoPool\n"),
    ("E14", "app/orders.py", "import asyncio\n" + HANDLER.format("asyncio.run(read(request))")),
    ("E14", "app/orders.py", "from asyncio import new_event_loop\n"),
    ("E14", "app/orders.py", "from asyncio.runners import run\n"),
    ("E14", "app/orders.py", "from asyncio.events import new_event_loop\n"),
    ("E14", "app/orders.py", "import asyncio\n" + HANDLER.format("asyncio.get_event_loop_policy().new_event_loop()")),
    ("E14", "app/orders.py", "import asyncio\n" + HANDLER.format("asyncio.get_event_loop().run_until_complete(None)")),
    ("E14", "app/orders.py", "import asyncio\n\nloop = asyncio.SelectorEventLoop()\n"),
    ("E14", "app/orders.py", "import asyncio\n" + HANDLER.format("asyncio.get_event_loop().run_forever()")),
    ("E14", "app/orders.py", "import anyio\n" + HANDLER.format("anyio.run(read, request)")),
    ("E14", "app/orders.py", "from anyio.from_thread import start_blocking_portal\n"),
    ("E14", "app/orders.py", "from anyio.from_thread import BlockingPortalProvider\n"),
    ("E14", "app/orders.py", "import uvloop\n" + HANDLER.format("uvloop.run(read(request))")),
    ("E14", "app/orders.py", "from uvloop import Loop, new_event_loop\n"),
    ("E15", "app/orders.py", "import os\n\nos.forkpty()\n"),
    ("E15", "app/orders.py", "import posix\n\nposix.fork()\n"),
    ("E15", "app/orders.py", "import pty\n\npty.fork()\n"),
    ("E15", "app/orders.py", "from concurrent.futures import ProcessPoolExecutor\n"),
    ("E15", "app/orders.py", "from concurrent.futures.process import ProcessPoolExecutor\n"),
    ("E15", "app/orders.py", "import multiprocessing.pool\n"),
    ("E15", "app/orders.py", "import os\n\nos.fork()\n"),
    ("E15", "app/orders.py", "from multiprocessing import Process\n"),
    ("E16", LIFESPAN, ("**settings.engine_options", "**{'poolclass': None}, **settings.engine_options")),
    ("E16", "app/orders.py", "from sqlalchemy import QueuePool\n"),
    ("E16", LIFESPAN, ("**settings.engine_options", "poolclass=None, **settings.engine_options")),
    ("commit before the response", "app/orders.py", "from fastapi import Depends\n\nfrom app.dependencies import get_session\n\nSession = Depends(get_session)\n"),
    ("commit before the response", "app/orders.py", OWN_SESSION),
    ("commit before the response", "app/orders.py", USUAL_SESSION.format("AsyncSession(engine)")),
    ("commit before the response", "app/orders.py", USUAL_SESSION.format("asyncio.AsyncSession(engine)")),
    ("commit before the response", "app/orders.py", USUAL_SESSION.format("SessionLocal()")),
    ("commit before the response", "app/orders.py", USUAL_SESSION.format("db.async_session()")),
    ("commit before the response", "app/orders.py", "from fastapi import Depends\n\nfrom app.dependencies import get_session\n\nSession = Depends(dependency=get_session)\n"),
    ("commit before the response", "app/orders.py", "import fastapi\n\nfrom app import sessions\n\nSession = fastapi.Depends(sessions.get_session)\n"),
    ("commit before the response", "app/orders.py", "from fastapi import Security\n\nfrom app.dependencies import get_session\n\nSession = Security(get_session)\n"),
    ("a returned error commits", "app/orders.py", WRITER.format("return JSONResponse({{}}, 409)")),
    ("a returned error commits", "app/orders.py", WRITER.format("return responses.JSONResponse({{}}, status_code=HTTPStatus.CONFLICT)")),
    ("a returned error commits", "app/orders.py", WRITER.format("return problem(status.HTTP_409_CONFLICT)")),
    ("a returned error commits", "app/orders.py", WRITER.format("answer = Response(status_code=500)\n    return answer")),
    ("a returned error commits", "app/orders.py", WRITER.format("response.status_code = 409")),
    ("SessionDep commits", "app/orders.py", WRITER.format("await session.commit()")),
    ("SessionDep commits", "app/orders.py", WRITER.format("async with session.begin():\n        pass")),
    ("SessionDep commits", "app/orders.py", WRITER.format("if response:\n        await session.commit()")),
    ("pure ASGI", "app/orders.py", "from starlette.middleware.base import BaseHTTPMiddleware\n"),
    ("pure ASGI", "app/factory.py", ("    return app\n", '    app.middleware(middleware_type="http")(print)\n    return app\n')),
    ("pure ASGI", "app/factory.py", ("    return app\n", '    app.middleware("http")(print)\n    return app\n')),
]  # fmt: skip
RULES = [f"E{number}" for number in range(1, 17)]


def lint(service: Service) -> str:
    """Run the two steps of `poe check` that know the rules."""
    concise = ("--output-format", "concise", "--no-cache")
    ruff = service.run(".venv/bin/ruff", "check", *concise, check=False)
    rules = service.run(".venv/bin/python", "-m", "scripts.engine_rules", check=False)
    if ruff.returncode == rules.returncode == 0:
        return ""
    return ruff.stdout + rules.stdout


@pytest.fixture
def copy(service: Service, tmp_path: Path) -> Service:
    return service.copy(tmp_path / "service")


def test_a_fresh_service_keeps_every_rule(copy: Service) -> None:
    assert lint(copy) == ""


def test_a_session_of_ones_own_may_be_committed(copy: Service) -> None:
    (copy.folder / "app/orders.py").write_text(WRITER.format("await own.commit()"))

    copy.run(".venv/bin/python", "-m", "scripts.engine_rules")


def test_an_engine_for_another_url_keeps_every_rule(copy: Service) -> None:
    replace(copy.folder / LIFESPAN, "        yield\n", f"{REPLICA}        yield\n")

    assert lint(copy) == ""


def own_file(file: str, number: int) -> str:
    """Return a name beside `file` for one of many violations that are linted together."""
    path = Path(file)
    return path.with_stem(f"{path.stem}_{number}").as_posix()


def lint_all_files(service: Service, folder: Path) -> str:
    """Return what the lint says of all violations that are files of their own."""
    copy = service.copy(folder / "service")
    driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    for number, (_, file, written) in enumerate(VIOLATIONS):
        if isinstance(written, str):
            text = written.replace("{dialect}", copy.database)
            text = text.replace("{driver}", driver[copy.database])
            path = copy.folder / own_file(file, number)
            path.write_text(text.replace("{{", "{").replace("}}", "}"))
    return lint(copy)


@pytest.fixture(scope="module")
def lines_of_files(
    service: Service, whole_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """What the lint says of all violations that are files of their own."""
    said = once(
        whole_run / f"files-{service.database}.txt",
        lambda: lint_all_files(service, tmp_path_factory.mktemp("violations")),
    )
    return said.splitlines()


def is_refused(lines: list[str], file: str, rule: str) -> bool:
    told = [line for line in lines if line.startswith(f"{file}:")]
    return any(re.search(rf"(?<!\w){rule}(?!\w)", line) for line in told)


NUMBERED = [(number, *violation) for number, violation in enumerate(VIOLATIONS)]


@pytest.mark.parametrize(
    ("number", "rule", "file"),
    [(number, rule, file) for number, rule, file, written in NUMBERED if isinstance(written, str)],
)
def test_a_file_that_breaks_a_rule_is_refused_by_its_number(
    lines_of_files: list[str], number: int, rule: str, file: str
) -> None:
    assert is_refused(lines_of_files, own_file(file, number), rule), lines_of_files


# The two steps of `poe check` that know the rules, after each of many edits.
EACH = """
import json, os, pathlib, runpy, subprocess, sys

sys.path[0] = os.getcwd()
ruff = [".venv/bin/ruff", "check", "--output-format", "concise", "--no-cache"]
for number, (name, old, new) in json.loads(pathlib.Path(sys.argv[1]).read_text()).items():
    print("case", number, flush=True)
    file = pathlib.Path(name)
    before = file.read_text()
    assert before.count(old) == 1, (name, old)
    file.write_text(before.replace(old, new))
    subprocess.run(ruff)
    child = os.fork()
    if child == 0:
        runpy.run_path("scripts/engine_rules.py", run_name="__main__")
        sys.exit()
    os.waitpid(child, 0)
    file.write_text(before)
"""


def lint_each_edit(service: Service, folder: Path) -> str:
    """Return what the lint says of each violation that is an edit, one after the other.

    Of a service on SQLite: the files and the rules for them are the same on PostgreSQL.
    """
    copy = service.copy(folder / "service")
    edits = {
        number: [file, *written]
        for number, _, file, written in NUMBERED
        if isinstance(written, tuple)
    }
    shutil.rmtree(copy.folder / "tests")  # each file is looked at for itself, and they are many
    (folder / "edits.json").write_text(json.dumps(edits))
    said = copy.run(".venv/bin/python", "-c", EACH, str(folder / "edits.json")).stdout
    for file in {str(file) for file, *_ in edits.values()}:
        assert (copy.folder / file).read_text() == (service.folder / file).read_text()
    return said


@pytest.fixture(scope="module")
def lines_of_edits(
    service_of: Callable[[str], Service],
    whole_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, list[str]]:
    """What the lint says of each violation that is an edit, by its number."""
    said = once(
        whole_run / "edits.txt",
        lambda: lint_each_edit(service_of("sqlite"), tmp_path_factory.mktemp("edits")),
    )
    found = re.split(r"^case (\d+)\n", said, flags=re.MULTILINE)
    return {
        int(number): lines.splitlines()
        for number, lines in zip(found[1::2], found[2::2], strict=True)
    }


@pytest.mark.parametrize(
    ("number", "rule", "file"),
    [
        (number, rule, file)
        for number, rule, file, written in NUMBERED
        if isinstance(written, tuple)
    ],
)
def test_a_broken_rule_is_refused_by_its_number(
    lines_of_edits: dict[int, list[str]], number: int, rule: str, file: str
) -> None:
    assert (REPOSITORY / "template" / file).is_file(), "it differs between the databases"
    assert is_refused(lines_of_edits[number], file, rule), lines_of_edits[number]


def test_what_joins_the_stack_later_is_released_before_the_engine(
    copy: Service, database: Database
) -> None:
    more = '        stack.callback(logger.info, "later resource released")\n        yield\n'
    replace(copy.folder / LIFESPAN, "        yield\n", more)

    with copy.serve(".venv/bin/python", "-m", "app.server", **database.variables) as server:
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
