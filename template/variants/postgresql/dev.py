"""`poe dev`: start a PostgreSQL, migrate it and serve, reloading on changes. Ctrl-C ends it all.

With `DATABASE_URL` (or its parts) in the environment or in `.env`, that server is used instead.
Options are uvicorn's: `uv run poe dev --port 8001`.
"""

import os
import sys
from pathlib import Path

import uvicorn
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from pydantic import ValidationError

from app.settings import ServiceSettings, Settings, load_settings
from dev_postgres import start

DATA = Path(__file__).parent / ".postgres"


def database_is_missing() -> bool:
    """Say whether neither the environment nor `.env` names a database."""
    try:
        ServiceSettings()
    except ValidationError as error:
        return "database_missing" in [problem["type"] for problem in error.errors()]
    return False


def find_database() -> None:
    """Unless the environment names a database, name the one in `.postgres/`."""
    if database_is_missing():
        try:
            os.environ["DATABASE_URL"] = start(DATA)
        except OSError as error:
            sys.exit(f"{error}\nWith DATABASE_URL, another server is used.")
        except KeyboardInterrupt:
            sys.exit(130)


def find_existing_database() -> None:
    """As `find_database`, for commands that make no server: say what does."""
    if DATA.is_dir():
        find_database()
    elif database_is_missing():
        message = "No .postgres/ yet: uv run poe dev makes a server of its own there."
        print(message, file=sys.stderr)


def doctor() -> None:
    """`poe doctor`: examine the database that `poe dev` uses."""
    from app.doctor import main

    find_existing_database()
    main()


if __name__ == "__main__":
    find_database()
    # The reloader would wait for a file change, which cannot fix a wrong variable.
    load_settings(Settings)
    try:
        command.upgrade(Config(toml_file="pyproject.toml"), "head")
    except CommandError as error:  # another branch's revision, or two newest ones
        sys.exit(f"alembic upgrade head: {error}")
    uvicorn.main(["app.main:app", "--reload", "--reload-dir", "app", *sys.argv[1:]])
