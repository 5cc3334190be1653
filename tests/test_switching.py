"""A service that has been lived in gets another database, or another name, by `copier update`."""

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services import Database, Service, SQLiteDatabase, git, open_database, render
from tests.test_docs import BLOCK, DOCS

PAGE = BLOCK.findall((DOCS / "how-to/switch-databases.md").read_text())
LABELS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
OTHER = {"sqlite": "postgresql", "postgresql": "sqlite"}

NOTES = {
    "app/notes/__init__.py": "",
    "app/notes/models.py": """\
import datetime

from sqlalchemy import JSON, BigInteger, Computed, ForeignKey, Identity, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import BigIntegerKey
from app.models import Base


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(), primary_key=True)
    item_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("items.id"))
    after_id: Mapped[int | None] = mapped_column(
        BigInteger, ForeignKey("notes.id", deferrable=True, initially="DEFERRED")
    )
    text: Mapped[str] = mapped_column(String(99))
    due: Mapped[datetime.datetime | None]
    done: Mapped[bool]
    extra: Mapped[dict[str, int] | None] = mapped_column(JSON)


class Tag(Base):
    __tablename__ = "tags"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    length: Mapped[int] = mapped_column(Computed("length(name)"))
""",
    "app/notes/routes.py": """\
from typing import Any

from fastapi import APIRouter
from sqlalchemy import bindparam, select

from app.notes.models import Note
from app.resources import Id
from app.sessions import ReaderDep

router = APIRouter(prefix="/notes", tags=["notes"])

NOTE = select(
    Note.item_id, Note.after_id, Note.text, Note.due, Note.done, Note.extra.is_(None).label("bare")
).where(Note.id == bindparam("id"))


@router.get("/{note_id}")
async def read_note(note_id: Id, reader: ReaderDep) -> dict[str, Any] | None:
    row = await reader.first(NOTE, id=note_id)
    return row and dict(row._mapping)
""",
    "tests/test_notes.py": """\
from httpx2 import AsyncClient


async def test_an_unknown_note_is_null(client: AsyncClient) -> None:
    assert (await client.get("/notes/1")).json() is None
""",
}
EDITS = [
    ("app/features.py", "    app.include_router(items)\n", "    app.include_router(notes)\n"),
    ("app/features.py", "router as items\n", "from app.notes.routes import router as notes\n"),
    ("app/feature_settings.py", '`PAYMENT_URL`."""\n', '\n    sender: str = "a@example.com"\n'),
    (".env.example", "#MAX_BODY_SIZE=1048576\n", "\n# Who sends mail.\n#SENDER=a@example.com\n"),
    ("README.md", "## Configure\n", "\nAsk the desk for a sender.\n"),
    ("compose.yaml", "    stop_grace_period: 30s\n", "\n  mail:\n    image: axllent/mailpit:v1\n"),
    ("pyproject.toml", "win32'\",\n    # The service's own:\n", '    "packaging>=26",\n'),
]

# What a fresh service proves of them is proved elsewhere.
DELETED = ["tests/test_errors.py", "tests/test_lifespan.py", "tests/test_transactions.py"]

FILL = """
import asyncio, datetime, sys
from sqlalchemy import insert, null
from app.items.models import Item
from app.main import app
from app.notes.models import Note, Tag

BERLIN = datetime.timezone(datetime.timedelta(hours=1))


async def main() -> None:
    async with app.router.lifespan_context(app):
        async with app.state.sessionmaker.begin() as session:
            for id, name in [(1, "Spanner"), (2**62, "Größe 13 🔧")]:
                session.add(Item(id=id, name=name))
            session.add(Tag(name="Urgent"))
            await session.flush()
            due = datetime.datetime(2026, 3, 29, 1, 30, 0, 123456, BERLIN)
            notes = [
                {"id": 7 * n, "item_id": 2**62, "after_id": 17500 if n == 1 else None,
                 "text": f"Note {n}", "due": due if n % 2 else None, "done": n % 3 == 0,
                 "extra": null() if n % 2 else {"n": n}}
                for n in range(1, 2501)
            ]
            for values in notes:
                session.add(Note(**values))


asyncio.run(main())
"""


