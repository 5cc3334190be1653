"""What is SQLite's own: connections, column types, and what its errors mean."""

import datetime
import logging
import sqlite3
from typing import Any

from sqlalchemy import Connection, DateTime, Dialect, Integer, TypeDecorator, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

READ_OPTIONS: dict[str, Any] = {"sqlite_begin": None}
"""Execution options under which a statement runs outside a transaction and takes no lock."""

# Result codes, https://sqlite.org/rescode.html
STATUSES = {
    sqlite3.SQLITE_CONSTRAINT_NOTNULL: 422,
    sqlite3.SQLITE_CONSTRAINT_CHECK: 422,
    sqlite3.SQLITE_CONSTRAINT: 409,
    sqlite3.SQLITE_BUSY: 503,
    sqlite3.SQLITE_LOCKED: 503,
    sqlite3.SQLITE_NOMEM: 503,
    sqlite3.SQLITE_READONLY: 503,
    sqlite3.SQLITE_IOERR: 503,
    sqlite3.SQLITE_CORRUPT: 503,
    sqlite3.SQLITE_FULL: 503,
    sqlite3.SQLITE_CANTOPEN: 503,
    sqlite3.SQLITE_NOTADB: 503,
}


class BigIntegerKey(Integer):
    """A 64-bit primary key that the database counts up: only a column of type INTEGER does."""


class UTCDateTime(TypeDecorator[datetime.datetime]):
    """A moment, stored and returned in UTC; one without a time zone is refused."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime needs a time zone")
        return value.astimezone(datetime.UTC).replace(tzinfo=None)  # the column keeps no offset

    def process_result_value(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        return None if value is None else value.replace(tzinfo=datetime.UTC)


def prepare(engine: AsyncEngine) -> None:
    """Teach the engine's connections what the driver leaves out. Opens nothing."""
    # At DEBUG the driver would print the parameters of every statement.
    logging.getLogger("aiosqlite").setLevel(logging.INFO)

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA synchronous = NORMAL")  # safe with the write-ahead log
        cursor.close()
        connection.isolation_level = None  # or the driver begins, and not before the first write

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail at once, whatever the timeout,
        # if another had written in between: so each takes the file's write lock when it begins.
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        if mode:
            connection.exec_driver_sql(f"BEGIN {mode}")


def status_of(error: DBAPIError) -> int:
    """Return the status of a response to a request whose statement failed with `error`."""
    code = getattr(error.driver_exception, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return STATUSES.get(code) or STATUSES.get(code & 0xFF, 500)  # the low byte: the primary code
