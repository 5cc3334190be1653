"""Where the SQLite file is, and how long to wait for it: the only builder of the driver URL."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings
from sqlalchemy import URL, make_url
from sqlalchemy.dialects import registry
from sqlalchemy.exc import ArgumentError

EXAMPLE = "sqlite+aiosqlite:///./app.db"
DRIVER = "sqlite+aiosqlite"
registry.register("sqlite.aiosqlite", "app.dialect", "Dialect")

Seconds = Annotated[float, Field(ge=0.001, le=86_400)]


class DatabaseSettings(BaseSettings):
    """`DATABASE_URL`: three slashes and a relative path, or four and an absolute one."""

    database_url: str = EXAMPLE

    # Seconds that a statement waits for a file which another connection has locked.
    database_command_timeout: Seconds = 5

    @model_validator(mode="after")
    def check(self) -> Self:
        _ = self.driver_url  # raises, if it can't be built
        return self

    @cached_property
    def driver_url(self) -> URL:
        """`sqlite+aiosqlite:///…`."""
        return parse(self.database_url)

    @property
    def connect_args(self) -> dict[str, Any]:
        """What `sqlite3.connect` gets beside the file's name."""
        return {"timeout": self.database_command_timeout}


def parse(text: str) -> URL:
    """Make aiosqlite's URL of a SQLite URL.

    Raises:
        ValueError: with a reason that repeats nothing of `text` but its scheme and parameters.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"not a URL; write {EXAMPLE}") from None
    if url.drivername not in {"sqlite", DRIVER}:
        raise ValueError(f"{url.drivername} is not aiosqlite; write {EXAMPLE}")
    if url.query:
        raise ValueError(f"parameters ({', '.join(url.query)}) are not supported; remove them")
    if url.host or url.username or not url.database or url.database == ":memory:":
        # In memory, all requests would share one connection and each other's transactions.
        raise ValueError(f"must name a file; write {EXAMPLE}")
    return url.set(drivername=DRIVER)
