"""Services rendered from the template, and their processes: what the tests drive."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import copier
import httpx2

from tests.support.databases import Database, server_for_tests
from tests.support.processes import (
    INSTALL_TIMEOUT,
    START_TIMEOUT,
    environment,
    free_port,
    once,
    open_client,
    wait_until_served,
)
from tests.support.repository import commit, git, replace

PYTEST = ".venv/bin/pytest"
KEPT = "rendered"  # the folder of what has been rendered from the templates beside it


def remember_what_is_rendered(folder: Path) -> None:
    """Let what is rendered from a template in this folder, which nobody changes, be copied later."""
    (folder / KEPT).mkdir(parents=True)


def render(template: Path, folder: Path, *, release: str | None = None, **answers: Any) -> Path:
    """Answer the questions of a release, by default the newest."""

    def answer(folder: Path) -> str:
        copier.run_copy(
            str(template), folder, data=answers, defaults=True, quiet=True, vcs_ref=release
        )
        return str(folder)

    kept = template.parent / KEPT
    if kept.is_dir():
        asked = sha256(repr((release, sorted(answers.items()))).encode()).hexdigest()
        rendered = once(kept / f"{asked}.made", lambda: answer(kept / asked))
        shutil.copytree(rendered, folder, symlinks=True)
    else:
        answer(folder)
    return folder


def render_repository(
    template: Path, folder: Path, *, release: str | None = None, **answers: Any
) -> Path:
    """Render a service, and put it under version control."""
    render(template, folder, release=release, **answers)
    git(folder, "init", "--quiet")
    commit(folder, "Start from the template")
    return folder


@dataclass
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    client: httpx2.Client
    log_file: Path
    answers: list[httpx2.Response] = field(default_factory=list)  # errors that the client got

    def __post_init__(self) -> None:
        self.client.event_hooks["response"].append(self._keep)

    def _keep(self, answer: httpx2.Response) -> None:
        if answer.is_error:
            answer.read()
            self.answers.append(answer)

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def stop(self, signal: int) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(signal)
        return self.process.wait(START_TIMEOUT)


FIRST = "ff1af746d745"  # the revision of a fresh service
REVISION = '''\
"""{name}"""

import os

import sqlalchemy as sa
from alembic import op

revision = "{name}"
down_revision = "{after}"
branch_labels = None
depends_on = None


def upgrade() -> None:
{upgrade}


def downgrade() -> None:
{downgrade}
'''


@dataclass
class Service:
    """A rendered service with its environment installed."""

    folder: Path
    database: str

    def copy(self, folder: Path) -> "Service":
        """Copy the service, and what Python has compiled of it; the environment is shared."""
        ignored = shutil.ignore_patterns(".venv", ".postgres", "app.db*", ".*cache")
        shutil.copytree(self.folder, folder, ignore=ignored)
        (folder / ".venv").symlink_to((self.folder / ".venv").resolve())
        return Service(folder, self.database)

    def share_environment(self, shared: Path) -> None:
        """Have an environment in common with all services of this kind; the first installs it."""
        lock = self.folder / "uv.lock"

        def install() -> str:
            place = {"UV_PROJECT_ENVIRONMENT": str(shared)}
            self.run("uv", "sync", "--quiet", variables=place)
            return lock.read_text()

        lock.write_text(once(shared.with_suffix(".lock"), install))
        (self.folder / ".venv").symlink_to(shared)

    def leave_shared_environment(self) -> None:
        """Have an environment of one's own, to which packages may be added."""
        shared = (self.folder / ".venv").resolve()
        (self.folder / ".venv").unlink()
        self.run("uv", "sync", "--quiet")
        # What Python has compiled there holds here, too: the modules are links to the same files.
        for compiled in shared.rglob("__pycache__"):
            own = self.folder / ".venv" / compiled.relative_to(shared)
            if own.parent.is_dir() and not own.exists():
                shutil.copytree(compiled, own, copy_function=os.link)

    def extend(self, **modules: str) -> None:
        """Give the service a package `app.features.more` of these modules; `routes` has a router."""
        package = self.folder / "app" / "features" / "more"
        package.mkdir()
        for name, text in {"__init__": "", **modules}.items():
            (package / f"{name}.py").write_text(text)
        features = self.folder / "app" / "features" / "registration.py"
        imported = "import router as items\n"
        replace(
            features, imported, f"{imported}from app.features.more.routes import router as more\n"
        )
        included = "    app.include_router(items)\n"
        replace(features, included, f"{included}    app.include_router(more)\n")

    def delete_example(self) -> None:
        """Do what the README says."""
        readme = (self.folder / "README.md").read_text()
        [command] = re.findall(r"^\$ (rm -r app/features/items .*)$", readme, re.MULTILINE)
        self.run("sh", "-c", command)
        features = self.folder / "app/features/registration.py"
        lines = features.read_text().splitlines(keepends=True)
        features.write_text("".join(line for line in lines if "items" not in line))
        self.run("uv", "run", "--no-sync", "poe", "fix")
        self.run("uv", "run", "--no-sync", "poe", "openapi")

    def add_revision(self, name: str, after: str, upgrade: Sequence[str], *downgrade: str) -> None:
        """Give the service a migration of these statements."""

        def body(lines: Sequence[str]) -> str:
            return "\n".join(f"    {line}" for line in lines or ["pass"])

        (self.folder / "migrations" / "versions" / f"{name}.py").write_text(
            REVISION.format(
                name=name, after=after, upgrade=body(upgrade), downgrade=body(downgrade)
            )
        )

    def migrate(self, database: Database) -> None:
        self.run(
            "uv", "run", "--no-sync", "alembic", "upgrade", "head", variables=database.variables
        )

    def run(
        self, *command: str, variables: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as its user would type it; print what it says when it fails."""
        tests = server_for_tests(self.database) if command[0] == PYTEST else {}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(**(tests | (variables or {}))),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_TIMEOUT,
        )
        assert not check or done.returncode == 0, done.stdout
        return done

    @contextmanager
    def serve(self, *command: str, **variables: str) -> Iterator[Server]:
        """Start a server, by default as the image does, and wait for its first answer."""
        port = free_port()
        log_file = self.folder.parent / f"{self.folder.name}-{port}.log"
        command = command or ("uv", "run", "--no-sync", "python", "-m", "app.server")
        with (
            log_file.open("wb") as log,
            open_client(f"http://127.0.0.1:{port}") as client,
            subprocess.Popen(
                [*command, "--port", str(port)],
                cwd=self.folder,
                env=environment(**variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            ) as process,
        ):
            try:
                wait_until_served(client, process, log_file)
                yield Server(process, client, log_file)
            finally:
                if process.poll() is None:
                    process.terminate()
