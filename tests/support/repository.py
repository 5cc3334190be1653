"""The template's repository, and those that the tests make of it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    # Without git's automatic collection, which runs on behind the next command.
    command = ["git", "-C", str(folder), "-c", "gc.auto=0", *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def snapshot(folder: Path) -> Path:
    """Clone the repository with its uncommitted changes, as a release that is newer than all.

    A fork numbers its releases by the year.
    """
    git(REPOSITORY, "clone", "--quiet", str(REPOSITORY), str(folder))
    git(folder, "rm", "-r", "--quiet", ".")
    listed = git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0")[:-1]:
        source = REPOSITORY / name
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read_bytes())
            (folder / name).chmod(source.stat().st_mode)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "The working tree")
    git(folder, "tag", "9000.0.0")
    return folder


def commit(folder: Path, message: str = "As it is") -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} has {old!r} {text.count(old)} times"
    file.write_text(text.replace(old, new))


def substitute(file: Path, pattern: str, new: str) -> None:
    """Replace the one place that a pattern finds: a value that any release may change."""
    text, count = re.subn(pattern, new, file.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{file.name} has {pattern!r} {count} times"
    file.write_text(text)


def value_in(name: str, pattern: str) -> str:
    """Return a value of the template's from one of its files, where it stands once."""
    [value] = re.findall(pattern, (REPOSITORY / "template" / name).read_text(), re.MULTILINE)
    return str(value)


def questions(template: Path) -> dict[str, Any]:
    """Return the template's questions and settings, without those of a fork."""
    own, _, _ = (template / "copier.yml").read_text().partition("\n---\n")
    found: dict[str, Any] = yaml.safe_load(own)
    return found


def names_of_tests() -> set[str]:
    """Return the names of all tests, the template's and the services'."""
    files = [
        *(REPOSITORY / "tests").rglob("test_*.py"),
        *(REPOSITORY / "template").rglob("test_*.py"),
    ]
    return {name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text())}


def text_files(folder: Path) -> dict[str, str]:
    """Return the text of each file that a service holds, by its path; not git's and Python's."""
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {".git", "__pycache__"} & {*path.relative_to(folder).parts}
    }
