"""Settings of the database: where the file is, and how long to wait for its lock."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings
from sqlalchemy import URL

from app.database.dialect import register
from app.database.url import EXAMPLE, parse

Seconds = Annotated[float, Field(ge=0.001, le=86_400)]


class DatabaseSettings(BaseSettings):
    """`DATABASE_URL`: three slashes and a relative path, or four and an absolute one."""

    database_url: str = EXAMPLE

    # Seconds that a statement waits for another connection's lock on the file.
    database_command_timeout: Seconds = 5

    @model_validator(mode="after")
    def check_database(self) -> Self:
        _ = self.driver_url  # raises if it can't be built
        return self

    @cached_property
    def driver_url(self) -> URL:
        """`sqlite+aiosqlite:///…`."""
        register()  # so that an engine for this URL has the service's dialect
        return parse(self.database_url)

    @property
    def named_by(self) -> str:
        """The setting that says where the database is."""
        return "database_url"

    @property
    def database_writes(self) -> bool:
        """Whether writes are needed: always, as a read-only file is not opened."""
        return True

    @property
    def connect_args(self) -> dict[str, Any]:
        """Arguments of `sqlite3.connect`, besides the path."""
        return {"timeout": self.database_command_timeout}
