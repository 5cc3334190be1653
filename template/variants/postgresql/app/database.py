"""What is PostgreSQL's own: connections, column types, and what its errors mean."""

import datetime
from typing import Any

from fastapi import status
from sqlalchemy import BigInteger, DateTime, Dialect, TypeDecorator, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

READ_OPTIONS: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
"""Execution options under which a statement runs outside a transaction: one round trip, not three."""

# SQLSTATE classes and codes, https://www.postgresql.org/docs/current/errcodes-appendix.html
INVALID = ("22", "23502", "23514")  # data exceptions; not-null and check constraints
CONFLICT = ("23",)
UNAVAILABLE = (
    "08",  # connection lost
    "25006",  # read-only: a demoted primary
    "28",  # login refused
    "3D000",  # no such database
    "40",  # deadlock, serialization failure
    "53",  # out of connections, memory or disk
    "55P03",  # lock timeout
    "57",  # statement timeout, shutdown
)


class BigIntegerKey(BigInteger):
    """A 64-bit primary key that the database counts up."""


class UTCDateTime(TypeDecorator[datetime.datetime]):
    """A moment, stored and returned in UTC; one without a time zone is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a datetime needs a time zone")
        return value


def prepare(engine: AsyncEngine) -> None:
    """Teach the engine's connections what the driver leaves out. Opens nothing."""

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, kwargs: Any) -> Any:
        # Refused, unknown host, timed out: asyncpg lets the operating system's errors through,
        # and no `except SQLAlchemyError` would see them.
        try:
            return dialect.connect(*args, **kwargs)
        except OSError as error:
            reason = str(error) or "timed out"
            raise dialect.loaded_dbapi.OperationalError(reason, error) from error


def status_of(error: DBAPIError) -> int:
    """Return the status of a response to a request whose statement failed with `error`."""
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    if isinstance(error, OperationalError) or error.connection_invalidated:
        return status.HTTP_503_SERVICE_UNAVAILABLE
    if sqlstate.startswith(UNAVAILABLE):
        return status.HTTP_503_SERVICE_UNAVAILABLE
    if sqlstate.startswith(INVALID):
        return status.HTTP_422_UNPROCESSABLE_CONTENT
    if sqlstate.startswith(CONFLICT):
        return status.HTTP_409_CONFLICT
    return status.HTTP_500_INTERNAL_SERVER_ERROR
