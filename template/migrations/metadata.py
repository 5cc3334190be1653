"""The metadata of all models, for autogenerate."""

import importlib
import pkgutil

import app
from app.database import Base

for module in pkgutil.walk_packages(app.__path__, "app."):
    if module.name.endswith(".models"):
        importlib.import_module(module.name)

metadata = Base.metadata
