"""The script of the page on backups copies a SQLite database whole, or changes nothing."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.pages import block_text, page_text
from tests.support.repository import replace


@pytest.fixture
def script(tmp_path: Path) -> Path:
    script = tmp_path / "copy_database.py"
    script.write_text(block_text(page_text("how-to/backups.md"), "SQLite: copy_database.py"))
    replace(script, "WAIT = 60", "WAIT = 1")
    return script


def make(path: Path, *names: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE items (name TEXT)")
        connection.executemany("INSERT INTO items VALUES (?)", [(name,) for name in names])
        connection.commit()
    return path


def names_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM items")]


def run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_copy_is_complete_and_only_its_owner_can_read_it(script: Path, tmp_path: Path) -> None:
    source = make(tmp_path / "app.db", *map(str, range(1000)))
    target = tmp_path / "backup.db"
    known = os.umask(0)
    try:
        done = run(script, source, target)
    finally:
        os.umask(known)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert names_in(target) == names_in(source)
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_restore_keeps_the_permissions_of_the_target(script: Path, tmp_path: Path) -> None:
    source, target = make(tmp_path / "backup.db", "new"), make(tmp_path / "app.db", "old")
    target.chmod(0o640)

    assert run(script, source, target).returncode == 0
    assert names_in(target) == ["new"]
    assert target.stat().st_mode & 0o777 == 0o640


def damage(path: Path) -> None:
    make(path, *map(str, range(1000)))
    content = bytearray(path.read_bytes())
    content[4096:4296] = bytes(200)
    path.write_bytes(content)


SOURCES: dict[str, Callable[[Path], object]] = {
    "is missing or empty": lambda path: None,
    "is missing": Path.mkdir,
    "or empty": Path.touch,
    "file is not a database": lambda path: path.write_text("a letter\n" * 100),
    "is damaged": damage,
}
TARGETS: dict[str, Callable[[Path], object]] = {
    "none": lambda path: None,
    "a database": lambda path: make(path, "kept"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("reason", SOURCES)
def test_a_source_that_can_not_be_copied_leaves_the_target_as_it_was(
    script: Path, tmp_path: Path, reason: str, target: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    SOURCES[reason](tmp_path / "source.db")
    TARGETS[target](folder / "target.db")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    done = run(script, tmp_path / "source.db", folder / "target.db")

    assert done.returncode == 1
    assert re.fullmatch(rf".*{reason}.*\. Nothing was copied\.\n", done.stderr)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def link(source: Path, target: Path) -> None:
    target.symlink_to(source)


@pytest.mark.parametrize(
    ("reason", "make_target"),
    [
        ("file is not a database", lambda _, path: path.write_text("a letter\n" * 100)),
        ("unable to open database file", lambda _, path: path.mkdir()),
        ("are one file", link),
        ("are one file", lambda source, path: path.hardlink_to(source)),
    ],
)
def test_a_target_that_is_no_other_database_is_left_as_it_was(
    script: Path, tmp_path: Path, reason: str, make_target: Callable[[Path, Path], object]
) -> None:
    source = make(tmp_path / "source.db", "kept")
    target = tmp_path / "target.db"
    make_target(source, target)
    before = target.is_file() and target.read_bytes()

    done = run(script, source, target)

    assert done.returncode == 1
    assert re.fullmatch(rf".*{reason}.*\. Nothing was copied\.\n", done.stderr)
    assert (target.is_file() and target.read_bytes()) == before
    assert names_in(source) == ["kept"]


def test_a_target_in_a_missing_folder_is_refused(script: Path, tmp_path: Path) -> None:
    done = run(script, make(tmp_path / "app.db", "kept"), tmp_path / "missing/backup.db")

    assert done.returncode == 1
    assert re.fullmatch(r".*No such file.*missing/backup.db'\. Nothing was copied\.\n", done.stderr)


def test_a_copy_that_was_killed_is_not_restored(script: Path, tmp_path: Path) -> None:
    half, killed, target = tmp_path / "half.db", tmp_path / "killed.db", tmp_path / "app.db"
    make(target, "kept")
    with closing(sqlite3.connect(half, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # pages go into the file before the commit
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE items (name TEXT)")
        rows = [("long " * 200,)] * 1000
        connection.executemany("INSERT INTO items VALUES (?)", rows)
        for suffix in ("", "-journal"):
            shutil.copy(f"{half}{suffix}", f"{killed}{suffix}")
    assert killed.stat().st_size

    done = run(script, killed, target)

    assert (done.returncode, done.stderr) == (1, f"{killed} has no tables. Nothing was copied.\n")
    assert names_in(target) == ["kept"]


def test_a_target_that_is_still_written_to_is_left_alone(script: Path, tmp_path: Path) -> None:
    source, target = make(tmp_path / "backup.db", "new"), make(tmp_path / "app.db", "old")
    with closing(sqlite3.connect(target, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")

        done = run(script, source, target)

    assert (done.returncode, done.stderr) == (1, "in use by another for 1 s. Nothing was copied.\n")
    assert names_in(target) == ["old"]


def test_a_damaged_target_is_restored(script: Path, tmp_path: Path) -> None:
    damage(tmp_path / "app.db")

    assert run(script, make(tmp_path / "backup.db", "new"), tmp_path / "app.db").returncode == 0
    assert names_in(tmp_path / "app.db") == ["new"]
