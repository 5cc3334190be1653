"""The database of `poe dev`: that of the settings, by default a file, which needs no server."""

from pathlib import Path


def find_database(*, make: bool = True) -> str | None:
    """Leave the settings as they are: the first migration makes the file."""
    return None


def missing_database() -> str | None:
    """Say that `poe dev` has not made its file yet: that of the default, and no other."""
    from app.settings import Settings, load_settings
    from app.settings_sources import describe_database

    settings = load_settings(Settings)
    path = Path(settings.driver_url.database or "")
    if "database_url" in settings.model_fields_set or path.exists():
        return None
    return f"{describe_database(settings)} is not there: uv run poe dev makes it"
