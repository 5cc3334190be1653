"""A company's fork of the template, made as the page says: it takes releases in, and keeps what is its own.

Upstream's releases are the synthetic ones: the last rewrites every line but those of the places.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.pages import Block, Typist, blocks, page_text, table
from tests.support.processes import environment
from tests.support.releases import (
    MOVED,
    NEXT,
    REWRITTEN,
    WORKING_TREE,
    call,
    check_clean,
    conflicts,
    expect,
    fill_places,
    update,
    write,
)
from tests.support.repository import commit, git, replace, text_files
from tests.support.services import render_repository

YEAR = "9127"  # newer than the releases that stand for upstream's here
PAGE: list[Block] = [*blocks(page_text("how-to/fork.md").replace("2027.", f"{YEAR}."))]


def block(title: str) -> str:
    [text] = [block.text for block in PAGE if block.title == title]
    return text


def live(folder: Path) -> None:
    fill_places(folder)
    write(folder, "app/features/ours.py", "OURS = True\n")


@dataclass
class Company:
    """A fork and its published repository, beside those of upstream."""

    upstream: Path  # a bare repository, as `published` is
    published: Path
    fork: Path
    typist: Typist
    number: int = 0

    @property
    def release(self) -> str:
        return f"{YEAR}.{self.number}.0"

    def publish(self) -> None:
        """Write a heading and publish a release, as the page says."""
        self.number += 1
        heading = block("CHANGELOG.md").replace(f"{YEAR}.1.0", self.release)
        changelog = self.fork / "CHANGELOG.md"
        top, unreleased, rest = changelog.read_text().partition("## Unreleased\n")
        before, found, earlier = top.partition(f"\n## {YEAR}.")
        changelog.write_text(f"{before}\n{heading}{found[1:]}{earlier}{unreleased}{rest}")
        [commands] = [it.text for it in PAGE if it.text.startswith("git add --all\n")]
        self.typist.type(commands.replace(f"{YEAR}.1.0", self.release))

    def take_in(self, version: str) -> None:
        """Merge a release; where the fork has edited a line of upstream's, edit it again."""
        command = block("Take in a release").replace("1.1.0", version)
        if self.typist.try_typing(command).returncode == 0:
            return
        edited = {f"template/.github/workflows/{name}.yml" for name in ("ci", "update")}
        assert conflicts(self.fork) == edited
        git(self.fork, "checkout", "--quiet", "--theirs", *edited)
        self.typist.type(block("Run elsewhere"))
        commit(self.fork, f"Take in {version}")


@pytest.fixture
def company(templates: Path, tmp_path: Path) -> Iterator[Company]:
    """The fork's first release, on upstream's first."""
    upstream, published = tmp_path / "upstream.git", tmp_path / "published.git"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(upstream))
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(published))
    release(templates, upstream, WORKING_TREE)
    instead = {
        "https://github.com/OWNER/copier-fastapi-sqlalchemy.git": str(upstream),
        "https://github.com/acme/template.git": str(published),
    }
    typist = Typist(tmp_path, instead=instead)
    for each in PAGE:
        if each.text.startswith("git add --all\n"):
            break
        if each.language == "sh":
            typist.type(each.text)
        elif each.title != "CHANGELOG.md":
            (typist.folder / each.title).parent.mkdir(parents=True, exist_ok=True)
            typist.write(each.title, each.text)
    for name in table("how-to/fork.md"):
        if name.startswith("fork/") and not (typist.folder / name).exists():
            typist.write(name, f"\n# Acme's, in {name}\n")
    company = Company(upstream, published, typist.folder, typist)
    company.publish()
    yield company


def release(templates: Path, upstream: Path, version: str) -> None:
    git(templates, "push", "--quiet", str(upstream), f"{version}:refs/heads/main", version)


def commit_of(service: Path) -> str:
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    return str(answers["_commit"])


