"""Where PostgreSQL is, and how long to wait for it: the only builder of the driver URL."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app import NAME

EXAMPLE = "postgresql://user:password@host:5432/name"
DRIVER = "postgresql+asyncpg"
# What asyncpg takes as text; anything else in a URL would fail at the first connection.
URL_PARAMETERS = {"host", "port", "ssl", "passfile", "target_session_attrs", "krbsrvname"}


class DatabaseSettings(BaseSettings):
    """`DATABASE_URL`, or its parts."""

    database_url: SecretStr | None = None

    database_host: str | None = None

    database_port: Annotated[int, Field(ge=1, le=65535)] = 5432

    database_user: str | None = None

    database_password: SecretStr | None = None

    database_name: str | None = None

    # asyncpg waits 60 s for a connection and for ever for an answer: on a silent network that is
    # a request that never ends. Seconds, each.
    database_connect_timeout: Annotated[float, Field(gt=0)] = 3

    database_command_timeout: Annotated[float, Field(gt=0)] = 5

    @field_validator("database_url")
    @classmethod
    def check_url(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            parse(secret.get_secret_value())
        return secret

    @model_validator(mode="after")
    def check_place(self) -> Self:
        parts = (self.database_host, self.database_user, self.database_name)
        if self.database_url is None and None in parts:
            raise ValueError(
                f"missing; set it to {EXAMPLE}, or set DATABASE_HOST, DATABASE_USER, "
                "DATABASE_PASSWORD and DATABASE_NAME"
            )
        if self.database_url is not None and any((*parts, self.database_password)):
            raise ValueError("set together with its parts (DATABASE_HOST …); set one or the other")
        return self

    @cached_property
    def driver_url(self) -> URL:
        """`postgresql+asyncpg://…`; its `str()` and `repr()` mask the password."""
        if self.database_url is not None:
            return parse(self.database_url.get_secret_value())
        host, port = self.database_host or "", self.database_port
        password = self.database_password
        socket = host.startswith("/")  # the folder of a Unix socket
        return URL.create(
            DRIVER,
            username=self.database_user,
            password=password.get_secret_value() if password else None,
            host=None if socket else host,
            port=None if socket else port,
            database=self.database_name,
            query={"host": host, "port": str(port)} if socket else {},
        )

    @property
    def connect_args(self) -> dict[str, Any]:
        """What `asyncpg.connect` gets beside the URL."""
        return {
            "timeout": self.database_connect_timeout,
            "command_timeout": self.database_command_timeout,
            "server_settings": {
                "application_name": NAME,
                # The server gives up as well: what nobody waits for keeps no locks. Milliseconds.
                "statement_timeout": str(int(self.database_command_timeout * 1000)),
                "idle_in_transaction_session_timeout": "60000",
            },
        }


def parse(text: str) -> URL:
    """Normalise a PostgreSQL URL to asyncpg's.

    Takes `postgres://` and libpq's `sslmode` too, since providers hand them out.

    Raises:
        ValueError: with a reason that repeats nothing of `text` but its scheme and parameters.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"not a URL; write {EXAMPLE}") from None
    if url.drivername not in {"postgres", "postgresql", DRIVER}:
        raise ValueError(f"{url.drivername} is not asyncpg; write {EXAMPLE}")
    query = dict(url.query)
    if "sslmode" in query:
        query["ssl"] = query.pop("sslmode")
    if unknown := query.keys() - URL_PARAMETERS:
        raise ValueError(f"asyncpg knows no parameter {', '.join(sorted(unknown))}; remove it")
    return url.set(drivername=DRIVER, query=query)
