"""The tables of all models, for Alembic to compare with the database's."""

import importlib
import pkgutil

import app
from app.database import Base

for module in pkgutil.walk_packages(app.__path__, "app."):
    if module.name.endswith(".models"):
        importlib.import_module(module.name)

metadata = Base.metadata
