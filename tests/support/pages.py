"""The pages of the documentation, and somebody who types what they say."""

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.databases import server_for_tests
from tests.support.processes import environment
from tests.support.repository import REPOSITORY, replace
from tests.support.services import Service

DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')
LABELS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
TIMEOUT = 300  # seconds
REGISTRATION = "app/features/registration.py"
# For a service whose owner has changed features alone, with `check` for the rest: the template's own
# tests know no feature, and run beside one where the tutorial is typed and in tests/test_owner.py.
FEATURES_ALONE = {"^uv run poe check$": "uv run poe test"}
# Of tables that may have rows.
ALTERATION = re.compile(r"\b(add_column|alter_column|batch_alter_table|execute)\(")


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    language: str
    title: str  # a file, what the commands do, or nothing
    text: str


def page_text(page: str) -> str:
    return (DOCS / page).read_text()


def blocks(markdown: str, database: str = "") -> Iterator[Block]:
    """Yield the blocks of a text in its order, of those for one database only this one's.

    A title that begins with the name of a database, as in `SQLite: back up`, loses it.
    """
    for language, attributes, text in BLOCK.findall(markdown):
        [title] = TITLE.findall(attributes) or [""]
        label = next((label for label in LABELS.values() if title.startswith(f"{label}: ")), "")
        if not (label and database) or label == LABELS[database]:
            yield Block(language, title.removeprefix(f"{label}: ") if database else title, text)


def block_text(markdown: str, title: str) -> str:
    """Return the text of the one block with this title."""
    [text] = [block.text for block in blocks(markdown) if block.title == title]
    return text


def table(page: str, heading: str = "") -> dict[str, list[str]]:
    """Return the rows of a page's tables by their first cell, below a heading or of all.

    Without a heading only rows count whose first cell is in backticks, which it loses.
    """
    text = page_text(page)
    if heading:
        section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        rows = [line.strip("| ").split(" | ") for line in lines]
        return {cells[0]: cells[1:] for cells in rows[2:]}
    found = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def shows(printed: str, expected: str) -> bool:
    """Return whether a page's output was printed; `…` is anything."""
    parts = re.split(r"(…|\s+)", expected.strip())
    pattern = "".join(
        ".*?" if part == "…" else r"\s*" if part.isspace() else re.escape(part) for part in parts
    )
    return re.search(pattern, printed, re.DOTALL) is not None


