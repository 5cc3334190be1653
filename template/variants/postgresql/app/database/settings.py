"""Settings of the database: where it is, and how long to wait for it."""

import asyncio
import sys
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings
from sqlalchemy import URL

from app import NAME
from app.database.dialect import register
from app.database.url import DRIVER, EXAMPLE, READING, check_tls, locate, parse

ANSWER_TIMEOUT = 0.5  # seconds for the server's response to arrive
MAX_PASSWORD = 65_535  # bytes; PostgreSQL accepts no longer one

Seconds = Annotated[float, Field(ge=0.001, le=86_400)]


class DatabaseSettings(BaseSettings):
    """`DATABASE_URL`, or its parts."""

    database_url: SecretStr | None = None
    database_host: str | None = None
    database_port: Annotated[int, Field(ge=1, le=65535)] = 5432
    database_user: str | None = None
    database_password: SecretStr | None = None
    database_password_file: Path | None = None  # read again for each new connection
    database_name: str | None = None

    # asyncpg waits 60 s for a connection, and forever for a response: on a silent network a request
    # would never end. Seconds; the first applies to each of several hosts.
    database_connect_timeout: Seconds = 3
    database_command_timeout: Seconds = 5

    # Behind a PgBouncer in transaction mode each transaction may run on another server connection,
    # without its prepared statements and parameters.
    database_pooler: bool = False

    @model_validator(mode="after")
    def check_database(self) -> Self:
        parts = ("database_host", "database_user", "database_name", "database_password")
        given = [part for part in parts if getattr(self, part)]
        if self.database_url is not None and given:
            raise ValueError("set together with its parts (DATABASE_HOST …); set one or the other")
        if self.database_url is None and not set(parts[:3]) <= set(given):
            missing = ", ".join(part.upper() for part in parts[:3] if part not in given)
            if given:
                raise ValueError(f"incomplete; set {missing} too")
            message = f"missing; set it to {EXAMPLE}, or set DATABASE_HOST, _USER, _PASSWORD, _NAME"
            raise PydanticCustomError("database_missing", message)
        # raises if it can't be built
        if self.driver_url.password is not None and self.database_password_file is not None:
            raise ValueError("has a password, and DATABASE_PASSWORD_FILE is set too; remove one")
        return self

    @cached_property
    def driver_url(self) -> URL:
        """`postgresql+asyncpg://…`; its `str()` and `repr()` mask the password."""
        register()  # so that an engine for this URL has the service's dialect
        if self.database_url is not None:
            return check_tls(parse(self.database_url.get_secret_value()))
        password = self.database_password.get_secret_value() if self.database_password else None
        url = URL.create(DRIVER, self.database_user, password, database=self.database_name)
        return check_tls(locate(url, str(self.database_host), str(self.database_port)))

    @property
    def named_by(self) -> str:
        """The setting that says where the database is."""
        return "database_host" if self.database_url is None else "database_url"

    @property
    def database_writes(self) -> bool:
        """Whether the URL asks for a server that accepts writes."""
        return self.driver_url.query.get("target_session_attrs") not in READING

    @property
    def database_login(self) -> dict[str, Any]:
        """The argument of `connect` that reads the password from its file, if it has one."""
        file = self.database_password_file
        return {"password": partial(asyncio.to_thread, read_password, file)} if file else {}

    @property
    def connect_args(self) -> dict[str, Any]:
        """Arguments of the dialect's `connect`, besides the URL."""
        arguments = self.database_login | {
            "timeout": self.database_connect_timeout,
            # The server times out first: its error leaves the connection usable.
            "command_timeout": self.database_command_timeout + ANSWER_TIMEOUT,
        }
        # `date_trunc` and `current_date` depend on it: make it the same on every server.
        parameters = {"timezone": "UTC"}
        if self.database_pooler:
            nothing_prepared = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
            return arguments | nothing_prepared | {"server_settings": parameters}
        # The server times out too, so that an abandoned statement keeps no locks. Milliseconds.
        limits = {
            "statement_timeout": int(self.database_command_timeout * 1000),
            "idle_in_transaction_session_timeout": 60_000,
        }
        parameters |= {
            "application_name": NAME,
            # A generic plan, which a statement may get from its sixth execution on, is many times
            # slower for a rare value.
            "plan_cache_mode": "force_custom_plan",
            # The server drops a lost client's connections after 90 s, not two hours.
            "tcp_keepalives_idle": "60",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
        }
        # A pooler refuses this one, which reveals a missing DATABASE_POOLER; so does a server on
        # Windows, as in development.
        if sys.platform != "win32":
            parameters["client_connection_check_interval"] = "2000"
        return arguments | {"limits": limits, "server_settings": parameters}


def read_password(file: Path) -> str:
    """Return what the file contains now, without the line break at its end.

    Raises:
        OSError: with a reason that shows nothing of the content.
    """
    try:
        if not file.is_file():  # a pipe would wait for its other side
            raise OSError("is not a file" if file.exists() else "does not exist")
        with file.open("rb") as opened:
            content = opened.read(MAX_PASSWORD + 3)
        password = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "is not in UTF-8"
    else:
        if not password:
            reason = "is empty"
        elif len(password.encode()) > MAX_PASSWORD:
            reason = f"is longer than {MAX_PASSWORD} bytes"
        elif {"\n", "\r", "\0"} & set(password):
            reason = "has more than one line"
        else:
            return password
    raise OSError(f"DATABASE_PASSWORD_FILE ({file}): {reason}")
