"""`poe update`: git merges a release; what git can't bring back is not touched, whatever it is.

Most cases change no release, only what lives in the service's folder. So Copier renders once, and
they take its two results.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.databases import DATABASES
from tests.support.pages import table
from tests.support.processes import environment, once
from tests.support.releases import (
    CONFLICTS,
    MOVED,
    NEXT,
    NOTE,
    REWRITTEN,
    TEXTS,
    WORKING_TREE,
    call,
    conflicts,
    expect,
    fill_places,
    insert_lines,
)
from tests.support.repository import (
    REPOSITORY,
    commit,
    git,
    names_of_tests,
    replace,
    substitute,
    text_files,
)
from tests.support.services import render_repository

Entry = tuple[str, bytes]


def everything(folder: Path) -> dict[str, Entry]:
    """Return all that is in a folder, but for git's and Python's: links, empty folders, any bytes."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if {".git", "__pycache__"} & set(path.relative_to(folder).parts):
            continue
        if path.is_symlink():
            found[name] = ("link", os.fsencode(path.readlink()))
        elif path.is_dir():
            found[name] = ("folder", b"")
        else:
            found[name] = (f"file {path.stat().st_mode:o}", path.read_bytes())
    return found


@dataclass(frozen=True)
class Update:
    """A service of one release, and what the command makes of it."""

    before: Path
    after: Path

    def service(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.before, folder, symlinks=True))


@pytest.fixture(scope="module")
def next_release(templates: Path, whole_run: Path) -> Update:
    """From the working tree to the next release, by the command. No test changes its folders."""
    folder = whole_run / "next-release"

    def make() -> str:
        before = render_repository(templates, folder / "before", release=WORKING_TREE)
        after = Path(shutil.copytree(before, folder / "after"))
        done = call(after, "--vcs-ref", NEXT)
        assert done.returncode == 0, done.stderr
        return str(folder)

    once(whole_run / "next-release.made", make)
    return Update(folder / "before", folder / "after")


