"""The locks of migrations: one process migrates at a time, and no table is locked for long."""

import asyncio
import logging
import sys

from sqlalchemy import Connection, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app import NAME
from migrations.runner import POLL

LOCK = 5_390_771_402  # an arbitrary number, the same in every replica
# Requests for a table queue behind a migration that waits for its lock.
LOCK_TIMEOUT = "1s"
# The role's own timeouts would end a slow migration, or one that waits for another process.
NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN (
        'statement_timeout', 'lock_timeout', 'transaction_timeout',
        'idle_in_transaction_session_timeout', 'idle_session_timeout'
    )
"""
PARAMETERS = {"application_name": f"{NAME} migrations"}
# The locks of a killed migration are released in 2 s, those of one whose host is lost in 15. A
# server on Windows, as in development, refuses some of these.
if sys.platform != "win32":
    PARAMETERS |= {
        "client_connection_check_interval": "2000",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "2",
    }

logger = logging.getLogger("migrations")


async def take_lock(connection: AsyncConnection) -> None:
    """Wait until no other process migrates; the lock ends with the connection.

    It polls, since a statement that waits is in a transaction: CREATE INDEX CONCURRENTLY waits for
    all transactions, and the two would deadlock.
    """
    await connection.execution_options(isolation_level="AUTOCOMMIT")
    await connection.exec_driver_sql(NO_LIMITS)
    waits = False
    while not await connection.scalar(select(func.pg_try_advisory_lock(LOCK))):
        if not waits:
            logger.info("another process migrates: waiting for it")
        waits = True
        await asyncio.sleep(POLL)
    await connection.rollback()
    await connection.execution_options(isolation_level="READ COMMITTED")


def limit_locks(connection: Connection) -> None:
    # CREATE INDEX CONCURRENTLY, outside a transaction, blocks no others and would be left half done.
    autocommit = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    connection.exec_driver_sql(f"SET lock_timeout = '{0 if autocommit else LOCK_TIMEOUT}'")