def offered(service: Path) -> str:
    """Return the newer release that Copier finds, as the workflow and Renovate ask, if any."""
    command = [sys.executable, "-m", "copier", "check-update", "--output-format", "json"]
    said = subprocess.run(
        command, cwd=service, env=environment(), capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(said)
    return str(found["latest_version"]) if found["update_available"] else ""


def has_what_is_acmes(service: Path) -> None:
    for file, text in {
        "pyproject.toml": 'name = "acme"\nurl = "https://packages.acme.example/simple"',
        "Dockerfile": "FROM registry.acme.example/python:3",
        ".env.example": "# Acme's, in fork/.env.example",
        ".gitignore": "# Acme's, in fork/.gitignore",
        "AGENTS.md": "# Acme's, in fork/AGENTS.md",
        ".github/workflows/acme.yml": "name: Acme",
        ".copier-answers.yml": "acme_team: platform",
    }.items():
        assert text in (service / file).read_text(), file
    assert '    "acme-login>=3",\n' in (service / "pyproject.toml").read_text()
    assert 'LABEL com.acme.team="platform"\n' in (service / "Dockerfile").read_text()


def test_services_of_a_fork_never_leave_it(
    company: Company, templates: Path, tmp_path: Path
) -> None:
    """By `poe update`, and by Copier alone; full of edits of their own."""
    first = render_repository(company.published, tmp_path / "first")
    has_what_is_acmes(first)
    lived = [Path(shutil.copytree(first, tmp_path / name)) for name in ("one", "two")]
    for folder in lived:
        live(folder)
        commit(folder, "Edit")
    switched = Path(shutil.copytree(lived[0], tmp_path / "switched"))
    done = call(switched, "--vcs-ref=:current:", "--data", "database=postgresql")
    assert done.returncode == 0, done.stdout + done.stderr
    has_what_is_acmes(switched)

    for version in (NEXT, REWRITTEN):
        release(templates, company.upstream, version)
        git(company.fork, "fetch", "--quiet", "--tags", "upstream")
        git(company.fork, "push", "--quiet", "--tags", "origin")
        before = commit_of(lived[0])
        done = call(lived[0])
        assert (done.returncode, "there is nothing to update" in done.stdout) == (0, True)
        assert not offered(lived[0])

        company.take_in(version)
        company.publish()

        done = call(lived[0])
        assert done.returncode == 0, done.stdout + done.stderr
        update(lived[1])
        expected = expect(company.fork, first, company.release, tmp_path / company.release)
        replace(expected / ".copier-answers.yml", str(company.fork), str(company.published))
        live(expected)
        for folder in (*lived, expected):
            (folder / MOVED).unlink(missing_ok=True)  # a note that says so
        for folder in lived:
            check_clean(folder)
            assert commit_of(folder) == company.release != before
            assert text_files(folder) == text_files(expected)
            has_what_is_acmes(folder)
            commit(folder, "Update")


def follow(folder: Path, company: Company, title: str, *changes: tuple[str, str]) -> None:
    """Type a block of the page in a service's folder."""
    text = block(title)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    instead = {"^uv run poe update$": "", **company.typist.instead}
    Typist(folder, instead=instead).type(text)


def test_a_service_moves_to_the_fork_and_back_and_keeps_what_is_its_own(
    company: Company, templates: Path, tmp_path: Path
) -> None:
    service = render_repository(company.upstream, tmp_path / "service", release=WORKING_TREE)
    fresh = text_files(service)
    live(service)
    commit(service, "Edit")
    before = text_files(service)
    release(templates, company.upstream, NEXT)
    company.take_in(NEXT)
    company.publish()

    follow(service, company, "Move to the fork")
    done = call(service)

    assert done.returncode == 0, done.stdout + done.stderr
    has_what_is_acmes(service)
    assert commit_of(service) == company.release
    commit(service, "Update")

    # Upstream's address alone is refused, and leaves the service as it is.
    moved = text_files(service)
    answers = service / ".copier-answers.yml"
    replace(answers, str(company.published), str(company.upstream))
    commit(service, "Turned back")
    done = call(service)
    assert (done.returncode, "Unknown revision" in done.stderr) == (2, True)
    replace(answers, str(company.upstream), str(company.published))
    commit(service, "And again")
    assert text_files(service) == moved

    last = block("The fork's last release").replace("1.1.0", NEXT)
    company.typist.type(last)
    done = call(service)
    assert done.returncode == 0, done.stdout + done.stderr
    commit(service, "Update")
    follow(service, company, "Back to upstream", ("1.1.0", NEXT))
    release(templates, company.upstream, REWRITTEN)
    done = call(service)
    assert done.returncode == 0, done.stdout + done.stderr

    after = text_files(service)
    assert commit_of(service) == REWRITTEN
    assert "acme" not in "".join(after.values()).lower()
    assert before.keys() <= after.keys()
    for name, text in before.items():
        own = set(text.splitlines()) - set(fresh.get(name, "").splitlines())
        assert own <= set(after[name].splitlines()), name

    leaving = tmp_path / "leaving.git"
    git(tmp_path, "init", "--quiet", "--bare", str(leaving))
    company.typist.instead["https://github.com/acme/leaving.git"] = str(leaving)
    company.typist.type(block("For one service alone"))
    assert f"{YEAR}.9.0" in git(leaving, "tag")
    assert f"{YEAR}.9.0" not in git(company.fork, "tag")


# What a service is generated from, and offered after the fork's second release and upstream's next.
NUMBERS = {
    ("2027.1.0", "2027.2.0"): ["the fork", "2027.2.0", "2027.2.0"],
    ("1.2.0.post1", "1.2.0.post2"): ["the fork", "1.2.0.post2", "1.3.0"],
    ("1.2.0+acme.1", "1.2.0+acme.2"): ["the fork", "", "1.3.0"],
    ("acme-1.2.0", "acme-1.2.1"): ["upstream", "", "1.3.0"],
}


@pytest.mark.parametrize(("numbers", "expected"), NUMBERS.items())
def test_copier_takes_numbers_as_the_page_says(
    numbers: tuple[str, str], expected: list[str], tmp_path: Path
) -> None:
    number, second = numbers
    rows = table("how-to/fork.md", "Number your releases by the year")
    template, folder = tmp_path / "template", tmp_path / "service"
    git(tmp_path, "init", "--quiet", str(template))
    write(template, "copier.yml", "_min_copier_version: 9.0.0\n")
    name = "{{ _copier_conf.answers_file }}.jinja"
    write(template, name, "{{ _copier_answers | to_nice_yaml }}")
    for tag, whose in (("1.2.0", "upstream"), (number, "the fork"), (second, "the fork")):
        write(template, "whose.txt", whose)
        commit(template, tag)
        git(template, "tag", tag)
        if tag == number:
            render_repository(template, folder)
    got = [(folder / "whose.txt").read_text(), offered(folder)]
    commit(template, "1.3.0")
    git(template, "tag", "1.3.0")

    assert f"`{number}`" in rows
    assert len(rows) == len(NUMBERS)
    assert [*got, offered(folder)] == expected
