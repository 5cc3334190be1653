"""A breaking release brings its steps as a file; nothing runs them but the owner who has read them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from textwrap import indent

import pytest

from tests.support.pages import Typist, block_text, page_text
from tests.support.processes import environment
from tests.support.releases import WORKING_TREE, call, expect, insert, write
from tests.support.repository import REPOSITORY, commit, git, replace, text_files
from tests.support.services import Service, render_repository

STEPS = REPOSITORY / "tests/support/upgrades/9003.0.0.py"
RENAMED = {
    "app.dependencies": "app.sessions",
    "ReaderDep": "QueryDep",
    "DOCS_ENABLED": "SHOW_DOCS",
    "docs_enabled": "show_docs",
}
# A setting that is renamed: what sets it where the service is deployed does so by its old name.
ALIAS = """\
    show_docs: Annotated[
        bool, Field(validation_alias=AliasChoices("docs_enabled", "show_docs"))
    ] = True
"""
# A setting that goes: who still sets it is told, in place of being ignored.
GONE = {
    "AnySettings = ": """\
GONE = {"DATABASE_ECHO": "set LOG_LEVEL=DEBUG"}
""",
    "    try:\n        return kind()\n": """\
    names = {*names_in(kind.model_config.get("env_file")), *map(str.upper, os.environ)}
    for name in GONE.keys() & names:
        sys.exit(f"Wrong settings: {name} is no setting any more; {GONE[name]}.")
""",
}
# `.env` has the old name; the image sets the new one, and the owner sets the old or the new one.
PROGRAM = """\
import os
from app.settings import Settings, load_settings

for owners in ({}, {"DOCS_ENABLED": "true"}):
    for images in ({}, {"SHOW_DOCS": "false"}):
        os.environ |= owners | images
        print(load_settings(Settings).show_docs)
        for name in owners | images:
            del os.environ[name]
os.environ["SHOW_DOCS"] = "false"
os.rename(".env", ".env.before")
print(load_settings(Settings).show_docs)
os.rename(".env.before", ".env")
"""
OWN = {
    "app/features/items/routes.py": None,  # the example, which is the service's
    "app/features/notes.py": """\
from app.dependencies import ReaderDep
from app.settings import ServiceSettings

SHOWN = ServiceSettings.model_fields["docs_enabled"].default
READER = ReaderDep
""",
    "app/features/times.py": """\
from app import dependencies, fields

TIMES = (dependencies.ReaderDep, fields.Text)
""",
    "deploy/orders.yaml": "env: [{name: DOCS_ENABLED, value: 'false'}]\n",
    "deploy/latin-1.txt": None,
}


@pytest.fixture(scope="module")
def breaking(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two breaking releases: one that renames what services use, and one that asks for little."""
    folder = Path(shutil.copytree(templates, tmp_path_factory.mktemp("breaking") / "templates"))
    git(folder, "checkout", "--quiet", WORKING_TREE)
    for file in (folder / "template").rglob("*"):
        if file.is_file() and "features" not in file.parts:
            text = file.read_text()
            for old, new in RENAMED.items():
                text = text.replace(old, new)
            file.write_text(text)
    moved = folder / "template/app/dependencies.py"
    moved.rename(folder / "template/app/sessions.py")
    moved.write_text('"""Moved to app/sessions.py. Delete this file."""\n')
    once = "  - \"{% if _copier_operation == 'copy' %}/app/dependencies.py{% endif %}\"\n"
    insert(folder / "copier.yml", "_exclude:\n", "", once)
    settings = folder / "template/app/settings.py"
    replace(settings, "    show_docs: bool = True\n", ALIAS)
    replace(settings, "    AfterValidator,\n", "    AfterValidator,\n    AliasChoices,\n")
    replace(settings, "import re\n", "import os\nimport re\n")
    for line, text in GONE.items():
        insert(settings, "", line, text)
    (folder / "template/upgrades").mkdir()
    shutil.copy(STEPS, folder / "template/upgrades")
    commit(folder)
    git(folder, "tag", "9003.0.0")
    write(folder, "template/upgrades/9010.0.0.py", '"""What 9010.0.0 asks."""\n')
    commit(folder)
    git(folder, "tag", "9010.0.0")
    return folder


def held(folder: Path) -> dict[str, bytes]:
    """Return what git holds, of any encoding."""
    paths = [folder / name for name in git(folder, "ls-files").split("\n")[:-1]]
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in paths if not path.is_symlink()
    }


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("upgrades/*"))


def named(said: str) -> list[str]:
    """Return the steps that the command names, in its order."""
    _, _, after = said.partition("To be read, and then run in this order")
    return re.findall(r"^- upgrades/(\S+)$", after, re.MULTILINE)


