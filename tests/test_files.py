"""What is left in files, and in the process list: who may read it, and where it gets to."""

import json
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils.build import exclude_paths

from tests.support.containers import instructions
from tests.support.databases import DATABASES
from tests.support.pages import DOCS, blocks
from tests.support.repository import REPOSITORY, git
from tests.support.services import Service, render

TEXTS = sorted([*DOCS.rglob("*.md"), REPOSITORY / "README.md"])

# Files ---------------------------------------------------------------------------------------------

# By their names they have data or secrets in them.
NAME = r"(?<![\w.])[\w-]*\.(?:env|db|dump|pem|key)(?:-\w+|\.(?!example)\w+)?(?![\w(])"
# Named by no page, but left by SQLite, by editors and by people.
UNNAMED = [".env.local", ".env.production", "app.db-journal", "app.db-wal", "copy.db-shm"]


def named_files(folder: Path) -> set[str]:
    """Return the files of a page or of a service's texts that are not to be published."""
    texts = [file.read_text() for file in [*TEXTS, folder / "README.md", folder / ".env.example"]]
    # Not `column.key` of Python, nor a path that `column.pem` may be in a table of suffixes.
    found = {name for text in texts for name in re.findall(NAME, text)} - {"column.key"}
    return found | {*UNNAMED}


@pytest.fixture(scope="module", params=DATABASES)
def folder(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("files") / "service"
    return render(template, folder, database=request.param)


@pytest.mark.fast
def test_git_ignores_every_file_with_data_or_secrets_that_a_page_names(folder: Path) -> None:
    names = named_files(folder)
    assert {".env", "production.env", "app.db", "backup.dump"} <= names
    git(folder, "init", "--quiet")
    for name in names:
        (folder / "app" / name).touch()
        (folder / name).touch()

    git(folder, "add", "--all")

    added = {Path(name).name for name in git(folder, "ls-files").split()}
    assert added & names == set()
    assert ".env.example" in added


@pytest.mark.fast
def test_no_image_gets_what_git_ignores(folder: Path) -> None:
    for name in named_files(folder):
        for place in (folder, folder / "app", folder / "migrations/versions"):
            (place / name).touch()

    ignored = (folder / ".dockerignore").read_text().splitlines()
    sent = {Path(name).name for name in exclude_paths(str(folder), ignored)}

    assert {"main.py", "uv.lock", "pyproject.toml"} - sent <= {"uv.lock"}
    assert sent & {*named_files(folder), ".git", "tests", ".venv", ".env.example"} == set()


@pytest.mark.parametrize("database_name", ["sqlite"], indirect=True)
def test_a_migration_makes_files_that_are_their_owners_alone(
    service: Service, tmp_path: Path
) -> None:
    service = service.copy(tmp_path / "service")
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    kept = tmp_path / "kept.db"
    with closing(sqlite3.connect(kept)):
        kept.touch()
    kept.chmod(0o640)

    for file in (data / "app.db", kept):
        url = f"sqlite:///{file}"
        upgrade = "umask 0 && .venv/bin/alembic upgrade head"
        service.run("sh", "-c", upgrade, variables={"DATABASE_URL": url})
    with closing(sqlite3.connect(data / "app.db")) as writer:
        writer.execute("DELETE FROM items")
        modes = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}

    assert modes == {name: 0o600 for name in modes}
    assert {"app.db", "app.db-wal", "app.db-shm", "app.db-migrations"} == modes.keys()
    assert kept.stat().st_mode & 0o777 == 0o640
    assert data.stat().st_mode & 0o777 == 0o755


# The list of processes -----------------------------------------------------------------------------

PASSWORD = re.compile(
    r"://[^/\s:@]*:(?!\*)[^@\s/]+@"  # in a URL
    r"|\$\{?\w*(?:URL|PASSWORD|SECRET|TOKEN|KEY)\b"
    r"|(?i:password|secret|token)=\S"
)
BUILTINS = {"cd", "echo", "export", "printf", "read", "set", "test", "trap", "umask"}


def shown_arguments(script: str) -> list[str]:
    """Return the arguments of a script's commands which show a password to all users of the host.

    Neither what the shell does itself nor a variable that is set for a command is seen there.
    """
    shown = []
    for line in re.sub(r"\\\n|'[^'\n]*'", " ", script).splitlines():
        for command in re.split(r"&&|\|\|?|;|\$\(", line.partition(" #")[0]):
            words = command.split()
            while words and re.match(r"(?:\w+=|if$|!$|then$|\{$)", words[0]):
                words.pop(0)
            if words and words[0] not in BUILTINS:
                shown += [word for word in words if PASSWORD.search(word)]
    return shown


def commands(value: Any) -> Iterator[str]:
    """Yield what a workflow, a Compose file or a manifest runs."""
    if isinstance(value, list):
        for item in value:
            yield from commands(item)
    for key, item in value.items() if isinstance(value, dict) else ():
        if key in ("run", "command", "args", "entrypoint", "test", "script", "before_script"):
            yield from [item] if isinstance(item, str) else [shlex.join(map(str, item))]
        else:
            yield from commands(item)


def scripts(folder: Path) -> Iterator[str]:
    for text in [*TEXTS, folder / "README.md"]:
        for block in blocks(text.read_text()):
            if block.language in ("sh", "console", "bash"):
                yield block.text
            elif block.language in ("yaml", "yml"):
                for document in yaml.safe_load_all(block.text):
                    yield from commands(document)
        yield from re.findall(r"`((?:uv|docker|psql|pg_\w+|alembic|curl) [^`]*)`", text.read_text())
    for file in [*folder.glob(".github/workflows/*.yml"), folder / "compose.yaml"]:
        yield from commands(yaml.safe_load(file.read_text()))
    for instruction, given in instructions(folder / "Dockerfile"):
        if instruction in ("RUN", "CMD", "HEALTHCHECK"):
            words = given.partition("[")[2]
            yield shlex.join(json.loads(f"[{words}")) if words else given


@pytest.mark.fast
@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ('pg_dump --dbname="$DATABASE_URL"', True),
        ("psql postgresql://user:secret@host/name", True),
        ("umask 077 && env PGPASSWORD=secret psql", True),
        ("docker run -e DATABASE_PASSWORD=secret image", True),
        ('curl --header "Authorization: Bearer $TOKEN"', True),
        ("export DATABASE_URL=postgresql://user:secret@host/name", False),
        ("DATABASE_URL=postgresql://user:secret@host/name uv run alembic upgrade head", False),
        ("pg_dump --dbname=service=shop", False),
    ],
)
def test_what_shows_a_password_is_found(script: str, shown: bool) -> None:
    assert bool(shown_arguments(script)) == shown


@pytest.mark.fast
def test_no_command_shows_a_password_to_other_users_of_the_host(folder: Path) -> None:
    all_scripts = [*scripts(folder)]

    assert len(all_scripts) > 50
    assert {script: shown for script in all_scripts if (shown := shown_arguments(script))} == {}
