"""What is SQLite's own: connections, column types, and what its errors mean."""

import asyncio
import datetime
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    Integer,
    Row,
    TypeDecorator,
    column,
    event,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

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


# What the doctor asks.
SERVER = select(func.sqlite_version().label("version"), column("journal_mode")).select_from(
    func.pragma_journal_mode()
)


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


class Sessionmaker(async_sessionmaker[AsyncSession]):
    """Begins one transaction after the other, as the file has one writer at a time.

    They wait here, without a connection, or they would leave none in the pool for those who read.
    """

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        super().__init__(engine, **options)
        pool: Any = engine.pool
        self._timeout: float = pool.timeout()
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncSession]:  # type: ignore[override]
        async with asyncio.timeout(self._timeout):
            await self._turn.acquire()
        try:
            async with super().begin() as session:
                yield session
        finally:
            self._turn.release()


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

        record.info["file"] = file_at(engine)

    @event.listens_for(engine.sync_engine, "checkout")
    def checkout(connection: Any, record: Any, proxy: Any) -> None:
        # Moved, deleted, or another one restored in its place: what a connection that is still
        # open writes there, nobody would find again.
        if record.info["file"] != file_at(engine):
            raise DisconnectionError("the file was replaced")

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail at once, whatever the timeout,
        # if another had written in between: so each takes the file's write lock when it begins.
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        if mode:
            connection.exec_driver_sql(f"BEGIN {mode}")


def file_at(engine: AsyncEngine) -> tuple[int, int] | None:
    """Return what tells the file from any other that has been or will be at its path."""
    try:
        found = os.stat(engine.url.database or "")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def judge(server: Row[Any], connections: int) -> tuple[str, str]:
    """Say what the database is, and what is wrong with it for so many connections, or nothing."""
    text = f"SQLite {server.version}; {connections} connections may be opened"
    if server.journal_mode == "wal":
        return text, ""
    return "", "not in WAL mode, so that readers and writers wait; run alembic upgrade head"


def status_of(error: DBAPIError) -> int:
    """Return the status of a response to a request whose statement failed with `error`."""
    code = getattr(error.driver_exception, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return STATUSES.get(code) or STATUSES.get(code & 0xFF, 500)  # the low byte: the primary code
