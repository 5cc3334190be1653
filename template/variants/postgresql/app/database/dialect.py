"""The dialect: opens, pings, terminates and closes connections in bounded time."""

import asyncio
import time
from typing import Any

from sqlalchemy import event
from sqlalchemy.dialects import registry
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError

from app.database.check_constraints import CheckedDialect
from app.database.connections import (
    DRIVER_ERRORS,
    Connection,
    Hosts,
    NoAnswer,
    OutcomeUnknown,
    address_text,
    ends_connection,
    handle_error,
    set_up,
)
from app.database.url import READING

PING_AFTER = 1.0  # seconds for which a connection is trusted without a ping
CLOSE_TIMEOUT = 2.0  # seconds for the server to cancel the statement and close the connection


class Dialect(CheckedDialect):
    """asyncpg's dialect with bounded waits: connecting, pinging and closing have their timeouts.

    A terminated connection is closed on the server too, which cancels its statement.
    """

    supports_statement_cache = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.closing: set[asyncio.Task[None]] = set()
        self.unreachable = False  # since the last attempt to connect
        self._doubted_at = 0.0  # when a connection was terminated: ping the others
        self._unanswered_at = 0.0  # when a close timed out
        self.hosts = Hosts()

    def connect(self, *args: Any, **options: Any) -> DBAPIConnection:
        """Connect to the first suitable host; `timeout`, in seconds, applies to each of them.

        Raises:
            OperationalError: the DBAPI's, whatever failed: it is not the request's fault.
        """
        limits = options.pop("limits", None)
        timeout = options.setdefault("timeout", 60)  # asyncpg's own
        wanted = options.pop("target_session_attrs", None)
        targets = ("standby", "any") if wanted == "prefer-standby" else (wanted,)
        tried = self.hosts.order(options.pop("host", None), options.pop("port", None), targets)
        errors: dict[str, Exception] = {}
        for target, (host, port) in tried:
            address = {"host": host, "port": port, "target_session_attrs": target}
            start = asyncio.get_running_loop().time()
            try:
                connection: Any = super().connect(
                    *args, **options, **address, connection_class=Connection
                )
                set_up(self, connection, limits, start + timeout)
            except Exception as error:  # noqa: BLE001 - no list of classes would be complete
                errors[address_text((host, port))] = error
                self.hosts.note((host, port), error)
            else:
                driver: Connection = connection.driver_connection
                driver.address, driver.writes = (host, port), wanted not in READING
                driver.good_at = time.monotonic()
                self.unreachable = False
                return connection  # type: ignore[no-any-return]
        reasons = (f"{address}: {str(error) or 'timed out'}" for address, error in errors.items())
        self.unreachable = True
        *_, last = errors.values()
        raise self.loaded_dbapi.OperationalError("; ".join(reasons), last) from last

    def on_connect(self) -> None:  # SQLAlchemy's would let the driver's errors through
        return None

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        lost = super().is_disconnect(e, connection, cursor)  # type: ignore[no-untyped-call]
        return bool(lost) or ends_connection(e, connection)

    def do_ping(self, dbapi_connection: Any) -> bool:
        """Return whether a connection is still good; the pool calls it at every checkout.

        Raises:
            DisconnectionError: the server has closed it, which says nothing of the pool's others.
        """
        connection: Connection = dbapi_connection.driver_connection
        if connection.is_closed():
            raise DisconnectionError
        now = time.monotonic()
        if connection.good_at <= max(now - PING_AFTER, self._doubted_at):
            try:
                dbapi_connection.run_async(Connection.ping)
            except DRIVER_ERRORS as error:
                self.hosts.note(connection.address, error)
                if connection.is_closed():
                    raise DisconnectionError from error
                return False
            if connection.writes and connection.is_read_only():
                return False  # another host may accept writes by now
        connection.good_at = now
        return True

    def do_commit(self, dbapi_connection: Any) -> None:
        connection: Connection = dbapi_connection.driver_connection
        lost = connection.is_closed()  # before anything was sent
        try:
            super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        except Exception as error:
            if isinstance(error, TimeoutError) or connection.is_closed() and not lost:
                reason = str(error) or str(NoAnswer(connection.address))
                raise OutcomeUnknown(reason, error) from error  # type: ignore[no-untyped-call]
            raise

    def do_close(self, dbapi_connection: Any) -> None:
        connection: Connection = dbapi_connection.driver_connection
        if connection.good_at < self._unanswered_at:  # the server would not answer this either
            connection.terminate()
        else:
            dbapi_connection.run_async(self._close)

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close an invalidated or expired connection in the background."""
        self._doubted_at = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # collected after the loop was closed
            dbapi_connection.driver_connection.terminate()
            return
        task = loop.create_task(self._close(dbapi_connection.driver_connection))
        self.closing.add(task)
        task.add_done_callback(self.closing.discard)

    async def _close(self, connection: Connection) -> None:
        # The driver first waits for the server to cancel the running statement.
        try:
            await connection.close(timeout=CLOSE_TIMEOUT)
        except DRIVER_ERRORS:
            self._unanswered_at = time.monotonic()


event.listen(Dialect, "handle_error", handle_error)


def register() -> None:
    """Let `create_async_engine` use this dialect for the driver."""
    registry.register("postgresql.asyncpg", __name__, Dialect.__name__)
