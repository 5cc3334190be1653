"""`poe dev`: bring the database up, migrate it and serve, reloading on changes. Ctrl-C ends it all.

Options are uvicorn's: `uv run poe dev --port 8001`.
"""

import sys

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from app.server import serve
from app.settings import Settings, load_settings
from dev_database import find_database


def doctor() -> None:
    """`poe doctor`: examine the database that `poe dev` uses."""
    from app.doctor import main

    find_database(make=False)
    main()


if __name__ == "__main__":
    find_database()
    # The reloader would wait for a file change, which cannot fix a wrong variable.
    load_settings(Settings)
    try:
        command.upgrade(Config(toml_file="pyproject.toml"), "head")
    except CommandError as error:  # another branch's revision, or two newest ones
        sys.exit(f"alembic upgrade head: {error}")
    serve(["--reload", "--reload-dir", "app", *sys.argv[1:]])