def test_a_breaking_release_is_survived_by_the_steps_that_its_owner_runs(
    breaking: Path, service_of: Callable[[str], Service], tmp_path: Path
) -> None:
    folder = render_repository(breaking, tmp_path / "service", release=WORKING_TREE)
    for name, text in OWN.items():
        if text is not None:
            write(folder, name, text)
    (folder / "deploy/latin-1.txt").write_bytes(b"gr\xfcn: DOCS_ENABLED\n")
    (folder / "link").symlink_to("app/features/notes.py")
    replace(
        folder / "app/features/registration.py",
        "import router as items\n",
        "import router as items\nfrom app.features.notes import SHOWN  # noqa: F401\n",
    )
    commit(folder)
    write(folder, ".env", "DOCS_ENABLED=false\n")
    (tmp_path / "beside.txt").write_text("DOCS_ENABLED")
    own = {name: (folder / name).read_bytes() for name in (*OWN, ".env")}
    python = str(service_of("sqlite").folder / ".venv/bin/python")

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *words],
            cwd=folder,
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )

    updated = call(folder, "--vcs-ref", "9003.0.0")

    assert updated.returncode == 3, updated.stderr
    assert named(updated.stdout) == ["9003.0.0.py"]
    assert steps(folder) == ["9003.0.0.py"]
    assert {name: (folder / name).read_bytes() for name in own} == own  # nothing has run them
    assert "No module named 'app.dependencies'" in run("-c", "import app.main").stderr or (
        "cannot import name 'ReaderDep'" in run("-c", "import app.main").stderr
    )
    before = held(folder)

    done = run("upgrades/9003.0.0.py")

    assert done.returncode == 0, done.stderr
    changed = {name for name, text in held(folder).items() if text != before[name]}
    assert changed == set(re.findall(r"^changed: (.*)$", done.stdout, re.MULTILINE))
    assert changed == {*git(folder, "diff", "--name-only").split()} >= OWN.keys()
    assert (folder / "deploy/latin-1.txt").read_bytes() == b"gr\xfcn: SHOW_DOCS\n"
    assert (folder / ".env").read_text() == "DOCS_ENABLED=false\n"
    assert "to be changed by you: .env names DOCS_ENABLED" in done.stdout
    assert (tmp_path / "beside.txt").read_text() == "DOCS_ENABLED"
    counted = run("-c", PROGRAM).stdout.split()
    assert counted == ["False", "False", "True", "True", "False"]
    gone = run("-c", "import app.main", DATABASE_ECHO="true")
    assert "DATABASE_ECHO is no setting any more; set LOG_LEVEL=DEBUG." in gone.stderr
    assert gone.returncode == 1
    write(folder, ".env", "SHOW_DOCS=false\n")
    formatted = "app/features", "app/main.py"
    run("-m", "ruff", "check", "--fix-only", "--exit-zero", *formatted)  # as `poe fix` does
    run("-m", "ruff", "format", *formatted)
    linted = run("-m", "ruff", "check", *formatted)
    assert linted.returncode == 0, linted.stdout
    tests = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/features", "tests/test_openapi.py"
    )
    assert tests.returncode == 0, tests.stdout
    assert run("upgrades/9003.0.0.py").stdout == ""  # a second time there is nothing to do
    git(folder, "add", "deploy/latin-1.txt")  # which would be shown otherwise
    typed = block_text(page_text("how-to/update.md"), "Steps of a release").replace(
        "2.0.0", "9003.0.0"
    )
    fix = f"{python} -m ruff check --quiet --fix-only --exit-zero app/features"
    instead = {r"\buv run python\b": python, "^uv run poe fix$": fix}
    shown = Typist(folder, instead=instead).type(typed)
    assert "+from app.sessions import QueryDep\n" in shown
    assert "class " not in re.sub("^ .*", "", shown, flags=re.MULTILINE)  # of the update, nothing
    assert steps(folder) == []


