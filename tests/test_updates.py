"""A long-lived service takes a later release: what its owners did is still there."""

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.databases import DATABASES, open_database
from tests.support.pages import Typist, blocks, check_whole, table
from tests.support.processes import environment
from tests.support.releases import (
    CONFLICTS,
    HEADING,
    MOVED,
    NAMES,
    NEXT,
    NOTE,
    REWRITTEN,
    SEAMS,
    TEXTS,
    WORDS,
    WORKING_TREE,
    Conflict,
    Edit,
    check_clean,
    conflicts,
    delete_example,
    expect,
    fill_places,
    insert_lines,
    other_releases,
    releases,
    take_steps,
    update,
    write,
)
from tests.support.repository import REPOSITORY, commit, git, replace, text_files
from tests.support.services import Service, render_repository

OLDER = other_releases()
PAIRS = [*((version, WORKING_TREE) for version in OLDER), (WORKING_TREE, NEXT)]
# The releases that a service lives through: from each to the working tree, and the last on to NEXT.
LIVES = [[version, WORKING_TREE] for version in OLDER] or [[WORKING_TREE]]
LIVES[-1].append(NEXT)


@dataclass(frozen=True)
class Step:
    """From one release to a later one: a service before, and what it should be after."""

    database: str
    new: str
    before: Path
    after: Path

    def take(self, edit: Edit, folder: Path) -> tuple[Path, Path]:
        """Edit a service and update it; return it, and the fresh one that got the same edit."""
        updated = Path(shutil.copytree(self.before, folder / "service"))
        edit(updated)
        commit(updated, "Edit")
        update(updated, self.new)
        expected = Path(shutil.copytree(self.after, folder / "expected"))
        edit(expected)
        return updated, expected


def versions_and_database(param: tuple[tuple[str, str], str]) -> str:
    (old, new), database = param
    return f"{old}-{new}-{database}"


Versions = tuple[str, str]


@pytest.fixture(scope="session")
def steps(
    templates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Versions, str], Step]:
    """Render what an update begins with and ends with, once for this worker."""

    @cache
    def make_step(versions: Versions, database: str) -> Step:
        old, new = versions
        folder = tmp_path_factory.mktemp("step")
        before = render_repository(templates, folder / "before", release=old, database=database)
        return Step(database, new, before, expect(templates, before, new, folder / "after"))

    return make_step


@pytest.fixture(
    scope="session", params=itertools.product(PAIRS, DATABASES), ids=versions_and_database
)
def step(request: pytest.FixtureRequest, steps: Callable[[Versions, str], Step]) -> Step:
    """The step from each release to the working tree, and from that to the next release."""
    return steps(*request.param)


@pytest.fixture(
    scope="session", params=itertools.product(PAIRS[-2:], DATABASES), ids=versions_and_database
)
def recent_step(request: pytest.FixtureRequest, steps: Callable[[Versions, str], Step]) -> Step:
    """The last two of them, so that the time of the tests does not grow with each release."""
    return steps(*request.param)


def apart(folder: Path, scratch: Path) -> list[list[Edit]]:
    """Return all edits in groups: those of a group touch no common file of this service."""
    groups: list[tuple[list[Edit], set[str]]] = []
    copy = Path(shutil.copytree(folder, scratch / "edited"))
    for edit in NAMES:
        edit(copy)
        git(copy, "add", "--all")
        touched = {*git(copy, "diff", "--staged", "--name-only", "--no-renames").splitlines()}
        git(copy, "reset", "--quiet", "--hard")
        assert touched
        for edits, files in groups:
            if files.isdisjoint(touched):
                edits.append(edit)
                files |= touched
                break
        else:
            groups.append(([edit], touched))
    return [edits for edits, _ in groups]


@pytest.mark.long
def test_an_update_gives_a_fresh_service_with_the_same_edit(
    recent_step: Step, tmp_path: Path
) -> None:
    """Each file is updated for itself, so edits of different files share an update."""
    for number, edits in enumerate(apart(recent_step.before, tmp_path)):

        def edit(folder: Path, edits: list[Edit] = edits) -> None:
            for each in edits:
                each(folder)

        updated, expected = recent_step.take(edit, tmp_path / f"group {number}")

        check_clean(updated)
        assert text_files(updated) == text_files(expected)


