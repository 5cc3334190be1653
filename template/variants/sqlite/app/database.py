"""What is SQLite's own: connections, column types, and what its errors mean."""

import asyncio
import datetime
import logging
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sqlalchemy import Connection, DateTime, Dialect, Integer, TypeDecorator, event
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

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


class Writer(Session):
    """Waits for its turn when it first needs a connection, and holds none meanwhile."""

    def get_bind(self, *arguments: Any, **options: Any) -> Any:
        if take_turn := self.info.get("take_turn"):
            await_only(take_turn())
            del self.info["take_turn"]
        return super().get_bind(*arguments, **options)


class Sessionmaker(async_sessionmaker[AsyncSession]):
    """Lets one transaction in after the other, as the file has one writer at a time.

    The others wait without a connection, or they would leave none in the pool for those who read.
    A turn begins with the first statement: what a handler does before it keeps nobody waiting.
    """

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        super().__init__(engine, sync_session_class=Writer, **options)
        pool: Any = engine.pool
        self._timeout: float = pool.timeout()
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[AsyncSession]:  # type: ignore[override]
        async with AsyncExitStack() as stack:

            async def take_turn() -> None:
                async with asyncio.timeout(self._timeout):
                    await stack.enter_async_context(self._turn)

            async with super().begin() as session:
                session.info["take_turn"] = take_turn
                yield session


def prepare(engine: AsyncEngine) -> None:
    """Teach the engine's connections what the driver leaves out. Opens nothing."""
    # At DEBUG the driver would print the parameters of every statement.
    logging.getLogger("aiosqlite").setLevel(logging.INFO)

    @event.listens_for(engine.sync_engine, "do_connect")
    def check_file(dialect: Any, record: Any, args: list[str], kwargs: Any) -> None:
        # SQLite would make a file that is not there, without tables, and would open one that may
        # not be written to for reads alone, as long as the connection lasts.
        if not os.access(args[0], os.R_OK | os.W_OK):
            error = sqlite3.OperationalError(f"{args[0]} is missing or may not be written to")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error

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


def status_of(error: DBAPIError) -> int:
    """Return the status of a response to a request whose statement failed with `error`."""
    code = getattr(error.driver_exception, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return STATUSES.get(code) or STATUSES.get(code & 0xFF, 500)  # the low byte: the primary code
