"""The dialect: opens, checks and terminates connections, and begins transactions."""

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet

from sqlalchemy import Engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import StatementError

from app.database.check_constraints import CheckedDialect
from app.database.connections import (
    Connections,
    OutcomeUnknown,
    check_file,
    files,
    identity,
    set_up,
    unavailable,
)
from app.database.pool import await_

# Errors of the first statement, which opens the write-ahead log or creates it.
WITHOUT_LOG = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_READONLY_DIRECTORY")


class Dialect(CheckedDialect):
    """aiosqlite's dialect: a transaction locks on BEGIN; a connection to a replaced file is discarded.

    A terminated connection ends at once, with its statement.
    """

    supports_statement_cache = True
    closing = ()  # none is awaited at shutdown: they end with the process

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.unreachable = False  # since the last attempt to connect
        self._connections = Connections()
        self._autocommit: WeakSet[Any] = WeakSet()

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        connections: Connections = engine.dialect._connections  # type: ignore[attr-defined]
        event.listen(engine.pool, "checkout", connections.note_checkout)
        event.listen(engine.pool, "checkin", connections.note_checkin)

    def connect(self, *args: Any, **options: Any) -> DBAPIConnection:
        [path] = args
        try:
            file = await_(self._connections.close_others(path))
            with self._connections.opening(path, file):
                connection = self._open(path, file, **options)
        except Exception as error:
            self.unreachable = True
            if isinstance(error, FileNotFoundError):  # it has vanished since the check
                raise unavailable(f"{path} is missing") from error
            if getattr(error, "sqlite_errorname", None) in WITHOUT_LOG:
                raise unavailable(f"no write-ahead log beside {path}: {error}") from error
            raise
        self.unreachable = False
        return connection

    def _open(self, path: str, file: object, **options: Any) -> DBAPIConnection:
        check_file(path)
        # Never create the file, even if it vanishes after the check.
        uri = f"{Path(path).absolute().as_uri()}?mode=rw"
        # In the driver's default mode, a transaction only begins with its first write.
        connection: Any = super().connect(uri, uri=True, isolation_level=None, **options)
        self._connections.add(connection.driver_connection, path, (file, None))
        try:
            # The first read opens the write-ahead log, by path: if the file was moved in between,
            # commits would go to a log without a database.
            connection.run_async(set_up)
            if identity(path) != file:
                raise unavailable(f"{path} was replaced while it was opened")
        except BaseException:
            self.do_terminate(connection)
            raise
        self._connections.add(connection.driver_connection, path, files(path))
        return connection  # type: ignore[no-any-return]

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Return whether a connection is still good; the pool asks at every checkout.

        After the file was moved, deleted or restored, an open connection still writes to the old
        inode.
        """
        return self._connections.is_good(dbapi_connection.driver_connection)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        replaced = connection is not None and not self.do_ping(connection)  # where no ping shows it
        return replaced or super().is_disconnect(e, connection, cursor)

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        # SQLAlchemy's own takes four round trips to the driver's thread.
        if level == "AUTOCOMMIT":
            self._autocommit.add(dbapi_connection.driver_connection)
        else:
            self._autocommit.discard(dbapi_connection.driver_connection)

    def do_begin(self, dbapi_connection: Any) -> None:
        # A deferred transaction that reads before it writes fails at once, whatever the timeout, if
        # another has written in between.
        if dbapi_connection.driver_connection not in self._autocommit:
            dbapi_connection.run_async(lambda connection: connection.execute("BEGIN IMMEDIATE"))

    def do_commit(self, dbapi_connection: Any) -> None:
        # If COMMIT fails, for a deferred constraint say, the transaction stays open.
        try:
            if not self.do_ping(dbapi_connection):
                raise unavailable("the file was replaced during the transaction")
            super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
            if not self.do_ping(dbapi_connection):
                raise OutcomeUnknown("the file was replaced during the commit")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # the pool will discard what can't be rolled back
                self.do_rollback(dbapi_connection)
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
                raise OutcomeUnknown(*error.args) from error
            raise

    def do_rollback(self, dbapi_connection: Any) -> None:
        if dbapi_connection.driver_connection.in_transaction:
            super().do_rollback(dbapi_connection)  # type: ignore[no-untyped-call]

    def do_close(self, dbapi_connection: Any) -> None:
        self._connections.discard(dbapi_connection.driver_connection)
        super().do_close(dbapi_connection)  # type: ignore[no-untyped-call]

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close an invalidated or expired connection in the background."""
        connection = dbapi_connection.driver_connection
        try:
            self._connections.give_up(connection)
        except RuntimeError:  # collected after the loop was closed
            connection.stop()


@event.listens_for(Dialect, "handle_error")
def wrap_refusal(context: ExceptionContext) -> StatementError | None:
    # SQLAlchemy does not wrap the driver's exceptions for an integer of more than 64 bits, or a
    # text that is not Unicode.
    error = context.original_exception
    if not isinstance(error, OverflowError | UnicodeError):
        return None
    return StatementError(str(error), context.statement, None, error, hide_parameters=True)


def register() -> None:
    """Let `create_async_engine` use this dialect for the driver."""
    registry.register("sqlite.aiosqlite", __name__, Dialect.__name__)
