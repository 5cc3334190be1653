import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from copier._main import Worker
from hypothesis import Phase, settings
from jinja2 import Environment
from jinja2.lexer import get_lexer
from playwright.sync_api import Page

from tests.support.browser import NoBrowserError, open_page
from tests.support.databases import (
    DATABASES,
    Database,
    PostgreSQLDatabase,
    in_the_end,
    open_database,
)
from tests.support.processes import once
from tests.support.proxied import ProxiedDatabase, open_guarded_server, open_proxied
from tests.support.releases import publish
from tests.support.repository import snapshot
from tests.support.services import Service, remember_what_is_rendered, render

settings.register_profile("fast", phases=[Phase.explicit])  # nothing random

MEMORY = Path("/dev/shm")  # Linux's file system in memory
ROOM = 4 * 2**30  # bytes; the temporary files of a run take less than half


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="run what gives an answer in a minute")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the developer's own Copier defaults and git identity out of the tests."""
    if config.getoption("fast"):
        settings.load_profile("fast")
    folder = Path(tempfile.mkdtemp(prefix="copier-"))
    config.add_cleanup(lambda: shutil.rmtree(folder))
    (folder / "settings.yml").write_text("{}")
    os.environ["COPIER_SETTINGS_PATH"] = str(folder / "settings.yml")
    os.environ["COPIER_CACHE_DIR"] = str(folder / "cache")
    (folder / "git").mkdir()  # of what git copies into each new repository: nothing
    os.environ["GIT_TEMPLATE_DIR"] = str(folder / "git")
    keep_copier_from_asking_git_for_each_file()
    keep_copier_from_compiling_a_text_again()
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it
        keep_temporary_files_in_memory(config)
    config.add_cleanup(in_the_end.close)
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        os.environ |= {f"{name}_NAME": "Test", f"{name}_EMAIL": "test@example.com"}


def keep_copier_from_asking_git_for_each_file() -> None:
    """Let Copier render here without a process of git's for each file: 30,000 in a run.

    By each it asks whether git overlooks the modes of files, to tell git the modes itself. In what
    the tests render git does not. The commands that they type run Copier as it is.
    """
    Worker._sync_git_index_executable_bit = lambda *_: None  # type: ignore[method-assign]


def keep_copier_from_compiling_a_text_again() -> None:
    """Let Jinja remember what it compiles: half of the time that a render takes here.

    A render compiles its few hundred names and texts again for each file. What becomes of a text
    depends on the syntax, which the lexer stands for, on the extensions and the kind of environment.
    """
    compile_anew = Environment.compile
    compiled: dict[tuple[object, ...], Any] = {}

    def compile_once(environment: Environment, *words: Any) -> Any:
        key = (type(environment), get_lexer(environment), *environment.extensions, *words)
        if key not in compiled:
            compiled[key] = compile_anew(environment, *words)
        return compiled[key]

    Environment.compile = compile_once  # type: ignore[assignment,method-assign]


def keep_temporary_files_in_memory(config: pytest.Config) -> None:
    """Let databases and Copier's clones begin and end in memory, where there is room.

    They are thousands of files each, and a disk takes most of the time that they cost. What the
    tests themselves write stays on the disk, where environments are links to uv's cache.
    """
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM:
        return
    if os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:  # in some containers
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="tests-", dir=MEMORY))
    folder.chmod(0o1777)  # as /tmp is: a PostgreSQL that root starts runs as another user
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what `--fast` leaves out, and let each worker begin with what is long.

    So no worker is left with a long test when the others have nothing to do any more.
    """
    if config.getoption("fast"):
        fast = [it for it in items if it.get_closest_marker("fast")]
        chosen = [it for it in fast if not it.get_closest_marker("long")]
        config.hook.pytest_deselected(items=[it for it in items if it not in set(chosen)])
        items[:] = chosen
    long = [it for it in items if it.get_closest_marker("long")]
    short = [it for it in items if not it.get_closest_marker("long")]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ordered: list[pytest.Item] = []
    for worker in range(workers):  # each gets the same number of tests, in the order of these
        first = long[worker::workers]
        more = (len(items) - len(ordered)) // (workers - worker) - len(first)
        ordered += [*first, *short[: max(0, more)]]
        del short[: max(0, more)]
    items[:] = ordered


@pytest.fixture(scope="session", params=DATABASES)
def database_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def template(whole_run: Path) -> Path:
    """The template as it is in the working tree, released. No test changes it."""
    folder = whole_run / "snapshot"

    def make() -> str:
        remember_what_is_rendered(folder)
        return str(snapshot(folder / "template"))

    return Path(once(whole_run / "snapshot.made", make))


@pytest.fixture(scope="session")
def templates(template: Path, whole_run: Path) -> Path:
    """The template with all its releases, and with synthetic ones. No test changes it."""
    folder = whole_run / "releases"

    def make() -> str:
        remember_what_is_rendered(folder)
        return str(publish(template, folder / "templates"))

    return Path(once(whole_run / "releases.made", make))


@pytest.fixture(scope="session")
def service_of(
    template: Path, whole_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Service]:
    """Render a service for each database, once for this worker."""

    @cache
    def render_and_install(database: str) -> Service:
        folder = tmp_path_factory.mktemp(database) / "service"
        service = Service(render(template, folder, database=database), database)
        service.share_environment(whole_run / f"environment-{database}")
        return service

    return render_and_install


@pytest.fixture(scope="session")
def service(service_of: Callable[[str], Service], database_name: str) -> Service:
    """A service for reading and running: no test changes its files."""
    return service_of(database_name)


@pytest.fixture
def database(database_name: str, tmp_path: Path) -> Iterator[Database]:
    """An empty database of the service's kind."""
    with open_database(database_name, tmp_path) as database:
        yield database


@pytest.fixture(scope="session")
def files_of_migrated(
    service_of: Callable[[str], Service], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """Migrate a database of each kind, once for this worker, for others to copy."""
    with ExitStack() as stack:

        @cache
        def migrate(name: str) -> Path:
            folder = tmp_path_factory.mktemp("migrated")
            database = stack.enter_context(open_database(name, folder))
            service_of(name).migrate(database)
            return database.leave_files()

        yield migrate


@pytest.fixture
def migrated(
    database_name: str, files_of_migrated: Callable[[str], Path], tmp_path: Path
) -> Iterator[Database]:
    """A database with the service's schema and no rows."""
    with open_database(database_name, tmp_path, files_of_migrated(database_name)) as database:
        yield database


@pytest.fixture(scope="module")
def guarded_server(
    service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgreSQLDatabase]:
    """A PostgreSQL that asks for a password, with a migrated database to clone."""
    with open_guarded_server(service, tmp_path_factory.mktemp("guarded")) as server:
        yield server


@pytest.fixture
def proxied(guarded_server: PostgreSQLDatabase) -> Iterator[ProxiedDatabase]:
    """A migrated database without rows, reached through a proxy."""
    with open_proxied(guarded_server, "pattern") as proxied:
        yield proxied


@pytest.fixture
def page() -> Iterator[Page]:
    """An empty page in a browser."""
    with ExitStack() as stack:
        try:
            page = stack.enter_context(open_page())
        except NoBrowserError as error:
            pytest.skip(str(error))
        yield page
