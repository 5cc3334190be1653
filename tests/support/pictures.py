"""The picture of the README: a service is made, called, robbed of its database, and called again.

    uv run python -m tests.support.pictures

types the session and draws what it prints, for light and for dark pages.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path

from tests.support.processes import environment, free_port, open_client, wait_until_served
from tests.support.repository import REPOSITORY

FOLDER = REPOSITORY / "docs/pictures"
COLUMNS = 100
COLOURS = {  # background, text, what is typed
    "light": ("#f6f8fa", "#24292f", "#0550ae"),
    "dark": ("#161b22", "#c9d1d9", "#79c0ff"),
}
NEW = "python3 dev.py new"
STARTED = re.compile(r"^The service is in .*|^.*Uvicorn running on .*", re.MULTILINE)
TYPED = (
    """curl --json '{"name": "Spanner"}' 127.0.0.1:8000/items""",
    """curl --json '{"name": "Spanner"}' 127.0.0.1:8000/items""",
    "mkdir ../away && mv app.db* ../away/  # its database is gone",
    "curl 127.0.0.1:8000/items",
    "curl 127.0.0.1:8000/health/live",
    "mv ../away/app.db* .  # and back",
    "curl 127.0.0.1:8000/items",
)


def record(template: Path) -> list[str]:
    """Type the session with the template in `template`, and return its lines."""
    port = str(free_port())
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name).resolve() / "my-service", Path(name) / "log"
        with (
            log.open("wb") as output,
            open_client(f"http://127.0.0.1:{port}") as client,
            subprocess.Popen(
                [sys.executable, *NEW.split()[1:], "--folder", str(folder), "--port", port],
                cwd=template,
                env=environment(),
                stdout=output,
                stderr=output,
            ) as process,
        ):
            try:
                wait_until_served(client, process, log)
                text = "\n".join(
                    [f"$ {NEW}", *STARTED.findall(log.read_text()), "", "$ cd ../my-service"]
                )
                for command in TYPED:
                    printed = subprocess.check_output(
                        command.replace("curl", "curl -sS").replace("8000", port),
                        shell=True,
                        cwd=folder,
                        text=True,
                    )
                    text += f"\n$ {command}\n{printed}".rstrip()
            finally:
                process.terminate()
    text = text.replace(str(folder), "../my-service").replace(port, "8000")
    return text.splitlines()


def wrap(line: str) -> Iterator[str]:
    while len(line) > COLUMNS:
        end = line.rfind(",", 0, COLUMNS) + 1 or COLUMNS
        yield line[:end]
        line = line[end:]
    yield line


def draw(lines: list[str], scheme: str) -> str:
    """Draw a terminal with these lines."""
    background, colour, typed = COLOURS[scheme]
    drawn, y = [], 12
    for line in lines:
        kind = ' class="typed"' if line.startswith("$ ") else ""
        for part in wrap(line):
            y += 20
            drawn.append(f'<text x="16" y="{y}"{kind}>{escape(part)}</text>\n')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 876 {y + 20}">\n'
        f"<style>text {{ font: 14px ui-monospace, monospace; fill: {colour}; white-space: pre }}"
        f" .typed {{ fill: {typed}; font-weight: bold }}</style>\n"
        f'<rect width="100%" height="100%" rx="8" fill="{background}"/>\n{"".join(drawn)}</svg>\n'
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    session = record(REPOSITORY)
    for scheme in COLOURS:
        (FOLDER / f"session-{scheme}.svg").write_text(draw(session, scheme))
