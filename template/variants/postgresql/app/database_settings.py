"""Where PostgreSQL is, and how long to wait for it: the only builder of the driver URL."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings
from sqlalchemy import URL, make_url
from sqlalchemy.dialects import registry
from sqlalchemy.exc import ArgumentError

from app import NAME

EXAMPLE = "postgresql://user:password@host:5432/name"
DRIVER = "postgresql+asyncpg"
registry.register("postgresql.asyncpg", "app.database", "Dialect")

# What asyncpg takes as text; anything else in a URL would fail at the first connection.
URL_PARAMETERS = {"host", "port", "ssl", "passfile", "target_session_attrs", "krbsrvname"}

Seconds = Annotated[float, Field(ge=0.001, le=86_400)]


class DatabaseSettings(BaseSettings):
    """`DATABASE_URL`, or its parts."""

    database_url: SecretStr | None = None
    database_host: str | None = None
    database_port: Annotated[int, Field(ge=1, le=65535)] = 5432
    database_user: str | None = None
    database_password: SecretStr | None = None
    database_name: str | None = None

    # asyncpg waits 60 s for a connection and for ever for an answer: on a silent network that is
    # a request that never ends. Seconds.
    database_connect_timeout: Seconds = 3
    database_command_timeout: Seconds = 5

    # A PgBouncer in transaction mode is in between: each transaction may run on another connection
    # of the server, where nothing is prepared and no parameter is set.
    database_pooler: bool = False

    @model_validator(mode="after")
    def check(self) -> Self:
        parts = ("database_host", "database_user", "database_name", "database_password")
        given = [part for part in parts if getattr(self, part)]
        if self.database_url is not None and given:
            raise ValueError("set together with its parts (DATABASE_HOST …); set one or the other")
        if self.database_url is None and not set(parts[:3]) <= set(given):
            message = f"missing; set it to {EXAMPLE}, or set DATABASE_HOST, _USER, _PASSWORD, _NAME"
            raise PydanticCustomError(
                "database_incomplete" if given else "database_missing", message
            )
        _ = self.driver_url  # raises, if it can't be built
        return self

    @cached_property
    def driver_url(self) -> URL:
        """`postgresql+asyncpg://…`; its `str()` and `repr()` mask the password."""
        if self.database_url is not None:
            return parse(self.database_url.get_secret_value())
        password = self.database_password.get_secret_value() if self.database_password else None
        url = URL.create(DRIVER, self.database_user, password, database=self.database_name)
        host, port = str(self.database_host), self.database_port
        if host.startswith("/"):  # the folder of a Unix socket
            return url.set(query={"host": host, "port": str(port)})
        return url.set(host=host, port=port)

    @property
    def connect_args(self) -> dict[str, Any]:
        """What `asyncpg.connect` gets beside the URL."""
        limits = {
            "timeout": self.database_connect_timeout,
            "command_timeout": self.database_command_timeout,
        }
        if self.database_pooler:
            return limits | {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        return limits | {
            "server_settings": {
                "application_name": NAME,
                # The server gives up as well: what nobody waits for keeps no locks. Milliseconds.
                "statement_timeout": str(int(self.database_command_timeout * 1000)),
                "idle_in_transaction_session_timeout": "60000",
            },
        }


def parse(text: str) -> URL:
    """Make asyncpg's URL of one that a provider hands out (`postgres://`, libpq's `sslmode`).

    Raises:
        ValueError: with a reason that repeats nothing of `text` but its scheme and parameters.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"not a URL; write {EXAMPLE}") from None
    if url.drivername not in {"postgres", "postgresql", DRIVER}:
        raise ValueError(f"{url.drivername} is not asyncpg; write {EXAMPLE}")
    if "@" in (url.host or ""):
        raise ValueError("has two @; write the one in the password as %40")
    query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
    if unknown := query.keys() - URL_PARAMETERS:
        hint = " and name the file by PGSSLROOTCERT" if "sslrootcert" in unknown else ""
        names = ", ".join(sorted(unknown))
        raise ValueError(f"asyncpg knows no parameter {names}; remove it{hint}")
    return url.set(drivername=DRIVER, query=query)
