"""Hides the developer's settings from the tests, and from the processes that they start."""

import os

from app.settings import ServiceSettings, Settings
from app.settings_sources import variables

KINDS = (ServiceSettings, Settings)


def hide_env_file() -> None:
    for kind in KINDS:
        kind.model_config["env_file"] = None


def hide_variables() -> None:
    for kind in KINDS:
        for name in variables(kind):
            os.environ.pop(name, None)


# How a program in a process of its own begins.
HIDE_ENV_FILE = "from tests.isolation import hide_env_file\nhide_env_file()\n"
ALEMBIC = HIDE_ENV_FILE + "from alembic.config import main\nmain()\n"
