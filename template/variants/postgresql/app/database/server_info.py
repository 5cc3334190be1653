"""What readiness and the doctor ask the server."""

from sqlalchemy import Integer, Row, cast, column, func, select, table

READ_ONLY = func.current_setting("transaction_read_only") == "on"
"""Whether the server accepts no writes: a standby, or one that was set to read-only."""

# How many connections each limit lets the role open.
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


def describe_server(server: Row[str, int], connections: int) -> tuple[str, str]:
    """Return a description of the server, and a problem if it allows fewer than `connections`."""
    use = f"this service may open {connections} of its {server.connections} connections"
    if connections <= server.connections:
        return f"PostgreSQL {server.version}; {use}", ""
    remedy = "lower DATABASE_POOL_SIZE, or raise max_connections or the role's or database's limit"
    return "", f"{use}; {remedy}"