def live(folder: Path) -> None:
    """Edit a fresh service as its users do."""
    for name in DELETED:
        (folder / name).unlink()
    for name, text in NOTES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for name, line, text in EDITS:
        before, found, after = (folder / name).read_text().partition(line)
        assert found, (name, line)
        (folder / name).write_text(before + found + text + after)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "As it is")


def files(folder: Path) -> dict[str, str]:
    """Return the text of what git sees, but the lock file."""
    listed = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = set(listed.split("\0")[:-1]) - {"uv.lock"}
    return {name: (folder / name).read_text() for name in sorted(names) if (folder / name).exists()}


def start(template: Path, folder: Path, database: str) -> Service:
    render(template, folder, database=database)
    git(folder, "init", "--quiet")
    commit(folder)
    return Service(folder, database)


def update(folder: Path, *answers: str) -> str:
    """Answer questions anew, as the page says."""
    data = [word for answer in answers for word in ("--data", answer)]
    command = ["copier", "update", "--vcs-ref=:current:", "--defaults", *data]
    return Service(folder, "").run(*command).stdout


@dataclass
class Typist:
    """Types the page's blocks one after the other, for one direction."""

    service: Service
    source: Database
    target: Database

    def __post_init__(self) -> None:
        there = f"To {LABELS[OTHER[self.service.database]]}"
        blocks = [("".join(re.findall('title="(.*)"', title)), text) for _, title, text in PAGE]
        self.blocks = [
            (title, self.fill(text))
            for title, text in blocks
            if not title.startswith("To ") or title == there
        ]

    def fill(self, text: str) -> str:
        """Put the test's databases in the place of the page's."""
        text = text.replace("uvx copier", "copier")
        for name, database in (("SOURCE_DATABASE", self.source), ("DATABASE", self.target)):
            url = database.variables["DATABASE_URL"]
            if name == "SOURCE_DATABASE" and self.service.database == "postgresql":
                url = url.replace("postgresql:", "postgresql+asyncpg:", 1)
            text = re.sub(
                rf"^export {name}_URL=.*$", f"export {name}_URL='{url}'", text, flags=re.MULTILINE
            )
        return text

    def type(self, begin: str) -> str:
        """Type the next block, and return what it prints."""
        title, text = self.blocks.pop(0)
        assert text.startswith(begin), (text, begin)
        if title.endswith(".py"):
            (self.service.folder / title).write_text(text)
            return ""
        return self.service.run("sh", "-e", "-c", text).stdout


@pytest.fixture
def typist(template: Path, database_name: str, tmp_path: Path) -> Iterator[Typist]:
    """A living service with rows in its database, and an empty one of the other kind."""
    service = start(template, tmp_path / "service", database_name)
    live(service.folder)
    service.run("uv", "sync", "--quiet")
    with (
        open_database(database_name, tmp_path) as source,
        open_database(OTHER[database_name], tmp_path) as target,
    ):
        service.migrate(source)
        revise(service, source, "create notes")
        model = service.folder / "app/notes/models.py"
        model.write_text(NOTES["app/notes/models.py"].replace("String(99)", "String(100)"))
        revise(service, source, "longer notes")
        service.run("uv", "run", "python", "-c", FILL, variables=source.variables)
        if database_name == "sqlite":
            (service.folder / "app.db").touch()
        commit(service.folder)
        yield Typist(service, source, target)


def revise(service: Service, database: Database, message: str) -> None:
    words = ("revision", "--autogenerate", "-m", message)
    service.run("uv", "run", "alembic", *words, variables=database.variables)
    service.migrate(database)


def put_into_a_batch(service: Service, database: Database) -> None:
    """Rewrite a revision of PostgreSQL's as the page says."""
    upgrade = ("uv", "run", "alembic", "upgrade", "head")
    refused = service.run(*upgrade, variables=database.variables, check=False)
    assert 'near "ALTER": syntax error' in refused.stdout
    [path] = service.folder.glob("migrations/versions/*_longer_notes.py")
    batch = 'with op.batch_alter_table("notes") as batch:\n        batch.alter_column('
    path.write_text(re.sub(r'op\.alter_column\(\s*"notes",', batch, path.read_text()))
    service.run("uv", "run", "poe", "fix")


