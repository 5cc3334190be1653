"""The services' own checks pass: fresh, without the example, and with a table of one's own."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.databases import Database, server_for_tests
from tests.support.pages import check
from tests.support.repository import git, replace
from tests.support.services import FIRST, Service

WITHOUT_A_MIGRATION = (".venv/bin/pytest", "tests/test_migrations.py", "-k", "without_a_migration")


@pytest.fixture
def copied(service: Service, tmp_path: Path) -> Service:
    """A copy of the service for a test that changes it."""
    return service.copy(tmp_path / "service")


@pytest.mark.long
def test_a_fresh_service_passes_its_checks(copied: Service) -> None:
    (copied.folder / ".env").write_text("DATABASE_POOL_SIZE=two\nLOG_LEVEL=loud\n")  # is ignored

    cores = {"PYTEST_XDIST_AUTO_NUM_WORKERS": "2"}  # which other tests keep to themselves
    output = copied.run("uv", "run", "poe", "check", variables=cores).stdout

    assert re.search(r"2 workers(?s:.*)\d+ passed", output)
    assert "warning" not in output.lower()


def test_a_change_of_what_clients_rely_on_is_refused_until_it_is_accepted(
    copied: Service,
) -> None:
    file = copied.folder / "openapi.json"
    file.unlink(missing_ok=True)
    check = ("uv", "run", "--no-sync", "python", "-m", "scripts.openapi", "--check")
    missing = copied.run(*check, variables={"CI": "true"}, check=False)
    assert (missing.returncode, file.exists()) == (1, False)
    assert "Make it by uv run poe openapi" in missing.stdout

    assert "is new" in copied.run(*check).stdout
    accepted = file.read_text()
    routes = copied.folder / "app/features/items/routes.py"
    replace(routes, "async def list_items", "async def list_all")
    refused = copied.run(*check, variables={"CI": "true"}, check=False)
    assert refused.returncode == 1
    assert '-        "operationId": "list_items"' in refused.stdout
    assert '+        "operationId": "list_all"' in refused.stdout
    assert "To accept that: uv run poe openapi" in refused.stdout
    assert file.read_text() == accepted

    copied.run("uv", "run", "poe", "openapi")
    assert copied.run(*check).stdout == ""
    assert file.read_text() != accepted


def test_the_document_is_the_same_whatever_the_environment_says(copied: Service) -> None:
    with (copied.folder / "app/features/settings.py").open("a") as file:
        file.write('\n    api_title: str = "Orders"\n')
    with (copied.folder / "app/features/registration.py").open("a") as file:
        file.write("    app.title = app.state.settings.api_title\n")
    copied.run("uv", "run", "poe", "openapi")

    check = ("uv", "run", "--no-sync", "python", "-m", "scripts.openapi", "--check")
    other = {"API_TITLE": "Mine", "DOCS_ENABLED": "false", "DATABASE_URL": "nowhere"}
    copied.run(*check, variables=other | {"CI": "true"})

    assert json.loads((copied.folder / "openapi.json").read_text())["info"]["title"] == "Orders"


@pytest.mark.long
def test_a_service_without_the_example_passes_its_checks(copied: Service) -> None:
    features = copied.folder / "app/features/registration.py"
    lines = features.read_text().count("\n")

    copied.delete_example()
    copied.run("uv", "run", "poe", "check", variables=server_for_tests(copied.database))

    assert features.read_text().count("\n") == lines - 3  # two lines, and a blank one


@pytest.mark.long
def test_a_new_model_gets_a_migration_that_passes_the_checks(
    copied: Service, migrated: Database
) -> None:
    notes = copied.folder / "app/features/notes"
    notes.mkdir()
    (notes / "__init__.py").write_text("")
    (notes / "models.py").write_text(
        "import datetime\n\n"
        "from sqlalchemy import Identity, String\n"
        "from sqlalchemy.orm import Mapped, mapped_column\n\n"
        "from app.database import Base, BigIntegerKey\n\n\n"
        "class Note(Base):\n"
        '    __tablename__ = "notes"\n\n'
        "    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(), primary_key=True)\n"
        "    text: Mapped[str] = mapped_column(String(100))\n"
        "    at: Mapped[datetime.datetime]\n"
    )
    refused = copied.run(*WITHOUT_A_MIGRATION, check=False)
    assert refused.returncode == 1
    assert "New upgrade operations detected: [('add_table', Table('notes'" in refused.stdout

    message = ("--autogenerate", "-m", "create notes")
    copied.run("uv", "run", "alembic", "revision", *message, variables=migrated.variables)

    check(copied)  # and all tests where tests/test_howtos.py writes a feature by hand
    copied.run(".venv/bin/pytest", "tests/test_migrations.py")
    [revision] = (copied.folder / "migrations/versions").glob("*_create_notes.py")
    assert "database.BigIntegerKey()" in revision.read_text()


def test_a_column_without_a_migration_is_refused(service: Service, tmp_path: Path) -> None:
    copy = service.copy(tmp_path / "service")
    models = copy.folder / "app/features/items/models.py"
    replace(models, "    version: Mapped[int]", "    colour: Mapped[str]\n    version: Mapped[int]")

    refused = copy.run(*WITHOUT_A_MIGRATION, check=False)

    assert refused.returncode == 1
    assert "New upgrade operations detected: [('add_column', None, 'items'" in refused.stdout


def test_two_heads_are_refused(service: Service, migrated: Database, tmp_path: Path) -> None:
    """Once by each command, which names the one that joins them."""
    copy = service.copy(tmp_path / "service")
    for branch in ("left", "right"):
        copy.add_revision(branch, FIRST, [])
    python = (".venv/bin/python", "-m")
    commands = {
        (*python, "app.doctor"): "WRONG schema    ",
        (*python, "scripts.dev"): "alembic upgrade head: ",
        (*python, "scripts.generator", "orders", "article:str"): "There are ",
        (*python, "pytest", "tests/features"): "ERROR: ",
    }

    told = set()
    for command, before in commands.items():
        refused = copy.run(*command, variables=migrated.variables, check=False)
        assert refused.returncode in (1, 4), command
        [line] = [line for line in refused.stdout.splitlines() if "merge" in line]
        assert line.startswith(f"{before}two heads"), line
        assert not re.search("Traceback|behind|INTERNALERROR", refused.stdout), refused.stdout
        told |= set(re.findall("uv run alembic merge .* joins", line))

    [joins] = told
    copy.run("sh", "-c", joins.removesuffix(" joins").replace("uv run", "uv run --no-sync"))
    copy.migrate(migrated)
    assert "ok    schema" in copy.run(*python, "app.doctor", variables=migrated.variables).stdout


WRONG = """\
from sqlalchemy.ext.asyncio import create_async_engine


def end(engine):  # type: ignore
    engine.dispose()


x: int =  len(1)
"""


def test_a_commit_is_checked_by_the_same_tools(
    service_of: Callable[[str], Service], tmp_path: Path
) -> None:
    """On one database: what is checked before a commit is the same file for both."""
    copied = service_of("sqlite").copy(tmp_path / "service")
    git(copied.folder, "init", "--quiet")

    def pre_commit() -> str:
        git(copied.folder, "add", "--all")
        done = copied.run(
            *(sys.executable, "-m", "pre_commit", "run", "--all-files"),
            variables={"PRE_COMMIT_HOME": str(tmp_path / "pre-commit")},
            check=False,
        )
        return "" if done.returncode == 0 else done.stdout

    assert pre_commit() == ""
    (copied.folder / "app/a.py").write_text(WRONG)
    (copied.folder / "notes.txt").write_text("<<<<<<< before updating\n")
    (copied.folder / "openapi.json").write_text("{}\n")
    said = pre_commit()
    assert said.count("- hook id: ") == 6  # each of them fails
    for fault in ("reformatted", "E2", "E8", "incompatible type", "conflict marker"):
        assert fault in said
    assert "To accept that: uv run poe openapi" in said