@pytest.fixture(scope="session")
def unedited(step: Step, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A service that was updated as it was, and what it should be."""
    return step.take(lambda _: None, tmp_path_factory.mktemp("unedited"))


def test_an_update_brings_no_empty_file_and_leaves_none_behind(
    step: Step, unedited: tuple[Path, Path]
) -> None:
    updated, expected = unedited

    before, after = text_files(step.before), text_files(updated)
    assert after == text_files(expected)
    assert before.keys() <= after.keys()
    assert all(after[name] for name in after.keys() - before.keys())


def test_an_update_keeps_the_answers_and_switches_nothing_on(
    step: Step, unedited: tuple[Path, Path]
) -> None:
    updated, _ = unedited

    before = yaml.safe_load((step.before / ".copier-answers.yml").read_text())
    after = yaml.safe_load((updated / ".copier-answers.yml").read_text())
    assert after.pop("_commit") == step.new
    del before["_commit"], before["checksum"], after["checksum"]
    assert after.items() >= before.items()
    assert not any(after[name] for name in after.keys() - before.keys())


def files_of(folder: Path) -> dict[str, str]:
    """Return the text of each file that git holds or could hold, and of the settings."""
    listed = git(folder, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    names = {name for name in listed if (folder / name).exists()}
    return {name: (folder / name).read_text() for name in names | {".env"}}


def add_all_edits(folder: Path) -> None:
    write(folder, ".env", "LOG_LEVEL=DEBUG\n")
    for edit in NAMES:
        if edit is not delete_example:
            edit(folder)


@pytest.mark.long
@pytest.mark.parametrize("life", LIVES, ids="-".join)
def test_a_service_full_of_edits_is_updated_and_serves_its_old_rows(
    life: list[str],
    database_name: str,
    steps: Callable[[Versions, str], Step],
    tmp_path: Path,
) -> None:
    """At the end it passes its checks."""
    first, *later = life
    before = steps((first, later[0]), database_name).before
    service = Service(Path(shutil.copytree(before, tmp_path / "service")), database_name)
    service.run("uv", "sync", "--quiet")
    with open_database(database_name, tmp_path) as database:
        service.migrate(database)
        with service.serve(**database.variables) as server:
            for name in ("Spanner", "Hammer"):
                assert server.client.post("/items", json={"name": name}).status_code == 201
        add_all_edits(service.folder)
        notes: list[str] = []
        for new in later:
            after = steps((first, new), database_name).after
            expected = Service(Path(shutil.copytree(after, tmp_path / new)), database_name)
            add_all_edits(expected.folder)
            if new != later[0]:  # the service has taken those of the release before
                (expected.folder / ".venv").symlink_to(service.folder / ".venv")
                take_steps(expected)
                (expected.folder / ".venv").unlink()
            shutil.copy(service.folder / "uv.lock", expected.folder)
            commit(service.folder, "Edit")

            update(service.folder, new)

            assert files_of(service.folder) == files_of(expected.folder)
            service.run("uv", "sync", "--quiet")
            take_steps(service)
            migrated = service.run(
                "uv", "run", "alembic", "upgrade", "head", variables=database.variables
            )
            # The owner's, once.
            assert migrated.stdout.count("Running upgrade") == (new == later[0])
            with service.serve(**database.variables) as server:
                http = server.client
                assert http.get("/health/ready").status_code == 200
                items = http.get("/items").json()["items"]
                assert [item["name"] for item in items] == ["Spanner", "Hammer"]
                notes.append(f"Updated to {new}")
                http.post("/notes", params={"text": notes[-1]})
                assert http.get("/notes").json() == notes
    check_whole(service)


# What the template promises ------------------------------------------------------------------------


def test_every_place_of_the_documentation_is_tried() -> None:
    assert table("reference/files.md", "Where your own things go").keys() == SEAMS.keys()


def test_every_conflict_of_the_documentation_is_tried() -> None:
    assert table("reference/updates.md", "What conflicts").keys() == CONFLICTS.keys()


LINES_OF_AN_UPDATE = 32  # of which few are in the same file
few = settings(
    deadline=None,
    derandomize=True,
    max_examples=8,
    phases=[Phase.generate],  # to shrink a failure would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="session", params=DATABASES)
def rewritten(request: pytest.FixtureRequest, steps: Callable[[Versions, str], Step]) -> Step:
    """A release that changes all but what is promised."""
    return steps((WORKING_TREE, REWRITTEN), request.param)


@pytest.mark.long
@settings(few, max_examples=2)
@given(texts=TEXTS)
def test_whatever_a_release_changes_a_place_that_is_promised_never_conflicts(
    rewritten: Step, tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    """By Copier alone; `poe update` meets more of them, in tests/test_update_command.py."""

    def edit(folder: Path) -> None:
        fill_places(folder, texts)

    updated, expected = rewritten.take(edit, tmp_path_factory.mktemp("places"))

    check_clean(updated)
    assert text_files(updated) == text_files(expected)


@pytest.mark.long
@settings(few, max_examples=2)
@given(data=st.data())
def test_no_line_and_no_file_is_ever_lost(
    recent_step: Step, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("anywhere")
    updated = Path(shutil.copytree(recent_step.before, folder / "service"))
    mine = insert_lines(data, updated, LINES_OF_AN_UPDATE, WORDS)
    names = st.sampled_from(sorted(text_files(updated).keys() - {".copier-answers.yml"}))
    deleted = data.draw(st.sets(names, max_size=8), "deleted")
    for name in deleted:
        (updated / name).unlink()
        mine.pop(name, None)
    write(updated, "app/own/notes.txt", "".join(itertools.chain(*mine.values())))
    commit(updated, "Edit")
    own = text_files(updated)

    update(updated, recent_step.new)

    after = text_files(updated)
    assert own.keys() <= after.keys()
    assert not deleted & after.keys()
    assert after["app/own/notes.txt"] == own["app/own/notes.txt"]
    unmerged = conflicts(updated)
    for name, lines in mine.items():
        kept = after[name].splitlines(keepends=True)
        assert set(lines) <= set(kept), name
        assert ("<<<<<<< before updating\n" in kept) == (name in unmerged), name
        if name not in unmerged:
            without = "".join(line for line in kept if line not in lines)
            assert without == (recent_step.after / name).read_text(), name


@pytest.fixture(scope="session")
def newborn(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service of the working tree, to be copied."""
    folder = tmp_path_factory.mktemp("newborn")
    return render_repository(templates, folder / "service", release=WORKING_TREE)


@pytest.fixture
def living(newborn: Path, tmp_path: Path) -> Path:
    """A service of the working tree."""
    return Path(shutil.copytree(newborn, tmp_path / "living"))


@pytest.fixture(scope="module")
def conflicting(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service with an edit in each of several files, which all conflict with the next release."""
    service = render_repository(
        templates, tmp_path_factory.mktemp("conflicting") / "service", release=WORKING_TREE
    )
    for conflict in CONFLICTS.values():
        conflict.edit(service)
    commit(service, "Edit")
    update(service, NEXT)
    return service


def test_a_conflict_is_where_both_change_a_line_and_nowhere_else(conflicting: Path) -> None:
    files = [conflict.file for conflict in CONFLICTS.values()]

    assert len(files) == len(set(files))  # each is updated for itself
    assert conflicts(conflicting) == set(files)


@pytest.mark.parametrize("conflict", CONFLICTS.values(), ids=CONFLICTS)
def test_where_both_change_a_line_git_marks_the_conflict_and_keeps_both(
    conflicting: Path, conflict: Conflict
) -> None:
    text = (conflicting / conflict.file).read_text()
    mine, theirs = text.split("<<<<<<<", 1)[1].split(">>>>>>>", 1)[0].split("=======", 1)
    assert conflict.mine.splitlines()[-1] in mine
    assert conflict.theirs in theirs
    with pytest.raises(subprocess.CalledProcessError):
        git(conflicting, "diff", "--check", "--", conflict.file)


def test_a_release_brings_no_migration(living: Path) -> None:
    name = "migrations/versions/2026_12_01_000000000001_create_notes.py"
    write(living, name, 'revision = "000000000001"\ndown_revision = "ff1af746d745"\n')
    commit(living, "A revision with the id of one in the next release")
    before = {path.name: path.read_text() for path in (living / "migrations/versions").iterdir()}

    update(living, NEXT)

    after = {path.name: path.read_text() for path in (living / "migrations/versions").iterdir()}
    assert after == before


def test_a_file_that_has_moved_leaves_a_note_that_can_be_deleted_for_good(
    living: Path, templates: Path, tmp_path: Path
) -> None:
    update(living, NEXT)
    assert (living / MOVED).read_text() == NOTE
    (living / MOVED).unlink()
    commit(living, "Update, and delete the note")

    update(living, REWRITTEN)

    assert not (living / MOVED).exists()
    fresh = render_repository(templates, tmp_path / "fresh", release=NEXT)
    assert not (fresh / MOVED).exists()


def test_a_renamed_question_keeps_its_answer(templates: Path, tmp_path: Path) -> None:
    service = render_repository(
        templates, tmp_path / "service", release=WORKING_TREE, project_name="Orders"
    )
    template = Path(shutil.copytree(templates, tmp_path / "templates"))
    git(template, "checkout", "--quiet", WORKING_TREE)
    for file in (template / "copier.yml", *(template / "template").rglob("*.jinja")):
        file.write_text(re.sub(r"\bproject_name\b", "service_name", file.read_text()))
    default = "  default: \"{{ UNSET if updating else 'My Service' }}\"\n"
    replace(
        template / "copier.yml",
        default,
        "  default: \"{{ project_name | default('My Service') }}\"\n",
    )
    commit(template, "project_name is called service_name")
    git(template, "tag", "9003.0.0")
    replace(service / ".copier-answers.yml", str(templates), str(template))
    commit(service, "The template has moved")

    update(service, "9003.0.0")

    changed = git(service, "diff", "--name-only").split()
    assert changed == [".copier-answers.yml"]
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert answers["service_name"] == "Orders"
    assert "project_name" not in answers


def test_the_answer_to_a_new_question_is_checked_from_its_release_on(living: Path) -> None:
    update(living, NEXT)
    commit(living, "Update")
    edit_answers("metrics: false", "metrics: true")(living)

    done = call_copier(living, "--vcs-ref", REWRITTEN)

    assert done.returncode != 0
    assert "the answers have been edited by hand" in done.stderr


# What Copier refuses -------------------------------------------------------------------------------


def edit_answers(pattern: str, replacement: str) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / ".copier-answers.yml"
        text, count = re.subn(pattern, replacement, file.read_text())
        assert count == 1
        file.write_text(text)
        commit(folder, "Edit the answers by hand")

    return edit


REFUSED: dict[str, Edit] = {
    "Destination repository is dirty": lambda folder: write(folder, "README.md", "Unfinished\n"),
    "Updating is only supported in git-tracked subprojects": lambda folder: shutil.rmtree(
        folder / ".git"
    ),
    "Downgrades are not supported": lambda folder: edit_answers("_commit: .*", "_commit: 9002.0.0")(
        folder
    ),
    "Unknown revision": edit_answers("_commit: .*", "_commit: deadbee"),
    "Local template must be a directory": edit_answers("_src_path: .*", "_src_path: /nowhere"),
    "the answers have been edited by hand": edit_answers("database: .*", "database: postgresql"),
    "Invalid choice for": edit_answers("database: .*", "database: oracle"),
    "must have 1 to 64 characters": edit_answers("project_name: .*", "project_name: ''"),
    "while parsing": edit_answers("database: .*", "database: ["),
    "cannot obtain old template references": edit_answers("_commit: .*\\n", ""),
    "Template not found": lambda folder: git(folder, "rm", "--quiet", ".copier-answers.yml"),
}


def call_copier(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "copier", "update", "--defaults", *options, str(folder)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )


def snapshot_of(folder: Path) -> tuple[dict[str, str], str]:
    status = git(folder, "status", "--porcelain") if (folder / ".git").exists() else ""
    return text_files(folder), status


@pytest.mark.parametrize(("message", "edit"), REFUSED.items(), ids=REFUSED)
def test_an_update_that_cannot_be_is_refused_and_changes_nothing(
    living: Path, message: str, edit: Edit
) -> None:
    edit(living)
    if message == "Template not found":
        commit(living, "Without answers")
    before = snapshot_of(living)

    done = call_copier(living, "--vcs-ref", NEXT)

    assert done.returncode != 0
    assert message in done.stderr
    assert snapshot_of(living) == before


def test_every_refusal_is_explained() -> None:
    explained = {cell.strip("`") for cell in table("reference/updates.md", "When Copier refuses")}

    assert explained == REFUSED.keys() | {"is required"}


def test_an_answer_that_a_release_no_longer_accepts_is_not_replaced_by_its_default(
    templates: Path, tmp_path: Path
) -> None:
    template = Path(shutil.copytree(templates, tmp_path / "templates"))
    service = render_repository(
        template, tmp_path / "service", release=WORKING_TREE, database="sqlite"
    )
    questions = template / "copier.yml"
    replace(questions, "    SQLite, a file beside the service: sqlite\n", "")
    commit(template, "No SQLite any more")
    git(template, "tag", "9003.0.0")
    before = snapshot_of(service)

    done = call_copier(service, "--vcs-ref", "9003.0.0")

    assert done.returncode != 0
    assert 'Question "database" is required' in done.stderr
    assert snapshot_of(service) == before


def test_a_slug_that_a_release_no_longer_accepts_is_not_replaced_by_another(
    templates: Path, tmp_path: Path
) -> None:
    template = Path(shutil.copytree(templates, tmp_path / "templates"))
    service = render_repository(
        template, tmp_path / "service", release=WORKING_TREE, project_name="Valkey"
    )
    replace(template / "copier.yml", "uvloop, wcwidth,", "uvloop, valkey, wcwidth,")
    commit(template, "A new dependency")
    git(template, "tag", "9003.0.0")

    refused = call_copier(service, "--vcs-ref", "9003.0.0")
    done = call_copier(service, "--vcs-ref", "9003.0.0", "--data", "project_slug=valkey-service")

    assert "project_slug" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert 'name = "valkey-service"' in (service / "pyproject.toml").read_text()


# Releases ------------------------------------------------------------------------------------------


def heads(repository: Path, commit: str) -> set[str]:
    """Return the releases whose heading a commit's changelog has, or its parents' have."""
    return set(HEADING.findall(git(repository, "show", f"{commit}:CHANGELOG.md")))


def test_the_changelog_the_history_and_the_tags_name_the_same_releases() -> None:
    found = releases()

    tags = git(REPOSITORY, "tag", "--merged").split()  # a fork has later ones of upstream's too
    assert {*tags} <= found.keys()
    for version, commit_of_it in found.items():
        assert version in heads(REPOSITORY, commit_of_it) - heads(REPOSITORY, f"{commit_of_it}^")


FIRST, SECOND = "## 0.1.0 - 2027-01-31\n", "## 0.2.0 - 2027-02-28\n"
# The changelog at each commit, below its title; the one that is 0.1.0 is marked by `*`.
HISTORIES = {
    "plain": ["## Unreleased\n", f"*{FIRST}", f"A change.\n{FIRST}"],
    "its date was wrong": ["", f"*{FIRST}", "## 0.1.0 - 2027-01-30\n\nIts date was wrong.\n"],
    "it moved below another": ["", f"*{FIRST}", f"{FIRST}{SECOND}", f"{SECOND}{FIRST}"],
    "it was withdrawn and added again": ["", FIRST, "", f"*{FIRST}", f"{SECOND}{FIRST}"],
    "it was withdrawn and added again with another date": [
        "",
        "## 0.1.0 - 2026-11-28\n",
        "Withdrawn.\n",
        f"*{FIRST}",
    ],
    "it was withdrawn twice": ["", FIRST, "", FIRST, "", f"*{FIRST}", f"More.\n{FIRST}"],
    "its number begins another's": ["", f"*{FIRST}", f"## 0.1.00 - 2027-03-01\n{FIRST}"],
}


def write_history(folder: Path, changelogs: list[str]) -> str:
    """Commit one after the other, and return the commit that is marked."""
    git(folder.parent, "init", "--quiet", "--initial-branch=main", folder.name)
    for changelog in changelogs:
        write(folder, "CHANGELOG.md", f"# Changelog\n\n{changelog.removeprefix('*')}")
        commit(folder, "Release 0.1.0" if changelog.startswith("*") else "Work")
    return commit_called(folder, "Release 0.1.0")


def commit_called(folder: Path, subject: str) -> str:
    return git(folder, "log", "--format=%H", f"--grep=^{subject}$").strip()


def steps_of_a_release() -> dict[str, str]:
    """Return the commands of CONTRIBUTING.md's "Releases" by their titles."""
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text()
    _, _, section = guide.partition("\n## Releases\n")
    text = re.sub("^   ", "", section.partition("\n## ")[0], flags=re.MULTILINE)
    return {block.title: block.text for block in blocks(text)}


@pytest.mark.parametrize("changelogs", HISTORIES.values(), ids=HISTORIES)
def test_a_release_is_the_commit_that_added_the_heading_that_stands(
    changelogs: list[str], tmp_path: Path
) -> None:
    """By the history, by the tag of the procedure, and by both after a rebase."""
    history, origin = tmp_path / "history", tmp_path / "origin.git"
    expected = write_history(history, changelogs)
    assert releases(history)["0.1.0"] == expected
    git(tmp_path, "init", "--quiet", "--bare", str(origin))
    git(history, "remote", "add", "origin", str(origin))
    git(history, "push", "--quiet", "origin", "main")

    typist, steps = Typist(history), steps_of_a_release()
    assert expected in typist.type(steps["Tag it"])
    typist.type(steps["Publish it"])

    assert git(origin, "rev-list", "-1", "0.1.0").strip() == expected
    again = 'git commit --amend --quiet --message "$(git log -1 --format=%s) again"'
    git(history, "rebase", "--quiet", "--root", "--exec", again)
    assert releases(history)["0.1.0"] == commit_called(history, "Release 0.1.0 again") != expected


def test_a_release_that_is_tagged_stays_where_its_tag_is(tmp_path: Path) -> None:
    """Whatever a merge did to its heading afterwards."""
    folder = tmp_path / "history"
    expected = write_history(folder, ["", f"*{FIRST}", "A merge lost the release.\n", FIRST])
    git(folder, "tag", "0.1.0", expected)

    assert releases(folder) == {"0.1.0": expected}


def test_a_fix_that_the_tests_asked_for_comes_ahead_of_the_release(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    write_history(folder, ["", f"*{FIRST}"])
    write(folder, "app/fixed.py", "")
    write(folder, "CHANGELOG.md", f"# Changelog\n\n{FIRST}\nThe fix.\n")

    Typist(folder).type(steps_of_a_release()["Fix it ahead of the release"])

    changed = git(folder, "log", "--reverse", "--name-only", "--format=").split()
    assert changed == ["CHANGELOG.md", "app/fixed.py", "CHANGELOG.md"]
    assert git(folder, "status", "--porcelain") == ""
    assert releases(folder)["0.1.0"] == commit_called(folder, "Release 0.1.0")


def test_a_truncated_history_is_named_with_its_remedy(tmp_path: Path) -> None:
    history = tmp_path / "history"
    write_history(history, HISTORIES["plain"])
    git(tmp_path, "clone", "--quiet", "--depth", "2", history.as_uri(), "shallow")

    with pytest.raises(LookupError, match="git fetch --unshallow"):
        releases(tmp_path / "shallow")