@dataclass
class Typist:
    """Somebody who types what a page says into one terminal.

    It remembers the folder and the exported variables from one block to the next. `instead` are
    patterns of what is typed otherwise than it stands on the page.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The Copier of these tests, and not the newest that uvx would fetch.
        self.instead = {r"\buvx copier\b": "copier"} | self.instead

    def replaced(self, text: str) -> str:
        for pattern, new in self.instead.items():
            text = re.sub(pattern, new.replace("\\", r"\\"), text, flags=re.MULTILINE)
        return text

    def try_typing(self, text: str, said: str = "") -> subprocess.CompletedProcess[str]:
        """Type commands until one fails; `said` is what they are told when they ask."""
        with tempfile.TemporaryDirectory(prefix="typist-") as name:
            left, now = Path(name) / "left", Path(name) / "now"
            # What was exported: `export -p` prints it for a shell, `env` for anybody.
            end = f"trap 'env -0 > {shlex.quote(str(left))}; pwd > {shlex.quote(str(now))}' EXIT"
            variables = environment(**self.variables)
            done = subprocess.run(
                ["sh", "-e", "-c", f"{end}\n{self.replaced(text)}"],
                cwd=self.folder,
                env=variables,
                input=said,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                start_new_session=True,  # without a terminal, this asks for a password
                timeout=TIMEOUT,
            )
            self.folder = Path(now.read_text().removesuffix("\n"))
            pairs = [pair.partition("=") for pair in left.read_text().split("\0") if pair]
            ours = {key: value for key, _, value in pairs if variables.get(key) != value}
            shells = {"PWD", "OLDPWD", "SHLVL", "_"}
            self.variables |= {key: value for key, value in ours.items() if key not in shells}
        return done

    def type(self, text: str, said: str = "") -> str:
        """Type commands, all of which succeed, and return what they print."""
        done = self.try_typing(text, said)
        assert done.returncode == 0, f"$ {text}\n{done.stdout}"
        return done.stdout

    def write(self, name: str, text: str) -> None:
        """Write what a page gives as the whole content of a file."""
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


def edit(file: Path, diff: str) -> None:
    """Change a file as a page shows it; `@@` stands for the lines between."""
    for hunk in diff.split("@@\n"):
        lines = [(line[:1], line[1:] + "\n") for line in hunk.splitlines()]
        old = "".join(line for sign, line in lines if sign != "+")
        new = "".join(line for sign, line in lines if sign != "-")
        replace(file, old, new)


def tools_first(folder: Path) -> str:
    """Return a PATH on which the programs of a folder come before others of their names."""
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def follow(
    page: str,
    service: Service,
    variables: dict[str, str],
    before: Callable[[str], None] = lambda title: None,
) -> None:
    """Do what a how-to says, as `type_page` does, and check the service."""
    type_page(page, service, variables, before)
    check(service)


def type_page(
    page: str,
    service: Service,
    variables: dict[str, str],
    before: Callable[[str], None] = lambda title: None,
) -> None:
    """Do to a service what a how-to says for its database; `before` hears of each block's title.

    What other pages have registered stays.
    """
    # The environment is there already, and httpx2 with it, for the tests.
    instead = {"^uv add httpx2$": "", **FEATURES_ALONE, r"\buv run\b": "uv run --no-sync"}
    typist = Typist(service.folder, server_for_tests(service.database) | variables, instead)
    for block in blocks(page_text(f"how-to/{page}.md"), service.database):
        before(block.title)
        if block.language == "sh":
            if "uv add" in typist.replaced(block.text):
                service.leave_shared_environment()
            typist.type(block.text)
        elif block.title and block.language == "diff":
            edit(service.folder / block.title, block.text)
        elif block.title == REGISTRATION:
            register(service, block.text)
        elif block.title:
            typist.write(block.title, block.text)


def register(service: Service, text: str) -> None:
    """Register what a page does, beside what other pages have registered before."""
    file, own = service.folder / REGISTRATION, (REPOSITORY / "template" / REGISTRATION).read_text()
    if file.read_text() == own:
        file.write_text(text)
        return
    known = {*own.splitlines(), *file.read_text().splitlines()}
    new = [line for line in text.splitlines() if line not in known]
    imported = "".join(f"{line}\n" for line in new if line.startswith("from "))
    replace(file, "\n\n\ndef ", f"\n{imported}\n\ndef ")
    with file.open("a") as written:
        written.writelines(f"{line}\n" for line in new if line.startswith("    "))
    service.run(".venv/bin/ruff", "check", "--fix-only", "--select", "I", REGISTRATION)


def check_whole(service: Service) -> None:
    """Check a service as `poe check` does, but on PostgreSQL without the template's own tests.

    What an owner changes concerns these on both databases alike.
    """
    if service.database == "sqlite":
        service.run("uv", "run", "--no-sync", "poe", "check")
        return
    variables = server_for_tests(service.database)
    service.run("uv", "run", "--no-sync", "poe", "test", variables=variables)
    check(service)


def check(service: Service) -> None:
    """Check a service as `poe check` does, with those of the template's tests that see migrations."""
    service.run(".venv/bin/ruff", "format", "--check")
    service.run(".venv/bin/ruff", "check")
    service.run(".venv/bin/python", "-m", "scripts.engine_rules")
    service.run(".venv/bin/mypy")
    migrations = (service.folder / "migrations" / "versions").glob("*.py")
    if any(ALTERATION.search(file.read_text()) for file in migrations):
        files = ("tests/test_migrations.py", "tests/test_database.py")
        service.run(
            *(".venv/bin/pytest", "-q", *files, "-k", "rows or change or again or written_out")
        )
