"""What 1002.0.0 asks of a service. Read it, and then run it once, after the update:

    uv run python upgrades/1002.0.0.py

- `app/dependencies.py` is called `app/sessions.py`, and its `ReaderDep` is called `QueryDep`.
- The setting `DOCS_ENABLED` is called `SHOW_DOCS`.

It renames them in the files that git holds; `git diff` shows what it did, and `git restore .` takes
it back. Where git does not look, in `.env` and where the service is deployed, you rename the
setting. Then `uv run poe check`, which finds what was spelled in another way, and delete this file.
"""

import re
import subprocess
from pathlib import Path

RENAMED = {
    rb"\bapp\.dependencies\b": b"app.sessions",
    rb"\bReaderDep\b": b"QueryDep",
    rb"\bDOCS_ENABLED\b": b"SHOW_DOCS",
    rb"\bdocs_enabled\b": b"show_docs",
}

found = subprocess.check_output(["git", "ls-files", "-z"]).decode().split("\0")[:-1]
for path in map(Path, found):
    if path.is_symlink() or not path.is_file() or path.parts[0] == "upgrades":
        continue
    text = before = path.read_bytes()
    for old, new in RENAMED.items():
        text = re.sub(old, new, text)
    if text != before:
        path.write_bytes(text)
        print(f"changed: {path}")
for path in Path().glob(".env*"):
    if b"DOCS_ENABLED" in path.read_bytes():
        print(f"to be changed by you: {path} names DOCS_ENABLED")
