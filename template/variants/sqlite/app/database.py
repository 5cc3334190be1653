"""What is SQLite's own: connections, column types, and what its errors mean."""

import asyncio
import datetime
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import DateTime, Integer, Row, TypeDecorator, column, event, func, select
from sqlalchemy import Dialect as AnyDialect
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

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
        self, value: datetime.datetime | None, dialect: AnyDialect
    ) -> datetime.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime needs a time zone")
        return value.astimezone(datetime.UTC).replace(tzinfo=None)  # the column keeps no offset

    def process_result_value(
        self, value: datetime.datetime | None, dialect: AnyDialect
    ) -> datetime.datetime | None:
        return None if value is None else value.replace(tzinfo=datetime.UTC)


class Writer(Session):
    """One of many that take turns, as the file has one writer at a time.

    It waits when it first needs a connection, and holds none meanwhile, or there would be none left
    in the pool for those who read. What a handler does before its first statement keeps nobody
    waiting.
    """

    _has_turn = False

    def get_bind(self, *arguments: Any, **options: Any) -> Any:
        if not self._has_turn:
            await_only(self._take_turn())
        return super().get_bind(*arguments, **options)

    async def _take_turn(self) -> None:
        async with asyncio.timeout(self.info["timeout"]):
            await self.info["turn"].acquire()
        self._has_turn = True

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._has_turn:
                self._has_turn = False
                self.info["turn"].release()


class Sessionmaker(async_sessionmaker[AsyncSession]):
    """Makes sessions that take turns to write."""

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        pool: Any = engine.pool
        info = {"turn": asyncio.Lock(), "timeout": pool.timeout()}
        super().__init__(engine, sync_session_class=Writer, info=info, **options)


class Dialect(SQLiteDialect_aiosqlite):
    """SQLAlchemy's, with transactions that can't fail half-way, and connections to this very file."""

    supports_statement_cache = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._files: WeakKeyDictionary[Any, tuple[str, object]] = WeakKeyDictionary()
        self._autocommit: WeakSet[Any] = WeakSet()
        # At DEBUG the driver would print the parameters of every statement.
        logging.getLogger("aiosqlite").setLevel(logging.INFO)

    def connect(self, *args: Any, **options: Any) -> DBAPIConnection:
        [path] = args
        # SQLite would make a file that is not there, without tables, and would open one that may
        # not be written to for reads alone, as long as the connection lasts.
        if not os.access(path, os.R_OK | os.W_OK):
            error = sqlite3.OperationalError(
                f"{path} is missing (alembic upgrade head makes it) or read-only"
            )
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        # By itself, the driver would begin a transaction no sooner than with its first write.
        uri = f"{Path(path).absolute().as_uri()}?mode=rw"  # should it go missing just now
        connection: Any = super().connect(uri, uri=True, isolation_level=None, **options)
        opened = connection.driver_connection
        await_only(opened.execute("PRAGMA foreign_keys = ON"))
        # With less, a power failure would take the last commits with it.
        await_only(opened.execute("PRAGMA synchronous = FULL"))
        self._files[opened] = path, identity(path)
        return connection  # type: ignore[no-any-return]

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Say whether a connection is still good, which the pool asks at every checkout.

        Moved, deleted, or another one restored in its place: what a connection that is still open
        writes to such a file, nobody would find again.
        """
        path, opened = self._files[dbapi_connection.driver_connection]
        return identity(path) == opened

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        # SQLAlchemy's way takes four calls to the driver's thread, there and back.
        if level == "AUTOCOMMIT":
            self._autocommit.add(dbapi_connection.driver_connection)
        else:
            self._autocommit.discard(dbapi_connection.driver_connection)

    def do_begin(self, dbapi_connection: Any) -> None:
        # A transaction that reads first and writes later would fail at once, whatever the timeout,
        # if another had written in between: so each takes the file's write lock when it begins.
        if dbapi_connection.driver_connection not in self._autocommit:
            await_only(dbapi_connection.driver_connection.execute("BEGIN IMMEDIATE"))

    def do_commit(self, dbapi_connection: Any) -> None:
        # SQLite keeps a transaction open whose COMMIT fails, as a deferred constraint lets it.
        try:
            super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        except sqlite3.Error:
            self.do_rollback(dbapi_connection)
            raise

    def do_rollback(self, dbapi_connection: Any) -> None:
        if dbapi_connection.driver_connection.in_transaction:
            super().do_rollback(dbapi_connection)  # type: ignore[no-untyped-call]


@event.listens_for(Dialect, "handle_error")
def wrap_overflow(context: ExceptionContext) -> StatementError | None:
    # The driver's, for an integer of more than 64 bits; SQLAlchemy would let it through bare.
    error = context.original_exception
    if not isinstance(error, OverflowError):
        return None
    return StatementError(str(error), context.statement, None, error, hide_parameters=True)


def identity(path: str) -> object:
    """Return what tells a file from any other that has been or will be at its path."""
    try:
        found = os.stat(path)
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
