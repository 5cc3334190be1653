"""What is PostgreSQL's own: connections, column types, and what its errors mean."""

import datetime
import time
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import BigInteger, DateTime, Integer, Row, TypeDecorator, cast, func, select
from sqlalchemy import Dialect as AnyDialect
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, NotSupportedError, OperationalError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.util import await_only

Sessionmaker = async_sessionmaker
"""What makes sessions: SQLAlchemy's own."""

PING_AFTER = 1.0  # seconds that a connection is trusted for without asking the server
PING_TIMEOUT = 1.0  # seconds; then a new connection is tried

# SQLSTATE classes and codes, https://www.postgresql.org/docs/current/errcodes-appendix.html
STATUSES = {
    "22": 422,  # data exception
    "23502": 422,  # not-null constraint
    "23514": 422,  # check constraint
    "23": 409,  # other constraints
    "08": 503,  # connection lost
    "25006": 503,  # read-only: a demoted primary
    "28": 503,  # login refused
    "3D000": 503,  # no such database
    "40": 503,  # deadlock, serialization failure
    "53": 503,  # out of connections, memory or disk
    "55P03": 503,  # lock timeout
    "57": 503,  # statement timeout, shutdown
}


# What the doctor asks; the superuser's connections are not the service's.
SERVER = select(
    func.current_setting("server_version").label("version"),
    (
        cast(func.current_setting("max_connections"), Integer)
        - cast(func.current_setting("superuser_reserved_connections"), Integer)
    ).label("connections"),
)


class BigIntegerKey(BigInteger):
    """A 64-bit primary key that the database counts up."""


class UTCDateTime(TypeDecorator[datetime.datetime]):
    """A moment, stored and returned in UTC; one without a time zone is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: AnyDialect
    ) -> datetime.datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a datetime needs a time zone")
        return value


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """The driver's, with the moment (seconds) at which it was last known to be good."""

    good_at = 0.0


class Dialect(PGDialect_asyncpg):
    """SQLAlchemy's, where its connections wait longer, or ask more often, than a request should."""

    supports_statement_cache = True

    lost_at = 0.0  # when a connection was lost; others may be since

    def connect(self, *args: Any, **options: Any) -> DBAPIConnection:
        # Refused, unknown host, timed out: asyncpg lets the operating system's errors through,
        # and no `except SQLAlchemyError` would see them.
        try:
            connection: Any = super().connect(*args, connection_class=Connection, **options)
        except OSError as error:
            reason = str(error) or "timed out"
            raise self.loaded_dbapi.OperationalError(reason, error) from error
        connection.driver_connection.good_at = time.monotonic()
        return connection  # type: ignore[no-any-return]

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Say whether a connection is still good, which the pool asks at every checkout.

        The driver knows of one that the server has closed; a link that died silently takes time
        to be noticed, so one that was good a moment ago is not asked again.
        """
        connection: Connection = dbapi_connection.driver_connection
        if connection.is_closed():
            return False
        now = time.monotonic()
        if connection.good_at <= max(now - PING_AFTER, self.lost_at):
            try:
                await_only(connection.execute("SELECT 1", timeout=PING_TIMEOUT))
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return False
        connection.good_at = now
        return True

    def do_terminate(self, dbapi_connection: Any) -> None:
        # SQLAlchemy would first say goodbye, and wait 2 s for a server that does not answer.
        dbapi_connection.driver_connection.terminate()
        self.lost_at = time.monotonic()


def judge(server: Row[Any], connections: int) -> tuple[str, str]:
    """Say what the server is, and what is wrong with it for so many connections, or nothing."""
    use = f"{connections} of its {server.connections} connections may be opened"
    if connections <= server.connections:
        return f"PostgreSQL {server.version}; {use}", ""
    return (
        "",
        f"{use}; lower DATABASE_POOL_SIZE and DATABASE_MAX_OVERFLOW, or raise max_connections",
    )


def status_of(error: DBAPIError) -> int:
    """Return the status of a response to a request whose statement failed with `error`."""
    if isinstance(error, OperationalError) or error.connection_invalidated:
        return 503
    # Prepared before a migration changed the table: the next attempt prepares it anew. It is this
    # error's only cause, and it has no `driver_exception`.
    if isinstance(error, NotSupportedError):
        return 503
    if isinstance(error.driver_exception, ValueError):  # asyncpg's, for a value it can't encode
        return 422
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return next((code for state, code in STATUSES.items() if sqlstate.startswith(state)), 500)
