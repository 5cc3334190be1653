"""What migrations ask of PostgreSQL: no limits but for locks, and to be missed soon if they die."""

import re
import sys
from typing import Any

from alembic.ddl.postgresql import PostgresqlImpl
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app import NAME
from migrations.comparing import quoted

# Every request that needs a table queues behind a migration that waits for its lock.
LOCK_TIMEOUT = "1s"
# The role's own would end a migration that takes its time, or waits for its turn.
NO_LIMITS = """
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN (
        'statement_timeout', 'lock_timeout', 'transaction_timeout',
        'idle_in_transaction_session_timeout', 'idle_session_timeout'
    )
"""
PARAMETERS = {"application_name": f"{NAME} migrations"}
# The locks of a migration that was killed are free in 2 s, those of one whose host was lost in 15.
# A server on Windows, as in development, refuses some of these.
if sys.platform != "win32":
    PARAMETERS |= {
        "client_connection_check_interval": "2000",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "2",
    }


class PostgreSQL(PostgresqlImpl):
    """Alembic takes the last class that was defined for a database."""

    __dialect__ = "postgresql"

    def compare_server_default(
        self, inspector_column: Any, metadata_column: Any, wanted: str | None, found: str | None
    ) -> bool:
        plain = re.sub(r"::[^']+$", "", found or "")
        if wanted is not None and plain in (wanted, quoted(wanted)):
            return False
        try:
            with self.connection.begin_nested():  # type: ignore[union-attr]
                differs: bool = super().compare_server_default(  # type: ignore[no-untyped-call]
                    inspector_column, metadata_column, wanted, found
                )
                return differs
        except DBAPIError:  # the server was asked, and does not compare such values
            return True

    def emit_begin(self) -> None:  # of `--sql`
        super().emit_begin()
        self.static_output(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';")


def limit_locks(connection: Connection) -> None:
    # What runs outside of transactions lets others through, and is half done when it is ended.
    autocommit = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
    connection.exec_driver_sql(f"SET lock_timeout = '{0 if autocommit else LOCK_TIMEOUT}'")
