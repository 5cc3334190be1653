"""What Copier asks, accepts and refuses; and that an accepted answer is rendered unchanged."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.databases import DATABASES
from tests.support.processes import environment, once
from tests.support.repository import questions, text_files
from tests.support.services import render

pytestmark = pytest.mark.fast

# Letters, marks, numbers, punctuation, symbols, spaces, and invisible formatting such as U+202E.
LINE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)
NAME = LINE.map(lambda text: text.replace("<", "")[:64].strip()).filter(bool)
DESCRIPTION = LINE.map(lambda text: text[:200].strip()).filter(bool)


@pytest.fixture(scope="module")
def unversioned(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template without its history, of which Copier makes no clone before it renders."""
    folder = tmp_path_factory.mktemp("unversioned") / "template"
    shutil.copytree(template, folder, ignore=shutil.ignore_patterns(".git"))
    return folder


@pytest.fixture(scope="module")
def answering(unversioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template without the files that no answer changes: Jinja's are a sixth of them.

    A file that is left out is checked here, once.
    """
    folder = tmp_path_factory.mktemp("answering") / "template"
    shutil.copytree(unversioned, folder)
    for file in (folder / "template").rglob("*"):
        included = "variants" in file.relative_to(folder).parts
        if file.is_file() and file.suffix != ".jinja" and not included:
            check_syntax(file.suffix, file.read_text())
            file.unlink()
    return folder


def copy(template: Path, folder: Path, *answers: str) -> subprocess.CompletedProcess[str]:
    """Call Copier as its user does."""
    command = [sys.executable, "-m", "copier", "copy", "--defaults", str(template), str(folder)]
    for answer in answers:
        command += ["--data", answer]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )


def test_no_answers_give_the_default_service(template: Path, tmp_path: Path) -> None:
    done = copy(template, tmp_path / "service")

    assert done.returncode == 0, done.stderr
    assert "uv run poe dev" in done.stderr
    answers = yaml.safe_load((tmp_path / "service/.copier-answers.yml").read_text())
    assert answers == {
        "_commit": "9000.0.0",
        "_src_path": str(template),
        "checksum": answers["checksum"],
        "database": "sqlite",
        "description": "An HTTP service that keeps items in a database.",
        "project_name": "My Service",
        "project_slug": "my-service",
    }


def test_every_answer_that_is_kept_is_checked(template: Path) -> None:
    found = questions(template)
    kept = {
        name
        for name, question in found.items()
        if not name.startswith("_") and question.get("when", True) and name != "checksum"
    }

    [names] = re.findall(r"\[(.*)\]", found["expected_checksum"]["default"])
    assert set(names.split(", ")) == kept


def test_nobody_is_asked_to_trust(template: Path) -> None:
    settings = questions(template)

    assert not settings.keys() & {"_tasks", "_migrations", "_jinja_extensions"}


BAD_ANSWERS = [
    "project_name=",
    "project_name=   ",
    "project_name= padded",
    "project_name=two\nlines",
    "project_name=nul\x01",
    "project_name=separator\u2028",
    "project_name=</title><script>alert(1)</script>",
    f"project_name={'a' * 65}",
    "description=",
    "description=two\nlines",
    f"description={'a' * 201}",
    "database=oracle",
    "database=",
    "database=PostgreSQL",
    "project_slug=",
    "project_slug=My-Service",
    "project_slug=my_service",
    "project_slug=-service",
    "project_slug=service-",
    "project_slug=my--service",
    "project_slug=7up",
    "project_slug=../escape",
    "project_slug=naïve",
    "project_slug=service\n",
    f"project_slug={'a' * 51}",
    "project_slug=fastapi",
    "project_slug=greenlet",
    "project_slug=pytest",
]
# `python -m copier` for each of many answers: what takes the time is to import it, and that is done
# once.
EACH = """
import json, os, runpy, sys
import copier._cli

template, folder, answers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for number, answer in enumerate(answers):
    child = os.fork()
    if child == 0:
        with open(f"{folder}/{number}.txt", "wb") as told:
            os.dup2(told.fileno(), 2)
        target = f"{folder}/{number}"
        sys.argv = ["copier", "copy", "--defaults", template, target, "--data", answer]
        runpy.run_module("copier", run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def refusals(
    unversioned: Path, whole_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Any]]:
    """The exit code, the output and the files that were written, for each bad answer."""

    def refuse() -> str:
        folder = tmp_path_factory.mktemp("refused")
        words = [str(unversioned), str(folder), json.dumps(BAD_ANSWERS)]
        command = [sys.executable, "-c", EACH, *words]
        codes = subprocess.check_output(command, env=environment(), text=True, timeout=300).split()
        return json.dumps(
            {
                answer: [
                    int(code),
                    (folder / f"{number}.txt").read_text(),
                    [str(path) for path in (folder / str(number)).glob("*")],
                ]
                for number, (answer, code) in enumerate(zip(BAD_ANSWERS, codes, strict=True))
            }
        )

    refused: dict[str, list[Any]] = json.loads(once(whole_run / "refused.json", refuse))
    return refused


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_a_bad_answer_is_refused_by_name_and_nothing_is_written(
    refusals: dict[str, list[Any]], answer: str
) -> None:
    code, told, written = refusals[answer]

    assert code > 0
    assert answer.split("=")[0] in told
    assert written == []


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Order Service", "order-service"),
        ("  3D -- Printing!".strip(), "d-printing"),
        ("FastAPI", "fastapi-service"),
        ("Café", "caf"),
        ("服务", "service"),
        ("a" * 64, "a" * 42),
        (f"{'a' * 41} b", "a" * 41),
    ],
)
def test_any_name_makes_a_slug(answering: Path, tmp_path: Path, name: str, slug: str) -> None:
    folder = render(answering, tmp_path / "service", project_name=name)

    assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"] == slug


