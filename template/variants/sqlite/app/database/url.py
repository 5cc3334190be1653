"""Parsing of SQLite URLs, and the only builder of the driver URL."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

EXAMPLE = "sqlite+aiosqlite:///./app.db"
DRIVER = "sqlite+aiosqlite"


def parse(text: str) -> URL:
    """Return aiosqlite's URL for a SQLite URL.

    Raises:
        ValueError: with a reason that shows nothing of `text` but its scheme and parameters.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"not a URL; write {EXAMPLE}") from None
    if url.drivername not in {"sqlite", DRIVER}:
        raise ValueError(f"{url.drivername} is not aiosqlite; write {EXAMPLE}")
    if url.query:
        raise ValueError(f"parameters ({', '.join(url.query)}) are not supported; remove them")
    server = url.host or url.port or url.username or url.password
    if server or not url.database or url.database == ":memory:":
        # In memory, all requests would share one connection and each other's transactions.
        raise ValueError(f"must name a file; write {EXAMPLE}")
    return url.set(drivername=DRIVER)