def refuse(typist: Typist) -> None:
    """Try to move what SQLite takes and PostgreSQL does not."""
    [move] = [text for _, text in typist.blocks if text.startswith("export ")]
    for table, column, value in [
        ("notes", "text", "a" * 101),
        ("notes", "text", "a\0b"),
        ("items", "version", 2**40),
    ]:
        with sqlite3.connect(typist.source.variables["DATABASE_URL"].split("///")[1]) as connection:
            where = f"WHERE id = (SELECT max(id) FROM {table})"
            [[before]] = connection.execute(f"SELECT {column} FROM {table} {where}").fetchall()
            connection.execute(f"UPDATE {table} SET {column} = ? {where}", [value])
            connection.commit()
            refused = typist.service.run("sh", "-e", "-c", move, check=False)
            connection.execute(f"UPDATE {table} SET {column} = ? {where}", [before])
        connection.close()
        assert refused.returncode == 1
        assert "DBAPIError" in refused.stdout


def test_the_other_database_takes_code_edits_migrations_and_rows(
    template: Path, typist: Typist, tmp_path: Path
) -> None:
    service, other = typist.service, OTHER[typist.service.database]
    switched = Service(service.folder, other)
    fresh = start(template, tmp_path / "fresh", other).folder
    live(fresh)
    for path in service.folder.glob("migrations/versions/*_notes.py"):
        shutil.copy(path, fresh / "migrations/versions")
    shutil.copy(service.folder / "app/notes/models.py", fresh / "app/notes")

    typist.type("mkdir ../before\n")
    typist.type("copier update")
    assert files(service.folder) == files(fresh)
    if other == "sqlite":
        put_into_a_batch(switched, typist.target)
    typist.type("git diff --check\n")
    typist.type('"""Move every row')
    if other == "postgresql":
        refuse(typist)
    moved = typist.type("export ")

    assert typist.blocks[0][1].strip() in moved
    with switched.serve(**typist.target.variables) as server:
        assert server.client.get("/health/ready").status_code == 200
        assert server.client.get(f"/items/{2**62}").json()["name"] == "Größe 13 🔧"
        assert server.client.get("/notes/7").json() == {
            "item_id": 2**62,
            "after_id": 17500,
            "text": "Note 1",
            "due": "2026-03-29T00:30:00.123456Z",
            "done": False,
            "bare": True,
        }
        created = server.client.post("/items", json={"name": "New"})
        assert created.json()["id"] == 2**62 + 1


STATEMENT = """
import asyncio, sys
from sqlalchemy import text
from app.main import app


async def main() -> None:
    async with app.router.lifespan_context(app), app.state.engine.begin() as connection:
        await connection.execute(text(sys.argv[1]))


asyncio.run(main())
"""


