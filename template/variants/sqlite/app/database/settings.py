"""Where the SQLite file is, and how long to wait for it: the only builder of the driver URL."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings
from sqlalchemy import URL

from app.database.url import EXAMPLE, parse

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
    def database_writes(self) -> bool:
        """Whether writes are wanted; a file that may not be written to is not opened."""
        return True

    @property
    def connect_args(self) -> dict[str, Any]:
        """What `sqlite3.connect` gets beside the file's name."""
        return {"timeout": self.database_command_timeout}
