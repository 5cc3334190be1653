"""Other ways to write the same service: each in an environment of its own, of its newest versions."""

import sys
import tomllib
from pathlib import Path

from tests.support.services import Service

FASTAPI_TEMPLATE = "fastapi_template==6.1.2"
# As `litestar run` is, and s3rius' `python -m peer`: uvicorn with all that makes it fast.
LITESTAR = ("litestar[standard]", "advanced-alchemy", "asyncpg", "uvicorn[standard]")

# What of them is noted, by the name of the app.
VERSIONS = {
    "litestar": ("litestar", "advanced-alchemy", "sqlalchemy", "asyncpg", "uvicorn", "httptools"),
    "s3rius": ("fastapi", "sqlalchemy", "asyncpg", "uvicorn", "httptools"),
}


def environment(folder: Path, *packages: str) -> Service:
    """Install packages for the Python that runs this, and so the services."""
    folder.mkdir(exist_ok=True)
    peer = Service(folder, "postgresql")
    peer.run("uv", "venv", "--quiet", "--python", sys.executable)
    into = ("--python", ".venv")  # and not into that of UV_PYTHON
    peer.run("uv", "pip", "install", "--quiet", "--compile-bytecode", *into, *packages)
    return peer


def litestar(folder: Path) -> Service:
    return environment(folder, *LITESTAR)


def s3rius(folder: Path) -> Service:
    """Generate a service on PostgreSQL and SQLAlchemy, with its example.

    It asks for a newer Python than the oldest of these services, and needs none.
    """
    generator = environment(folder, FASTAPI_TEMPLATE)
    answers = ("--db", "postgresql", "--orm", "sqlalchemy", "--migrations", "--dummy", "--routers")
    # It may fail to install what it has generated, for want of that Python.
    generator.run(
        ".venv/bin/fastapi_template",
        *("--quiet", "--name", "peer", "--api-type", "rest", "--ci", "none", *answers),
        variables={"UV_PYTHON_DOWNLOADS": "never"},
        check=False,
    )
    project = tomllib.loads((folder / "peer" / "pyproject.toml").read_text())["project"]
    return environment(folder / "peer", *project["dependencies"])
