"""`poe dev`: migrate the database and serve, reloading on changes. Ctrl-C ends it."""

import uvicorn
from alembic import command
from alembic.config import Config

if __name__ == "__main__":
    command.upgrade(Config(toml_file="pyproject.toml"), "head")
    uvicorn.run("app.main:app", reload=True, reload_dirs=["app"])
