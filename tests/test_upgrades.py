"""A breaking release brings its steps as a file; nothing runs them but the owner who has read them."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pages import Typist, block_text, page_text
from tests.support.processes import environment
from tests.support.releases import WORKING_TREE, call, insert, write
from tests.support.repository import REPOSITORY, commit, git, replace
from tests.support.services import Service, render_repository

STEPS = REPOSITORY / "tests/support/upgrades/1002.0.0.py"
RENAMED = {
    "app.dependencies": "app.sessions",
    "ReaderDep": "QueryDep",
    "DOCS_ENABLED": "SHOW_DOCS",
    "docs_enabled": "show_docs",
}
OWN = {
    "app/features/items/routes.py": None,  # the example, which is the service's
    "app/features/notes.py": """\
from app.dependencies import ReaderDep
from app.settings import ServiceSettings

SHOWN = ServiceSettings.model_fields["docs_enabled"].default
READER = ReaderDep
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
    (folder / "template/upgrades").mkdir()
    shutil.copy(STEPS, folder / "template/upgrades")
    commit(folder)
    git(folder, "tag", "1002.0.0")
    write(folder, "template/upgrades/1010.0.0.py", '"""What 1010.0.0 asks."""\n')
    commit(folder)
    git(folder, "tag", "1010.0.0")
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
        "import router as items\nfrom app.features.notes import SHOWN as SHOWN\n",
    )
    commit(folder)
    write(folder, ".env", "DOCS_ENABLED=false\n")
    (tmp_path / "beside.txt").write_text("DOCS_ENABLED")
    own = {name: (folder / name).read_bytes() for name in (*OWN, ".env")}
    python = str(service_of("sqlite").folder / ".venv/bin/python")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *words],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    updated = call(folder, "--vcs-ref", "1002.0.0")

    assert updated.returncode == 3, updated.stderr
    assert named(updated.stdout) == ["1002.0.0.py"]
    assert steps(folder) == ["1002.0.0.py"]
    assert {name: (folder / name).read_bytes() for name in own} == own  # nothing has run them
    assert "No module named 'app.dependencies'" in run("-c", "import app.main").stderr or (
        "cannot import name 'ReaderDep'" in run("-c", "import app.main").stderr
    )
    before = held(folder)

    done = run("upgrades/1002.0.0.py")

    assert done.returncode == 0, done.stderr
    changed = {name for name, text in held(folder).items() if text != before[name]}
    assert changed == set(re.findall(r"^changed: (.*)$", done.stdout, re.MULTILINE))
    assert changed == {*git(folder, "diff", "--name-only").split()} >= OWN.keys()
    assert (folder / "deploy/latin-1.txt").read_bytes() == b"gr\xfcn: SHOW_DOCS\n"
    assert (folder / ".env").read_text() == "DOCS_ENABLED=false\n"
    assert "to be changed by you: .env names DOCS_ENABLED" in done.stdout
    assert (tmp_path / "beside.txt").read_text() == "DOCS_ENABLED"
    write(folder, ".env", "SHOW_DOCS=false\n")
    tests = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/features", "tests/test_openapi.py"
    )
    assert tests.returncode == 0, tests.stdout
    assert run("upgrades/1002.0.0.py").stdout == ""  # a second time there is nothing to do
    git(folder, "add", "deploy/latin-1.txt")  # which would be shown otherwise
    typed = block_text(page_text("how-to/update.md"), "Steps of a release").replace(
        "2.0.0", "1002.0.0"
    )
    fix = f"{python} -m ruff check --quiet --fix-only --exit-zero app/features"
    instead = {r"\buv run python\b": python, "^uv run poe fix$": fix}
    shown = Typist(folder, instead=instead).type(typed)
    assert "+from app.sessions import QueryDep\n" in shown
    assert "class " not in re.sub("^ .*", "", shown, flags=re.MULTILINE)  # of the update, nothing
    assert steps(folder) == []


def test_steps_come_once_and_in_order_and_never_to_a_service_that_began_later(
    breaking: Path, tmp_path: Path
) -> None:
    late = render_repository(breaking, tmp_path / "late", release=WORKING_TREE)
    step_by_step = Path(shutil.copytree(late, tmp_path / "step by step"))
    fresh = render_repository(breaking, tmp_path / "fresh", release="1002.0.0")
    assert steps(fresh) == []

    done = call(late)
    assert (done.returncode, named(done.stdout)) == (3, ["1002.0.0.py", "1010.0.0.py"])

    call(step_by_step, "--vcs-ref", "1002.0.0")
    (step_by_step / "upgrades/1002.0.0.py").unlink()
    commit(step_by_step, "Update, and run the steps")
    for folder in (step_by_step, fresh):
        done = call(folder)
        assert (done.returncode, named(done.stdout)) == (3, ["1010.0.0.py"])
        assert steps(folder) == ["1010.0.0.py"]
