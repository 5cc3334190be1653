"""The database of `poe dev`: that of the settings, by default a file, which needs no server."""


def find_database(*, make: bool = True) -> str | None:
    """Leave the settings as they are: the first migration makes the file."""
    return None