@pytest.fixture(scope="module")
def rewritten(next_release: Update, tmp_path_factory: pytest.TempPathFactory) -> Update:
    """To a release that changes every file, and has one more."""
    after = tmp_path_factory.mktemp("rewritten") / "after"
    shutil.copytree(next_release.before, after)
    for name in git(after, "ls-files").splitlines():
        with (after / name).open("a") as file:
            file.write("# new\n")
    (after / NEW).write_text("of the release\n")
    return Update(next_release.before, after)


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def merge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command here, on releases that are rendered already."""
    name = importlib.util.spec_from_file_location(
        "update", REPOSITORY / "template/scripts/update.py"
    )
    assert name is not None
    assert name.loader is not None
    module: Any = importlib.util.module_from_spec(name)
    name.loader.exec_module(module)

    def run(
        folder: Path, update: Update, meanwhile: Callable[[], object] = lambda: None
    ) -> tuple[int, str]:
        def render(store: Any, *_: Any) -> tuple[dict[str, str], ...]:
            meanwhile()
            return store.take_in(update.before), store.take_in(update.after)

        monkeypatch.setattr(module, "FOLDER", folder)
        monkeypatch.setattr(module, "render", render)
        monkeypatch.setattr(module, "SIGNALS", ())  # these tests' own
        monkeypatch.setattr(sys, "argv", ["scripts/update.py"])
        with pytest.raises(SystemExit) as ended:
            module.main()
        said = capsys.readouterr()
        code = ended.value.code
        words = said.out + said.err
        return (code, words) if isinstance(code, int) else (1, f"{words}{code}")

    return run


def take_back(folder: Path, said: str) -> None:
    [command] = re.findall(r"^    (git restore .*)$", said, re.MULTILINE)
    subprocess.run(command.split(), cwd=folder, check=True)


# What it delivers ---------------------------------------------------------------------------------


def test_the_command_makes_of_a_service_what_copier_makes_of_it(
    next_release: Update, tmp_path: Path
) -> None:
    by_copier = next_release.service(tmp_path / "copier")
    subprocess.run(
        [sys.executable, "-m", "copier", "update", "--defaults", "--quiet", "--vcs-ref", NEXT],
        cwd=by_copier,
        env=environment(),
        check=True,
    )

    assert text_files(next_release.after) == text_files(by_copier)


def test_an_edit_that_meets_no_change_is_merged_and_staged(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    with (folder / "app/health.py").open("a") as file:
        file.write("\n\n# Ours.\n")
    commit(folder)

    code, said = merge(folder, next_release)

    assert code == 0, said
    expected = (next_release.after / "app/health.py").read_text() + "\n\n# Ours.\n"
    assert (folder / "app/health.py").read_text() == expected
    assert f"{WORKING_TREE} to {NEXT}: " in said
    assert git(folder, "diff", "--name-only") == ""
    assert git(folder, "ls-files", "--others", "--exclude-standard") == ""
    assert "app/health.py" in git(folder, "diff", "--staged", "--name-only")


def test_a_conflict_is_named_and_unmerged_and_both_texts_are_in_the_file(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    for conflict in CONFLICTS.values():
        conflict.edit(folder)
    commit(folder)
    before = everything(tmp_path)

    code, said = merge(folder, next_release)

    files = {conflict.file for conflict in CONFLICTS.values()}
    assert code == 3
    assert conflicts(folder) == files
    assert {*re.findall(r"^- (\S+): CONFLICT", said, re.MULTILINE)} == files
    for conflict in CONFLICTS.values():
        text = (folder / conflict.file).read_text()
        ours, theirs = (
            text.split("<<<<<<< service\n", 1)[1].split(">>>>>>>", 1)[0].split("=======\n")
        )
        assert conflict.mine.splitlines()[-1] in ours
        assert conflict.theirs in theirs
    take_back(folder, said)
    assert everything(tmp_path) == before
    assert git(folder, "status", "--porcelain") == ""


def test_what_was_moved_gets_its_change_and_what_was_deleted_is_named(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    git(folder, "mv", "app", "orders")
    git(folder, "rm", "--quiet", "compose.yaml", MOVED)
    git(folder, "rm", "--quiet", "--cached", "AGENTS.md")
    git(folder, "commit", "--quiet", "--message", "AGENTS.md is for me alone")

    code, said = merge(folder, next_release)

    changed = {
        name
        for name, text in text_files(next_release.after).items()
        if name.startswith("app/") and text != text_files(next_release.before).get(name)
    }
    assert code == 0, said
    assert len(changed) > 3
    for name in changed:
        moved = name.replace("app/", "orders/")
        assert (folder / moved).read_text() == (next_release.after / name).read_text()
        assert f"- {moved}\n" in said
    assert "since your last commit no longer has it:\n\n- AGENTS.md\n- compose.yaml\n" in said
    assert (folder / "AGENTS.md").exists()
    assert MOVED not in said  # deleted by both
    assert not (folder / "app").exists()
    assert not (folder / "compose.yaml").exists()


def test_a_file_that_a_release_has_moved_is_named_with_the_command_that_deletes_its_note(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    before = everything(folder)
    assert not any("Delete this file." in text for text in text_files(folder).values())

    code, said = merge(folder, next_release)

    assert code == 0, said
    [command] = re.findall(rf"with a note .*; read it, then (.*) it:\n\n- {MOVED}\n\n", said)
    assert (folder / MOVED).read_text() == NOTE
    subprocess.run([*command.split(), MOVED], cwd=folder, check=True)
    deleted = git(folder, "diff", "--staged", "--name-only", "--no-renames", "--diff-filter=D")
    assert deleted == f"{MOVED}\n"
    take_back(folder, said)
    assert everything(folder) == before


def test_a_note_does_not_take_the_place_of_what_was_moved(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    text = (folder / MOVED).read_text()
    (folder / "checks").mkdir()
    git(folder, "mv", MOVED, "checks/isolation.py")
    (folder / "checks/isolation.py").chmod(0o755)
    commit(folder)

    code, said = merge(folder, next_release)

    assert code == 0, said
    assert (folder / "checks/isolation.py").read_text() == text
    kept = "Kept where you have moved it; the release has moved or removed its own:"
    assert f"{kept}\n\n- checks/isolation.py\n" in said
    assert said.count("isolation.py") == 1
    assert not (folder / MOVED).exists()
    assert (folder / "tests/test_sessions.py").exists()


few = settings(
    deadline=None,
    derandomize=True,
    max_examples=8,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", params=DATABASES)
def every_line(
    request: pytest.FixtureRequest, templates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Update:
    """To the release that changes every line but those of the places."""
    folder = tmp_path_factory.mktemp("every-line")
    before = render_repository(
        templates, folder / "before", release=WORKING_TREE, database=request.param
    )
    return Update(before, expect(templates, before, REWRITTEN, folder / "after"))


@few
@given(texts=TEXTS)
def test_whatever_stands_in_a_place_stays_whatever_a_release_changes(
    merge: Call,
    every_line: Update,
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
) -> None:
    folder = every_line.service(tmp_path_factory.mktemp("places") / "service")
    fill_places(folder, texts)
    commit(folder)

    code, said = merge(folder, every_line)

    assert code == 0, said
    expected = Path(shutil.copytree(every_line.after, folder.parent / "expected"))
    fill_places(expected, texts)
    assert text_files(folder) == text_files(expected)


@pytest.mark.parametrize("release", [WORKING_TREE, NEXT, REWRITTEN])
@pytest.mark.parametrize("database", DATABASES)
def test_a_place_that_is_promised_meets_no_change_of_a_release_or_of_the_database(
    merge: Call, templates: Path, database: str, release: str, tmp_path: Path
) -> None:
    before = render_repository(
        templates, tmp_path / "before", release=WORKING_TREE, database=database
    )
    for new in DATABASES:
        after = expect(templates, before, release, tmp_path / f"to {new}", new)
        update = Update(before, after)
        if (database, WORKING_TREE) == (new, release):
            continue
        folder = update.service(tmp_path / f"service on {new}")
        fill_places(folder)
        commit(folder)

        code, said = merge(folder, update)

        assert code == 0, said
        fill_places(after)
        assert text_files(folder) == text_files(after)


def test_a_new_file_comes_where_the_template_has_it_whatever_was_moved(
    merge: Call, rewritten: Update, tmp_path: Path
) -> None:
    folder = rewritten.service(tmp_path / "service")
    git(folder, "mv", "tests", "checks")
    commit(folder)

    _, said = merge(folder, rewritten)

    assert "- checks/test_health.py\n" in said
    assert (folder / NEW).exists()
    assert not (folder / NEW.replace("tests", "checks")).exists()


def test_what_a_release_no_longer_has_is_a_conflict_only_where_it_was_edited(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    """The next release's own update, turned around: `tests/test_sessions.py` goes."""
    update = Update(next_release.after, next_release.before)
    removed = "tests/test_sessions.py"
    for name, edit in (("as it was", ""), ("edited", "# Ours.\n")):
        folder = update.service(tmp_path / name)
        with (folder / removed).open("a") as file:
            file.write(edit)
        commit(folder)

        code, said = merge(folder, update)

        assert (code, (folder / removed).exists()) == ((3, True) if edit else (0, False)), said
        assert (f"- {removed}: CONFLICT" in said) == bool(edit)