# What imports the module, in all the ways that Python has; `fields` and `rest` stay what they are.
NAMES = [
    ["dependencies"],
    ["dependencies as own"],
    ["dependencies", "fields"],
    ["fields", "dependencies"],
    ["fields", "dependencies as own", "rest"],
    ["fields as dependencies", "rest"],
]
LAYOUTS = {
    "on a line": lambda names: f"from app import {', '.join(names)}  # dependencies",
    "in parentheses": lambda names: f"from app import ({', '.join(names)})",
    "line by line": lambda names: (
        "from app import (\n" + "".join(f"    {it},  # (see there)\n" for it in names) + ")"
    ),
    "continued": lambda names: "from app import \\\n    " + ", \\\n    ".join(names),
}
OTHERS = {
    "import app.dependencies": "app.dependencies.ReaderDep",
    "import app.dependencies as own": "own.ReaderDep",
    "import app.fields, app.dependencies": "app.dependencies.ReaderDep",
    "from app.dependencies import ReaderDep": "ReaderDep",
    "from app.dependencies import ReaderDep as own": "own",
    "from app.dependencies import (\n    ReaderDep,\n)": "ReaderDep",
    "import importlib": 'importlib.import_module("app.dependencies").ReaderDep',
}


def modules() -> Iterator[str]:
    """Yield modules whose `FOUND` is what they import from each of the modules."""
    values = {"dependencies": "{}.ReaderDep", "fields": "{}.VALUE", "rest": "{}.VALUE"}
    statements = dict(OTHERS)
    for names, layout in product(NAMES, LAYOUTS.values()):
        bound = [name.split(" as ") for name in names]
        statements[layout(names)] = ", ".join(values[it[0]].format(it[-1]) for it in bound)
    for statement, value in statements.items():
        yield f"{statement}\n\nFOUND = [{value}]\n"
        inner = indent(f"{statement}\nreturn [{value}]\n", "    ")
        yield f"def find() -> list[str]:\n{inner}\n\nFOUND = find()\n"


def found_by(folder: Path) -> list[str]:
    """Return what each of the modules has found."""
    program = (
        "import runpy, sys\nfor file in sys.argv[1:]: print(runpy.run_path(file)['FOUND'], file)"
    )
    files = sorted(map(str, folder.glob("own_*.py")))
    done = subprocess.run(
        [sys.executable, "-c", program, *files],
        cwd=folder,
        env=environment(PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_steps_rename_a_module_however_it_is_imported(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    write(tmp_path, "app/__init__.py", "")
    for name in ("fields", "rest"):
        write(tmp_path, f"app/{name}.py", f'VALUE = "{name}"\n')
    write(tmp_path, "app/dependencies.py", 'ReaderDep = "reader"\n')
    for number, text in enumerate(modules()):
        write(tmp_path, f"own_{number:03}.py", text)
    before = found_by(tmp_path)
    assert sum("reader" in line for line in before) > 40
    write(tmp_path, "pyproject.toml", '"app/dependencies.py" = ["E501"]\n')
    (tmp_path / "app/dependencies.py").rename(tmp_path / "app/sessions.py")
    commit(tmp_path)
    write(tmp_path, ".gitignore", ".env*\n")
    write(tmp_path, ".envs/production/postgresql.txt", "POSTGRES_USER=me\n")
    write(tmp_path, ".envs/production/service.txt", "DOCS_ENABLED=true\n")
    write(tmp_path, ".env", "MY_DOCS_ENABLED=true\n")
    (tmp_path / "upgrades").mkdir()
    steps = shutil.copy(STEPS, tmp_path / "upgrades")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, steps], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = run()

    assert done.returncode == 0, done.stderr
    assert found_by(tmp_path) == before
    assert (tmp_path / "pyproject.toml").read_text() == '"app/sessions.py" = ["E501"]\n'
    asked = [line for line in done.stdout.splitlines() if line.startswith("to be changed")]
    assert asked == ["to be changed by you: .envs/production/service.txt names DOCS_ENABLED"]
    assert run().stdout.splitlines() == asked


def test_steps_come_once_and_in_order_and_never_to_a_service_that_began_later(
    breaking: Path, tmp_path: Path
) -> None:
    late = render_repository(breaking, tmp_path / "late", release=WORKING_TREE)
    step_by_step = Path(shutil.copytree(late, tmp_path / "step by step"))
    fresh = render_repository(breaking, tmp_path / "fresh", release="9003.0.0")
    assert steps(fresh) == []

    expected = expect(breaking, late, "9010.0.0", tmp_path / "expected")

    done = call(late)
    assert (done.returncode, named(done.stdout)) == (3, ["9003.0.0.py", "9010.0.0.py"])
    updated = {name: text.decode() for name, text in held(late).items()}
    assert updated == text_files(expected)

    call(step_by_step, "--vcs-ref", "9003.0.0")
    (step_by_step / "upgrades/9003.0.0.py").unlink()
    commit(step_by_step, "Update, and run the steps")
    for folder in (step_by_step, fresh):
        done = call(folder)
        assert (done.returncode, named(done.stdout)) == (3, ["9010.0.0.py"])
        assert steps(folder) == ["9010.0.0.py"]
