"""What 9003.0.0 asks of a service. Read it, and then run it once, after the update:

    uv run python upgrades/9003.0.0.py

- `app/dependencies.py` is called `app/sessions.py`, and its `ReaderDep` is called `QueryDep`.
- The setting `DOCS_ENABLED` is called `SHOW_DOCS`.

It renames them in the files that git holds; `git diff` shows what it did, and `git restore .` takes
it back. Then `uv run poe fix`, which sorts the imports, and `uv run poe check`, which finds what was
spelled in another way, and delete this file.

Where git does not look, in `.env` and where the service is deployed, the old name of the setting
still counts, and more than the new one. Rename it there when you won't go back any more.
"""

import re
import subprocess
from pathlib import Path

RENAMED = {
    rb"\bapp([./])dependencies\b": rb"app\1sessions",
    rb"\bReaderDep\b": rb"QueryDep",
    rb"\bDOCS_ENABLED\b": rb"SHOW_DOCS",
    rb"\bdocs_enabled\b": rb"show_docs",
}
# What imports the module itself goes on calling it `dependencies`.
FROM_APP = re.compile(rb"\bfrom app import (?:\((?:[^)#]|#.*\n)*\)|(?:[^#\n]*\\\n)*[^#\n]*)")
MODULE = re.compile(rb"(?<!\bas )\bdependencies\b( as \w+)?")


def rename_module(found: re.Match[bytes]) -> bytes:
    return MODULE.sub(lambda it: b"sessions" + (it[1] or b" as dependencies"), found[0])


def paths(*options: str) -> list[Path]:
    listed = subprocess.check_output(["git", "ls-files", "-z", *options]).decode()
    return [path for path in map(Path, listed.split("\0")[:-1]) if path.is_file()]


for path in paths():
    # The template's settings have both names, and on purpose.
    if path.is_symlink() or path.parts[0] == "upgrades" or path == Path("app/settings.py"):
        continue
    text = before = path.read_bytes()
    for old, new in RENAMED.items():
        text = re.sub(old, new, text)
    text = FROM_APP.sub(rename_module, text)
    if text != before:
        path.write_bytes(text)
        print(f"changed: {path}")
for path in paths("--others", "--", "*.env*"):
    if re.search(rb"\bDOCS_ENABLED\b", path.read_bytes()):
        print(f"to be changed by you: {path} names DOCS_ENABLED")