WORDS = st.text("abc \t#<=>", max_size=9)


@few
@given(data=st.data())
def test_no_line_is_lost_and_none_is_misplaced(
    merge: Call, next_release: Update, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Lines anywhere, in files that move and files that stay."""
    folder = next_release.service(tmp_path_factory.mktemp("anywhere") / "service")
    mine = insert_lines(data, folder, 48, WORDS)
    # Only what has enough text is recognised where it is.
    long = [name for name in mine if len((folder / name).read_text()) > 1000]
    moves = data.draw(st.lists(st.booleans(), min_size=len(long), max_size=len(long)), "moved")
    moved = {name: name for name in mine}
    moved |= {name: f"moved/{name}" for name, move in zip(long, moves, strict=True) if move}
    commit(folder)
    for name, place in moved.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(folder / place)
    commit(folder, "Move")

    _, said = merge(folder, next_release)

    unmerged = conflicts(folder)
    for name, lines in mine.items():
        kept = (folder / moved[name]).read_text().splitlines(keepends=True)
        assert set(lines) <= set(kept), name
        assert (f"- {moved[name]}: CONFLICT (" in said) == (moved[name] in unmerged), name
        if moved[name] not in unmerged:
            without = "".join(line for line in kept if line not in lines)
            assert without == (next_release.after / name).read_text(), name


def test_a_name_that_both_sides_import_is_imported_twice_and_named_by_ruff(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    lifespan = folder / "app/lifespan.py"
    replace(lifespan, "\nlogger = ", "import time\n\nlogger = ")
    commit(folder)

    code, said = merge(folder, next_release)

    assert code == 0, said
    assert lifespan.read_text().count("import time\n") == 2
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise"]
    done = subprocess.run(
        [*ruff, lifespan], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "F811" in done.stdout


# What it leaves alone -----------------------------------------------------------------------------

OUTSIDE = "outside"
NEW = "tests/new.py"


def keep(_: Path) -> None: ...


def change(place: Path) -> None:
    place.write_bytes(b"\xff private")


def delete(place: Path) -> None:
    place.unlink()


def make_folder(place: Path) -> None:
    place.unlink()
    place.mkdir()
    (place / "private").write_text("private")


def make_link(place: Path) -> None:
    """A link to what is beside the service."""
    place.unlink()
    service = next(parent for parent in place.parents if (parent / ".git").exists())
    place.symlink_to(service.parent / OUTSIDE / "private")


def add_neighbour(place: Path) -> None:
    """What git has stays as it is, and has a private neighbour."""
    place.with_name(f"{place.name}.orig").write_text("private")


IGNORED = [keep, change, delete, make_folder, make_link]
UNTRACKED = [keep, change, make_folder, make_link]
PRIVATE = [
    *((it, True) for it in IGNORED),
    *((it, False) for it in UNTRACKED),
    (add_neighbour, False),
]


@pytest.mark.parametrize("turn", range(len(PRIVATE)))
def test_whatever_git_does_not_hold_is_not_touched(
    merge: Call, rewritten: Update, tmp_path: Path, turn: int
) -> None:
    """Each file in each way, as turns go by; the release changes every file."""
    folder = rewritten.service(tmp_path / "service")
    names = sorted(git(folder, "ls-files").split("\n")[:-1])
    names.remove(".copier-answers.yml")
    (folder / ".git/info").mkdir()
    (tmp_path / OUTSIDE).mkdir()
    (tmp_path / OUTSIDE / "private").write_text("private")
    private, excluded = [], []
    for place, name in enumerate(names):
        alter, is_ignored = PRIVATE[(place + turn) % len(PRIVATE)]
        if alter is not add_neighbour:
            private.append(name)
        if is_ignored:
            excluded.append(f"/{name}\n")
        alter(folder / name)
    (folder / ".git/info/exclude").write_text("".join(excluded))
    git(folder, "rm", "--quiet", "-r", "--cached", *private)
    git(folder, "commit", "--quiet", "--message", "Private")
    held = {*git(folder, "ls-files").splitlines()}
    before = everything(tmp_path)

    code, said = merge(folder, rewritten)

    after = everything(tmp_path)
    differing = {name for name in before | after if before.get(name) != after.get(name)}
    own = {name.removeprefix("service/") for name in differing}
    arrived = {*git(folder, "ls-files").splitlines()} - held
    assert code == 0, said
    assert own <= held | arrived
    assert arrived == {NEW}
    changed = {
        name
        for name in names
        if (rewritten.before / name).read_bytes() != (rewritten.after / name).read_bytes()
    }
    assert changed - held == {*re.findall(r"^- (.*)$", said, re.MULTILINE)}  # none without a word
    assert changed & held <= own
    take_back(folder, said)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("alter", [make_folder, make_link])
def test_a_folder_or_a_link_that_took_a_files_place_stays(
    merge: Call, rewritten: Update, tmp_path: Path, alter: Callable[[Path], None]
) -> None:
    folder = rewritten.service(tmp_path / "service")
    (tmp_path / OUTSIDE).mkdir()
    (tmp_path / OUTSIDE / "private").write_text("private")
    names = sorted({*git(folder, "ls-files").splitlines()} - {".copier-answers.yml"})[::2]
    for name in names:
        alter(folder / name)
    commit(folder)
    before = everything(tmp_path)

    code, said = merge(folder, rewritten)

    after = everything(tmp_path)
    own = {name for name in before if name.endswith("/private") or before[name][0] == "link"}
    assert len(own) > len(names)
    assert {name: after[name] for name in own} == {name: before[name] for name in own}
    named = {
        line.partition("~")[0].partition(":")[0]
        for line in re.findall("^- (.*)$", said, re.MULTILINE)
    }
    assert named == set(names), code
    take_back(folder, said)
    assert everything(tmp_path) == before


def file_in_the_way(place: Path) -> None:
    place.write_text("private")


def folder_in_the_way(place: Path) -> None:
    place.mkdir()


def link_in_the_way(place: Path) -> None:
    place.symlink_to("nowhere")


def link_above(place: Path) -> None:
    place.parent.parent.mkdir(exist_ok=True)
    (place.parents[2] / OUTSIDE).mkdir()
    place.parent.symlink_to(f"../{OUTSIDE}", target_is_directory=True)


def file_above(place: Path) -> None:
    place.parent.write_text("private")


def repository_above(place: Path) -> None:
    place.parent.mkdir()
    git(place.parent, "init", "--quiet")


@pytest.mark.parametrize("known", ["ignored", "untracked"])
@pytest.mark.parametrize(
    "put",
    [file_in_the_way, folder_in_the_way, link_in_the_way, link_above, file_above, repository_above],
)
def test_what_is_where_a_release_has_a_new_file_is_named_and_nothing_changes(
    merge: Call, next_release: Update, tmp_path: Path, put: Callable[[Path], None], known: str
) -> None:
    new = "private/new.txt" if "above" in put.__name__ else "private.txt"
    after = Path(shutil.copytree(next_release.after, tmp_path / "release"))
    (after / new).parent.mkdir(exist_ok=True)
    (after / new).write_text("of the release\n")
    (tmp_path / "here").mkdir()
    folder = next_release.service(tmp_path / "here/service")
    if known == "ignored":
        (folder / ".git/info").mkdir()
        (folder / ".git/info/exclude").write_text("/private*\n")
    put(folder / new)
    before = everything(tmp_path)

    code, said = merge(folder, Update(next_release.before, after))

    assert code == 2
    assert f"; move or commit them:\n- {new.partition('/')[0]}\nNothing has changed." in said
    assert everything(tmp_path) == before
    assert git(folder, "diff", "HEAD", "--name-only") == ""


@pytest.mark.parametrize("mine", ["of the release\n", "mine\n"])
def test_a_new_file_of_a_release_conflicts_with_another_text_that_git_holds(
    merge: Call, rewritten: Update, tmp_path: Path, mine: str
) -> None:
    folder = rewritten.service(tmp_path / "service")
    (folder / NEW).write_text(mine)
    commit(folder)

    code, said = merge(folder, rewritten)

    if mine == (rewritten.after / NEW).read_text():
        assert (code, conflicts(folder)) == (0, set()), said
    else:
        assert (code, conflicts(folder)) == (3, {NEW})
        assert f"- {NEW}: CONFLICT (" in said
        assert mine in (folder / NEW).read_text()


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_an_edit_that_git_was_told_to_overlook_is_not_overwritten(
    merge: Call, next_release: Update, tmp_path: Path, flag: str
) -> None:
    folder = next_release.service(tmp_path / "service")
    git(folder, "update-index", flag, "app/settings.py", "app/main.py")
    (folder / "app/settings.py").write_text("PRIVATE = 1\n")
    before = everything(folder)

    code, said = merge(folder, next_release)

    assert (code, everything(folder)) == (2, before)
    assert "- app/settings.py" in said
    assert "app/main.py" not in said  # the release does not change it


@pytest.mark.parametrize("then", ["uncommitted", "committed"])
def test_what_is_edited_while_copier_asks_is_not_overwritten(
    merge: Call, next_release: Update, tmp_path: Path, then: str
) -> None:
    folder = next_release.service(tmp_path / "service")
    changed = folder / "app/settings.py"

    def meanwhile() -> None:
        changed.write_text("MINE = 1\n")
        if then == "committed":
            commit(folder)

    code, said = merge(folder, next_release, meanwhile)

    assert code == 1, said
    assert "app/settings.py" in said
    assert changed.read_text() == "MINE = 1\n"
    assert text_files(folder) == text_files(next_release.before) | {"app/settings.py": "MINE = 1\n"}


def test_what_is_committed_while_copier_asks_stays_where_the_release_changes_nothing(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")

    def meanwhile() -> None:
        (folder / "app/features/settings.py").write_text("MINE = 1\n")
        commit(folder)

    code, said = merge(folder, next_release, meanwhile)

    assert code == 0, said
    mine = {"app/features/settings.py": "MINE = 1\n"}
    assert text_files(folder) == text_files(next_release.after) | mine
    assert "features" not in git(folder, "diff", "--staged", "--name-only")


def test_an_index_that_is_locked_is_said_and_nothing_is_written(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    (folder / ".git/index.lock").touch()
    before = everything(folder)

    code, said = merge(folder, next_release)

    assert (code, everything(folder)) == (1, before)
    assert "index.lock" in said


def test_a_service_below_the_root_of_a_repository_is_merged_and_nothing_beside_it(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    git(tmp_path, "init", "--quiet", str(root))
    folder = next_release.service(root / "services/orders")
    shutil.rmtree(folder / ".git")
    (root / "README.md").write_text("All services.\n")
    conflict = CONFLICTS["a default that a release changes has been changed"]
    conflict.edit(folder)
    commit(root)
    (root / "README.md").write_text("Unfinished.\n")  # of a colleague, and no matter here
    before = everything(root)

    code, said = merge(folder, next_release)

    assert code == 3
    assert conflicts(root) == {f"services/orders/{conflict.file}"}
    updated = text_files(folder) | {conflict.file: ""}
    assert updated == text_files(next_release.after) | {conflict.file: ""}
    assert (root / "README.md").read_text() == "Unfinished.\n"
    take_back(folder, said)
    assert everything(root) == before


# What it refuses ----------------------------------------------------------------------------------


def edit_answers(pattern: str, replacement: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / ".copier-answers.yml"
        text, count = re.subn(pattern, replacement, file.read_text())
        assert count == 1
        file.write_text(text)
        commit(folder)

    return edit


def commit_without_answers(folder: Path) -> None:
    git(folder, "rm", "--quiet", "--cached", ".copier-answers.yml")
    git(folder, "commit", "--quiet", "--message", "Without answers")


COPIERS = "the answers have been edited by hand"  # Copier's message, on whichever line

REFUSED: dict[str, Callable[[Path], object]] = {
    "Commit or stash these changes first": lambda folder: (folder / "README.md").write_text("…"),
    "The last commit has no .copier-answers.yml": commit_without_answers,
    "is no release": edit_answers("_commit: .*", "_commit: latest"),
    "a clone without tags, comes from none": edit_answers("_commit: .*", "_commit: 6c64cce"),
    "from a ZIP": edit_answers("_commit: .*\n", ""),
    "Copier: ValueError: Unknown revision": edit_answers("_commit: .*", "_commit: 0.0.1"),
    "Copier: ValueError: Local template must be a directory": edit_answers(
        "_src_path: .*", "_src_path: /nowhere"
    ),
    COPIERS: edit_answers("database: .*", "database: postgresql"),
    "Copier: yaml.parser.ParserError: while parsing": edit_answers("database: .*", "database: ["),
}


@pytest.mark.parametrize(("message", "edit"), REFUSED.items(), ids=REFUSED)
def test_an_update_that_cannot_be_is_refused_in_a_sentence(
    next_release: Update, tmp_path: Path, message: str, edit: Callable[[Path], object]
) -> None:
    folder = next_release.service(tmp_path / "service")
    edit(folder)
    before = everything(tmp_path), git(folder, "status", "--porcelain")

    done = call(folder, "--vcs-ref", NEXT)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("Nothing has changed.\n")
    assert (everything(tmp_path), git(folder, "status", "--porcelain")) == before


def test_an_older_release_is_refused(next_release: Update, tmp_path: Path) -> None:
    newer = Update(next_release.after, next_release.before)
    folder = newer.service(tmp_path / "service")
    commit(folder, "Update")

    done = call(folder, "--vcs-ref", WORKING_TREE)

    assert (done.returncode, done.stdout) == (2, "")
    assert f"Copier: You are downgrading from {NEXT}" in done.stderr
    assert done.stderr.endswith("Nothing has changed.\n")
    assert git(folder, "status", "--porcelain") == ""


def test_an_old_copier_is_refused_by_name(
    templates: Path, next_release: Update, tmp_path: Path
) -> None:
    template = Path(shutil.copytree(templates, tmp_path / "template"))
    substitute(template / "copier.yml", r'copier_version: ".*"', 'copier_version: "99.0.0"')
    commit(template)
    git(template, "tag", "9003.0.0")
    folder = next_release.service(tmp_path / "service")
    edit_answers("_src_path: .*", f"_src_path: {template}")(folder)

    done = call(folder)

    assert done.returncode == 2
    assert f"Copier: {OLD_COPIER} >= 99.0.0" in done.stderr


def test_a_new_question_without_a_terminal_is_refused_and_answered_by_an_option(
    next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    before = everything(folder)

    def ask(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scripts.update", "--vcs-ref", NEXT, *options],
            cwd=folder,
            env=environment(PYTHONDONTWRITEBYTECODE="1"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )

    done = ask()

    assert (done.returncode, done.stdout) == (2, "")
    assert f"\n{NO_TERMINAL}: Use `--defaults` and/or `--data`" in done.stderr
    assert everything(folder) == before
    assert ask("--data", "metrics=true").returncode == 0
    assert (folder / "app/metrics.py").exists()


def test_a_service_that_is_up_to_date_is_left_as_it_is(
    next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")

    done = call(folder, "--vcs-ref", WORKING_TREE)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"The service follows {WORKING_TREE}, and there is nothing to update.\n"


def test_another_python_is_refused_with_the_command_that_has_copier(
    next_release: Update,
) -> None:
    command = [sys.executable, "-S", "-m", "scripts.update"]

    done = subprocess.run(
        command, cwd=next_release.before, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{NO_COPIER}. Type uv run poe update")


def test_an_old_git_is_refused_by_name(
    merge: Call, next_release: Update, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next_release.service(tmp_path / "service")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text("#!/bin/sh\necho git version 2.34.1\n")
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    assert merge(folder, next_release) == (2, f"{OLD_GIT}\nNothing has changed.\n")


NO_TERMINAL = "Interactive session required"
NO_COPIER = "Copier is not installed here"
OLD_COPIER = "This template requires Copier version"
OLD_GIT = "git 2.38 or newer is needed. With an older one: uvx copier update."


def test_every_refusal_of_the_command_is_tried() -> None:
    explained = {
        cell.strip("`") for cell in table("reference/updates.md", "When the command refuses")
    }

    other = {"git 2.38 or newer is needed", *WAYS.values(), NO_COPIER, OLD_COPIER, NO_TERMINAL}
    other |= {"Interrupted", "Copier:"}
    own = {message for message in REFUSED if "Copier:" not in message} - {COPIERS}
    own -= {"a clone without tags, comes from none", "from a ZIP"}  # below "is no release"
    assert explained == own | other
    assert set(WAYS) <= names_of_tests()


WAYS = {
    "test_what_is_where_a_release_has_a_new_file_is_named_and_nothing_changes": (
        "A file of the release goes where these are"
    ),
    "test_an_edit_that_git_was_told_to_overlook_is_not_overwritten": (
        "git was told not to look at these"
    ),
}


# When it is interrupted -------------------------------------------------------------------------

# The command, with releases that are rendered already.
RENDERED = """
import sys
from pathlib import Path
from scripts import update

releases = [Path(release) for release in sys.argv[1:]]
update.render = lambda store, *_: tuple(map(store.take_in, releases))
update.main()
"""

# Ctrl-C as a terminal sends it: to all of the group.
INTERRUPTED = """\
#!/bin/sh
case " $* " in *" $MOMENT"*) kill -s INT -- "-$GROUP"; sleep 0.1 ;; esac
exec {git} "$@"
"""


def interrupt(
    folder: Path, tmp_path: Path, moment: str, *command: str
) -> subprocess.CompletedProcess[str]:
    """Run a command, which is interrupted when it calls git with these words."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text(INTERRUPTED.format(git=shutil.which("git")))
    (tmp_path / "bin/git").chmod(0o755)
    (tmp_path / "temporary").mkdir()
    variables = {
        "MOMENT": moment,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "temporary"),
    }
    done = subprocess.run(
        ["sh", "-c", 'export GROUP=$$; exec "$@"', "sh", sys.executable, *command],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert not any((tmp_path / "temporary").iterdir())
    return done


@pytest.mark.parametrize("moment", ["rev-parse HEAD", "clone", "merge-tree"])
def test_an_interruption_before_it_writes_changes_nothing_and_leaves_nothing(
    next_release: Update, tmp_path: Path, moment: str
) -> None:
    folder = next_release.service(tmp_path / "service")
    command = ["-c", RENDERED, str(next_release.before), str(next_release.after)]
    if moment == "clone":  # Copier's
        command = ["-m", "scripts.update", "--defaults", "--vcs-ref", NEXT]
    before = everything(folder)

    done = interrupt(folder, tmp_path, moment, *command)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Interrupted.\nNothing has changed.\n"
    assert everything(folder) == before
    assert git(folder, "status", "--porcelain") == ""


@pytest.mark.parametrize("moment", ["read-tree -m", "update-index -z --index-info"])
def test_an_interruption_while_it_writes_waits_until_all_is_written_and_said(
    merge: Call, next_release: Update, tmp_path: Path, moment: str
) -> None:
    folder, other = (next_release.service(tmp_path / name) for name in ("service", "other"))
    for service in (folder, other):
        CONFLICTS["a default that a release changes has been changed"].edit(service)
        commit(service)
    before = everything(folder)
    rendered = [str(next_release.before), str(next_release.after)]

    done = interrupt(folder, tmp_path, f"core.fsmonitor=false {moment}", "-c", RENDERED, *rendered)

    assert (done.returncode, done.stdout + done.stderr) == merge(other, next_release)
    assert everything(folder) == everything(other)
    assert git(folder, "status", "--porcelain") == git(other, "status", "--porcelain")
    take_back(folder, done.stderr)
    assert everything(folder) == before


def test_a_git_that_somebody_has_killed_has_not_said_all(
    merge: Call, next_release: Update, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next_release.service(tmp_path / "service")
    before = everything(folder)
    (tmp_path / "bin").mkdir()
    killed = INTERRUPTED.replace('INT -- "-$GROUP"', "KILL $$").format(git=shutil.which("git"))
    (tmp_path / "bin/git").write_text(killed)
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("MOMENT", "ls-tree")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    assert merge(folder, next_release) == (2, "git failed\nNothing has changed.\n")
    assert everything(folder) == before


# What it does not depend on -----------------------------------------------------------------------

SETTINGS = """\
[apply]
whitespace = error
ignoreWhitespace = change
[commit]
gpgSign = true
[core]
autocrlf = true
attributesFile = {attributes}
hooksPath = {hooks}
whitespace = trailing-space,tab-in-indent
[diff]
external = false
noprefix = true
renames = false
[merge]
renames = false
conflictStyle = diff3
renormalize = true
[merge "mine"]
driver = true
[rerere]
enabled = true
autoUpdate = true
"""


def test_nobodys_settings_change_an_update(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    expected = next_release.service(tmp_path / "plain/service")
    folder = next_release.service(tmp_path / "service")
    for service in (expected, folder):
        with (service / "app/health.py").open("a") as file:
            file.write("\n\n# Ours, with a blank at the end. \n")
        git(service, "mv", "app/logging.py", "app/log.py")
        CONFLICTS["a default that a release changes has been changed"].edit(service)
        commit(service)
    plain = merge(expected, next_release)
    hooks, attributes = tmp_path / "hooks", tmp_path / "attributes"
    hooks.mkdir()
    for name in ("post-checkout", "post-index-change", "pre-commit", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/hooked'\nexit 1\n")
        (hooks / name).chmod(0o755)
    attributes.write_text("* merge=mine\n")
    settings = tmp_path / "gitconfig"
    settings.write_text(SETTINGS.format(attributes=attributes, hooks=hooks))
    (folder / ".git/info").mkdir()
    shutil.copy(attributes, folder / ".git/info/attributes")

    done = call(folder, "--vcs-ref", NEXT, GIT_CONFIG_GLOBAL=str(settings))

    assert (done.returncode, done.stdout + done.stderr) == plain
    assert text_files(folder) == text_files(expected)
    assert not (tmp_path / "hooked").exists()
    assert "app/log.py" in done.stdout


# Versions that are raised by others ---------------------------------------------------------------

VERSION = re.compile(
    r'^( *(?:- uses: \S+@|image: \S+:|"[\w.\[\]-]+>=)|FROM \S+:)((?:[0-9a-f]{40} # v)?[\d.]+)',
    re.MULTILINE,
)


def raise_versions(folder: Path, month: int, every: int) -> dict[str, list[str]]:
    """Raise each `every`-th version, as releases and Dependabot do; return all, by file."""
    found = {}
    for name in ("pyproject.toml", "Dockerfile", "compose.yaml", *WORKFLOWS):
        numbers: dict[str, int] = {}

        def version_of(match: re.Match[str], numbers: dict[str, int] = numbers) -> str:
            head, value = match.groups()
            place = numbers.setdefault(head, len(numbers))
            if place % every:
                return match[0]
            sha, mark, _ = value.rpartition(" # v")
            return f"{head}{f'{month:040x}{mark}' if sha else ''}{100 + month}.{place}"

        text = VERSION.sub(version_of, (folder / name).read_text())
        (folder / name).write_text(text)
        found[name] = [match[2] for match in VERSION.finditer(text)]
    return found


WORKFLOWS = (".github/workflows/ci.yml", ".github/workflows/update.yml")


@pytest.mark.parametrize("database", DATABASES)
def test_a_year_of_dependabot_conflicts_with_no_release(
    merge: Call, templates: Path, database: str, tmp_path: Path
) -> None:
    folder = render_repository(
        templates, tmp_path / "service", release=WORKING_TREE, database=database
    )
    releases = [Path(shutil.copytree(folder, tmp_path / "release-0"))]
    for quarter in range(1, 5):
        release = Path(shutil.copytree(releases[-1], tmp_path / f"release-{quarter}"))
        raise_versions(release, quarter * 3, every=2)
        replace(release / "app/health.py", '@router.get("/live")', '@router.get("/live")  #')
        releases.append(release)
    month = 0
    for old, new in pairwise(releases):
        for _ in range(3):
            month += 1
            raised = raise_versions(folder, month, every=1 + month % 4)
            commit(folder, f"Dependabot, month {month}")

        code, said = merge(folder, Update(old, new))

        assert code == 0, said
        for name, before in raised.items():
            after = [match[2] for match in VERSION.finditer((folder / name).read_text())]
            theirs = [match[2] for match in VERSION.finditer((new / name).read_text())]
            assert after == [max(pair, key=number) for pair in zip(before, theirs, strict=True)]
        commit(folder, "Update")


def number(version: str) -> list[int]:
    return [int(part) for part in version.rpartition(" # v")[2].split(".")]


def test_a_version_that_was_lowered_or_pinned_is_a_conflict_as_before(
    merge: Call, next_release: Update, tmp_path: Path
) -> None:
    folder = next_release.service(tmp_path / "service")
    substitute(folder / "Dockerfile", "FROM python:.*-slim AS", "FROM python:3.13-slim AS")
    substitute(folder / "pyproject.toml", '"alembic>=(.*)"', r'"alembic==\1"')
    commit(folder)

    code, _ = merge(folder, next_release)

    assert (code, conflicts(folder)) == (3, {"Dockerfile", "pyproject.toml"})
