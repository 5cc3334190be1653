"""What the files of a fresh service say, and what they do not."""

import json
import tomllib
from pathlib import Path

import pytest

from tests.support.databases import DATABASES
from tests.support.repository import git, questions, text_files
from tests.support.services import PYTEST, Service, render

pytestmark = pytest.mark.fast

OTHERS_WORDS = {
    "sqlite": ["postgres", "asyncpg", "pgserver", "psql", "advisory_lock"],
    "postgresql": ["sqlite", "pragma", "app.db"],
}


@pytest.fixture(scope="module", params=DATABASES)
def files(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    database: str = request.param
    folder = render(template, tmp_path_factory.mktemp("fresh") / "service", database=database)
    return database, text_files(folder)


def test_a_service_says_nothing_of_the_other_database(files: tuple[str, dict[str, str]]) -> None:
    database, texts = files
    for name, text in texts.items():
        for word in OTHERS_WORDS[database]:
            assert word not in (name + text).lower(), name


def test_both_services_have_the_same_files(template: Path, tmp_path: Path) -> None:
    sqlite, postgresql = (
        set(text_files(render(template, tmp_path / name, database=name))) for name in DATABASES
    )

    assert sqlite == postgresql


def test_a_service_says_nothing_of_its_template_but_how_to_update(
    files: tuple[str, dict[str, str]],
) -> None:
    _, texts = files
    telling = {name for name, text in texts.items() if "copier" in text.lower()}

    # The doctor reports the release, and the update uses the Copier of `uv.lock`.
    assert telling == {
        ".copier-answers.yml",
        ".github/workflows/update.yml",
        "README.md",
        "app/doctor.py",
        "pyproject.toml",
        "scripts/update.py",
    }
    before, _, _ = texts["README.md"].partition("\n## Update\n")
    assert "copier" not in before.lower()


def test_no_file_looks_generated(files: tuple[str, dict[str, str]]) -> None:
    _, texts = files
    for name, text in texts.items():
        assert "{%" not in text, name
        if text:
            assert text.endswith("\n"), name
            assert not text.endswith("\n\n"), name
            assert not text.startswith("\n"), name
        assert "\n\n\n\n" not in text, name
        assert all(line == line.rstrip() for line in text.split("\n")), name


def test_json_files_are_json(files: tuple[str, dict[str, str]]) -> None:
    _, texts = files
    read = {name: json.loads(text) for name, text in texts.items() if name.endswith(".json")}

    recommended = read[".vscode/extensions.json"]["recommendations"]
    container = read[".devcontainer/devcontainer.json"]
    assert container["customizations"]["vscode"]["extensions"] == recommended


def test_each_file_of_the_service_is_short(files: tuple[str, dict[str, str]]) -> None:
    _, texts = files
    lines = {
        name: sum(bool(line.strip()) for line in text.splitlines())
        for name, text in texts.items()
        if name.startswith("app/")
    }

    assert {name: count for name, count in lines.items() if count > 130} == {}
    assert len(texts["README.md"].splitlines()) < 120


def test_few_packages_run_in_production(service: Service) -> None:
    exported = service.run("uv", "export", "--quiet", "--no-dev", "--no-hashes").stdout

    packages = [line for line in exported.splitlines() if "==" in line and line[0].isalpha()]
    assert 0 < len(packages) <= 26


def test_no_slug_can_be_the_name_of_a_dependency(template: Path, service: Service) -> None:
    lock = tomllib.loads((service.folder / "uv.lock").read_text())

    locked = {package["name"] for package in lock["package"]}
    assert locked - {"my-service"} <= set(questions(template)["reserved_slugs"]["default"])


def test_the_example_environment_names_every_setting(service: Service) -> None:
    program = "from app.settings import Settings; print(*Settings.model_fields)"
    names = service.run("uv", "run", "--no-sync", "python", "-c", program).stdout.split()
    example = (service.folder / ".env.example").read_text()

    listed = {
        line[1:].split("=")[0]
        for line in example.splitlines()
        if line.startswith("#") and "=" in line
    }
    assert {name.upper() for name in names} == {name for name in listed if name.isupper()}


def test_git_ignores_what_running_a_service_leaves_behind(service: Service, tmp_path: Path) -> None:
    copy = service.copy(tmp_path / "service")
    copy.leave_shared_environment()
    copy.run("uv", "run", "python", "-c", "import app.settings")
    git(copy.folder, "init", "--quiet")
    listed = git(copy.folder, "status", "--porcelain", "--untracked-files=all")

    untracked = {line.removeprefix("?? ").strip('"') for line in listed.splitlines()}
    assert [*copy.folder.glob("app/__pycache__/*")]
    assert not {name for name in untracked if "__pycache__" in name or ".venv" in name}
    assert "uv.lock" in untracked


def test_each_test_of_a_service_has_a_name_that_can_be_read(service: Service) -> None:
    listed = service.run(PYTEST, "--collect-only", "--quiet").stdout.splitlines()

    names = [line for line in listed if "::" in line]
    assert len(names) > 300
    assert [name for name in names if len(name) > 180] == []
