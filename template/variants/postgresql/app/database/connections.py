"""asyncpg's connections: their state, their setup, errors that end one, and the order of hosts."""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi, PGDialect_asyncpg
from sqlalchemy.engine.interfaces import ExceptionContext

logger = logging.getLogger(__name__)

PING_TIMEOUT = 1.0  # seconds; after that, a new connection is opened
SILENT_FOR = 30.0  # seconds for which a host that timed out is tried last

DRIVER_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

READ_ONLY = "25006"
# SQLSTATEs after which the next statement needs another connection. After the last two the caches of
# this one are stale: a type was recreated, or a prepared statement discarded.
LOST = ("08", READ_ONLY, "57P", "26000", "XX000")


class OutcomeUnknown(AsyncAdapt_asyncpg_dbapi.OperationalError):
    """COMMIT was sent and not answered: the transaction may be committed or not."""


class NoAnswer(TimeoutError):
    """A statement was sent and not answered in time; the message names the host."""

    def __init__(self, address: tuple[Any, Any]) -> None:
        super().__init__(f"{address_text(address)}: no answer within DATABASE_COMMAND_TIMEOUT")


def address_text(address: tuple[Any, Any]) -> str:
    return ":".join(str(part) for part in address if part) or "the default host"


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """asyncpg's connection, with the time (`time.monotonic()`) at which it was last known good."""

    good_at = 0.0
    writes = True  # whether it needs a server that accepts writes
    address: tuple[Any, Any] = (None, None)  # host and port

    def is_read_only(self) -> bool:
        """Return whether the server reports itself as read-only (PostgreSQL 14 and later)."""
        reported = self.get_settings()
        names = ("in_hot_standby", "default_transaction_read_only")
        return any(getattr(reported, name, "off") == "on" for name in names)

    async def ping(self) -> None:
        await self.execute("SELECT 1", timeout=PING_TIMEOUT)

    async def lower_limits(self, limits: Mapping[str, int]) -> None:
        """Lower the session's timeouts to these, in milliseconds.

        A stricter timeout of the role or the database stays; one that the server does not know is
        skipped.
        """
        rows = ", ".join(f"('{name}', {limit})" for name, limit in limits.items())
        await self.execute(
            f"SELECT set_config(name, most::text, false) FROM (VALUES {rows}) AS limits (name, most)"
            " JOIN pg_settings USING (name)"
            " WHERE CASE vartype WHEN 'integer' THEN setting::bigint END NOT BETWEEN 1 AND most"
        )


class Hosts:
    """The order in which hosts are tried: as configured, with those that timed out last."""

    def __init__(self) -> None:
        self._silent_at: dict[tuple[Any, Any], float] = {}
        self._several = False

    def order(
        self, hosts: Any, ports: Any, targets: Iterable[str | None]
    ) -> list[tuple[str | None, tuple[Any, Any]]]:
        """Return each host with each state that it is asked for, in this order."""
        self._several = isinstance(hosts, list)
        pairs = list(zip(hosts, ports, strict=True)) if self._several else [(hosts, ports)]
        return sorted(product(targets, pairs), key=lambda tried: self._is_silent(tried[1]))

    def _is_silent(self, address: tuple[Any, Any]) -> bool:
        return self._silent_at.get(address, -math.inf) > time.monotonic() - SILENT_FOR

    def note(self, address: tuple[Any, Any], error: BaseException | None) -> None:
        if isinstance(error, TimeoutError):
            if self._several and not self._is_silent(address):
                text = "silent: %s did not answer; the other hosts are tried before it for %g s"
                logger.warning(text, address_text(address), SILENT_FOR)
            self._silent_at[address] = time.monotonic()


def set_up(
    dialect: PGDialect_asyncpg, connection: Any, limits: Mapping[str, int] | None, deadline: float
) -> None:
    async def set_codecs_and_limits(driver: Connection) -> None:
        async with asyncio.timeout_at(deadline):
            for set_codec in (dialect.setup_asyncpg_json_codec, dialect.setup_asyncpg_jsonb_codec):
                await set_codec(connection)  # type: ignore[no-untyped-call]
            if limits:
                await driver.lower_limits(limits)

    try:
        connection.run_async(set_codecs_and_limits)
    except BaseException:
        connection.driver_connection.terminate()
        raise


def ends_connection(error: Any, connection: Any) -> bool:
    """Return whether the statement after `error` needs another connection."""
    sqlstate = getattr(error, "sqlstate", None) or ""
    if sqlstate == READ_ONLY and connection and not connection.driver_connection.writes:
        return False  # as requested
    if isinstance(error, OutcomeUnknown | AsyncAdapt_asyncpg_dbapi.InternalClientError):
        return True  # the second: the server has announced the session's end
    return sqlstate.startswith(LOST)


def handle_error(context: ExceptionContext) -> NoAnswer | None:
    """Keep a connection from returning to the pool in an implicit transaction; name a silent host.

    asyncpg prepares a statement without the protocol's Sync. If it then refuses a parameter outside
    a transaction, nothing is rolled back, and the server keeps its locks until a Sync.
    """
    error = context.original_exception
    if context.is_disconnect:
        if context.connection is not None and not context.connection.invalidated:
            lost: Any = context.connection.connection.driver_connection
            dialect: Any = context.dialect
            dialect.hosts.note(lost.address, error.__cause__ or error)
        # The others may serve: they are pinged before they are used.
        context.invalidate_pool_on_disconnect = False
    elif context.connection is not None and context.execution_context is not None:
        connection: Any = context.connection.connection.dbapi_connection
        if connection.autocommit:
            try:
                connection.run_async(Connection.ping)
            except DRIVER_ERRORS:
                context.is_disconnect = True
    if isinstance(error, TimeoutError) and context.connection is not None:
        silent: Any = context.connection.connection.driver_connection
        return NoAnswer(silent.address)
    return None
