"""`poe dev`: migrate the database and serve, reloading on changes. Ctrl-C ends it.

Options are uvicorn's: `uv run poe dev --port 8001`.
"""

import sys

import uvicorn
from alembic import command
from alembic.config import Config

if __name__ == "__main__":
    command.upgrade(Config(toml_file="pyproject.toml"), "head")
    uvicorn.main(["app.main:app", "--reload", "--reload-dir", "app", *sys.argv[1:]])
