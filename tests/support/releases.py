"""Releases of the template, and what people do to a service that follows them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import copier
import yaml
from hypothesis import strategies as st

from tests.support.processes import environment
from tests.support.repository import REPOSITORY, git, replace, substitute, text_files
from tests.support.services import Service, render_repository

WORKING_TREE = "9000.0.0"  # the tag of a snapshot
NEXT = "9001.0.0"  # changes all that a release is likely to change, and works
REWRITTEN = "9002.0.0"  # changes every line but those of the places that are promised

HEADING = re.compile(r"^## (\d+\.\d+\.\d+) - \d{4}-\d{2}-\d{2}$", re.MULTILINE)

Edit = Callable[[Path], object]


# Releases -----------------------------------------------------------------------------------------


def releases(repository: Path = REPOSITORY) -> dict[str, str]:
    """Return the commit of each release, oldest first.

    It has the release's tag. Without one, it is the newest that added the heading, since one that
    was withdrawn, and so never tagged, may have been added before.

    Raises:
        LookupError: if the history does not reach back to them.
    """
    tags = git(repository, "tag", "--merged").split()
    found = {}
    for version in reversed(HEADING.findall(git(repository, "show", "HEAD:CHANGELOG.md"))):
        search = ("log", "-1", "--format=%H", f"-S\n## {version} - ", "--", "CHANGELOG.md")
        command = ("rev-list", "-1", version) if version in tags else search
        found[version] = git(repository, *command).strip()
    shallow = git(repository, "rev-parse", "--is-shallow-repository").strip() == "true"
    if "" in found.values() or (found and shallow):
        raise LookupError(
            "the history is truncated, so releases cannot be found: run git fetch --unshallow"
        )
    return found


def other_releases() -> list[str]:
    """Return the releases whose services an update to the working tree would change."""
    return [
        version
        for version, commit in releases().items()
        if git(REPOSITORY, "diff", "--name-only", commit, "--", "template", "copier.yml")
    ]


def publish(template: Path, folder: Path) -> Path:
    """Clone a snapshot; tag the releases in its history and the synthetic ones after it."""
    git(template, "clone", "--quiet", str(template), str(folder))
    for version, commit in releases().items():
        git(folder, "tag", "--force", version, commit)
    for version, write in ((NEXT, write_next_release), (REWRITTEN, rewrite)):
        write(folder)
        insert(folder / "CHANGELOG.md", "## Unreleased\n", "", f"\n## {version} - 2027-01-31\n")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", version)
        git(folder, "tag", version)
    git(folder, "gc", "--quiet", "--prune=now")  # it is cloned again and again
    return folder


def insert(file: Path, before: str, after: str, text: str) -> None:
    """Put `text` where `after` follows `before`."""
    replace(file, before + after, before + text + after)


BODY_SIZE = "max_body_size: PositiveInt"
MOVED = "tests/test_transactions.py"
NOTE = '"""Moved to tests/test_sessions.py. Delete this file."""\n'


def write_next_release(repository: Path) -> None:
    template = repository / "template"
    write_next_packages(template / "pyproject.toml.jinja")
    write_next_app(template / "app")
    write_next_container(template)
    workflow = template / ".github/workflows/ci.yml"
    workflow.write_text(re.sub(r"@[0-9a-f]{40} # v.*", f"@{'0' * 40} # v99", workflow.read_text()))
    insert(workflow, "", "      - run: uv run poe check\n", "      - run: uv run ruff --version\n")
    insert(template / "README.md.jinja", "", "## Deploy\n", "## Observe\n\nRead the log.\n\n")
    replace(template / "README.md.jinja", "The update leaves", "An update leaves")
    insert(template / "AGENTS.md.jinja", "", "- Middleware is", "- A timeout has a reason.\n")
    insert(template / ".dockerignore", "!app/\n", "", "!LICENSE\n")

    # A file has moved, and leaves a note in services that have it.
    (template / MOVED).rename(template / "tests/test_sessions.py")
    (template / MOVED).write_text(NOTE)
    questions = repository / "copier.yml"
    once = "  - \"{% if _copier_operation == 'copy' %}/" + MOVED + '{% endif %}"\n'
    insert(questions, "_exclude:\n", "", once)

    # What is copied once has changed, and comes with a migration more.
    for file in (
        *(template / "app/features/items").glob("*.py"),
        *(template / "app/features").glob("*.py"),
        *(template / "migrations/versions").glob("*.py"),
        *(template / "tests/features").glob("*.py"),
    ):
        file.write_text(f"{file.read_text()}\nNEW = True\n")
    (template / "app/features/items/new.py").write_text("NEW = True\n")
    (template / "migrations/versions/2026_12_24_000000000001_new.py").write_text(
        'revision = "000000000001"\ndown_revision = "ff1af746d745"\n'
    )

    # A question more, off by default, with a file of its own; and another default.
    new = "metrics:\n  type: bool\n  help: Count requests?\n  default: false\n\n"
    insert(questions, "", "# What the service depends on, directly or not", new)
    replace(questions, "else 'sqlite' }}", "else 'postgresql' }}")
    replace(questions, "] | join('\\n') | hash", ", metrics] | join('\\n') | hash")
    (template / "app/{% if metrics %}metrics.py{% endif %}").write_text("COUNT = 0\n")


def write_next_packages(pyproject: Path) -> None:
    text = re.sub(r'(    "[a-z0-9\[\]-]+>=[0-9.]+)', r"\1.0", pyproject.read_text())
    text = re.sub(r'    "(h11)>=.*\n', "", text)
    own = "    # The service's own:\n"
    text = text.replace(own, f'    "typing-extensions>=4.12",\n{own}', 1)
    pyproject.write_text(
        text.replace(f"{own}]\n\n[tool.uv]", f'    "pyyaml>=6",\n{own}]\n\n[tool.uv]')
    )
    substitute(pyproject, '^requires-python = "(.*)"', r'requires-python = "\1.0"')
    insert(pyproject, "", PYTEST, '    { cmd = "ruff --version" },\n')
    insert(pyproject, "", 'anyio_mode = "auto"\n', 'junit_family = "xunit2"\n')
    insert(pyproject, "", '    "-ra",\n', '    "--tb=short",\n')
    insert(pyproject, "", '    "TID251",\n', '    "T10",\n')
    insert(pyproject, "strict = true\n", "explicit_package_bases", "show_error_codes = true\n")
    insert(pyproject, "", "\n# The service's own:\n", '"os.popen".msg = "no shell"\n')


def write_next_app(app: Path) -> None:
    settings = app / "settings.py"
    insert(settings, "    PositiveInt,\n", "", "    StrictBool,\n")
    substitute(settings, f"{BODY_SIZE} = .*  #", f"{BODY_SIZE} = 2_097_152  #")
    insert(settings, "# bytes\n", "", "    log_started: StrictBool = False\n")
    health = app / "health.py"
    insert(health, "", '@router.get("/live")\n', '@router.get("/alive")\n')
    lifespan = app / "lifespan.py"
    substitute(lifespan, r"^DISPOSE_TIMEOUT = [\d.]+", "DISPOSE_TIMEOUT = 6.5")
    insert(lifespan, "import logging\n", "", "import time\n")
    insert(lifespan, "app.state.settings\n", "", "        app.state.started = time.monotonic()\n")
    main = app / "factory.py"
    cors = "from starlette.middleware.cors import CORSMiddleware\n"
    insert(main, cors, "", "from starlette.middleware.gzip import GZipMiddleware\n")
    gzip = "    app.add_middleware(GZipMiddleware, minimum_size=100_000)\n\n"
    insert(main, "", "    add_error_handlers(app)\n", gzip)
    insert(
        app / "logging.py",
        "    root = logging.getLogger()\n",
        "",
        '    logging.getLogger("concurrent.futures").setLevel(logging.WARNING)\n',
    )


def write_next_container(template: Path) -> None:
    dockerfile = template / "Dockerfile.jinja"
    text = re.sub(r"(python:\d+\.\d+)\S*-slim", r"\1.99-slim", dockerfile.read_text())
    dockerfile.write_text(text)
    replace(dockerfile, '"8000"]', '"8000", "--no-date-header"]')
    insert(dockerfile, "    DOCS_ENABLED=false \\\n", "", "    PYTHONUNBUFFERED=1 \\\n")
    for compose in (template / "variants").glob("*/compose.yaml"):
        insert(compose, "  app:\n    build: .\n", "", "    init: true\n")
    example = template / ".env.example.jinja"
    substitute(example, "^#MAX_BODY_SIZE=.*$", "#MAX_BODY_SIZE=2097152")
    insert(
        example, "", "\n# The service's own:\n", "\n# Say when it started.\n#LOG_STARTED=false\n"
    )
    insert(template / ".gitignore.jinja", "*.pem\n", "", ".coverage\n")


# Places -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InsertionPoint:
    """Where the template promises not to change a line: between `before` and `after`."""

    file: str
    before: str
    after: str = ""

    def put(self, folder: Path, text: str) -> None:
        insert(folder / self.file, self.before, self.after, text)


OWN = "# The service's own:\n"

PACKAGES = InsertionPoint("pyproject.toml", f"    {OWN}", "]\n\n[project.optional-dependencies]\n")
DEVELOPMENT_PACKAGES = InsertionPoint("pyproject.toml", f"    {OWN}", "]\n\n[tool.uv]\n")
PYTEST = '    { cmd = "pytest --numprocesses logical --maxprocesses 4" },\n'
STEPS_OF_CHECK = InsertionPoint("pyproject.toml", PYTEST, "]\n")
MYPY_FILES = InsertionPoint("pyproject.toml", '    "tests",\n', "]\n")
MYPY_OPTIONS = InsertionPoint(
    "pyproject.toml", "explicit_package_bases = true\n", "\n[tool.pytest]\n"
)
PYTEST_WORDS = InsertionPoint("pyproject.toml", '    "-ra",\n', "]\n")
PYTEST_WARNINGS = InsertionPoint("pyproject.toml", '    "error",\n', "]\n")
PYTEST_OPTIONS = InsertionPoint("pyproject.toml", 'anyio_mode = "auto"\n', "\n[tool.ruff]\n")
RUFF_RULES = InsertionPoint("pyproject.toml", '    "TID251",\n', "]\n")
RUFF_EXCEPTIONS = InsertionPoint(
    "pyproject.toml",
    '"app/**/{base,models}.py" = ["RUF012"]  # SQLAlchemy\'s class attributes are declarations\n',
    "\n",
)
TABLES = InsertionPoint("pyproject.toml", f"\n{OWN}")
VARIABLES = InsertionPoint(".env.example", f"\n{OWN}")
IMAGE = InsertionPoint("Dockerfile", "COPY app app\n", "\n")
BUILT_FROM = InsertionPoint(".dockerignore", "**/__pycache__/\n")
IGNORED = InsertionPoint(".gitignore", ".ruff_cache/\n")
STEPS_OF_CI = InsertionPoint(
    ".github/workflows/ci.yml", "      - run: uv run poe check\n", "\n  image:\n"
)
SECTIONS = InsertionPoint("README.md", "\n", "## Update\n")
RULES = InsertionPoint("AGENTS.md", "What holds for this service only stands below this line.\n")

INSERTION_POINTS = [
    PACKAGES,
    DEVELOPMENT_PACKAGES,
    STEPS_OF_CHECK,
    MYPY_FILES,
    MYPY_OPTIONS,
    PYTEST_WORDS,
    PYTEST_WARNINGS,
    PYTEST_OPTIONS,
    RUFF_RULES,
    RUFF_EXCEPTIONS,
    TABLES,
    VARIABLES,
    IMAGE,
    BUILT_FROM,
    IGNORED,
    STEPS_OF_CI,
    SECTIONS,
    RULES,
]


def rewrite(repository: Path) -> None:
    """Change every line of the service but those of the places, and those that Jinja needs."""
    template = repository / "template"
    for file in template.rglob("*"):
        if file.is_file():
            name = re.sub(r"^variants/\w+/", "", str(file.relative_to(template)))
            kept = {
                line
                for point in INSERTION_POINTS
                if point.file == name.removesuffix(".jinja")
                for line in (point.before + point.after).splitlines()
            }
            lines = [
                line if not line or line in kept or "{{" in line or "{%" in line else f"{line} new"
                for line in file.read_text().split("\n")
            ]
            file.write_text("\n".join(lines))


OWN_LINES = [f"# Ours, {number}.\n" for number in range(len(INSERTION_POINTS))]


def fill_places(folder: Path, texts: Sequence[str] = OWN_LINES) -> None:
    """Put something of one's own into each of them."""
    for point, text in zip(INSERTION_POINTS, texts, strict=True):
        point.put(folder, text)


WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)
LINES = st.lists(WORDS.map(lambda words: f"# {words}\n"), max_size=3).map("".join)
TEXTS = st.lists(LINES, min_size=len(INSERTION_POINTS), max_size=len(INSERTION_POINTS))


# Services -----------------------------------------------------------------------------------------


def update(folder: Path, version: str | None = None) -> None:
    copier.run_update(folder, defaults=True, overwrite=True, quiet=True, vcs_ref=version)


def call(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as `poe update` does, with a Copier that is installed already."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.update", "--defaults", *options],
        cwd=folder,
        env=environment(PYTHONDONTWRITEBYTECODE="1", **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def conflicts(folder: Path) -> set[str]:
    """Return the files that git knows to be unmerged."""
    listed = git(folder, "ls-files", "--unmerged", "-z").split("\0")[:-1]
    return {entry.split("\t")[1] for entry in listed}


def check_clean(folder: Path) -> None:
    """Check that an update left no conflict, in whatever form."""
    assert conflicts(folder) == set()
    git(folder, "diff", "--check")
    for name, text in text_files(folder).items():
        assert not name.endswith((".rej", ".orig"))
        assert "\n<<<<<<< " not in f"\n{text}", name


def insert_lines(
    data: st.DataObject, folder: Path, count: int, words: st.SearchStrategy[str]
) -> dict[str, list[str]]:
    """Insert lines anywhere into any files, and return those of each file."""
    names = sorted(text_files(folder).keys() - {".copier-answers.yml"})
    mine: dict[str, list[str]] = {}
    for number in range(count):
        name = data.draw(st.sampled_from(names), "edited")
        lines = (folder / name).read_text().splitlines(keepends=True)
        line = f"# {number} {data.draw(words, 'line')}.\n"
        lines.insert(data.draw(st.integers(0, len(lines)), "position"), line)
        (folder / name).write_text("".join(lines))
        mine.setdefault(name, []).append(line)
    return mine


def is_copied_once(name: str) -> bool:
    return name.startswith(
        (
            ".vscode/",
            "app/features/",
            "migrations/versions/",
            "tests/features/",
        )
    )


def expect(
    templates: Path, old: Path, version: str, folder: Path, database: str | None = None
) -> Path:
    """Render a release as a service of an older one should be after its update."""
    answers = yaml.safe_load((old / ".copier-answers.yml").read_text())
    database = database or answers["database"]
    render_repository(templates, folder, release=version, database=database)
    fresh, before = text_files(folder), text_files(old)
    for name in filter(is_copied_once, fresh):
        (folder / name).unlink()
    for name, text in before.items():
        if is_copied_once(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        elif name not in fresh:
            note = templates / "template" / name
            assert note.exists(), f"{name} is gone; a file that has moved leaves a note"
            (folder / name).write_text(git(templates, "show", f"{version}:template/{name}"))
    for name in steps_in(templates, version) - steps_in(templates, answers["_commit"]):
        write(folder, name, git(templates, "show", f"{version}:template/{name}"))
    return folder


def steps_in(templates: Path, release: str) -> set[str]:
    """Return the steps that a release of the template brings, its own and those before it."""
    found = git(templates, "ls-tree", "--name-only", release, "template/upgrades/")
    return {name.removeprefix("template/") for name in found.split()}


def take_steps(service: Service) -> None:
    """Do what the releases ask of a service, as its owner does."""
    steps = (service.folder / "upgrades").glob("*.py")
    for step in sorted(steps, key=lambda path: [*map(int, path.stem.split("."))]):
        service.run("uv", "run", "--no-sync", "python", str(step))
        step.unlink()
    service.run("uv", "run", "--no-sync", "poe", "fix")


# Edits: each works on a service of any release ------------------------------------------------------


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def uv(folder: Path, *words: str) -> None:
    command = ["uv", *words]
    subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True)


NOTES_ROUTES = '''\
"""Notes, and a client that lives as long as the process."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from sqlalchemy import select

from app.dependencies import ReaderDep, SessionDep
from app.features.notes.models import Note

logger = logging.getLogger(__name__)

NOTES = select(Note.text).order_by(Note.id)


@asynccontextmanager
async def client(app: FastAPI) -> AsyncGenerator[None]:
    app.state.client = app.state.settings.notes_url
    yield
    logger.info("client closed")


router = APIRouter(prefix="/notes", lifespan=client)


@router.post("", status_code=201)
async def create_note(text: str, session: SessionDep) -> None:
    session.add(Note(text=text))


@router.get("")
async def list_notes(reader: ReaderDep) -> list[str]:
    return [row.text for row in (await reader.execute(NOTES)).all()]
'''

NOTES_MODELS = """\
from sqlalchemy import Identity, String
from sqlalchemy.orm import Mapped, mapped_column

from app.database import Base, BigIntegerKey


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(BigIntegerKey, Identity(always=True), primary_key=True)
    text: Mapped[str] = mapped_column(String(100))
"""

NOTES_MIGRATION = '''\
"""create notes"""

import sqlalchemy as sa
from alembic import op

from app import database

revision = "000000000001"
down_revision = "ff1af746d745"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("id", database.BigIntegerKey(), sa.Identity(always=True), nullable=False),
        sa.Column("text", sa.String(length=100), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notes")),
    )


def downgrade() -> None:
    op.drop_table("notes")
'''

NOTES_TEST = """\
from httpx2 import AsyncClient


async def test_a_note_is_kept(client: AsyncClient) -> None:
    await client.post("/notes", params={"text": "Call back"})

    assert (await client.get("/notes")).json() == ["Call back"]
"""


def add_feature(folder: Path) -> None:
    """Add notes: a router, a table, a setting, a client, a logger's level, and their test."""
    write(folder, "app/features/notes/__init__.py", "")
    write(folder, "app/features/notes/models.py", NOTES_MODELS)
    write(folder, "app/features/notes/routes.py", NOTES_ROUTES)
    write(folder, "migrations/versions/2026_12_01_000000000001_create_notes.py", NOTES_MIGRATION)
    write(folder, "tests/features/test_notes.py", NOTES_TEST)

    features = folder / "app/features/registration.py"
    insert(features, "\n\n", "from fastapi import", "import logging\n\n")
    insert(features, "\n", "\n\ndef", "from app.features.notes.routes import router as notes\n")
    with features.open("a") as file:
        file.write("    app.include_router(notes)\n")
        file.write('    logging.getLogger("httpx2").setLevel("WARNING")\n')

    with (folder / "app/features/settings.py").open("a") as file:
        file.write('\n    notes_url: str = "https://notes.example"\n')
    VARIABLES.put(folder, "#NOTES_URL=https://notes.example\n")


def add_packages(folder: Path) -> None:
    uv(folder, "add", "--frozen", "annotated-types>=0.7", "idna>=3")
    uv(folder, "add", "--frozen", "--dev", "iniconfig>=2")
    uv(folder, "remove", "--frozen", "idna")


def add_options(folder: Path) -> None:
    PYTEST_WORDS.put(folder, '    "--durations=3",\n')
    PYTEST_WARNINGS.put(folder, '    "ignore:.*notes:DeprecationWarning",\n')
    PYTEST_OPTIONS.put(folder, 'markers = ["slow: takes its time"]\n')
    MYPY_FILES.put(folder, '    "reports",\n')
    MYPY_OPTIONS.put(folder, "show_column_numbers = true\n")
    RUFF_RULES.put(folder, '    "DTZ005",\n')
    RUFF_EXCEPTIONS.put(folder, '"reports/*.py" = ["DTZ005"]\n')
    write(folder, "reports/report.py", "import datetime\n\nNOW = datetime.datetime.now()\n")


# The first words are those of docs/reference/files.md.
SEAMS: dict[str, Edit] = {
    "a feature": add_feature,
    "a feature's router, a middleware, an error handler, a logger's level": add_feature,
    "a setting": add_feature,
    "a client, a cache or another resource of the process": add_feature,
    "a table": add_feature,
    "a package": add_packages,
    "a tool's table in `pyproject.toml`, a task of poe": lambda folder: TABLES.put(
        folder, '[tool.poe.tasks.report]\ncmd = "python reports/report.py"\n\n[tool.reporter]\n'
    ),
    "an option of pytest, mypy or ruff": add_options,
    "a step of `poe check`": lambda folder: STEPS_OF_CHECK.put(
        folder, '    { cmd = "python -V" },\n'
    ),
    "a test": add_feature,
    "a value for a required setting, for the tests and the OpenAPI document": lambda folder: insert(
        folder / "tests/features/conftest.py",
        "REQUIRED: dict[str, Any] = {",
        "}\n",
        '"notes_url": "https://other.example"',
    ),
    "a fixture of the tests": lambda folder: insert(
        folder / "tests/features/conftest.py",
        "        yield app\n",
        "",
        '\n\n@pytest.fixture\ndef note() -> str:\n    return "Call back"\n',
    ),
    "a system package or a further file of the image": lambda folder: IMAGE.put(
        folder, "COPY data data\n"
    ),
    "a file that the image may be built from": lambda folder: BUILT_FROM.put(folder, "!data/\n"),
    "a file that git ignores": lambda folder: IGNORED.put(folder, ".idea/\n"),
    "a service of Compose, a variable of one": lambda folder: write(
        folder, "compose.override.yaml", "services:\n  cache:\n    image: valkey/valkey:9\n"
    ),
    "a step of the workflow": lambda folder: STEPS_OF_CI.put(
        folder, "      - run: uv run poe report\n"
    ),
    "a section of the README": lambda folder: SECTIONS.put(folder, "## Notes\n\nKeep them.\n\n"),
    "a rule for those who change the service": lambda folder: RULES.put(
        folder, "\n- A note is kept for ever.\n"
    ),
}


def delete_example(folder: Path) -> None:
    shutil.rmtree(folder / "app/features/items")
    (folder / "tests/features/test_items.py").unlink()
    for migration in (folder / "migrations/versions").glob("*_create_items.py"):
        migration.unlink()
    features = folder / "app/features/registration.py"
    lines = features.read_text().splitlines(keepends=True)
    features.write_text("".join(line for line in lines if "items" not in line))


def rename_example(folder: Path) -> None:
    """Call items the units of an inventory, and let them grow."""
    (folder / "app/features/items").rename(folder / "app/features/inventory")
    (folder / "tests/features/test_items.py").rename(folder / "tests/features/test_inventory.py")
    for file in (
        *(folder / "app/features/inventory").glob("*.py"),
        folder / "app/features/registration.py",
    ):
        text = file.read_text().replace("app.features.items", "app.features.inventory")
        file.write_text(re.sub(r"\bItem\b", "Unit", text))
    replace(
        folder / "app/features/inventory/routes.py",
        'tags=["items"])',
        'tags=["items"])\nMORE = True',
    )


def open_resource_in_lifespan(folder: Path) -> None:
    write(folder, "app/cache.py", "def close_cache() -> None: ...\n")
    lifespan = folder / "app/lifespan.py"
    insert(
        lifespan, "\n", "from app.database.dialect import", "from app.cache import close_cache\n"
    )
    insert(lifespan, "\n", "        yield\n", "        stack.callback(close_cache)\n\n")


EDITS: dict[str, Edit] = SEAMS | {
    "the example is deleted": delete_example,
    "the example is renamed and grown": rename_example,
    "the lifespan opens another resource": open_resource_in_lifespan,
    "a line of the log has another form": lambda folder: replace(
        folder / "app/formatters.py", "{record.levelname:7}", "{record.levelname:8}"
    ),
    "a setting has another default": lambda folder: substitute(
        folder / "app/settings.py", " = .*  # seconds; 0: never", " = 2  # seconds; 0: never"
    ),
    "the README begins with other words": lambda folder: insert(
        folder / "README.md", "", "## Run\n", "Ask the notes' team first.\n\n"
    ),
    "the image has another port": lambda folder: replace(
        folder / "Dockerfile", "EXPOSE 8000", "EXPOSE 8080"
    ),
    "Compose publishes another port": lambda folder: replace(
        folder / "compose.yaml", "127.0.0.1:8000:8000", "127.0.0.1:9000:8000"
    ),
    "the workflow runs on another branch": lambda folder: replace(
        folder / ".github/workflows/ci.yml", "[main]", "[main, develop]"
    ),
    "a test of the template is deleted": lambda folder: (folder / "tests/test_health.py").unlink(),
}

NAMES = {edit: name for name, edit in EDITS.items()}  # each edit once


@dataclass(frozen=True)
class Conflict:
    """An edit of a line that the next release changes as well; `old` is a pattern."""

    file: str
    old: str
    mine: str
    theirs: str

    def edit(self, folder: Path) -> None:
        substitute(folder / self.file, self.old, self.mine)


CONFLICTS = {
    "a package of the template's is removed or has another bound": Conflict(
        "pyproject.toml", '"uvloop>=.*?;', '"uvloop==0.22.1;', '"uvloop>='
    ),
    "an import is next to one that a release adds or changes": Conflict(
        "app/factory.py",
        "import CORSMiddleware\n",
        "import CORSMiddleware\nfrom starlette.middleware.sessions import SessionMiddleware\n",
        "GZipMiddleware\n",
    ),
    "a default that a release changes has been changed": Conflict(
        "app/settings.py", f"{BODY_SIZE} = .*  #", f"{BODY_SIZE} = 4_194_304  #", "2_097_152"
    ),
    "another base image, or another version of it": Conflict(
        "Dockerfile",
        "FROM python:.*-slim AS",
        "FROM python:3.13-slim AS",
        ".99-slim AS",
    ),
    "an action of the workflow has been raised": Conflict(
        ".github/workflows/ci.yml",
        'UV_LOCKED: "1"\n    steps:\n      - uses: actions/checkout@[0-9a-f]{4}',
        'UV_LOCKED: "1"\n    steps:\n      - uses: actions/checkout@1111',
        "# v99",
    ),
    "a paragraph that a release rewords has been reworded": Conflict(
        "README.md", "The update leaves", "Each update leaves", "An update"
    ),
    "a file that has moved was edited": Conflict(
        "tests/test_transactions.py", "import pytest\n", "import pytest  # mine\n", "Moved to"
    ),
}