def test_rows_are_moved_all_or_none_and_only_into_an_empty_migrated_database(
    service: Service, migrated: Database, tmp_path: Path
) -> None:
    script = tmp_path / "move_rows.py"
    script.write_text(next(text for _, title, text in PAGE if "move_rows" in title))
    url = migrated.variables["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:", 1)
    (tmp_path / "target").mkdir()

    def names(database: Database) -> list[str]:
        with service.serve(**database.variables) as server:
            return [item["name"] for item in server.client.get("/items").json()["items"]]

    def execute(database: Database, statement: str) -> None:
        words = ("-c", STATEMENT, statement)
        service.run("uv", "run", "--no-sync", "python", *words, variables=database.variables)

    create = "INSERT INTO items (name, description, created_at, updated_at, version) "
    now = "CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, 1"
    execute(migrated, f"{create} VALUES ('Spanner', '13 mm', {now})")
    execute(
        migrated,
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 999)"
        f" {create} SELECT 'Wrench ' || n, n || ' mm too much', {now} FROM numbers",
    )
    execute(migrated, f"{create} VALUES ('Last', '13 mm', {now})")

    with open_database(service.database, tmp_path / "target") as target:
        variables = {"SOURCE_DATABASE_URL": url, "PYTHONPATH": str(service.folder)}

        def move() -> tuple[int, str]:
            command = ("uv", "run", "--no-sync", "python", str(script))
            done = service.run(*command, variables=target.variables | variables, check=False)
            return done.returncode, done.stdout

        if isinstance(target, SQLiteDatabase):
            target.make()
        code, said = move()
        assert code == 1
        assert "at different migrations" in said

        service.migrate(target)
        execute(target, "CREATE UNIQUE INDEX strict ON items (description)")
        code, said = move()
        assert code == 1
        assert "IntegrityError" in said
        assert names(target) == []

        execute(target, "DROP INDEX strict")
        assert move() == (0, "items: 1001\n")
        assert names(target) == names(migrated)

        code, said = move()
        assert code == 1
        assert "items has rows already" in said


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_a_line_of_ones_own_stays_wherever_it_stands(
    template: Path, database_name: str, position: float, tmp_path: Path
) -> None:
    """Merged, or in a marked conflict that git knows of."""
    folder = start(template, tmp_path / "service", database_name).folder
    fresh = files(folder)
    names = fresh.keys() - {".copier-answers.yml"}
    for name in names:
        lines = fresh[name].splitlines(keepends=True)
        lines.insert(int(position * len(lines)), f"a line of one's own in {name}\n")
        (folder / name).write_text("".join(lines))
    commit(folder)

    update(folder, f"database={OTHER[database_name]}")

    texts = files(folder)
    assert {
        name for name in names if f"a line of one's own in {name}\n" not in texts[name]
    } == set()
    marked = {name for name, text in texts.items() if "\n<<<<<<< " in f"\n{text}"}
    unmerged = git(folder, "diff", "--name-only", "--diff-filter=U").split()
    assert marked == set(unmerged)
    assert not [name for name in texts if name.endswith(".rej")]
    other = files(start(template, tmp_path / "other", OTHER[database_name]).folder)
    assert marked <= {name for name in names if other[name] != fresh[name]}


def test_an_edit_of_a_line_that_differs_is_a_conflict_that_shows_both(
    template: Path, database_name: str, tmp_path: Path
) -> None:
    folder = start(template, tmp_path / "service", database_name).folder
    file = folder / "app/database.py"
    mine = file.read_text().replace("class BigIntegerKey(", "class BigIntegerKey(Mine, ")
    file.write_text(mine)
    commit(folder)

    update(folder, f"database={OTHER[database_name]}")

    text = file.read_text()
    assert "class BigIntegerKey(Mine, " in text
    assert re.search(r"class BigIntegerKey\((Big)?Integer\)", text)
    assert "app/database.py" in git(folder, "diff", "--name-only", "--diff-filter=U").split()
    with pytest.raises(subprocess.CalledProcessError):
        git(folder, "diff", "--check")


def test_another_name_changes_what_people_read_and_nothing_else(
    template: Path, tmp_path: Path
) -> None:
    folder = start(template, tmp_path / "service", "sqlite").folder
    live(folder)
    commit(folder)
    fresh = render(
        template,
        tmp_path / "fresh",
        project_name="Order Desk",
        project_slug="order-desk",
    )
    git(fresh, "init", "--quiet")
    live(fresh)

    (_, _, typed), (_, _, shown) = BLOCK.findall((DOCS / "how-to/change-names.md").read_text())
    renamed = Service(folder, "sqlite")
    said = renamed.run("sh", "-e", "-c", typed.replace("uvx copier", "copier")).stdout

    assert files(folder) == files(fresh)
    changed = git(folder, "diff", "--name-only").split()
    assert changed == [
        ".copier-answers.yml",
        ".devcontainer/devcontainer.json",
        "README.md",
        "app/__init__.py",
        "pyproject.toml",
    ]
    assert set(shown.splitlines()) <= set(said.splitlines())
    assert 'name = "order-desk"' in (folder / "uv.lock").read_text()


def test_a_new_title_alone_keeps_the_slug(template: Path, tmp_path: Path) -> None:
    folder = start(template, tmp_path / "service", "sqlite").folder

    update(folder, "project_name=Order Desk")

    assert git(folder, "diff", "--name-only").split() == [
        ".copier-answers.yml",
        ".devcontainer/devcontainer.json",
        "README.md",
        "app/__init__.py",
    ]
    assert "project_slug: my-service" in (folder / ".copier-answers.yml").read_text()
