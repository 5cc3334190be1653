"""The services' own checks pass: fresh, without the example, and with a table of one's own."""

import re
import shutil
from pathlib import Path

import pytest

from tests.services import Database, Service


@pytest.fixture
def copied(service: Service, tmp_path: Path) -> Service:
    """A copy of the service for a test that changes it."""
    folder = tmp_path / "service"
    shutil.copytree(service.folder, folder, symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    copy = Service(folder, service.database)
    copy.run("uv", "sync", "--quiet")
    return copy


def test_a_fresh_service_passes_its_checks(service: Service) -> None:
    output = service.run("uv", "run", "poe", "check").stdout

    assert re.search(r"\d+ passed", output)
    assert "warning" not in output.lower()


def test_the_tests_of_a_service_may_run_in_parallel(service: Service) -> None:
    service.run("uv", "run", "pytest", "-n", "2")


def test_a_service_without_the_example_passes_its_checks(copied: Service) -> None:
    readme = (copied.folder / "README.md").read_text()
    [command] = re.findall(r"^\$ (rm -r app/items .*)$", readme, re.MULTILINE)
    copied.run("sh", "-c", command)
    features = copied.folder / "app/features.py"
    lines = features.read_text().splitlines(keepends=True)
    features.write_text("".join(line for line in lines if "items" not in line))

    copied.run("uv", "run", "poe", "fix")
    copied.run("uv", "run", "poe", "check")

    assert features.read_text().count("\n") == len(lines) - 3  # two lines, and a blank one


def test_a_new_model_gets_a_migration_that_passes_the_checks(
    copied: Service, migrated: Database
) -> None:
    notes = copied.folder / "app/notes"
    notes.mkdir()
    (notes / "__init__.py").write_text("")
    (notes / "models.py").write_text(
        "import datetime\n\n"
        "from sqlalchemy import Identity, String\n"
        "from sqlalchemy.orm import Mapped, mapped_column\n\n"
        "from app.database import BigIntegerKey\n"
        "from app.models import Base\n\n\n"
        "class Note(Base):\n"
        '    __tablename__ = "notes"\n\n'
        "    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(), primary_key=True)\n"
        "    text: Mapped[str] = mapped_column(String(100))\n"
        "    at: Mapped[datetime.datetime]\n"
    )
    assert copied.run("uv", "run", "pytest", "-k", "without_a_migration", check=False).returncode

    message = ("--autogenerate", "-m", "create notes")
    copied.run("uv", "run", "alembic", "revision", *message, variables=migrated.variables)

    copied.run("uv", "run", "poe", "check")
    [revision] = (copied.folder / "migrations/versions").glob("*_create_notes.py")
    assert "database.BigIntegerKey()" in revision.read_text()