def check_whole(folder: Path, answers: dict[str, Any]) -> None:
    """Check that every file parses, and that the answers are in them as they were given."""
    files = text_files(folder)
    assert yaml.safe_load(files[".copier-answers.yml"]).items() >= answers.items()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["description"] == answers["description"]
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(files["app/__init__.py"]).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    assert constants["TITLE"] == answers["project_name"]
    assert "<" not in constants["TITLE"]  # FastAPI puts it into a page as it is
    assert constants["DESCRIPTION"] == answers["description"]
    title, _, description = files["README.md"].split("\n")[:3]
    assert unescape(title.removeprefix("# ")) == answers["project_name"]
    assert unescape(description) == answers["description"]
    for name, text in files.items():
        check_syntax(Path(name).suffix, text)


@cache  # most files are the same whatever the answers are
def check_syntax(suffix: str, text: str) -> None:
    if suffix == ".py":
        ast.parse(text)
    elif suffix in (".yml", ".yaml"):
        yaml.safe_load(text)


def unescape(markdown: str) -> str:
    text = ""
    characters = iter(markdown)
    for character in characters:
        text += next(characters) if character == "\\" else character
    return text


@pytest.mark.parametrize("database", DATABASES)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=NAME, description=DESCRIPTION)
@example(name="yes", description="1e3")
@example(name="null", description="~")
@example(name="{{ 7 * 7 }} {% raw %}", description="#{x} ${{ y }}")
@example(name='"""', description="'''\\")
@example(name="\\", description="\\n \\u0041")
@example(name="\u202eabc", description="🛠️ שלום \ufeff\u200b")
@example(name="- a", description="1. b")
@example(name="# a #", description="<b>*c*</b> | `d` [e](f)")
@example(name="a: b # c", description="%YAML &a *b !c")
@example(name="\U0001f1f5\U0001f1f1", description="\ue000\U0010fffd")
def test_an_accepted_answer_comes_out_whole(
    answering: Path, database: str, name: str, description: str
) -> None:
    answers = {"project_name": name, "description": description, "database": database}

    with tempfile.TemporaryDirectory() as folder:
        check_whole(render(answering, Path(folder) / "service", **answers), answers)
