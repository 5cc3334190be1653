"""What is PostgreSQL's own: column types, sessions, and what may be asked of the server."""

import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    Integer,
    Row,
    TypeDecorator,
    cast,
    column,
    func,
    select,
    table,
)
from sqlalchemy.ext.asyncio import async_sessionmaker

Sessionmaker = async_sessionmaker
"""What makes sessions: SQLAlchemy's own."""

READ_ONLY = func.current_setting("transaction_read_only") == "on"
"""Whether the server takes no writes: a standby, or one that was made read-only."""

# How many connections the role may open, by each limit that there is.
LIMITS = (
    cast(func.current_setting("max_connections"), Integer)
    - cast(func.current_setting("superuser_reserved_connections"), Integer)
    - func.coalesce(cast(func.current_setting("reserved_connections", True), Integer), 0),
    select(func.nullif(column("rolconnlimit", Integer), -1))
    .select_from(table("pg_roles"))
    .where(column("rolname") == func.session_user())
    .scalar_subquery(),
    select(func.nullif(column("datconnlimit", Integer), -1))
    .select_from(table("pg_database"))
    .where(column("datname") == func.current_database())
    .scalar_subquery(),
)
SERVER = select(
    func.current_setting("server_version").label("version"),
    func.least(*LIMITS, type_=Integer).label("connections"),
)
"""What the doctor asks."""


class BigIntegerKey(BigInteger):
    """A 64-bit auto-incrementing primary key."""


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


def judge(server: Row[Any], connections: int) -> tuple[str, str]:
    """Return a description of the server, and a problem if it allows fewer than `connections`."""
    use = f"{connections} of its {server.connections} connections may be opened"
    if connections <= server.connections:
        return f"PostgreSQL {server.version}; {use}", ""
    remedy = "lower DATABASE_POOL_SIZE, or raise max_connections or the role's or database's limit"
    return "", f"{use}; {remedy}"
