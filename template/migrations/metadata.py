"""The metadata of all models, for autogenerate."""

import importlib
import pkgutil

import app
from app.database import Base


def fail(name: str) -> None:
    raise  # noqa: PLE0704 - what importing the package has raised; its models would be missing


for module in pkgutil.walk_packages(app.__path__, "app.", onerror=fail):
    if module.name.endswith(".models"):
        importlib.import_module(module.name)

metadata = Base.metadata
